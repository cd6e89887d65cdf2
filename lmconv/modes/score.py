"""``--mode score``: the exact likelihood of each image, or of a region of it given the rest."""

import csv
import itertools
import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmconv.completion import check_hole
from lmconv.file_names import printable
from lmconv.image_model import ensemble
from lmconv.modes import UsageError
from lmconv.modes.regions import hole_name, scored_box, scored_pixels
from lmconv.modes.results import ResultFiles
from lmconv.modes.run import Run, checked_one_size
from lmconv.pixel_values import ImageShape
from lmconv.plots import plot_likelihood_maps
from lmconv.scoring import summarize
from utils import nats_to_bpd, progress, write_atomically

__all__ = ["check", "run"]

log = logging.getLogger(__name__)

# A picture of more images would be hard to look at.
_IMAGES_PER_MAP = 12


def check(run: Run) -> None:
    """Raise UserError if the region or the images do not fit the model."""
    args = run.args
    checked_one_size(run)
    if "full" not in (args.sample_region, args.test_region):
        raise UsageError("--sample_region and --test_region contradict each other: give only one")
    run.check_images(partial(_check_size, run))


def _check_size(run: Run, shape: ImageShape) -> None:
    """Raise UserError or ValueError if images of a size have no such region or orders."""
    pixels = scored_pixels(run.args, shape)
    if run.args.test_context == "visible":
        if pixels.all():
            raise UsageError("--test_context visible needs a region: give --hole_mask or a box")
        check_hole(run.model, pixels, shape)
    run.model.orders(shape)


def run(run: Run) -> None:
    """Write the nats and bits per dimension of each image, one line for each.

    ``scores.csv`` (whose name ends with the region and the context, if they are not the default,
    and with a number if there are scores of other settings) has the image, nats and bits per
    dimension of the ensemble of ``--test_masks``, and those of each of its orders; of images at
    their own sizes also the size. ``scores.json`` has the settings and the means. If the run is
    interrupted, what is finished is kept in ``scores_unfinished.csv``. With ``--likelihood_map``,
    pictures show the bits of each pixel, averaged over the orders.
    """
    args, indices = run.args, run.order_indices("test_masks")
    data = run.open_images()
    files = ResultFiles(run, f"scores{_name(run, (data.own_shapes or run.image_shapes)[0])}")
    scores, scorer = _Scores(indices, args.own_sizes), None
    try:
        for batch in progress(run.batches_of(data), "scoring"):
            shape = (batch.shape[1], batch.shape[2], batch.shape[3])
            if scorer is None or scorer.image_shape != shape:
                scorer = _Scorer(run, shape, indices)
            maps, pixels = scorer.maps(batch), scorer.pixels  # K x B x H x W
            first = len(scores.names)
            names = [data.name(first + index) for index in range(len(batch))]
            scores.add(names, shape, int(pixels.sum()), maps[:, :, pixels].double().sum(dim=2))
            if args.likelihood_map:
                bits = (-maps.double().mean(dim=0) / math.log(2)).masked_fill(~pixels, math.nan)
                _draw(run, files.name, batch, bits, names, first)
    except BaseException:
        if scores.names:
            _keep(scores, ResultFiles(run, f"{files.name}_unfinished"), args.dataset)
        raise
    path = scores.write(files, args.dataset)
    mean = -scores.ensemble().mean().item()
    log.info("%d images, %.3f nats on average, in %s", len(scores.names), mean, path)


class _Scorer:
    """Scores images of one size, under the orders with these indices.

    Attributes:
        image_shape: (C, H, W).
        pixels: the pixels to sum over, ``H x W``, bool.
    """

    def __init__(self, run: Run, image_shape: ImageShape, indices: Sequence[int]) -> None:
        self.image_shape, self._model = image_shape, run.model
        self.pixels = scored_pixels(run.args, image_shape)
        all_orders = run.model.orders(image_shape)
        self._orders = [all_orders[index] for index in indices]
        if run.args.test_context == "visible":
            self._orders = [order.visible_first(self.pixels) for order in self._orders]

    def maps(self, batch: Tensor) -> Tensor:
        """The nats of each pixel, ``K x B x H x W``."""
        images = batch.to(self._model.device)
        return torch.stack([each.cpu() for each in self._model.maps(images, self._orders)])


