"""How well classes are told: accuracy, likelihood of the right class, and calibration."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Bin", "calibration_bins", "calibration_error", "summarize_classification"]

_NUM_BINS = 10


class Bin(NamedTuple):
    """The images whose likeliest class has about the same probability.

    Attributes:
        lowest, highest: bounds of that probability, the upper one included.
        num_images: number of images.
        confidence: the mean probability of their likeliest classes; None without images.
        accuracy: the share of images whose likeliest class is the right one; None without images.
    """

    lowest: float
    highest: float
    num_images: int
    confidence: float | None
    accuracy: float | None


def calibration_bins(probabilities: Tensor, labels: Tensor, num_bins: int = _NUM_BINS) -> list[Bin]:
    """Images by the probability of their likeliest class, in bins of equal width.

    ::

        >>> import torch
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
        >>> calibration_bins(probabilities, torch.tensor([0, 0, 0]), num_bins=2)[1].num_images
        3

    Args:
        probabilities: of each class, ``N x K``.
        labels: the right classes, N, int64.
        num_bins: number of bins between 0 and 1.
    """
    confidences, likeliest = probabilities.double().max(dim=1)
    is_right = (likeliest == labels).double()
    numbers = (confidences * num_bins).ceil().long().clamp(1, num_bins) - 1
    bins = []
    for number in range(num_bins):
        own = numbers == number
        count, bounds = int(own.sum()), (number / num_bins, (number + 1) / num_bins)
        means = (confidences[own].mean().item(), is_right[own].mean().item())
        bins.append(Bin(*bounds, count, *(means if count else (None, None))))
    return bins


def calibration_error(bins: list[Bin]) -> float:
    """The expected calibration error (Guo et al. 2017, "On calibration of modern neural networks").

    It is the mean distance between confidence and accuracy, over all images.
    """
    total = sum(each.num_images for each in bins)
    return sum(
        each.num_images / total * abs(each.confidence - each.accuracy)
        for each in bins
        if each.confidence is not None and each.accuracy is not None
    )


def summarize_classification(probabilities: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy, mean nats of the right class, and calibration of classified images.

    Args:
        probabilities: of each class, ``N x K``, float64.
        labels: the right classes, N, int64.
    """
    is_right = (probabilities.argmax(dim=1) == labels).double()
    of_the_right = probabilities[torch.arange(len(labels)), labels]
    number, accuracy = len(labels), is_right.mean().item()
    bins = calibration_bins(probabilities, labels)
    return {
        "accuracy": accuracy,
        "accuracy_stderr": math.sqrt(accuracy * (1 - accuracy) / number),
        "nats": -of_the_right.clamp_min(torch.finfo(torch.float64).tiny).log().mean().item(),
        "calibration_error": calibration_error(bins),
        "calibration": [each._asdict() for each in bins],
    }
