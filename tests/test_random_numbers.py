"""Random numbers that belong to a seed."""

import torch

from lmconv.random_numbers import set_seed


def test_seeds_repeat():
    set_seed(3)
    first = torch.rand(2)
    set_seed(3)
    assert torch.equal(first, torch.rand(2))
