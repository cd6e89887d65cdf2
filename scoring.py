"""``--mode score``: the exact likelihood of each image, or of a region of it given the rest."""

import csv
import itertools
import math
from pathlib import Path

import torch
from torch import Tensor

from evaluation import log_likelihood_maps
from experiment import Experiment
from masking import Masks
from order_choice import visible_first
from plots import plot_likelihood_maps
from regions import scored_pixels
from utils import nats_to_bpd, progress, write_atomically

__all__ = ["score"]


def score(experiment: Experiment) -> None:
    """``--mode score``: write the nats and bits per dimension of each image, one line for each.

    ``scores.csv`` has the image, nats and bits per dimension of the ensemble of ``--test_masks``,
    and nats of each of its orders. With ``--likelihood_map``, pictures show the bits of each pixel,
    averaged over the orders.
    """
    args, run_dir, shape = experiment.args, experiment.run_dir, experiment.image_shapes[0]
    experiment.load_weights()
    experiment.model.eval()
    pixels = scored_pixels(args, shape)
    indices, masks = _masks(experiment, pixels)
    names, data = experiment.open_images()
    header = ["image", "nats", "bpd", *(f"nats_order{index}" for index in indices)]
    rows: list[list[str | float]] = []
    for batch in progress(data.batches(shape), "scoring"):
        maps = _maps(experiment, batch, masks)  # K x B x H x W
        joint = maps[:, :, pixels].double().sum(dim=2)  # K x B
        ensemble = -(torch.logsumexp(joint, dim=0) - math.log(len(joint)))
        batch_names = [names(len(rows) + index) for index in range(len(batch))]
        if args.likelihood_map:
            path = run_dir / f"likelihood_images{len(rows)}-{len(rows) + len(batch) - 1}.png"
            bits = (-maps.double().mean(dim=0) / math.log(2)).masked_fill(~pixels, math.nan)
            plot_likelihood_maps(batch, bits, batch_names, path)
            experiment.log.info("bits of each pixel in %s", path)
        for index, name in enumerate(batch_names):
            nats = ensemble[index].item()
            bpd = nats_to_bpd(nats, shape[0] * int(pixels.sum()))
            rows.append([name, nats, bpd, *(-joint[:, index]).tolist()])
    output = run_dir / "scores.csv"
    write_atomically(output, lambda temporary: _write_csv(temporary, header, rows))
    mean = sum(float(row[1]) for row in rows) / max(1, len(rows))
    experiment.log.info("%d images, %.3f nats on average, in %s", len(rows), mean, output)


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
