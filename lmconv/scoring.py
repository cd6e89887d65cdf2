"""Exact likelihoods of data sets, by order and for the ensemble, of whole images or a region."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmconv.data.pipeline import TestData
from lmconv.data.sources import DataError
from lmconv.distributed import Processes
from lmconv.image_model import ImageModel, ensemble
from lmconv.pixel_values import ImageShape
from utils import nats_to_bpd, progress

__all__ = ["Summary", "score_data_set", "score_sizes", "summarize"]


class Summary:
    """Means and standard errors of log-likelihoods, in memory that does not grow with the images.

    Args:
        indices: indices of the K orders.
        state: the ``state`` of another summary, to go on from.
    """

    def __init__(self, indices: Sequence[int], state: Mapping[str, Any] | None = None) -> None:
        self._indices, self.num_images = indices, 0
        self._means = self._squares = torch.zeros(len(indices) + 1, dtype=torch.float64)
        if state is not None:
            self.num_images = int(state["num_images"])
            self._means, self._squares = (_numbers(state[name]) for name in ("means", "squares"))

    @property
    def state(self) -> dict[str, Any]:
        """The summary so far as plain data: means, and sums of squared differences from them."""
        return {
            "num_images": self.num_images,
            "means": self._means.tolist(),
            "squares": self._squares.tolist(),
        }

    def add(self, log_likelihood: Tensor) -> None:
        """Add the nats of B images under K orders, ``K x B``."""
        values = torch.cat([log_likelihood, ensemble(log_likelihood)[None]])
        means = values.mean(dim=1)
        self._add(values.shape[1], means, ((values - means[:, None]) ** 2).sum(dim=1))

    @classmethod
    def joined(cls, summaries: "Sequence[Summary]") -> "Summary":
        """The summary of all images of several ones, which are about the same orders."""
        whole = cls(summaries[0]._indices)
        for each in summaries:
            whole._add(each.num_images, each._means, each._squares)
        return whole

    def _add(self, number: int, means: Tensor, squares: Tensor) -> None:
        """Add images whose means and sums of squared differences from them are given.

        They are combined as Chan, Golub and LeVeque (1979) do.
        """
        self._squares = self._squares + squares
        difference, total = means - self._means, self.num_images + number
        if self.num_images:
            self._squares += difference**2 * (self.num_images * number / total)
            means = self._means + difference * (number / total)
        self._means, self.num_images = means, total

    def result(self, num_dimensions: float) -> dict[str, Any]:
        """Mean negative log-likelihoods of each order and of their ensemble, with standard errors.

        The ensemble averages the joint likelihoods of the orders, image by image (paper, section
        5).

        Args:
            num_dimensions: number of values (pixels times channels) in an image, or in its region,
                on average.
        """
        each = []
        for mean, squares in zip(self._means.tolist(), self._squares.tolist(), strict=True):
            count = self.num_images
            stderr = math.sqrt(squares / (count - 1) / count) if count > 1 else None
            bpd = nats_to_bpd(-mean, num_dimensions)
            each.append({"nats": -mean, "bpd": bpd, "nats_stderr": stderr})
        *orders, joint = each
        return {
            "num_images": self.num_images,
            "orders": [
                {"index": index, **values}
                for index, values in zip(self._indices, orders, strict=True)
            ],
            "ensemble": joint,
        }


def _numbers(values: Sequence[float | None]) -> Tensor:
    """Numbers of a JSON, in which null stands for those that are not finite."""
    finite = [math.nan if value is None else value for value in values]
    return torch.tensor(finite, dtype=torch.float64)


def summarize(
    log_likelihood: Tensor, indices: Sequence[int], num_dimensions: float
) -> dict[str, Any]:
    """What ``Summary`` says of N images under K orders, ``K x N``."""
    summary = Summary(indices)
    summary.add(log_likelihood)
    return summary.result(num_dimensions)


def score_data_set(
    model: ImageModel,
    data: TestData,
    image_shape: ImageShape | None = None,
    order_indices: Sequence[int] | None = None,
    pixels: Tensor | None = None,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Score every test image once, at one size, under some of the model's orders.

    If the data have labels, the images are scored both without them and with them. The processes of
    a run take turns with the batches, and all of them get the result.

    Args:
        model: the model to score with.
        data: the test set.
        image_shape: (C, H, W) that the images are resized to; by default the model's own.
        order_indices: indices of the orders to use; by default all.
        pixels: the pixels to sum over, ``H x W``, bool; by default all.
        processes: the processes that share the work; by default only this one.

    Returns:
        What ``summarize`` returns, with the image shape; where there are labels, also what it
        returns for the likelihoods given the classes, as ``with_label``.

    Raises:
        DataError: the test set is empty.
        RuntimeError: the number of images loaded is not that of the data set.
    """
    shape = image_shape or model.image_shape
    own = processes or Processes(device=model.device)
    scored = _score(model, data, shape, order_indices, pixels, own)
    return {"image_shape": list(shape), **scored.result()}


