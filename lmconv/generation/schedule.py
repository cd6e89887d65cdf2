"""Which pixels a network can generate together, and the schedule that follows from it.

Pixels are numbered row by row. A prediction reads the *values* of pixels through the first masked
convolution and the *features* of pixels through the others. The values that it depends on, directly
or through features, must be known before its step; pixels that do not depend on each other's values
can be generated in the same step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, overload

import numpy as np
from torch import Tensor, nn

from locally_masked_convolution import LocallyMaskedConv2d
from masking import Masks

__all__ = [
    "MAP_BYTES",
    "Reads",
    "Schedule",
    "Steps",
    "generation_steps",
    "make_schedule",
    "map_rows",
    "mask_reads",
    "masked_convolutions",
    "tap_pixels",
    "whole_image_schedule",
]

# Images are split into batches that take about this much memory.
MAP_BYTES = 2 * 2**30
# Chains of at least so many pixels, on average, are faster to follow as a whole than one by one.
_LONG_CHAIN = 8


class Reads(NamedTuple):
    """For each of a network's masks, the pixel that each tap reads at each position.

    Each is ``(H*W) x k*k``, int64, -1 where a tap is off.
    """

    init: np.ndarray
    undilated: np.ndarray
    dilated: np.ndarray


class Steps(Sequence[np.ndarray]):
    """The pixels of successive steps, which are views of one array: there can be a million steps.

    Args:
        pixels: the pixels of all steps, first step first.
        sizes: the number of pixels of each step.

    Attributes:
        pixels, sizes: as given.
    """

    def __init__(self, pixels: np.ndarray, sizes: np.ndarray) -> None:
        self.pixels, self.sizes = pixels, sizes
        self._ends = sizes.cumsum()

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        end = self._ends[index]
        return self.pixels[end - self.sizes[index] : end]

    @property
    def numbers(self) -> np.ndarray:
        """The number of the step of each of the pixels."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @property
    def starts(self) -> np.ndarray:
        """The place of each step's first pixel among the pixels."""
        return self._ends - self.sizes


