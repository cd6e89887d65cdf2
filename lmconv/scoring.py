"""Exact likelihoods of a data set: single orders, their ensemble, whole images or a region."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmconv.data.datasets import ImageShape, TestData, load_test
from lmconv.likelihoods import Likelihood
from lmconv.modes.regions import Region, scored_region
from lmconv.modes.run import Experiment
from masking import Masks
from utils import UsageError, nats_to_bpd, progress, write_json

__all__ = [
    "evaluate",
    "log_likelihood_maps",
    "log_likelihoods",
    "summarize",
    "test",
]


@torch.inference_mode()
def log_likelihoods(
    model: nn.Module,
    likelihood: Likelihood,
    images: Tensor,
    masks: Sequence[Masks],
    region: Region,
) -> Tensor:
    """Log-likelihood of each image's region under each order, given the pixels before it.

    Args:
        model: a network in evaluation mode.
        likelihood: what its output means.
        images: ``B x C x H x W`` in [-1, 1].
        masks: of K orders.
        region: the pixels to sum over; earlier pixels outside it are conditioned on.

    Returns:
        ``K x B``, nats, float64.
    """
    return torch.stack(
        [
            region.sum(per_pixel)
            for per_pixel in log_likelihood_maps(model, likelihood, images, masks)
        ]
    )


@torch.inference_mode()
def log_likelihood_maps(
    model: nn.Module, likelihood: Likelihood, images: Tensor, masks: Sequence[Masks]
) -> Iterator[Tensor]:
    """For each order: the log-likelihood of each pixel given those before it, ``B x H x W``, nats.

    Arguments as in ``log_likelihoods``.
    """
    for order_masks in masks:
        yield likelihood.log_prob_per_pixel(model(images, order_masks), images)


def summarize(
    log_likelihood: Tensor, indices: Sequence[int], num_dimensions: int
) -> dict[str, Any]:
    """Mean negative log-likelihoods of each order and of their ensemble, with standard errors.

    The ensemble averages the joint likelihoods of the orders, image by image (paper, section 5).

    Args:
        log_likelihood: ``K x N``, nats.
        indices: of the K orders.
        num_dimensions: numbers per image (or region) that the likelihood is of.
    """

    def statistics(values: Tensor) -> dict[str, Any]:
        nats = -values.mean().item()
        count = values.numel()
        stderr = (values.std() / math.sqrt(count)).item() if count > 1 else None
        return {"nats": nats, "bpd": nats_to_bpd(nats, num_dimensions), "nats_stderr": stderr}

    ensemble = torch.logsumexp(log_likelihood, dim=0) - math.log(len(indices))
    return {
        "num_images": log_likelihood.shape[1],
        "orders": [
            {"index": index, **statistics(values)}
            for index, values in zip(indices, log_likelihood, strict=True)
        ],
        "ensemble": statistics(ensemble),
    }


def evaluate(
    experiment: Experiment,
    model: nn.Module,
    data: TestData,
    image_shape: ImageShape,
    region: Region | None = None,
) -> dict[str, Any]:
    """Score every test image of one size once, under the orders of ``--test_masks``.

    The processes of a run take batches in turn, and all have the result.

    Returns:
        What ``summarize`` returns, with the image shape and the region.

    Raises:
        UsageError: the test set is empty.
        RuntimeError: the loader gave another number of images than the data set has.
    """
    channels, height, width = image_shape
    box = region or Region(0, height, 0, width)
    indices = experiment.order_indices("test_masks")
    all_masks = experiment.masks(image_shape)
    masks = [all_masks[index] for index in indices]
    model.eval()
    processes = experiment.processes
    own = {}
    batches = progress(data.batches(image_shape), f"test {height}x{width}", is_on=processes.is_main)
    for number, batch in enumerate(batches):
        if number % processes.number == processes.rank:
            with experiment.autocast():
                images = batch.to(experiment.device)
                scores = log_likelihoods(model, experiment.likelihood, images, masks, box)
            own[number] = scores.cpu()
    scores_of = {
        number: scores for part in processes.gather(own) for number, scores in part.items()
    }
    if not scores_of:
        raise UsageError(f"the test set of {experiment.args.dataset} is empty")
    log_likelihood = torch.cat([scores_of[number] for number in sorted(scores_of)], dim=1)
    if data.num_images not in (None, log_likelihood.shape[1]):
        raise RuntimeError(f"scored {log_likelihood.shape[1]} of {data.num_images} test images")
    summary = summarize(log_likelihood, indices, channels * box.num_pixels())
    return {"image_shape": list(image_shape), "region": list(box), **summary}


def report(experiment: Experiment, result: dict[str, Any]) -> None:
    """Print the result of ``evaluate`` as lines that a person reads."""
    channels, height, width = result["image_shape"]
    rows, cols = result["region"][:2], result["region"][2:]
    experiment.log.info(
        "test of %d images %dx%dx%d, region %d:%d_%d:%d",
        *(result["num_images"], channels, height, width, *rows, *cols),
    )
    lines = [(f"order {order['index']}", order) for order in result["orders"]]
    if len(lines) > 1:
        lines.append((f"ensemble of {len(lines)} orders", result["ensemble"]))
    for name, values in lines:
        stderr = values["nats_stderr"]
        experiment.log.info(
            "  %-22s %.4f bpd = %.3f nats%s",
            f"{name}:",
            values["bpd"],
            values["nats"],
            "" if stderr is None else f" (standard error {stderr:.3f})",
        )


def test(experiment: Experiment) -> None:
    """``--mode test``: score the test set with a checkpoint; prints and writes the results.

    Writes ``test.json``, or ``test_{minh}-{maxh}_{minw}-{maxw}.json`` for a region: one object, or
    a list of one for each image size.
    """
    regions = [scored_region(experiment.args, shape) for shape in experiment.image_shapes]
    path, _ = experiment.load_weights()
    data = load_test(experiment.data)
    results = []
    for shape, region in zip(experiment.image_shapes, regions, strict=True):
        scores = evaluate(experiment, experiment.model, data, shape, region)
        report(experiment, scores)
        results.append({"dataset": experiment.args.dataset, "checkpoint": str(path), **scores})
    name = "test"
    if experiment.args.test_region == "custom":
        name = "test_{}-{}_{}-{}".format(*regions[0])
    output = experiment.run_dir / f"{name}.json"
    if experiment.processes.is_main:
        write_json(output, results if len(results) > 1 else results[0])
    experiment.log.info("results in %s", output)
