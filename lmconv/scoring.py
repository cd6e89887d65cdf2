"""Exact likelihoods of data sets, by order and for the ensemble, of whole images or a region."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lmconv.data.datasets import DataError, TestData
from lmconv.distributed import Processes
from lmconv.image_model import ImageModel, ensemble
from lmconv.pixel_values import ImageShape
from utils import nats_to_bpd, progress

__all__ = ["Summary", "score_data_set", "summarize"]


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
        """Add the nats of B images under K orders, ``K x B``.

        Means and squares are combined as Chan, Golub and LeVeque (1979) do.
        """
        values = torch.cat([log_likelihood, ensemble(log_likelihood)[None]])
        number = values.shape[1]
        means = values.mean(dim=1)
        self._squares = self._squares + ((values - means[:, None]) ** 2).sum(dim=1)
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
    channels, height, width = shape = image_shape or model.image_shape
    processes = processes or Processes(device=model.device)
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

    parts = processes.in_turn(data.shared_batches(shape, processes), score)
    desc, number = f"test {height}x{width}", data.num_batches()
    for part in progress(parts, desc, number, is_on=processes.is_main):
        for summary, scores in zip(summaries, part, strict=True):
            summary.add(scores)
    num_images = summaries[0].num_images
    if not num_images:
        raise DataError("the test set is empty")
    if data.num_images not in (None, num_images):
        raise RuntimeError(f"scored {num_images} of {data.num_images} test images")
    num_pixels = height * width if pixels is None else int(pixels.sum())
    plain, *labelled = [summary.result(channels * num_pixels) for summary in summaries]
    with_label = {"with_label": labelled[0]} if labelled else {}
    return {"image_shape": list(shape), **plain, **with_label}
