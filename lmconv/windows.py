"""Networks on windows of large images, with what they compute for the whole image.

An output depends only on the pixels within the receptive radius of its position. So a window with a
margin of that width is enough, and memory does not grow with the image.
"""

import copy
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from layers import PositionEmbedding
from lmconv.generation.schedule import masked_convolutions
from masking import Masks
from model import LMConvPixelCNN, least_activations

__all__ = ["Window", "map_in_windows", "network_in", "receptive_radius", "window_around"]

# A window's activations take at least this many numbers: half a gigabyte, once or twice.
_ACTIVATIONS = 2**26


class Window(NamedTuple):
    """A box of pixels in an image: first row, end row, first column, end column."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """What selects the rows and the columns of an image."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def of(self, images: Tensor) -> Tensor:
        """The part of images, ``... x H x W``, that lies in the window."""
        rows, cols = self.slices
        return images[..., rows, cols]

    def masks(self, masks: Masks, image_size: tuple[int, int]) -> Masks:
        """The part of an order's masks that is for the positions in the window."""
        if self.size == image_size:
            return masks
        return Masks(*(self.of(mask.unflatten(2, image_size)).flatten(2) for mask in masks))

    def pixels(self, pixels: np.ndarray) -> np.ndarray:
        """The part of an order, ``(H*W) x 2``, that lies in the window, as an order of it."""
        shifted = pixels - [self.top, self.left]
        return shifted[((shifted >= 0) & (shifted < self.size)).all(axis=1)]

    def grown(self, margin: int, image_size: tuple[int, int]) -> "Window":
        """The window with a margin around it, as far as the image goes."""
        height, width = image_size
        return Window(
            max(0, self.top - margin),
            min(height, self.bottom + margin),
            max(0, self.left - margin),
            min(width, self.right + margin),
        )

    def within(self, outer: "Window") -> "Window":
        """This window as counted from the first pixel of one around it."""
        top, left = outer.top, outer.left
        return Window(self.top - top, self.bottom - top, self.left - left, self.right - left)


def receptive_radius(network: nn.Module) -> int:
    """How far a pixel can be, in rows or columns, from the outputs that depend on it, at most."""
    layers = masked_convolutions(network)
    return sum(layer.dilation * (layer.weight.shape[2] // 2) for layer in layers)


def window_around(pixels: Tensor, network: nn.Module) -> Window:
    """The window that holds all that the outputs at some pixels, ``H x W``, bool, depend on."""
    rows, cols = (pixels.any(dim=1).nonzero(), pixels.any(dim=0).nonzero())
    box = Window(int(rows[0]), int(rows[-1]) + 1, int(cols[0]), int(cols[-1]) + 1)
    height, width = pixels.shape
    return box.grown(receptive_radius(network), (height, width))


def network_in(network: nn.Module, window: Window, image_size: tuple[int, int]) -> nn.Module:
    """A network, with the same weights, that takes a window of an image of this size."""
    positions = getattr(network, "positions", None)
    if not isinstance(positions, PositionEmbedding):
        return network
    own_positions = copy.copy(positions)
    own_positions.place = (window.top, window.left, *image_size)
    other = copy.copy(network)
    other._modules = {**network._modules, "positions": own_positions}
    return other


def map_in_windows(
    network: nn.Module,
    images: Tensor,
    masks: Masks,
    function: Callable[[Tensor, Tensor], Tensor] = lambda logits, images: logits,
    label: Tensor | None = None,
) -> Tensor:
    """Run a network on images of any size, in bounded memory.

    Args:
        network: in evaluation mode. One that is not made of masked convolutions takes whole images.
        images: ``B x C x H x W``.
        masks: of an order of the whole images.
        function: what to make of the network's output and of the images, both in one window;
            position by position.
        label: what the network is told of each image, B, int64; by default nothing.

    Returns:
        The function's results, ``B x ... x H x W``.
    """
    height, width = size = (images.shape[2], images.shape[3])
    if not isinstance(network, LMConvPixelCNN):
        return function(network(images, masks, label=label), images)
    most = _largest_side(network) ** 2
    at_once = max(1, most // (height * width))
    if len(images) > at_once:
        found_parts = []
        for first in range(0, len(images), at_once):
            own = slice(first, first + at_once)
            own_label = None if label is None else label[own]
            found_parts.append(map_in_windows(network, images[own], masks, function, own_label))
        return torch.cat(found_parts)
    if height * width <= most:
        return function(network(images, masks, label=label), images)
    whole: Tensor | None = None
    for inner, outer in _windows(network, size):
        part = network_in(network, outer, size)
        # The masks are not made in inference mode, in which PyTorch cannot tell if they change.
        with torch.inference_mode(False):
            own_masks = outer.masks(masks, size)
        logits = part(outer.of(images).contiguous(), own_masks, label=label)
        found = function(inner.within(outer).of(logits), inner.of(images))
        if whole is None:
            whole = found.new_empty(*found.shape[:-2], height, width)
        inner.of(whole).copy_(found)
    assert whole is not None
    return whole


def _largest_side(network: LMConvPixelCNN) -> int:
    """The side of the largest square that a network is given at once."""
    side = math.isqrt(_ACTIVATIONS // least_activations(network.config, 1, trains=False))
    # At least half of a window's side is not margin.
    return max(side, 4 * receptive_radius(network))


def _windows(
    network: LMConvPixelCNN, image_size: tuple[int, int]
) -> Iterator[tuple[Window, Window]]:
    """Windows that cover a large image, each without and with its margin."""
    height, width = image_size
    radius = receptive_radius(network)
    step = _largest_side(network) - 2 * radius
    for top in range(0, height, step):
        for left in range(0, width, step):
            inner = Window(top, min(top + step, height), left, min(left + step, width))
            yield inner, inner.grown(radius, image_size)
