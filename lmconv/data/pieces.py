"""Pieces of pictures at their own resolution, as a source of images of one size."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from lmconv.data.image_files import fit, read_image
from lmconv.data.sources import Images, LazyImages
from lmconv.pixel_values import ImageShape, PixelType

__all__ = ["PieceSource"]

# Pixels of the pictures that are in memory together, to shuffle their pieces.
_PIXELS_AT_ONCE = 2**27

_Piece = tuple[int, np.ndarray]


class PieceSource:
    """Pieces of image files.

    There are as many pieces of a picture as fit into it side by side. In their own order they are
    laid side by side around the picture's middle. Shuffled, each one is cut at a random place, and
    each picture may be reduced before by a random factor. Pieces are shuffled among some pictures
    at a time, so that only these have to be in memory, and each picture is decoded once.

    Args:
        sizes: height and width of each file's picture, at least as large as a piece.
        image_shape: (C, H, W) of the pieces.
        limit: use this many pieces; None for all. Those of the files' own order are drawn once, by
            ``seed``, and shuffled ones anew each time.
        seed: seed of that draw.
        max_reduction: shuffled pictures are reduced by a factor from 1 to this, drawn anew each
            time, evenly on a logarithmic scale.
        kind: type of the pixels.
    """

    def __init__(
        self,
        sizes: Mapping[Path, tuple[int, int]],
        image_shape: ImageShape,
        limit: int | None = None,
        seed: int = 0,
        max_reduction: float = 1.0,
        kind: PixelType = np.uint8,
    ) -> None:
        self._files, self._shape, self._kind = list(sizes), image_shape, kind
        self._max_reduction = max_reduction
        self._sizes = np.array(list(sizes.values()))
        self._fitting = self._sizes // image_shape[1:]
        self._ends = self._fitting.prod(axis=1).cumsum()
        total = int(self._ends[-1])
        self._chosen: Sequence[int] = range(total)
        if limit is not None and limit < total:
            shuffled = np.random.RandomState(seed % 2**32).permutation(total)
            self._chosen = np.sort(shuffled[:limit]).tolist()
        self.num_images: int | None = len(self._chosen)
        self._pixels, self._decoded = np.empty(0), -1

    def batches(
        self, batch_size: int, random: np.random.Generator | None
    ) -> Iterator[tuple[np.ndarray, Images]]:
        if random is None:
            for start in range(0, len(self._chosen), batch_size):
                indices = np.arange(start, min(start + batch_size, len(self._chosen)))
                yield indices, LazyImages(indices, self._in_order)
            return
        pieces = self._shuffled(random)
        while batch := list(islice(pieces, batch_size)):
            numbers, images = zip(*batch, strict=True)
            yield np.array(numbers), np.stack(images)

    def name(self, index: int) -> str:
        """The file of a piece, with the place of its first pixel in the name."""
        file, top, left = self._place(self._chosen[index])
        path = self._files[file]
        return str(path.with_name(f"{path.stem}_row{top}_column{left}{path.suffix}"))

    def _in_order(self, indices: np.ndarray) -> np.ndarray:
        pieces = []
        for index in indices.tolist():
            file, top, left = self._place(self._chosen[index])
            if file != self._decoded:
                self._pixels, self._decoded = self._read(file), file
            pieces.append(self._cut(self._pixels, top, left))
        return np.stack(pieces)

    def _shuffled(self, random: np.random.Generator) -> Iterator[_Piece]:
        counts = self._fitting.prod(axis=1)
        if len(self._chosen) < counts.sum():
            counts = random.multivariate_hypergeometric(
                counts, len(self._chosen), method="marginals"
            )
        order = random.permutation(np.flatnonzero(counts))
        num_pixels = self._sizes[order].prod(axis=1)
        group_of = (num_pixels.cumsum() - num_pixels) // _PIXELS_AT_ONCE
        first = 0
        for group in np.split(order, np.flatnonzero(np.diff(group_of)) + 1):
            pixels = {file: self._reduced(self._read(file), random) for file in group.tolist()}
            files = random.permutation(np.repeat(group, counts[group]))
            places = random.random((len(files), 2))
            for index, (file, place) in enumerate(zip(files.tolist(), places, strict=True), first):
                starts = np.array(pixels[file].shape[1:]) - self._shape[1:] + 1
                yield index, self._cut(pixels[file], *(starts * place).astype(int).tolist())
            first += len(files)

    def _place(self, number: int) -> tuple[int, int, int]:
        """The file of a piece that is laid side by side with others, its first row and column."""
        file = int(np.searchsorted(self._ends, number, side="right"))
        rows, columns = self._fitting[file].tolist()
        place = divmod(number - int(self._ends[file]) + rows * columns, columns)
        margins = self._sizes[file] % self._shape[1:] // 2
        top, left = place * np.array(self._shape[1:]) + margins
        return file, int(top), int(left)

    def _cut(self, pixels: np.ndarray, top: int, left: int) -> np.ndarray:
        """A copy, which does not keep the whole picture in memory."""
        _, height, width = self._shape
        return pixels[:, top : top + height, left : left + width].copy()

    def _reduced(self, pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """A picture reduced by a random factor, but not below the size of a piece."""
        factor = self._max_reduction ** random.random()
        if factor == 1:
            return pixels
        _, height, width = pixels.shape
        _, least_height, least_width = self._shape
        return fit(
            pixels,
            max(least_height, round(height / factor)),
            max(least_width, round(width / factor)),
        )

    def _read(self, file: int) -> np.ndarray:
        return read_image(self._files[file], self._shape[0], self._kind)
