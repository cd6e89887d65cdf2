"""Steps that compute a window of the next positions of each image under a guess of their values.

With the noise of each pixel fixed, a draw is a function of the pixels before it. So the values of
the next positions can be guessed, all of them computed at once, and those kept whose context was
guessed rightly. The result is the same as one by one, in fewer steps (Song et al. 2021,
"Accelerating feedforward computation via parallel nonlinear equation solving"; here with cached
features, and for any order).

Positions are taken in the sequence of a schedule's steps. A step works on the same number of
positions of each image, from where this image stands, and pads at the end of the sequence.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lmconv.generation.schedule import Schedule, Steps, map_rows
from lmconv.generation.step_plan import Rows, Step, TapReads
from masking import Masks

__all__ = ["WindowPlan", "window_rows"]

# A first guess is the value of the nearest pixel known by then, at most this far away.
_REACH = 4
# For fewer pixels of all images, finding rows to reuse takes longer than it saves.
_FEW_PIXELS = 2**12
# The guess where there is none: the lowest value of a pixel.
_LOWEST = -1.0


class WindowPlan:
    """The windows of a schedule for B images, each at a place of its own.

    All of its tensors are changed in place, so that steps can be recorded: ``keep`` moves to the
    next windows. The attributes ``batch`` to ``tap_orders`` are those of ``StepPlan``.

    Args:
        schedule: of at least one step.
        batch: number of images B.
        window: number of positions of a step for each image.
        hidden: ``H x W``, bool, the pixels to generate.
        rows: ``window_rows`` of the schedule and the window.

    Attributes:
        now: the current step.
        place: for each image, the number of positions that are done.
        hidden_before: for each place, the number of hidden pixels before it.
    """

    in_place = True
    uniform = True

    def __init__(
        self,
        schedule: Schedule,
        batch: int,
        window: int,
        hidden: np.ndarray,
        rows: np.ndarray,
    ) -> None:
        device = schedule.masks.init.device
        steps = schedule.steps
        sequence = steps.pixels
        self.batch, self.window = batch, window
        self.image_size = schedule.image_size
        self.length = len(sequence)
        self.num_rows = int(rows.max()) + 3
        zeros_row, padding_row = self.num_rows - 2, self.num_rows - 1
        row_of = np.append(rows, zeros_row)  # taps that are off read pixel -1
        visible = np.setdiff1d(np.flatnonzero(rows >= 0), sequence)

        def tensor(numbers: np.ndarray) -> Tensor:
            return torch.from_numpy(numbers).to(device)

        self.stepped, self.visible, self.visible_rows = map(
            tensor, (sequence, visible, rows[visible])
        )
        self._level = tensor(np.append(steps.numbers, len(steps)))
        self.hidden_before = np.append(0, hidden.flat[sequence].cumsum())
        self._rows_in_maps = tensor(np.append(rows[sequence], padding_row) * batch)
        is_on = [(table[sequence] >= 0).any(axis=0) for table in schedule.reads]
        orders = [np.argsort(~on, kind="stable") for on in is_on]
        self.tap_orders = list(map(tensor, orders))
        self._runs = [((0, int(on.sum())),) if on.any() else () for on in is_on]
        # After the last position come padding positions, whose taps read the row of zeros.
        self._reads = [
            tensor(
                row_of[
                    np.pad(
                        table[sequence][:, taps[: on.sum()]], ((0, 1), (0, 0)), constant_values=-1
                    )
                ]
                * batch
            )
            for table, taps, on in zip(schedule.reads, orders, is_on, strict=True)
        ]
        columns = self.stepped[[*range(self.length), -1]]
        self._masks = [mask[0].index_select(1, columns).t().contiguous() for mask in schedule.masks]
        nearest, visible_guesses = _first_guesses(sequence, hidden, window)
        self._nearest, self._visible_guesses = tensor(nearest), tensor(visible_guesses)
        self._is_hidden = tensor(hidden.flat[sequence])

        self._images = torch.arange(batch, device=device)
        self._images_of_columns = self._images.repeat_interleave(window)
        self._offsets = torch.arange(window, device=device)
        self.place = torch.zeros(batch, dtype=torch.int64, device=device)
        self._before = self.place.new_full((batch, window), self.length)  # the windows before
        self.now = self._make_step()

    def __iter__(self) -> Iterator[Step]:
        while int(self.place.min()) < self.length:
            yield self.now

    def number_of_steps(self, _: int) -> int:
        """At most how many steps there are; ``FeatureCache`` records a step that recurs."""
        return self.length

    def first_values(self, images: Tensor) -> Tensor:
        """What a table of the pixels holds at first: visible pixels, and guesses of hidden ones.

        Args:
            images: ``B x C x H x W``.

        Returns:
            ``T x B x C``, for the T pixels that are stepped through.
        """
        pixels, sources = images.flatten(2), self._visible_guesses
        guesses = torch.where(sources < 0, _LOWEST, pixels[:, :, sources.clamp_min(0)])
        values = torch.where(self._is_hidden, guesses, pixels[:, :, self.stepped])
        return values.permute(2, 0, 1)

    def without_padding(self, table: Tensor) -> Tensor:
        """A table without its padding row: ``T x B x C``."""
        return table.view(self.length + 1, self.batch, -1)[:-1]

    def begin(self, index: int) -> None:
        """Let image ``index`` start again from the first position."""
        self.place[index] = 0
        self._before[index] = self.length
        self._fill(self.now)

    def keep(self, agrees: Tensor, pixels: Tensor) -> None:
        """Move each window behind the positions that are right, and guess the new positions.

        Args:
            agrees: ``B x P``, whether positions came out as guessed.
            pixels: the table of the pixels, with what has come out.
        """
        positions = self._positions()
        is_right = agrees.long().cumprod(dim=1)
        # The first position that came out otherwise is right, and so are others of its level: what
        # they depend on was guessed rightly.
        first_wrong = is_right.sum(dim=1, keepdim=True).clamp_max(self.window - 1)
        levels = self._level[positions]
        is_kept = levels <= levels.gather(1, first_wrong)
        self._before.copy_(positions)
        self.place.add_(is_kept.sum(dim=1)).clamp_max_(self.length)
        self._fill(self.now)
        positions = self._positions()
        is_new = (positions > self._before[:, -1:]).flatten()
        sources = self._nearest[positions].flatten()
        targets = positions.flatten()
        sources = torch.where(is_new, sources, targets)
        images = self._images_of_columns
        values = pixels.index_select(0, sources * self.batch + images)
        pixels.index_copy_(0, targets * self.batch + images, values)

    def _positions(self) -> Tensor:
        """The window of each image: ``B x P`` places in the sequence."""
        return (self.place[:, None] + self._offsets).clamp_max(self.length)

    def _make_step(self) -> Step:
        def numbers(*shape: int) -> Tensor:
            return self.place.new_zeros(shape)

        count = self.batch * self.window
        reads = [
            TapReads(numbers(count * table.shape[1]), runs)
            for table, runs in zip(self._reads, self._runs, strict=True)
        ]
        masks = [table.new_zeros(self.batch, table.shape[1], self.window) for table in self._masks]
        step = Step(
            Rows(numbers(2 * count), numbers(count), numbers(2 * count), numbers(count)),
            Masks(*masks),
            (reads[0], reads[1], reads[2]),
        )
        self._fill(step)
        return step

    def _fill(self, step: Step) -> None:
        """Set the tensors of a step to the windows at the current places."""
        positions, images = self._positions(), self._images[:, None]
        # What came out in the window before, and the guesses of this one.
        new = torch.cat([self._before, positions], dim=1)
        rows = step.rows
        rows.new.copy_((new * self.batch + images).flatten())
        rows.current.copy_((positions * self.batch + images).flatten())
        rows.new_in_maps.copy_((self._rows_in_maps[new] + images).flatten())
        rows.current_in_maps.copy_((self._rows_in_maps[positions] + images).flatten())
        for mask, mask_table in zip(step.masks, self._masks, strict=True):
            mask.copy_(mask_table[positions].transpose(1, 2))
        for read, read_table in zip(step.reads, self._reads, strict=True):
            read.rows.copy_((read_table[positions] + images[:, :, None]).flatten())


def window_rows(schedule: Schedule, window: int, batch: int) -> np.ndarray:
    """The row of each pixel in the maps, as ``map_rows`` returns them, for windows of B images."""
    sequence = schedule.steps.pixels
    if len(schedule.reads.init) * batch <= _FEW_PIXELS:
        is_used = np.zeros(len(schedule.reads.init) + 1, dtype=bool)
        is_used[sequence] = True
        for table in schedule.reads:
            is_used[table[sequence]] = True
        is_used = is_used[:-1]  # the last one is for taps that are off
        return np.where(is_used, is_used.cumsum() - 1, -1)
    one_by_one = Steps(sequence, np.ones_like(sequence))
    return map_rows(one_by_one, schedule.reads, 2 * window)  # a step also writes the window before


def _first_guesses(
    sequence: np.ndarray, hidden: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where the first guess of each position comes from.

    Args:
        sequence: T pixels, numbered row by row.
        hidden: ``H x W``, bool, the pixels to generate.
        window: number of positions that are guessed at once.

    Returns:
        For each of the T positions and the padding position, the position whose value is the
        guess, itself if there is none; for each of the T positions, a visible pixel whose value it
        has from the start, or -1.
    """
    height, width = hidden.shape
    length = len(sequence)
    place = np.full(hidden.size, length)
    place[sequence] = np.arange(length)
    reach = np.arange(-_REACH, _REACH + 1)
    offsets = sorted((r * r + c * c, r, c) for r in reach for c in reach if r or c)
    row, col = np.divmod(sequence, width)
    own = np.arange(length)
    nearest, visible = own.copy(), np.full(length, -1)
    is_open = hidden.flat[sequence].copy()
    for _, down, right in offsets:
        rows, cols = row + down, col + right
        inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        pixel = np.where(inside, rows * width + cols, 0)
        is_visible = is_open & inside & ~hidden.flat[pixel]
        visible[is_visible] = pixel[is_visible]
        is_known = is_open & inside & hidden.flat[pixel] & (place[pixel] <= own - window)
        nearest[is_known] = place[pixel][is_known]
        is_open &= ~(is_visible | is_known)
    return np.append(nearest, length), visible
