"""Scanned digits of 8 x 8 pixels, which come with scikit-learn."""

from pathlib import Path
from typing import Any

import numpy as np

from lmconv.data.sources import DataError
from lmconv.random_numbers import uniform_numbers

__all__ = ["NUM_DIGITS", "read_digit_images", "read_digit_labels", "read_digits"]

# Number of digits of each part.
NUM_DIGITS = {"train": 1500, "test": 297}


def read_digits(train: bool) -> np.ndarray:
    """Read scanned digits with 17 grey levels, as uint8 N x 1 x 8 x 8; their split is fixed."""
    digits, chosen = _digits("train" if train else "test")
    return np.rint(digits.images * 255 / 16).astype(np.uint8)[chosen, None]


def read_digit_images(folder: Path, part: str) -> np.ndarray:
    """``read_digits`` as other sets are read; they need no folder."""
    return read_digits(part == "train")


def read_digit_labels(folder: Path, part: str) -> np.ndarray:
    """Which digits the images of a part show, int64 N."""
    digits, chosen = _digits(part)
    return digits.target[chosen].astype(np.int64)


def _digits(part: str) -> tuple[Any, np.ndarray]:
    """All digits, and the indices of a part's.

    Raises:
        DataError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the data set digits needs scikit-learn: pip install scikit-learn"
        ) from error
    digits = load_digits()
    order = np.argsort(uniform_numbers(np.uint64(0), np.arange(len(digits.images)), 1)[:, 0])
    first = NUM_DIGITS["train"]
    return digits, np.sort(order[:first] if part == "train" else order[first:])
