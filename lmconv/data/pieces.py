"""Pieces of pictures at their own resolution, as a source of images of one size."""

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path

import numpy as np

from lmconv.data.image_files import ImageFileError, read_image
from lmconv.data.sources import DataError
from lmconv.pixel_values import ImageShape

__all__ = ["PieceSource"]

# Pixels of the pictures that are kept in memory together, to shuffle their pieces.
_PIXELS_AT_ONCE = 2**27

_Piece = tuple[int, np.ndarray]


class PieceSource:
    """Pieces of image files, nothing of which is resized.

    There are as many pieces of a picture as fit into it side by side. In their own order they are
    laid side by side around the picture's middle. Shuffled, each one is cut at a random place; the
    pieces of some pictures at a time are shuffled, so memory does not grow with their number, and
    each picture is decoded once.

    Args:
        sizes: height and width of each file's picture, at least as large as a piece.
        image_shape: (C, H, W) of the pieces.
        limit: use this many pieces; None for all. Those of the files' own order are drawn once, by
            ``seed``.
        seed: seed of that draw.
    """

    def __init__(
        self,
        sizes: Mapping[Path, tuple[int, int]],
        image_shape: ImageShape,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        _, height, width = image_shape
        self._files, self._shape = list(sizes), image_shape
        self._sizes = np.array(list(sizes.values()))
        self._fitting = self._sizes // (height, width)
        self._ends = self._fitting.prod(axis=1).cumsum()
        shuffled = np.random.RandomState(seed % 2**32).permutation(self._ends[-1])
        self._chosen = np.sort(shuffled[:limit])
        self.num_images: int | None = len(self._chosen)

    def batches(
        self, batch_size: int, random: np.random.Generator | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        pieces = self._in_order() if random is None else self._shuffled(random)
        while batch := list(islice(pieces, batch_size)):
            indices, images = zip(*batch, strict=True)
            yield np.array(indices), np.stack(images)

    def name(self, index: int) -> str:
        file = self._file_of(self._chosen[index])
        top, left = self._corner(file, self._chosen[index])
        return f"{self._files[file]}, row {top}, column {left}"

    def _in_order(self) -> Iterator[_Piece]:
        pixels, decoded = np.empty(0), -1
        for index, number in enumerate(self._chosen):
            if (file := self._file_of(number)) != decoded:
                pixels, decoded = self._read(file), file
            yield index, self._cut(pixels, *self._corner(file, number))

    def _shuffled(self, random: np.random.Generator) -> Iterator[_Piece]:
        # With a limit, each epoch draws other pieces.
        numbers = random.permutation(self._ends[-1])[: self.num_images]
        files = np.searchsorted(self._ends, numbers, side="right")
        places = random.random((len(numbers), 2))
        order = random.permutation(len(self._files))
        sizes = self._sizes[order].prod(axis=1)
        group_of = np.empty(len(order), int)
        group_of[order] = (sizes.cumsum() - sizes) // _PIXELS_AT_ONCE
        groups = (np.flatnonzero(group_of[files] == group) for group in range(group_of.max() + 1))
        return chain.from_iterable(self._group(files, places, group) for group in groups)

    def _group(self, files: np.ndarray, places: np.ndarray, group: np.ndarray) -> Iterator[_Piece]:
        """The pieces of some pictures, by their indices in the order in which they come."""
        pixels = {file: self._read(file) for file in np.unique(files[group]).tolist()}
        for index in group.tolist():
            file = int(files[index])
            starts = self._sizes[file] - self._shape[1:] + 1
            top, left = (starts * places[index]).astype(int)
            yield index, self._cut(pixels[file], top, left)

    def _file_of(self, number: int) -> int:
        return int(np.searchsorted(self._ends, number, side="right"))

    def _corner(self, file: int, number: int) -> tuple[int, int]:
        """The first row and column of a piece that is laid side by side with others."""
        rows, columns = self._fitting[file]
        place = divmod(int(number - self._ends[file] + rows * columns), int(columns))
        margins = (self._sizes[file] % self._shape[1:]) // 2
        top, left = place * np.array(self._shape[1:]) + margins
        return int(top), int(left)

    def _cut(self, pixels: np.ndarray, top: int, left: int) -> np.ndarray:
        _, height, width = self._shape
        return pixels[:, top : top + height, left : left + width]

    def _read(self, file: int) -> np.ndarray:
        try:
            return read_image(self._files[file], self._shape[0])
        except ImageFileError as error:
            raise DataError(str(error)) from error
