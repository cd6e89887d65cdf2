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
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from locally_masked_convolution import LocallyMaskedConv2d
from masking import Masks

__all__ = [
    "MAP_BYTES",
    "Reads",
    "Schedule",
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


class Reads(NamedTuple):
    """For each of a network's masks, the pixel that each tap reads at each position.

    Each is ``(H*W) x k*k``, int64, -1 where a tap is off.
    """

    init: np.ndarray
    undilated: np.ndarray
    dilated: np.ndarray


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
    steps: list[np.ndarray]
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
        has_visible = (rows >= 0).sum() > sum(map(len, self.steps))
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
) -> list[np.ndarray]:
    """The pixels to step through, grouped into sets that can be computed at once.

    These are the hidden pixels, and those visible pixels whose features depend on hidden pixels and
    are needed for a later hidden pixel. All other features follow from the visible pixels alone.

    Args:
        order: ``(H*W) x 2``, the order that the masks were made for.
        reads: ``mask_reads`` of the masks.
        hidden: ``H x W``, bool, the pixels to generate.
        parallel: one step for each dependency depth; otherwise one for each pixel.

    Returns:
        Disjoint arrays of pixels, int64. Of the pixels that are stepped through, a step reads only
        values from earlier steps, and features from earlier steps or its own.

    Raises:
        ValueError: the masks read pixels that do not come earlier in the order.
    """
    pixels = (order @ [hidden.shape[1], 1]).tolist()
    is_hidden = hidden.ravel().tolist()
    values = [[q for q in row if q >= 0] for row in reads.init.tolist()]
    features = [
        [q for q in row if q >= 0 and q != pixel]
        for pixel, row in enumerate(np.concatenate(reads[1:], axis=1).tolist())
    ]
    _check_order(pixels, values, features)

    depends: set[int] = set()  # pixels whose features depend on a hidden one
    for pixel in pixels:
        if any(is_hidden[q] for q in values[pixel]) or not depends.isdisjoint(features[pixel]):
            depends.add(pixel)
    needed = {pixel for pixel in pixels if is_hidden[pixel]}
    for pixel in reversed(pixels):
        if pixel in needed:
            needed.update(q for q in features[pixel] if q in depends)
    stepped = [pixel for pixel in pixels if pixel in needed]
    if not parallel:
        return [np.array([pixel]) for pixel in stepped]

    depth: dict[int, int] = {}
    for pixel in stepped:
        after_values = (depth[q] + 1 for q in values[pixel] if q in needed)
        with_features = (depth[q] for q in features[pixel] if q in needed)
        depth[pixel] = max((0, *after_values, *with_features))
    levels: list[list[int]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for pixel, level in depth.items():
        levels[level].append(pixel)
    return [np.array(level) for level in levels]


def map_rows(steps: Sequence[np.ndarray], reads: Reads, ahead: int = 0) -> np.ndarray:
    """The row of a map that each pixel holds until its last read; later pixels reuse the row.

    Args:
        steps: ``generation_steps`` of these reads.
        reads: ``mask_reads`` of the network's masks.
        ahead: a pixel holds its row from so many steps before its own.

    Returns:
        ``H*W``, int64: rows from 0; -1 for pixels that are neither stepped through nor read.
    """
    num_pixels = len(reads.init)
    last_use = np.full(num_pixels + 1, -1)  # the last entry is for pixel -1, of taps that are off
    is_stepped = np.zeros(num_pixels, dtype=bool)
    for number, step in enumerate(steps):
        for table in reads:
            last_use[table[step]] = number
        # The value of a pixel is written one step after its features.
        last_use[step] = np.maximum(last_use[step], number + 1)
        is_stepped[step] = True

    rows = np.full(num_pixels, -1)
    free: list[int] = []
    num_rows = 0
    ending: list[list[int]] = [[] for _ in range(len(steps) + ahead + 1)]

    def enter(pixel: int) -> None:
        nonlocal num_rows
        if not free:
            free.append(num_rows)
            num_rows += 1
        rows[pixel] = free.pop()
        ending[last_use[pixel] + ahead].append(rows[pixel])

    for pixel in np.flatnonzero((last_use[:-1] >= 0) & ~is_stepped).tolist():
        enter(pixel)
    for number, step in enumerate(steps):
        for pixel in step.tolist():
            enter(pixel)
        free.extend(reversed(ending[number]))
    return rows


def _check_order(pixels: list[int], *neighbours: list[list[int]]) -> None:
    """Check that each of the pixels, in generation order, has only earlier ones as neighbours."""
    seen: set[int] = set()
    for pixel in pixels:
        for lists in neighbours:
            if not seen.issuperset(lists[pixel]):
                raise ValueError("the masks read pixels that do not come earlier in the order")
        seen.add(pixel)
