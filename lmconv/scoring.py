"""Exact likelihoods of data sets, by order and for the ensemble, of whole images or a region."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lmconv.data.datasets import DataError, TestData
from lmconv.distributed import Processes
from lmconv.image_model import ImageModel, ensemble
from lmconv.pixel_values import ImageShape
from utils import nats_to_bpd, progress

__all__ = ["score_data_set", "summarize"]


def summarize(
    log_likelihood: Tensor, indices: Sequence[int], num_dimensions: float
) -> dict[str, Any]:
    """Mean negative log-likelihoods of each order and of their ensemble, with standard errors.

    The ensemble averages the joint likelihoods of the orders, image by image (paper, section 5).

    Args:
        log_likelihood: nats of N images under K orders, ``K x N``.
        indices: indices of the K orders.
        num_dimensions: number of values (pixels times channels) in an image, or in its region, on
            average.
    """

    def statistics(values: Tensor) -> dict[str, Any]:
        nats = -values.mean().item()
        count = values.numel()
        stderr = (values.std() / math.sqrt(count)).item() if count > 1 else None
        return {"nats": nats, "bpd": nats_to_bpd(nats, num_dimensions), "nats_stderr": stderr}

    return {
        "num_images": log_likelihood.shape[1],
        "orders": [
            {"index": index, **statistics(values)}
            for index, values in zip(indices, log_likelihood, strict=True)
        ],
        "ensemble": statistics(ensemble(log_likelihood)),
    }


def score_data_set(
    model: ImageModel,
    data: TestData,
    image_shape: ImageShape | None = None,
    order_indices: Sequence[int] | None = None,
    pixels: Tensor | None = None,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Score every test image once, at one size, under some of the model's orders.

    The processes of a run take turns with the batches, and all of them get the result.

    Args:
        model: the model to score with.
        data: the test set.
        image_shape: (C, H, W) that the images are resized to; by default the model's own.
        order_indices: indices of the orders to use; by default all.
        pixels: the pixels to sum over, ``H x W``, bool; by default all.
        processes: the processes that share the work; by default only this one.

    Returns:
        What ``summarize`` returns, with the image shape.

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
    own = {}
    batches = progress(data.batches(shape), f"test {height}x{width}", is_on=processes.is_main)
    for number, batch in enumerate(batches):
        if number % processes.number == processes.rank:
            own[number] = model.log_likelihoods(batch.to(model.device), orders, pixels)
    scores_of = {
        number: scores for part in processes.gather(own) for number, scores in part.items()
    }
    if not scores_of:
        raise DataError("the test set is empty")
    log_likelihood = torch.cat([scores_of[number] for number in sorted(scores_of)], dim=1)
    if data.num_images not in (None, log_likelihood.shape[1]):
        raise RuntimeError(f"scored {log_likelihood.shape[1]} of {data.num_images} test images")
    num_pixels = height * width if pixels is None else int(pixels.sum())
    return {
        "image_shape": list(shape),
        **summarize(log_likelihood, list(indices), channels * num_pixels),
    }
