"""The orders that a model is used with: their description, and each order with its masks.

An order says when each pixel is generated; its masks tell a network's convolutions the same. Orders
for completing a hole have all visible pixels first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lmconv.pixel_values import ImageShape
from lmconv.windows import Window
from locally_masked_convolution import patch_matrix_convolution
from masking import Masks, generation_orders, get_masks, move_to_end

__all__ = ["Order", "OrderConfig", "best_order", "visible_influence"]

# Longer paths through the hole have next to no weight.
_MOST_HOPS = 32


@dataclass(frozen=True)
class OrderConfig:
    """A list of orders as plain data, for images of any size.

    Attributes:
        families: names from ``masking.ORDERS``.
        all_variants: whether to use the 8 variants of each family, at index 8 * family + variant,
            instead of one order.
        variants: keep only these indices of the list; None for all.
        base_transpose, base_reflect_rows, base_reflect_cols: changes to each family's order, made
            in this sequence, before its variants are made.
        seed: seed of the family ``random``.
        own: further orders, which follow the families in the list. Each has the numbers of the
            pixels, counted row by row, in the order of generation; it fits only one image size.
    """

    families: tuple[str, ...] = ("s_curve",)
    all_variants: bool = False
    variants: tuple[int, ...] | None = None
    base_transpose: bool = False
    base_reflect_rows: bool = False
    base_reflect_cols: bool = False
    seed: int = 0
    own: tuple[tuple[int, ...], ...] = ()

    @property
    def number(self) -> int:
        """The number of orders in the list."""
        if self.variants is not None:
            return len(self.variants)
        return (8 if self.all_variants else 1) * (len(self.families) + len(self.own))

    def pixels(self, image_shape: ImageShape) -> list[np.ndarray]:
        """The orders for one image size, by index, each ``(H*W) x 2``.

        Raises:
            ValueError: a family is unknown or does not exist at this size, an order of ``own`` is
                for another size, or an index is out of range.
        """
        return generation_orders(
            self.families,
            image_shape,
            all_variants=self.all_variants,
            variants=self.variants,
            base_transpose=self.base_transpose,
            base_reflect_rows=self.base_reflect_rows,
            base_reflect_cols=self.base_reflect_cols,
            own=self.own,
            seed=self.seed,
        )


class Order:
    """A generation order for one image size, with a network's masks for it.

    Args:
        pixels: (row, column) of each pixel in the order of generation, ``(H*W) x 2``.
        kernel_size, max_dilation: those of the network.
        device: device for the masks.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        kernel_size: int,
        max_dilation: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.pixels = pixels
        self._kernel_size, self._max_dilation, self._device = kernel_size, max_dilation, device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = (self.pixels.max(axis=0) + 1).tolist()
        return height, width

    @cached_property
    def masks(self) -> Masks:
        """The masks that make a network generate in this order; made on first use."""
        with torch.inference_mode(False):  # otherwise they could not be used in training
            masks = get_masks(self.pixels, *self.size, self._kernel_size, self._max_dilation)
            return masks.to(self._device)

    def visible_first(self, hidden: Tensor) -> "Order":
        """This order with the hidden pixels (``H x W``, bool) moved to its end (section 4.3).

        Raises:
            ValueError: ``hidden`` is of another type or size.
        """
        if hidden.dtype != torch.bool or tuple(hidden.shape) != self.size:
            size, got = "{}x{}".format(*self.size), tuple(hidden.shape)
            raise ValueError(
                f"hidden must be a bool tensor of size {size}, got {hidden.dtype} of shape {got}"
            )
        moved = move_to_end(self.pixels, hidden.nonzero().cpu().numpy())
        return Order(moved, self._kernel_size, self._max_dilation, self._device)

    def within(self, window: Window) -> "Order":
        """The part of this order that lies in a window, as an order of the window."""
        pixels = window.pixels(self.pixels)
        return Order(pixels, self._kernel_size, self._max_dilation, self._device)

    def visible_influence(self, hidden: Tensor) -> float:
        """The ``visible_influence`` of this order with the hidden pixels moved to its end."""
        return visible_influence(self.visible_first(hidden).pixels, hidden, self._kernel_size)


def visible_influence(pixels: np.ndarray, hidden: Tensor, kernel_size: int) -> float:
    """How much the visible pixels influence the hidden ones that are generated in an order.

    A path leads from a visible pixel to a hidden one through active taps, each with a weight of one
    over the number of taps, and through the hidden pixels in between. The influence is the weight
    of all paths, averaged over the hidden pixels. It is high if the pixels at the edge of the hole
    come first.

    Args:
        pixels: the order, ``(H*W) x 2``, visible pixels first.
        hidden: ``H x W``, bool.
        kernel_size: kernel size of the network's masked convolutions.
    """
    height, width = hidden.shape
    mask = get_masks(pixels, height, width, kernel_size).init
    kernel = torch.full((1, 1, kernel_size, kernel_size), kernel_size**-2.0, dtype=torch.float64)
    hole = hidden.cpu().double()[None, None]
    influence = torch.zeros_like(hole)
    for _ in range(_MOST_HOPS):
        influence = hole * patch_matrix_convolution(1 - hole + influence, kernel, None, mask)
    return (influence.sum() / hole.sum()).item()


def best_order(orders: Sequence[Order], hidden: Tensor) -> int:
    """The index of the order under which the visible pixels have most influence on the hidden ones.

    Args:
        orders: orders for one image size; the visible pixels of each are moved to its beginning.
        hidden: ``H x W``, bool.

    Raises:
        ValueError: ``hidden`` is not as above.
    """
    # Mirrored orders differ only by rounding errors; without these, the first one wins.
    return int(np.argmax(np.round([order.visible_influence(hidden) for order in orders], 9)))