@dataclass
class Schedule:
    """The steps in which a network generates images along an order, and what they read.

    Attributes:
        masks: the network's masks for the order.
        reads: ``mask_reads`` of the masks.
        steps: ``generation_steps`` of the reads: the pixels of each step.
        image_size: height and width.
        bytes_per_row: memory that a row takes in the maps of all masked convolutions.
    """

    masks: Masks
    reads: Reads
    steps: Steps
    image_size: tuple[int, int]
    bytes_per_row: int = 1

    @cached_property
    def rows(self) -> np.ndarray:
        """``map_rows`` of the steps: the row of each pixel in the maps."""
        return map_rows(self.steps, self.reads)

    @property
    def images_at_once(self) -> int:
        """The number of images whose maps fit into ``MAP_BYTES``, at least one."""
        return self.images_at_once_with(self.rows)

    def images_at_once_with(self, rows: np.ndarray) -> int:
        """The same if pixels have other rows in the maps."""
        # If a forward pass fills the maps with visible pixels, it takes at most that of all pixels.
        has_visible = (rows >= 0).sum() > len(self.steps.pixels)
        num_rows = len(rows) if has_visible else int(rows.max()) + 1
        return max(1, MAP_BYTES // max(1, num_rows * self.bytes_per_row))


def whole_image_schedule(network: nn.Module, order: np.ndarray, masks: Masks) -> Schedule:
    """The schedule that generates all pixels of an image.

    Args:
        network, order, masks: as in ``make_schedule``.

    Raises:
        ValueError: as ``make_schedule``.
    """
    height, width = order.max(axis=0) + 1
    return make_schedule(network, order, masks, np.ones((height, width), dtype=bool))


def make_schedule(
    network: nn.Module,
    order: np.ndarray,
    masks: Masks,
    is_hidden: np.ndarray,
    parallel: bool = True,
) -> Schedule:
    """The schedule that generates the hidden pixels of an image.

    Args:
        network: its positions interact in masked convolutions only.
        order: ``(H*W) x 2``, the order that the masks were made for.
        masks: the network's masks for the order.
        is_hidden: ``H x W``, bool, the pixels to generate.
        parallel: one step for each dependency depth; otherwise one for each pixel.

    Raises:
        ValueError: the network has no masked convolutions, the masks are not 0/1 masks of such an
            image, or they read pixels that do not come earlier in the order.
    """
    layers = masked_convolutions(network)
    if not layers:
        raise ValueError("the cached sampler needs a network of masked convolutions")
    height, width = is_hidden.shape
    reads = mask_reads(masks, height, width, max(layer.dilation for layer in layers))
    steps = generation_steps(order, reads, is_hidden, parallel)
    bytes_per_row = sum(layer.in_channels * layer.weight.element_size() for layer in layers)
    return Schedule(masks, reads, steps, (height, width), bytes_per_row)


def masked_convolutions(network: nn.Module) -> list[LocallyMaskedConv2d]:
    """The layers through which the positions of a network interact."""
    return [module for module in network.modules() if isinstance(module, LocallyMaskedConv2d)]


def tap_pixels(mask: Tensor, height: int, width: int, dilation: int = 1) -> np.ndarray:
    """The pixel that each tap reads at each position.

    Args:
        mask: ``1 x k*k x (H*W)``, 0/1.
        height, width: size of the image.
        dilation: distance between neighbouring taps.

    Returns:
        ``(H*W) x k*k``, int64, -1 where a tap is off or reads outside the image.

    Raises:
        ValueError: the mask is not a 0/1 mask for a square kernel and an image of this size.
    """
    k = math.isqrt(mask.shape[1])
    if tuple(mask.shape) != (1, k * k, height * width):
        raise ValueError(
            f"a mask of a {height}x{width} image is 1 x k*k x {height * width}, "
            f"got {tuple(mask.shape)}"
        )
    values = mask[0].t().cpu().numpy()
    if not np.isin(values, (0, 1)).all():
        raise ValueError("a mask to generate with holds 0 and 1 alone")
    row, col = np.divmod(np.arange(height * width), width)
    down, right = (np.stack(np.divmod(np.arange(k * k), k)) - k // 2) * dilation
    rows, cols = row[:, None] + down, col[:, None] + right
    inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    return np.where((values == 1) & inside, rows * width + cols, -1)


def mask_reads(masks: Masks, height: int, width: int, max_dilation: int) -> Reads:
    """``tap_pixels`` of each of a network's masks.

    Args:
        masks: each ``1 x k*k x (H*W)``, 0/1.
        height, width: size of the image.
        max_dilation: dilation of the layers that take the dilated mask.

    Raises:
        ValueError: as ``tap_pixels``.
    """
    dilations = (1, 1, max_dilation)
    return Reads(*(tap_pixels(m, height, width, d) for m, d in zip(masks, dilations, strict=True)))


def generation_steps(
    order: np.ndarray, reads: Reads, hidden: np.ndarray, parallel: bool = True
) -> Steps:
    """The pixels to step through, grouped into sets that can be computed at once.

    These are the hidden pixels, and those visible pixels whose features depend on hidden pixels and
    are needed for a later hidden pixel. All other features follow from the visible pixels alone.

    Args:
        order: ``(H*W) x 2``, the order that the masks were made for.
        reads: ``mask_reads`` of the masks.
        hidden: ``H x W``, bool, the pixels to generate.
        parallel: one step for each dependency depth; otherwise one for each pixel.

    Returns:
        Disjoint steps. Of the pixels that are stepped through, a step reads only values from
        earlier steps, and features from earlier steps or its own.

    Raises:
        ValueError: the masks read pixels that do not come earlier in the order.
    """
    sequence = order @ [hidden.shape[1], 1]
    own = np.arange(len(sequence), dtype=np.int32)
    place = _places(sequence, len(sequence))
    values = place[reads.init[sequence]]
    features = place[np.concatenate(reads[1:], axis=1)[sequence]]
    features[features == own[:, None]] = -1
    if any((read >= own[:, None]).any() for read in (values, features)):
        raise ValueError("the masks read pixels that do not come earlier in the order")
    stepped = np.flatnonzero(_is_stepped(hidden.flat[sequence], values, features))
    if not parallel:
        return Steps(sequence[stepped], np.ones(len(stepped), dtype=np.int64))
    place = _places(stepped, len(sequence))
    depths = _depths(place[values[stepped]], place[features[stepped]])
    return Steps(sequence[stepped[np.argsort(depths, kind="stable")]], np.bincount(depths))


def _places(numbers: np.ndarray, length: int) -> np.ndarray:
    """Where each number below ``length`` is among others; -1 if it is not, and for number -1."""
    places = np.full(length + 1, -1, dtype=np.int32)
    places[numbers] = np.arange(len(numbers))
    return places


def _is_stepped(is_hidden: np.ndarray, values: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Whether each place in an order is stepped through; places are as in ``_depths``."""
    first = int(np.argmax(is_hidden))
    if is_hidden[first:].all() or not is_hidden.any():
        return is_hidden  # nothing visible comes after something hidden
    hides = np.append(is_hidden, False)
    depends = np.zeros_like(hides)  # its features depend on something hidden
    for place in range(first, len(is_hidden)):
        depends[place] = hides[values[place]].any() or depends[features[place]].any()
    needed = hides.copy()
    for place in reversed(np.flatnonzero(depends).tolist()):
        if needed[place]:
            needed[features[place]] |= depends[features[place]]
    return needed[:-1]


def _depths(values: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The dependency depth of each place in an order.

    Args:
        values: the places whose values each place reads, ``T x k*k``, -1 for others.
        features: the places whose features it reads, other than its own, ``T x 2*k*k``.
    """
    length = len(values)
    # A chain is a part of the order in which each place reads the value of the one before it. Its
    # depths rise from place to place, so what comes earlier in the same chain never decides.
    is_linked = (values == np.arange(-1, length - 1, dtype=np.int32)[:, None]).any(axis=1)
    is_linked[:1] = False
    starts = np.flatnonzero(~is_linked)
    depths = np.full(length + 1, -1)  # the last entry is for taps that are off
    if length < _LONG_CHAIN * len(starts):
        read_values, read_features = values.tolist(), features.tolist()
        found = depths.tolist()
        for place in range(length):
            after = max(map(found.__getitem__, read_values[place])) + 1
            found[place] = max(after, *map(found.__getitem__, read_features[place]))
        return np.array(found[:-1], dtype=np.int64)
    for start, end in pairwise(np.append(starts, length).tolist()):
        after_values = depths[values[start:end]].max(axis=1) + 1
        least = np.maximum(after_values, depths[features[start:end]].max(axis=1))
        steps = np.arange(end - start)
        depths[start:end] = np.maximum.accumulate(least - steps) + steps
    return depths[:-1]


def map_rows(steps: Steps, reads: Reads, ahead: int = 0) -> np.ndarray:
    """The row of a map that each pixel holds until its last read; later pixels reuse the row.

    Args:
        steps: ``generation_steps`` of these reads.
        reads: ``mask_reads`` of the network's masks.
        ahead: a pixel holds its row from so many steps before its own.

    Returns:
        ``H*W``, int64: rows from 0; -1 for pixels that are neither stepped through nor read.
    """
    num_pixels, numbers = len(reads.init), steps.numbers
    last_use = np.full(num_pixels + 1, -1)  # the last entry is for pixel -1, of taps that are off
    for table in reads:
        for pixels in table[steps.pixels].T:  # no two positions read one pixel through one tap
            last_use[pixels] = np.maximum(last_use[pixels], numbers)
    # The value of a pixel is written one step after its features.
    last_use[steps.pixels] = np.maximum(last_use[steps.pixels], numbers + 1)
    is_visible = last_use[:-1] >= 0
    is_visible[steps.pixels] = False
    visible = np.flatnonzero(is_visible)

    # Rows are given to pixels in turn. At first all are free; after that, those that become free
    # are given again in the sequence in which they do.
    pixels = np.concatenate([visible, steps.pixels])
    entry = np.concatenate([np.zeros_like(visible), numbers])
    end = last_use[pixels] + ahead
    leaving = np.argsort(end, kind="stable")
    turns = np.arange(len(pixels))
    num_free_again = np.searchsorted(end[leaving], entry)
    num_rows = int((turns + 1 - num_free_again).max(initial=0))
    holder = turns.copy()  # who had the row before, and at last who had it first
    holder[num_rows:] = leaving[: max(0, len(turns) - num_rows)]
    while not np.array_equal(before := holder[holder], holder):
        holder = before
    rows = np.full(num_pixels, -1)
    rows[pixels] = holder
    return rows