class _Scores:
    """Log-likelihoods of images as they are computed.

    Args:
        indices: indices of the K orders.
        has_sizes: whether images have sizes of their own, which are written.
    """

    def __init__(self, indices: Sequence[int], has_sizes: bool) -> None:
        self._indices, self._has_sizes = indices, has_sizes
        self.names: list[str] = []
        self._shapes: list[ImageShape] = []
        self._num_pixels: list[int] = []
        self._parts: list[Tensor] = []

    def add(
        self, names: Sequence[str], shape: ImageShape, num_pixels: int, log_likelihoods: Tensor
    ) -> None:
        """Add B images of one size, with the nats of so many pixels in each order, ``K x B``."""
        self.names += names
        self._shapes += [shape] * len(names)
        self._num_pixels += [num_pixels] * len(names)
        self._parts.append(log_likelihoods)

    def ensemble(self) -> Tensor:
        """The nats of each image under the ensemble of the orders."""
        return ensemble(torch.cat(self._parts, dim=1))

    def write(self, files: ResultFiles, dataset: str) -> str:
        """Write the CSV and the JSON, and return the name of the former."""
        joint = torch.cat(self._parts, dim=1)
        header = ["image", "nats", "bpd"]
        header += [f"{unit}_order{index}" for index in self._indices for unit in ("nats", "bpd")]
        rows: list[list[Any]] = [header + ["height", "width"] * self._has_sizes]
        nats = -torch.cat([self.ensemble()[None], joint]).T  # N x 1+K
        sizes = zip(self._shapes, self._num_pixels, strict=True)
        for name, (shape, num_pixels), values in zip(self.names, sizes, nats.tolist(), strict=True):
            each = [(value, nats_to_bpd(value, shape[0] * num_pixels)) for value in values]
            row = [printable(name), *itertools.chain.from_iterable(each)]
            rows.append(row + list(shape[1:]) * self._has_sizes)
        path = files.path(".csv")
        write_atomically(path, lambda temporary: _write_csv(temporary, rows))
        mean_pixels = sum(self._num_pixels) / len(self._num_pixels)
        sized: dict[str, Any] = {"image_shape": None, "num_pixels": mean_pixels}
        if len(set(self._shapes)) == 1:
            sized = {"image_shape": list(self._shapes[0]), "num_pixels": self._num_pixels[0]}
        summary = summarize(joint, self._indices, self._shapes[0][0] * mean_pixels)
        files.write({"dataset": dataset, **sized, "file": path.name, **summary})
        return printable(path)


def _keep(scores: _Scores, files: ResultFiles, dataset: str) -> None:
    """Write the scores of a run that is interrupted, unless an earlier one has come further."""
    number = len(scores.names)
    if files.hold_more_than(number):
        log.warning("%s has more scores, and stays", printable(files.path(".csv")))
        return
    path = scores.write(files, dataset)
    log.warning("the scores of the first %d images are kept in %s", number, path)


def _name(run: Run, shape: ImageShape) -> str:
    """What names of files call the region and the context, with boxes as in ``--mode test``."""
    args, name = run.args, ""
    if args.hole_mask is not None or args.sample_region != "full":
        name = hole_name(args)
    elif args.test_region == "custom":
        name = "_{}-{}_{}-{}".format(*scored_box(args, shape))
    return name + "_visible" * (args.test_context == "visible")


def _draw(run: Run, name: str, images: Tensor, bits: Tensor, names: list[str], first: int) -> None:
    """Draw the bits of a batch, which begins with image ``first``, beside its images."""
    name = name.replace("scores", "likelihood", 1)
    for start in range(0, len(images), _IMAGES_PER_MAP):
        part = slice(start, start + _IMAGES_PER_MAP)
        last = first + start + len(names[part]) - 1
        path = run.run_dir / f"{name}_images{first + start}-{last}.png"
        plot_likelihood_maps(images[part], bits[part], names[part], path)
        log.info("bits of each pixel in %s", printable(path))


def _write_csv(path: Path, rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
