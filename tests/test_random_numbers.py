"""Random numbers that belong to a seed."""

import numpy as np
import torch

from lmconv.random_numbers import random_key, set_seed, uniform_numbers


def test_seeds_repeat():
    set_seed(3)
    first = torch.rand(2)
    set_seed(3)
    assert torch.equal(first, torch.rand(2))


def test_neighbouring_draws_are_uncorrelated() -> None:
    draws = uniform_numbers(random_key(1, 2), np.arange(2000), 50) - 0.5
    assert 0.99 < draws.var() * 12 < 1.01
    for shifted in (draws[1:, :] * draws[:-1, :], draws[:, 1:] * draws[:, :-1]):
        assert abs(shifted.mean()) * 12 < 5 / shifted.size**0.5
