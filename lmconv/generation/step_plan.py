"""A schedule of steps in tensors: which rows of memory each step writes and reads, for all images.

Two kinds of memory. A *map* is what one masked convolution reads: a row for each pixel for as long
as it is read (``schedule.map_rows``), then one of zeros for taps that are off, and one for what
only fills up a step. A *table* holds values of pixels: a row for each that is stepped through, in
this order, and one to fill up. Both are ``rows*B x channels``; each row stands for all B images.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmconv.generation.schedule import Reads
from masking import Masks

__all__ = ["Rows", "Step", "StepPlan", "TapReads"]

# Steps are filled up to at most about so many sizes, since the work of each size is prepared.
_NUM_SIZES = 14


class Rows(NamedTuple):
    """Where a step's pixels are: P positions to compute, and the P' of the step before."""

    new: Tensor  # in tables: the pixels whose values are new, B*P'
    current: Tensor  # in tables: the positions to compute, B*P
    new_in_maps: Tensor
    current_in_maps: Tensor


class TapReads(NamedTuple):
    """What the taps of one step read, under one of the masks."""

    rows: Tensor  # of a map: for each image, position and tap
    runs: tuple[tuple[int, int], ...]  # first and end of taps that are on, in the tap order


class Step(NamedTuple):
    """One step of a schedule."""

    rows: Rows
    masks: Masks  # of the P positions, each 1 x k*k x P
    reads: tuple[TapReads, TapReads, TapReads]  # under each of the masks


class StepPlan:
    """The steps of a schedule for B images.

    The values of pixels are known one step later than their features, so a step is given those of
    the step before (filled up to the largest step) and computes the positions that come next.

    Args:
        masks: of a network, each ``1 x k*k x (H*W)``.
        reads: ``schedule.mask_reads`` of these masks.
        steps: ``schedule.generation_steps`` of these reads, at least one.
        rows: ``schedule.map_rows`` of these steps.
        batch: number of images B.
        uniform: fill up all steps to one size and let them read all taps.

    Attributes:
        sizes: number of positions P of each step, what only fills it up included.
        num_rows: rows of a map, the zeros and the filling included.
        stepped: the pixels of the rows of a table, without the last.
        visible, visible_rows: pixels that are read and not stepped through, and their rows in maps.
        tap_orders: for each mask, an order of taps in which those of a step form few runs.
    """

    def __init__(
        self,
        masks: Masks,
        reads: Reads,
        steps: Sequence[np.ndarray],
        rows: np.ndarray,
        batch: int,
        uniform: bool,
    ) -> None:
        self.batch, self.uniform = batch, uniform
        self._images = np.arange(batch)
        self._masks, self._steps = masks, steps
        self._device = masks.init.device
        self._most = max(map(len, steps))
        multiple = self._most if uniform else max(1, self._most // _NUM_SIZES)
        self.sizes = [-(-len(step) // multiple) * multiple for step in steps]
        self.num_rows = int(rows.max()) + 3
        self._zeros, self._filling = self.num_rows - 2, self.num_rows - 1
        self._row_of = np.append(rows, self._zeros)  # that of pixel -1 too, of taps that are off
        stepped = np.concatenate(steps)
        visible = np.setdiff1d(np.flatnonzero(rows >= 0), stepped)
        self.stepped = self._to_device(stepped)
        self.visible, self.visible_rows = map(self._to_device, (visible, rows[visible]))
        tap_orders = [_tap_order(table, steps) for table in reads]
        self.tap_orders = [self._to_device(order) for order in tap_orders]
        self._reads = [table[:, order] for table, order in zip(reads, tap_orders, strict=True)]
        self._runs: dict[bytes, tuple[tuple[int, int], ...]] = {}

    def _to_device(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self._device)

    def __iter__(self) -> Iterator[Step]:
        most = self._most
        before = before_in_maps = np.empty(0, dtype=np.int64)
        first = 0
        for pixels, size in zip(self._steps, self.sizes, strict=True):
            rows, rows_in_maps = np.arange(first, first + len(pixels)), self._row_of[pixels]
            positions = _fill_up(pixels, size, pixels[-1])
            columns = self._to_device(positions)
            yield Step(
                Rows(
                    self._rows(_fill_up(before, most, len(self.stepped))),
                    self._rows(_fill_up(rows, size, len(self.stepped))),
                    self._rows(_fill_up(before_in_maps, most, self._filling)),
                    self._rows(_fill_up(rows_in_maps, size, self._filling)),
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
        if key not in self._runs:  # few sets of taps come again and again
            self._runs[key] = _runs(is_on)
        return TapReads(self._rows(self._row_of[read[:, is_on]]), self._runs[key])

    def _rows(self, rows: np.ndarray) -> Tensor:
        """Rows (in any shape) as those of each image: flat, image by image."""
        return self._to_device(np.add.outer(self._images, rows * self.batch).ravel())


def _fill_up(rows: np.ndarray, size: int, filling: int) -> np.ndarray:
    if len(rows) == size:
        return rows
    return np.concatenate([rows, np.full(size - len(rows), filling)])


def _runs(is_on: np.ndarray) -> tuple[tuple[int, int], ...]:
    """First and end of each run of taps that are on."""
    edges = np.flatnonzero(np.diff(np.pad(is_on.astype(int), 1))).tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def _tap_order(table: np.ndarray, steps: Sequence[np.ndarray]) -> np.ndarray:
    """From tap to tap, few steps in which one of the two is on and the other is off."""
    is_on = np.stack([(table[step] >= 0).any(axis=0) for step in steps]).astype(int)
    order: list[int] = []
    left = list(range(is_on.shape[1]))
    last = np.zeros(len(steps), dtype=int)  # as if the first came after a tap that is never on
    while left:
        nearest = min(left, key=lambda tap: int((is_on[:, tap] != last).sum()))
        order.append(nearest)
        left.remove(nearest)
        last = is_on[:, nearest]
    return np.array(order)
