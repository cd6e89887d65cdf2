"""``--mode score``: the exact likelihood of each image, or of a region of it given the rest."""

import csv
import itertools
import math
from pathlib import Path

import torch
from torch import Tensor

from lmconv.modes.regions import hole_name, scored_pixels, scored_region
from lmconv.modes.run import Experiment
from lmconv.orders import visible_first
from lmconv.plots import plot_likelihood_maps
from lmconv.scoring import log_likelihood_maps
from masking import Masks
from utils import nats_to_bpd, progress, write_atomically

__all__ = ["score"]


# A picture of more would be hard to look at.
_IMAGES_PER_MAP = 12


def score(experiment: Experiment) -> None:
    """``--mode score``: write the nats and bits per dimension of each image, one line for each.

    ``scores.csv`` (its name ends with the region and the context, where they are not the default)
    has the image, nats and bits per dimension of the ensemble of ``--test_masks``, and of each of
    its orders. What is finished stays when the rest is interrupted. With ``--likelihood_map``,
    pictures show the bits of each pixel, averaged over the orders.
    """
    args, shape = experiment.args, experiment.image_shapes[0]
    experiment.load_weights()
    experiment.model.eval()
    pixels = scored_pixels(args, shape)
    num_dimensions = shape[0] * int(pixels.sum())
    indices, masks = _masks(experiment, pixels)
    data = experiment.open_images()
    header = ["image", "nats", "bpd"]
    header += [f"{unit}_order{index}" for index in indices for unit in ("nats", "bpd")]
    rows: list[list[str | float]] = []
    output = experiment.run_dir / f"scores{_name(experiment)}.csv"
    try:
        for batch in progress(data.batches(shape), "scoring"):
            maps = _maps(experiment, batch, masks)  # K x B x H x W
            joint = maps[:, :, pixels].double().sum(dim=2)  # K x B
            ensemble = torch.logsumexp(joint, dim=0) - math.log(len(joint))
            names = [data.name(len(rows) + index) for index in range(len(batch))]
            for name, nats in zip(names, -torch.cat([ensemble[None], joint]).T, strict=True):
                each = [(value, nats_to_bpd(value, num_dimensions)) for value in nats.tolist()]
                rows.append([name, *itertools.chain.from_iterable(each)])
            if args.likelihood_map:
                bits = (-maps.double().mean(dim=0) / math.log(2)).masked_fill(~pixels, math.nan)
                _draw(experiment, batch, bits, names, len(rows) - len(batch))
    finally:
        if rows:
            write_atomically(output, lambda temporary: _write_csv(temporary, header, rows))
    mean = sum(float(row[1]) for row in rows) / max(1, len(rows))
    experiment.log.info("%d images, %.3f nats on average, in %s", len(rows), mean, output)


def _name(experiment: Experiment) -> str:
    """What tells the files of a region and of a context from others, boxes as in the test."""
    args, name = experiment.args, ""
    if args.hole_mask is not None or args.sample_region != "full":
        name = hole_name(args)
    elif args.test_region == "custom":
        name = "_{}-{}_{}-{}".format(*scored_region(args, experiment.image_shapes[0]))
    return name + "_visible" * (args.test_context == "visible")


def _draw(
    experiment: Experiment, images: Tensor, bits: Tensor, names: list[str], first: int
) -> None:
    for start in range(0, len(images), _IMAGES_PER_MAP):
        part = slice(start, start + _IMAGES_PER_MAP)
        last = first + start + len(names[part]) - 1
        name = f"likelihood{_name(experiment)}_images{first + start}-{last}.png"
        path = experiment.run_dir / name
        plot_likelihood_maps(images[part], bits[part], names[part], path)
        experiment.log.info("bits of each pixel in %s", path)


def _masks(experiment: Experiment, pixels: Tensor) -> tuple[list[int], list[Masks]]:
    """The orders to score with and their masks, the scored pixels last where all else is seen."""
    shape, indices = experiment.image_shapes[0], experiment.order_indices("test_masks")
    orders = [experiment.orders(shape)[index] for index in indices]
    if experiment.args.test_context == "visible":
        orders = [visible_first(order, pixels) for order in orders]
    return indices, [experiment.masks_of(order, shape) for order in orders]


def _maps(experiment: Experiment, batch: Tensor, masks: list[Masks]) -> Tensor:
    with experiment.autocast():
        images = batch.to(experiment.device)
        maps = log_likelihood_maps(experiment.model, experiment.likelihood, images, masks)
        return torch.stack([per_pixel.cpu() for per_pixel in maps])


def _write_csv(path: Path, header: list[str], rows: list[list[str | float]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(itertools.chain([header], rows))
