"""``--mode score``: the exact likelihood of each image, or of a region of it given the rest."""

import logging
import math
from functools import partial

import torch
from torch import Tensor

from lmconv.completion import check_hole
from lmconv.data.pipeline import TestData
from lmconv.file_names import printable
from lmconv.modes import UsageError
from lmconv.modes.regions import hole_name, scored_box, scored_pixels
from lmconv.modes.results import ResultFiles
from lmconv.modes.run import Run, checked_one_size
from lmconv.modes.score_parts import ScoreParts, Scores
from lmconv.orders import Order
from lmconv.pixel_values import ImageShape
from lmconv.plots import plot_likelihood_maps
from utils import progress

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
            raise UsageError(
                "--test_context visible needs a region: give --hole_mask, --sample_region or "
                "--test_region"
            )
        check_hole(run.model, pixels, shape)
    run.model.orders(shape)


def run(run: Run) -> None:
    """Write the nats and bits per dimension of each image, one line for each.

    ``scores.csv`` (whose name ends with the region and the context, if they are not the default,
    and with a number if there are scores of other settings) has the image, nats and bits per
    dimension of the ensemble of ``--test_masks``, and those of each of its orders; of images at
    their own sizes also the size; of images with labels that the model knows also the class, and
    the ensemble's nats and bits given the class. ``scores.json`` has the settings and the means. If
    the run is interrupted, what is finished is kept in ``scores_unfinished``, and the same command
    goes on from there. With ``--likelihood_map``, pictures show the bits of each pixel, averaged
    over the orders.
    """
    processes, data = run.processes, run.open_labelled()
    name = f"scores{_name(run, (data.own_shapes or run.image_shapes)[0])}"
    files = ResultFiles(run, name)
    parts = ScoreParts(run, name, run.order_indices("test_masks"), data)
    first = processes.gather(parts.num_images)[0]
    scorer = _Scorer(run, data, files.name)
    scores = processes.in_turn(run.batches_of(data, first), scorer.score)
    try:
        for batch in progress(scores, "scoring", data.num_batches(first), is_on=processes.is_main):
            if processes.is_main:
                parts.add(batch)
    except BaseException:
        if processes.is_main:
            parts.keep()
        raise
    if processes.is_main:
        path = printable(parts.finish(files))
        mean = f"{parts.mean_nats:.3f} nats on average"
        if (given_class := parts.mean_nats_given_class) is not None:
            mean += f", {given_class:.3f} given their classes"
        log.info("%d images, %s, in %s", parts.num_images, mean, path)


class _Scorer:
    """Scores batches of images, each of one size, and draws the maps that are wanted.

    Args:
        run: the run.
        data: the images.
        name: what the names of files begin with.
    """

    def __init__(self, run: Run, data: TestData, name: str) -> None:
        self._run, self._data, self._name = run, data, name
        self._shape: ImageShape | None = None

    def score(self, numbered: tuple[int, Tensor]) -> Scores:
        """Score a batch, which is given with the number of its first image."""
        first, batch = numbered
        shape = (batch.shape[1], batch.shape[2], batch.shape[3])
        if shape != self._shape:
            self._shape, self._pixels, self._orders = shape, *self._prepare(shape)
        images = batch.to(self._run.model.device)
        maps = torch.stack([each.cpu() for each in self._run.model.maps(images, self._orders)])
        names = [self._data.name(first + index) for index in range(len(batch))]
        if self._run.args.likelihood_map:
            bits = (-maps.double().mean(dim=0) / math.log(2)).masked_fill(~self._pixels, math.nan)
            _draw(self._run, self._name, batch, bits, names, first)
        nats = maps[:, :, self._pixels].double().sum(dim=2)  # K x B
        scores = Scores(names, shape, int(self._pixels.sum()), nats)
        if self._data.labels is None:
            return scores
        label = self._data.labels[first : first + len(batch)].to(images.device)
        given = self._run.model.log_likelihoods(images, self._orders, self._pixels, label)
        return scores._replace(labels=label.tolist(), given_class=given)

    def _prepare(self, image_shape: ImageShape) -> tuple[Tensor, list[Order]]:
        """The pixels to sum over, ``H x W``, and the orders for images of one size."""
        run = self._run
        pixels, all_orders = scored_pixels(run.args, image_shape), run.model.orders(image_shape)
        orders = [all_orders[index] for index in run.order_indices("test_masks")]
        if run.args.test_context == "visible":
            orders = [order.visible_first(pixels) for order in orders]
        return pixels, orders


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
