"""``--mode score``: the exact likelihood of each image, or of a region of it given the rest."""

import csv
import itertools
import logging
import math
from collections.abc import Sequence
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
from lmconv.orders import Order
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
    args, shape = run.args, checked_one_size(run)
    if "full" not in (args.sample_region, args.test_region):
        raise UsageError("--sample_region and --test_region contradict each other: give only one")
    pixels = scored_pixels(args, shape)
    if args.test_context == "visible":
        if pixels.all():
            raise UsageError("--test_context visible needs a region: give --hole_mask or a box")
        check_hole(run.model, pixels, shape)
    run.check_images()


def run(run: Run) -> None:
    """Write the nats and bits per dimension of each image, one line for each.

    ``scores.csv`` (whose name ends with the region and the context, if they are not the default,
    and with a number if there are scores of other settings) has the image, nats and bits per
    dimension of the ensemble of ``--test_masks``, and those of each of its orders. ``scores.json``
    has the settings and the means. If the run is interrupted, what is finished is kept in
    ``scores_unfinished.csv``. With ``--likelihood_map``, pictures show the bits of each pixel,
    averaged over the orders.
    """
    args, shape = run.args, run.image_shapes[0]
    pixels = scored_pixels(args, shape)
    indices = run.order_indices("test_masks")
    orders = [run.model.orders(shape)[index] for index in indices]
    if args.test_context == "visible":
        orders = [order.visible_first(pixels) for order in orders]
    data, files = run.open_images(), ResultFiles(run, f"scores{_name(run)}")
    scores = _Scores(shape, int(pixels.sum()), indices)
    try:
        for batch in progress(data.batches(shape), "scoring"):
            maps = _maps(run, batch, orders)  # K x B x H x W
            first = len(scores.names)
            names = [data.name(first + index) for index in range(len(batch))]
            scores.add(names, maps[:, :, pixels].double().sum(dim=2))
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


class _Scores:
    """Log-likelihoods of images as they are computed.

    Args:
        image_shape: (C, H, W).
        num_pixels: number of pixels of each image that are scored.
        indices: indices of the K orders.
    """

    def __init__(self, image_shape: ImageShape, num_pixels: int, indices: Sequence[int]) -> None:
        self._image_shape, self._num_pixels, self._indices = image_shape, num_pixels, indices
        self.names: list[str] = []
        self._parts: list[Tensor] = []

    def add(self, names: Sequence[str], log_likelihoods: Tensor) -> None:
        """Add B images with their nats in each order, ``K x B``."""
        self.names += names
        self._parts.append(log_likelihoods)

    def ensemble(self) -> Tensor:
        """The nats of each image under the ensemble of the orders."""
        return ensemble(torch.cat(self._parts, dim=1))

    def write(self, files: ResultFiles, dataset: str) -> str:
        """Write the CSV and the JSON, and return the name of the former."""
        joint = torch.cat(self._parts, dim=1)
        dimensions = self._image_shape[0] * self._num_pixels
        header = ["image", "nats", "bpd"]
        header += [f"{unit}_order{index}" for index in self._indices for unit in ("nats", "bpd")]
        rows: list[list[Any]] = [header]
        nats = -torch.cat([self.ensemble()[None], joint]).T  # N x 1+K
        for name, values in zip(self.names, nats.tolist(), strict=True):
            each = [(value, nats_to_bpd(value, dimensions)) for value in values]
            rows.append([printable(name), *itertools.chain.from_iterable(each)])
        path = files.path(".csv")
        write_atomically(path, lambda temporary: _write_csv(temporary, rows))
        summary = summarize(joint, self._indices, dimensions)
        shape = {"image_shape": list(self._image_shape), "num_pixels": self._num_pixels}
        files.write({"dataset": dataset, **shape, "file": path.name, **summary})
        return printable(path)


def _keep(scores: _Scores, files: ResultFiles, dataset: str) -> None:
    """Write the scores of a run that is interrupted, unless an earlier one has come further."""
    number = len(scores.names)
    if files.hold_more_than(number):
        log.warning("%s has more scores, and stays", printable(files.path(".csv")))
        return
    path = scores.write(files, dataset)
    log.warning("the scores of the first %d images are kept in %s", number, path)


def _name(run: Run) -> str:
    """What names of files call the region and the context, with boxes as in ``--mode test``."""
    args, name = run.args, ""
    if args.hole_mask is not None or args.sample_region != "full":
        name = hole_name(args)
    elif args.test_region == "custom":
        name = "_{}-{}_{}-{}".format(*scored_box(args, run.image_shapes[0]))
    return name + "_visible" * (args.test_context == "visible")


def _maps(run: Run, batch: Tensor, orders: list[Order]) -> Tensor:
    images = batch.to(run.model.device)
    return torch.stack([per_pixel.cpu() for per_pixel in run.model.maps(images, orders)])


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
