"""Orders for a hole in an image: everything visible first, and the variant that uses it best."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from locally_masked_convolution import patch_matrix_convolution
from masking import get_masks, move_to_end

__all__ = ["best_order", "visible_first", "visible_influence"]

# Paths through the hole that are longer have next to no weight.
_MOST_HOPS = 32


def visible_first(order: np.ndarray, hidden: Tensor) -> np.ndarray:
    """The order with the hidden pixels (``H x W``, bool) moved to its end (paper, section 4.3)."""
    return move_to_end(order, hidden.nonzero().cpu().numpy())


def visible_influence(order: np.ndarray, hidden: Tensor, kernel_size: int) -> float:
    """How much of what is visible reaches the hidden pixels when they are generated in an order.

    A path leads from a visible pixel to a hidden one by taps that are on, each of which weighs one
    over the number of taps, and hidden pixels in between. The influence is the weight of all paths,
    averaged over the hidden pixels. It is high where pixels at the edge of the hole come first.

    Args:
        order: ``(H*W) x 2``, visible pixels first.
        hidden: ``H x W``, bool.
        kernel_size: of the network's masked convolutions.
    """
    height, width = hidden.shape
    mask = get_masks(order, height, width, kernel_size).init
    kernel = torch.full((1, 1, kernel_size, kernel_size), kernel_size**-2.0, dtype=torch.float64)
    hole = hidden.cpu().double()[None, None]
    influence = torch.zeros_like(hole)
    for _ in range(_MOST_HOPS):
        influence = hole * patch_matrix_convolution(1 - hole + influence, kernel, None, mask)
    return (influence.sum() / hole.sum()).item()


def best_order(orders: Sequence[np.ndarray], hidden: Tensor, kernel_size: int) -> int:
    """The index of the order under which the visible pixels have most influence on the hidden ones.

    Args:
        orders: each ``(H*W) x 2``; the visible pixels of each are moved to its beginning.
        hidden: ``H x W``, bool.
        kernel_size: of the network's masked convolutions.
    """
    influences = [
        visible_influence(visible_first(order, hidden), hidden, kernel_size) for order in orders
    ]
    # Mirrored orders differ by rounding alone: the first of them.
    return int(np.argmax(np.round(influences, 9)))
