"""Which pixels a network can generate together: the dependencies that its masks leave.

Pixels are numbered row by row. A prediction reads the *values* of pixels through the first masked
convolution and the *features* of pixels through the others; what it reads, directly or not, must
have been generated in earlier steps, and everything else can wait for the same step.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from masking import Masks

__all__ = ["Reads", "generation_steps", "map_rows", "mask_reads", "tap_pixels"]


class Reads(NamedTuple):
    """The pixel under each tap of a network's masks, each ``(H*W) x k*k``, -1 where it is off."""

    init: np.ndarray
    undilated: np.ndarray
    dilated: np.ndarray


def tap_pixels(mask: Tensor, height: int, width: int, dilation: int = 1) -> np.ndarray:
    """The pixel that each tap reads at each position.

    Args:
        mask: ``1 x k*k x (H*W)``, 0/1.
        height, width: size of the image.
        dilation: distance between neighbouring taps.

    Returns:
        ``(H*W) x k*k``, int64, -1 where a tap is off or reads outside the image.

    Raises:
        ValueError: the mask is not one of 0/1 for a square kernel and such an image.
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
    """``tap_pixels`` of each of a network's masks."""
    dilations = (1, 1, max_dilation)
    return Reads(*(tap_pixels(m, height, width, d) for m, d in zip(masks, dilations, strict=True)))


def generation_steps(
    order: np.ndarray, reads: Reads, hidden: np.ndarray, parallel: bool = True
) -> list[np.ndarray]:
    """The pixels to step through, in the sets that can be computed at once.

    These are the hidden pixels, and the visible ones whose features depend on hidden ones and are
    read on the way to a later hidden one. All other features follow from the visible pixels.

    Args:
        order: ``(H*W) x 2``, the order that the masks are of.
        reads: of the network's masks.
        hidden: ``H x W``, bool, the pixels to generate.
        parallel: one step for each dependency depth; otherwise one for each pixel.

    Returns:
        Disjoint arrays of pixels, int64. What a step reads of pixels that are stepped through are
        values of earlier steps, and features of earlier steps or its own.

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


def map_rows(steps: Sequence[np.ndarray], reads: Reads) -> np.ndarray:
    """The row of a map that each pixel has while it is read; rows are used again afterwards.

    Args:
        steps: from ``generation_steps`` of these reads.
        reads: of the network's masks.

    Returns:
        ``H*W``, int64: rows from 0; -1 for pixels that are neither stepped through nor read.
    """
    num_pixels = len(reads.init)
    last_use = np.full(num_pixels + 1, -1)  # the last is that of taps that are off
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
    ending: list[list[int]] = [[] for _ in range(len(steps) + 1)]

    def enter(pixel: int) -> None:
        nonlocal num_rows
        if not free:
            free.append(num_rows)
            num_rows += 1
        rows[pixel] = free.pop()
        ending[last_use[pixel]].append(rows[pixel])

    for pixel in np.flatnonzero((last_use[:-1] >= 0) & ~is_stepped).tolist():
        enter(pixel)
    for number, step in enumerate(steps):
        for pixel in step.tolist():
            enter(pixel)
        free.extend(reversed(ending[number]))
    return rows


def _check_order(pixels: list[int], *neighbours: list[list[int]]) -> None:
    seen: set[int] = set()
    for pixel in pixels:
        for lists in neighbours:
            if not seen.issuperset(lists[pixel]):
                raise ValueError("the masks read pixels that do not come earlier in the order")
        seen.add(pixel)
