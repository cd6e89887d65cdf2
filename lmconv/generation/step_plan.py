"""The steps of a schedule as tensors: the rows of memory that they write and read, for all images.

There are two kinds of memory. A *map* holds what one masked convolution reads: a row for each pixel
until its last read (``schedule.map_rows``), then a row of zeros, which taps read that are off, and
a padding row. A *table* holds values of pixels: a row for each pixel that is stepped through, first
step first, then a padding row. Both are ``rows*B x channels``: each row stands for all B images.

Steps are padded to a few sizes with copies of their last pixel. What is computed for these copies
goes to the padding rows, and no result depends on it.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmconv.generation.schedule import Schedule, Steps
from masking import Masks

__all__ = ["Rows", "Step", "StepPlan", "TapReads"]

# Steps are padded to about this many sizes at most, since each size has to be prepared.
_NUM_SIZES = 14


class Rows(NamedTuple):
    """The rows of a step's pixels: the P positions to compute, and P' from the step before."""

    new: Tensor  # in tables: the pixels whose values are new, B*P'
    current: Tensor  # in tables: the positions to compute, B*P
    new_in_maps: Tensor
    current_in_maps: Tensor


class TapReads(NamedTuple):
    """What the taps of one step read under one of the masks."""

    rows: Tensor  # of a map: one for each image, position and tap
    runs: tuple[tuple[int, int], ...]  # first and end of each run of taps that are on, in tap order


class Step(NamedTuple):
    """One step of a schedule."""

    rows: Rows
    masks: Masks  # at the P positions, each 1 x k*k x P
    reads: tuple[TapReads, TapReads, TapReads]  # under each of the masks


class StepPlan:
    """The steps of a schedule for B images, to be iterated over.

    The value of a pixel is known one step later than its features. So a step is given the values of
    the step before, padded to the size of the largest step, and computes the positions that come
    next.

    Args:
        schedule: of at least one step.
        batch: number of images B.
        uniform: pad all steps to one size and let them read all taps.

    Attributes:
        batch, uniform: as given.
        image_size: height and width.
        sizes: number of positions P of each step, padding included.
        num_rows: number of rows of a map, the zeros and the padding included.
        stepped: the pixels of a table's rows, without the padding row.
        visible, visible_rows: pixels that are read but not stepped through, and their rows in maps.
        in_place: whether all steps are the same tensors.
        tap_orders: for each mask, a permutation of the taps that leaves the active taps of a step
            in few runs.
    """

    in_place = False

    def __init__(self, schedule: Schedule, batch: int, uniform: bool) -> None:
        self.batch, self.uniform = batch, uniform
        self.image_size = schedule.image_size
        self._images = np.arange(batch)
        self._masks, self._steps = schedule.masks, schedule.steps
        self._device = self._masks.init.device
        self._most = int(self._steps.sizes.max())
        multiple = self._most if uniform else max(1, self._most // _NUM_SIZES)
        self.sizes: list[int] = (-(-self._steps.sizes // multiple) * multiple).tolist()
        self._number_of_steps = Counter(self.sizes)
        rows = schedule.rows
        self.num_rows = int(rows.max()) + 3
        self._zeros_row, self._padding_row = self.num_rows - 2, self.num_rows - 1
        self._row_of = np.append(rows, self._zeros_row)  # taps that are off read pixel -1
        stepped = self._steps.pixels
        visible = np.setdiff1d(np.flatnonzero(rows >= 0), stepped)
        self.stepped = self._to_device(stepped)
        self.visible, self.visible_rows = map(self._to_device, (visible, rows[visible]))
        tap_orders = [_tap_order(table, self._steps) for table in schedule.reads]
        self.tap_orders = [self._to_device(taps) for taps in tap_orders]
        self._reads = [
            table[:, taps] for table, taps in zip(schedule.reads, tap_orders, strict=True)
        ]
        self._runs: dict[bytes, tuple[tuple[int, int], ...]] = {}

    def _to_device(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self._device)

    def number_of_steps(self, size: int) -> int:
        """How many steps there are of a size."""
        return self._number_of_steps[size]

    def __iter__(self) -> Iterator[Step]:
        most = self._most
        before = before_in_maps = np.empty(0, dtype=np.int64)
        first = 0
        for pixels, size in zip(self._steps, self.sizes, strict=True):
            rows, rows_in_maps = np.arange(first, first + len(pixels)), self._row_of[pixels]
            positions = _pad(pixels, size, pixels[-1])
            columns = self._to_device(positions)
            yield Step(
                Rows(
                    self._rows(_pad(before, most, len(self.stepped))),
                    self._rows(_pad(rows, size, len(self.stepped))),
                    self._rows(_pad(before_in_maps, most, self._padding_row)),
                    self._rows(_pad(rows_in_maps, size, self._padding_row)),
                ),
                Masks(*(mask.index_select(2, columns) for mask in self._masks)),
                (
                    self._tap_reads(0, positions),
                    self._tap_reads(1, positions),
                    self._tap_reads(2, positions),
                ),
            )
            before, before_in_maps = rows, rows_in_maps
            first += len(pixels)

    def _tap_reads(self, mask: int, positions: np.ndarray) -> TapReads:
        read = self._reads[mask][positions]  # P x k*k
        is_on = np.full(read.shape[1], True) if self.uniform else (read >= 0).any(axis=0)
        key = is_on.tobytes()
        if key not in self._runs:  # the same few sets of taps recur
            self._runs[key] = _runs(is_on)
        return TapReads(self._rows(self._row_of[read[:, is_on]]), self._runs[key])

    def _rows(self, rows: np.ndarray) -> Tensor:
        """Rows, in any shape, as a flat tensor of the rows of every image, image by image."""
        return self._to_device(np.add.outer(self._images, rows * self.batch).ravel())


def _pad(rows: np.ndarray, size: int, padding: int) -> np.ndarray:
    if len(rows) == size:
        return rows
    return np.concatenate([rows, np.full(size - len(rows), padding)])


def _runs(is_on: np.ndarray) -> tuple[tuple[int, int], ...]:
    """First and end of each run of taps that are on."""
    edges = np.flatnonzero(np.diff(np.pad(is_on.astype(int), 1))).tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def _tap_order(table: np.ndarray, steps: Steps) -> np.ndarray:
    """Sort taps so that neighbours differ in few steps, one being on and the other off.

    Args:
        table: ``(H*W) x k*k``, one of a network's ``Reads``.
        steps: the steps of a schedule.

    Returns:
        ``k*k``, int64, a permutation of the taps.
    """
    is_on = np.logical_or.reduceat(table[steps.pixels] >= 0, steps.starts)
    taps: list[int] = []
    left = list(range(is_on.shape[1]))
    last = np.zeros(len(steps), dtype=bool)  # as if a tap that is never on came before the first
    while left:
        nearest = min(left, key=lambda tap: int((is_on[:, tap] != last).sum()))
        taps.append(nearest)
        left.remove(nearest)
        last = is_on[:, nearest]
    return np.array(taps)