def score_sizes(
    model: ImageModel,
    data: TestData,
    image_shapes: Sequence[ImageShape],
    order_indices: Sequence[int] | None = None,
    pixels: Callable[[ImageShape], Tensor] | None = None,
    processes: Processes | None = None,
) -> Iterator[dict[str, Any]]:
    """Score a test set at each of several sizes; of buckets, each image in its own one.

    Args:
        model, data, order_indices, processes: as in ``score_data_set``.
        image_shapes: (C, H, W) of each size.
        pixels: returns the pixels to sum over at a size.

    Yields:
        What ``score_data_set`` returns for each size, except for empty buckets. If several buckets
        have images, also that for the whole set, whose image shape is None, with the mean number
        of pixels that are summed over as ``num_pixels``.

    Raises:
        DataError, RuntimeError: as ``score_data_set``.
    """
    own, parts = processes or Processes(device=model.device), []
    for shape in data.used(image_shapes):
        region = None if pixels is None else pixels(shape)
        parts.append(_score(model, data, shape, order_indices, region, own))
        yield {"image_shape": list(shape), **parts[-1].result()}
    if data.own_shapes and len(parts) > 1:
        whole = _Scored.of(parts)
        num_pixels = whole.num_dimensions / image_shapes[0][0]
        yield {"image_shape": None, "num_pixels": num_pixels, **whole.result()}


class _Scored(NamedTuple):
    """The likelihoods of images.

    Attributes:
        num_dimensions: number of values of an image that are summed over, on average.
        summaries: the likelihoods without labels; where there are labels, also those with them.
    """

    num_dimensions: float
    summaries: list[Summary]

    @classmethod
    def of(cls, parts: "Sequence[_Scored]") -> "_Scored":
        """Those of all images of several parts, which are about the same orders."""
        each = zip(*(part.summaries for part in parts), strict=True)
        summaries = [Summary.joined(same) for same in each]
        dimensions = sum(part.num_dimensions * part.summaries[0].num_images for part in parts)
        return cls(dimensions / summaries[0].num_images, summaries)

    def result(self) -> dict[str, Any]:
        """What ``summarize`` returns, and with labels also ``with_label``."""
        plain, *labelled = [summary.result(self.num_dimensions) for summary in self.summaries]
        return {**plain, **({"with_label": labelled[0]} if labelled else {})}


def _score(
    model: ImageModel,
    data: TestData,
    shape: ImageShape,
    order_indices: Sequence[int] | None,
    pixels: Tensor | None,
    processes: Processes,
) -> _Scored:
    """Score the images of a test set that are used at one size; see ``score_data_set``."""
    channels, height, width = shape
    all_orders = model.orders(shape)
    indices = range(len(all_orders)) if order_indices is None else order_indices
    orders = [all_orders[index] for index in indices]
    model.network.eval()
    summaries = [Summary(list(indices)) for _ in range(1 if data.labels is None else 2)]

    def score(numbered: tuple[int, Tensor]) -> list[Tensor]:
        """The nats of a batch, ``K x B``; where there are labels, also those given the classes."""
        first, images = numbered[0], numbered[1].to(model.device)
        scores = [model.log_likelihoods(images, orders, pixels)]
        if data.labels is not None:
            label = data.labels[first : first + len(images)].to(model.device)
            scores.append(model.log_likelihoods(images, orders, pixels, label))
        return scores

    first, end = data.bounds(shape)
    parts = processes.in_turn(data.shared_batches(shape, processes, first, end), score)
    desc, number = f"test {height}x{width}", None
    if end is not None:
        number = -(-(end - first) // data.batch_size)
    for part in progress(parts, desc, number, is_on=processes.is_main):
        for summary, scores in zip(summaries, part, strict=True):
            summary.add(scores)
    num_images = summaries[0].num_images
    if not num_images:
        raise DataError("the test set is empty")
    if end is not None and num_images != end - first:
        raise RuntimeError(f"scored {num_images} of {end - first} test images")
    num_pixels = height * width if pixels is None else int(pixels.sum())
    return _Scored(channels * num_pixels, summaries)
