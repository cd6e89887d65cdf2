"""Pieces of pictures at their own resolution, as a source of images of one size."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from lmconv.data.image_files import read_image, reduced_part
from lmconv.data.shuffling import draw_epoch, owners
from lmconv.data.sources import DataError, Images, LazyImages, Pictures, Source
from lmconv.distributed import Processes
from lmconv.pixel_values import ImageShape, PixelType

__all__ = ["PieceSource", "counted"]

log = logging.getLogger(__name__)

# Pixels of the pictures that are in memory together, to shuffle their pieces.
_PIXELS_AT_ONCE = 2**27


class PieceSource(Source):
    """Pieces of pictures.

    There are as many pieces of a picture as fit into it side by side. In their own order they are
    laid side by side around the picture's middle. Shuffled, each one is cut at a random place, and
    may show a larger part of its picture, reduced by a random factor. They are shuffled among some
    pictures at a time, so that only these have to be in memory. Each picture is decoded once, by
    one of the processes that share batches; only one between the pictures of two processes, by
    both.

    Args:
        pictures: the pictures.
        sizes: height and width of each; there are no pieces of those that are smaller than a piece.
        image_shape: (C, H, W) of the pieces.
        limit: use this many pieces; None for all. Those of the pictures' own order are drawn once,
            by ``seed``, and shuffled ones anew each time.
        seed: seed of that draw.
        max_reduction: shuffled pieces are reduced by a factor from 1 to this, or to what their
            pictures allow, drawn for each one evenly on a logarithmic scale.
        kind: type of the pixels.
        read: what reads a picture, ``C x H x W``; by default ``read_image``.
        permute: what draws the order of the pictures, if not all orders are as good.
        processes: those that share shuffled batches; by default only this one.
        together: how many pictures in a row one process should read.

    Attributes:
        image_shape: (C, H, W) of the pieces.
        num_smaller: number of pictures that are smaller than a piece.
    """

    def __init__(
        self,
        pictures: Pictures,
        sizes: Sequence[tuple[int, int]] | np.ndarray,
        image_shape: ImageShape,
        limit: int | None = None,
        seed: int = 0,
        max_reduction: float = 1.0,
        kind: PixelType = np.uint8,
        read: Callable[[Any], np.ndarray] | None = None,
        permute: Callable[[np.random.Generator], np.ndarray] | None = None,
        processes: Processes | None = None,
        together: int = 1,
    ) -> None:
        self._pictures, self.image_shape, self._kind = pictures, image_shape, kind
        self._read = read or partial(read_image, channels=image_shape[0], kind=kind)
        self._permute, self._processes = permute, processes or Processes()
        self._max_reduction = max_reduction
        self._sizes = np.asarray(sizes)
        self._fitting = self._sizes // image_shape[1:]
        self._counts = self._fitting.prod(axis=1)
        self._ends = self._counts.cumsum()
        self.num_smaller = int(np.count_nonzero(self._counts == 0))
        total = int(self._ends[-1])
        self._chosen: Sequence[int] = range(total)
        if limit is not None and limit < total:
            shuffled = np.random.RandomState(seed % 2**32).permutation(total)
            self._chosen = np.sort(shuffled[:limit]).tolist()
        self.num_images = len(self._chosen)
        self.together = max(1, together * len(self._chosen) // len(self._sizes))

    def batches(
        self, batch_size: int, random: np.random.Generator | None
    ) -> Iterator[tuple[np.ndarray, Images]]:
        cut = self._in_order() if random is None else self._shuffled(batch_size, random)
        for start in range(0, len(self._chosen), batch_size):
            indices = np.arange(start, min(start + batch_size, len(self._chosen)))
            yield indices, LazyImages(indices, cut)

    def name(self, index: int) -> str:
        """The picture of a piece, with the place of its first pixel in the name."""
        number, top, left = self._place(self._chosen[index])
        picture, place = self._pictures[number], f"_row{top}_column{left}"
        if isinstance(picture, Path):
            return str(picture.with_name(f"{picture.stem}{place}{picture.suffix}"))
        return f"{picture}{place}"

    def _in_order(self) -> Callable[[np.ndarray], np.ndarray]:
        """What returns the pieces that are laid side by side, by their indices."""
        pixels_of = lru_cache(maxsize=1)(lambda number: self._read(self._pictures[number]))
        _, height, width = self.image_shape

        def piece_at(index: int) -> np.ndarray:
            number, top, left = self._place(self._chosen[index])
            return pixels_of(number)[:, top : top + height, left : left + width]

        return partial(self._together, piece_at)

    def _shuffled(
        self, batch_size: int, random: np.random.Generator
    ) -> Callable[[np.ndarray], np.ndarray]:
        """What returns the pieces of an epoch that is drawn, by their places in it."""
        counts, total = self._counts, len(self._chosen)
        if total < counts.sum():
            counts = random.multivariate_hypergeometric(counts, total, method="marginals")
        order = random.permutation(len(counts)) if self._permute is None else self._permute(random)
        order = order[counts[order] > 0]
        of_pieces, num_pixels = np.repeat(order, counts[order]), self._sizes[order].prod(axis=1)
        owner_of = owners(self._processes, total, batch_size)
        numbers, windows = draw_epoch(
            random, of_pieces, counts[order], num_pixels, _PIXELS_AT_ONCE, owner_of
        )
        places = random.random((total, 2))
        factors = self._max_reduction ** random.random(total)
        place_in_order = np.empty_like(counts)
        place_in_order[order] = np.arange(len(order))

        @lru_cache(maxsize=1)
        def pictures_of(window: int) -> dict[int, np.ndarray]:
            used = order[np.unique(place_in_order[numbers[windows == window]])]
            return {number: self._read(self._pictures[number]) for number in used.tolist()}

        def piece_at(index: int) -> np.ndarray:
            pixels = pictures_of(int(windows[index]))[int(numbers[index])]
            return self._random_piece(pixels, places[index], float(factors[index]))

        return partial(self._together, piece_at)

    def _place(self, piece: int) -> tuple[int, int, int]:
        """The picture of a piece laid side by side with others, its first row and column."""
        number = int(np.searchsorted(self._ends, piece, side="right"))
        rows, columns = self._fitting[number].tolist()
        place = divmod(piece - int(self._ends[number]) + rows * columns, columns)
        margins = self._sizes[number] % self.image_shape[1:] // 2
        top, left = place * np.array(self.image_shape[1:]) + margins
        return number, int(top), int(left)

    def _together(self, piece_at: Callable[[int], np.ndarray], indices: np.ndarray) -> np.ndarray:
        """The pieces with some indices, each of which ``piece_at`` returns."""
        pieces = np.empty((len(indices), *self.image_shape), self._kind)
        for piece, index in zip(pieces, indices.tolist(), strict=True):
            piece[:] = piece_at(index)
        return pieces

    def _random_piece(self, pixels: np.ndarray, place: np.ndarray, factor: float) -> np.ndarray:
        """A piece of a picture, at a place given from 0 to 1 in each direction, and reduced."""
        _, height, width = self.image_shape
        sides = np.array(pixels.shape[1:])
        factor = min(factor, *(sides / (height, width)).tolist())
        if factor == 1:
            top, left = ((sides - (height, width) + 1) * place).astype(int).tolist()
            return pixels[:, top : top + height, left : left + width]
        room = np.maximum(sides - np.multiply(factor, (height, width)), 0)  # not -1e-15
        top, left = (room * place).tolist()
        return reduced_part(pixels, top, left, factor, height, width)


def counted(source: PieceSource, name: str) -> PieceSource:
    """The same source, of whose pieces a line in the log tells the number.

    Args:
        source: pieces of pictures.
        name: what people know the pictures by.

    Raises:
        DataError: no picture is large enough.
    """
    _, height, width = source.image_shape
    if not source.num_images:
        raise DataError(
            f"no picture of {name} is as large as a piece of {height}x{width}: give a smaller "
            "`crop`, or `image_size` to resize them"
        )
    smaller = source.num_smaller
    log.info(
        "%d piece%s of %dx%d from these pictures%s",
        *(source.num_images, "s" * (source.num_images != 1), height, width),
        f"; {smaller} smaller picture{'s' * (smaller != 1)} left out" * bool(smaller),
    )
    return source
