"""Random numbers that depend only on a seed and an image, not on what else is drawn."""

import random

import numpy as np
import torch

__all__ = ["TEST_BINARIZATION", "random_key", "set_seed", "uniform_numbers"]

# Tells the numbers that binarize test images from others with the same seed.
TEST_BINARIZATION = 4


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_key(*numbers: int) -> np.uint64:
    """Make a key for ``uniform_numbers``, a different one for different numbers."""
    return np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]


def uniform_numbers(key: np.uint64, indices: np.ndarray, length: int) -> np.ndarray:
    """Draw ``length`` numbers in [0, 1) for each index: B x length, float64.

    Those of an index do not depend on the other indices. They come from SplitMix64 (Steele, Lea and
    Flood, 2014), which computes its n-th number directly from n.
    """
    first = indices.astype(np.uint64)[:, None] * np.uint64(length)
    number = first + np.arange(1, length + 1, dtype=np.uint64)
    bits = key + number * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return (bits >> np.uint64(11)) * 2.0**-53
