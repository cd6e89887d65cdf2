"""``--mode score``: the exact likelihood of each image, or of a region of it given the rest."""

import csv
import itertools
import logging
import math
from pathlib import Path

import torch
from torch import Tensor

from lmconv.completion import check_hole
from lmconv.image_model import ensemble
from lmconv.modes import UsageError
from lmconv.modes.regions import hole_name, scored_box, scored_pixels
from lmconv.modes.run import Run, checked_one_size
from lmconv.orders import Order
from lmconv.plots import plot_likelihood_maps
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

    ``scores.csv`` (whose name ends with the region and the context, if they are not the default)
    has the image, nats and bits per dimension of the ensemble of ``--test_masks``, and those of
    each of its orders. What is finished is kept if the rest is interrupted. With
    ``--likelihood_map``, pictures show the bits of each pixel, averaged over the orders.
    """
    args, shape = run.args, run.image_shapes[0]
    pixels = scored_pixels(args, shape)
    num_dimensions = shape[0] * int(pixels.sum())
    indices = run.order_indices("test_masks")
    orders = [run.model.orders(shape)[index] for index in indices]
    if args.test_context == "visible":
        orders = [order.visible_first(pixels) for order in orders]
    data = run.open_images()
    header = ["image", "nats", "bpd"]
    header += [f"{unit}_order{index}" for index in indices for unit in ("nats", "bpd")]
    rows: list[list[str | float]] = []
    output = run.run_dir / f"scores{_name(run)}.csv"
    try:
        for batch in progress(data.batches(shape), "scoring"):
            maps = _maps(run, batch, orders)  # K x B x H x W
            joint = maps[:, :, pixels].double().sum(dim=2)  # K x B
            nats = -torch.cat([ensemble(joint)[None], joint]).T  # B x 1+K
            names = [data.name(len(rows) + index) for index in range(len(batch))]
            for name, values in zip(names, nats.tolist(), strict=True):
                each = [(value, nats_to_bpd(value, num_dimensions)) for value in values]
                rows.append([name, *itertools.chain.from_iterable(each)])
            if args.likelihood_map:
                bits = (-maps.double().mean(dim=0) / math.log(2)).masked_fill(~pixels, math.nan)
                _draw(run, batch, bits, names, len(rows) - len(batch))
    finally:
        if rows:
            write_atomically(output, lambda temporary: _write_csv(temporary, header, rows))
    mean = sum(float(row[1]) for row in rows) / max(1, len(rows))
    log.info("%d images, %.3f nats on average, in %s", len(rows), mean, output)


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


def _draw(run: Run, images: Tensor, bits: Tensor, names: list[str], first: int) -> None:
    for start in range(0, len(images), _IMAGES_PER_MAP):
        part = slice(start, start + _IMAGES_PER_MAP)
        last = first + start + len(names[part]) - 1
        path = run.run_dir / f"likelihood{_name(run)}_images{first + start}-{last}.png"
        plot_likelihood_maps(images[part], bits[part], names[part], path)
        log.info("bits of each pixel in %s", path)


def _write_csv(path: Path, header: list[str], rows: list[list[str | float]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(itertools.chain([header], rows))
