"""Images in arrays that people bring: ``.npy`` and ``.npz`` files, mapped into memory.

Of a folder, the arrays are its ``.npy`` files, or those of the only ``.npz`` file in it.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from lmconv.data.array_files import map_member, map_npy, member_names
from lmconv.data.folders import most_at_once
from lmconv.data.image_files import fit
from lmconv.data.pieces import PieceSource, counted
from lmconv.data.sources import DataError, Images, MemorySource, Source
from lmconv.data.splits import drawn, in_words, split
from lmconv.distributed import Processes
from lmconv.pixel_values import MOST_CHANNELS, ImageShape

__all__ = ["array_shape", "is_split_array", "open_array", "open_array_pieces", "read_array_labels"]

log = logging.getLogger(__name__)

# What the arrays of a part are called, and those of a set that is not split.
_IMAGES = ("{}", "x_{}", "X_{}", "{}_images", "images_{}")
_LABELS = ("y_{}", "Y_{}", "{}_labels", "labels_{}")
_WHOLE_IMAGES = ("images", "x", "X", "data", "arr_0")
_WHOLE_LABELS = ("labels", "y", "Y")

_PIXEL_TYPES = (np.dtype(np.uint8), np.dtype(np.uint16))
# Numbers of channels, the usual ones first.
_CHANNELS = ((1, 3), tuple(range(1, MOST_CHANNELS + 1)))


def array_shape(data_dir: Path) -> ImageShape:
    """The (C, H, W) of the images in arrays, of which only the headers are read.

    Raises:
        DataError: there are no such arrays, or they are damaged or not of images.
    """
    arrays = _Arrays(data_dir)
    return arrays.images("train" if arrays.is_split else "all", unpack=False).shape[1:]


def is_split_array(data_dir: Path) -> bool:
    """Whether there are arrays for training or for testing.

    Raises:
        DataError: there are no arrays.
    """
    return _Arrays(data_dir).is_split


def open_array(
    data_dir: Path,
    part: str,
    image_shape: ImageShape,
    seed: int,
    limit: int | None = None,
    n_bits: int = 8,
    own_sizes: bool = False,
) -> Source:
    """Open the images of one part, ``train``, ``test`` or ``all``.

    Those of another size are brought to that of ``image_shape`` as pictures of a folder are.

    Args:
        data_dir: an ``.npy`` or ``.npz`` file, or a folder with such files.
        part: which images; without arrays for each part, a tenth is drawn for testing.
        image_shape: (C, H, W) of the images.
        seed: seed of the draw, and of the choice if there is a limit.
        limit: draw this many images of the part; None for all.
        n_bits: the bits that values must have at least.
        own_sizes: whether images stay as they are instead.

    Raises:
        DataError: there are no such arrays, they are damaged, or they have other channels or fewer
            bits.
    """
    images, rows = _opened(_Arrays(data_dir), part, image_shape[0], seed, limit, n_bits)
    if own_sizes:
        return _OwnSizesSource(images, rows)
    return _ArraySource(images, rows, image_shape)


def open_array_pieces(
    data_dir: Path,
    part: str,
    image_shape: ImageShape,
    seed: int,
    limit: int | None = None,
    n_bits: int = 8,
    max_reduction: float = 1.0,
    processes: Processes | None = None,
) -> Source:
    """Open pieces of the images of one part; a line in the log counts them.

    Args:
        data_dir, part, n_bits: as for ``open_array``.
        image_shape: (C, H, W) of the pieces.
        seed: seed of the draw of images for testing, and of that of pieces if there is a limit.
        limit, max_reduction, processes: see ``PieceSource``.

    Raises:
        DataError: as ``open_array``, or the images are smaller than a piece.
    """
    images, rows = _opened(_Arrays(data_dir), part, image_shape[0], seed, None, n_bits)
    source = PieceSource(
        rows,
        np.broadcast_to(images.shape[2:], (len(rows), 2)),
        image_shape,
        limit,
        seed,
        max_reduction,
        images.dtype.type,
        read=images.__getitem__,
        processes=processes,
    )
    return counted(source, str(data_dir))


def read_array_labels(
    data_dir: Path, part: str, seed: int, limit: int | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read the labels of the images that ``open_array`` opens, int64 N, and their names.

    Raises:
        DataError: as ``open_array``, or there are no labels that fit the images.
    """
    arrays = _Arrays(data_dir)
    number = len(arrays.images(part, unpack=False))
    labels, names = arrays.labels(part, number)
    return labels[_rows(arrays, number, part, seed, limit)], names


def _opened(
    arrays: "_Arrays", part: str, channels: int, seed: int, limit: int | None, n_bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """The images that a part is in, ``N x C x H x W``, and which of them are used, in rising order.

    Raises:
        DataError: there are none with so many channels and bits.
    """
    images = arrays.images(part)
    if images.shape[1] != channels:
        raise DataError(
            f"the images of {arrays.path} have {images.shape[1]} channels, not {channels}: "
            "convert them, or give another `data_dir`"
        )
    if 8 * images.dtype.itemsize < n_bits:
        raise DataError(
            f"`n_bits` {n_bits} is too much for the images of {arrays.path}, which are "
            f"{images.dtype}: give 1 to 8"
        )
    rows = _rows(arrays, len(images), part, seed, limit)
    if len(rows) == 0:
        raise DataError(f"{arrays.path} has a single image, which is for testing: add others")
    log.info(in_words(len(rows), len(images), str(arrays.path), part, seed))
    return images, rows


def _rows(arrays: "_Arrays", number: int, part: str, seed: int, limit: int | None) -> np.ndarray:
    """The places of a part's images in their array, in rising order."""
    rows = split(number, "all" if arrays.is_split else part, seed)
    return rows[drawn(len(rows), limit, seed)]


class _Arrays:
    """The arrays at a path, by name; each is mapped when it is asked for.

    Attributes:
        path: the path.
        is_split: whether there are arrays for training or for testing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = self._found()
        self.is_split = any(self._named(_IMAGES, part) for part in ("train", "test"))

    def _found(self) -> Mapping[str, tuple[Path, str | None]]:
        """The file of each array, and its name in an archive."""
        path = self.path
        if not path.exists():
            raise DataError(
                f"{path} does not exist: give an .npy or .npz file, or a folder of such, as "
                "`data_dir`"
            )
        files = [path]
        if path.is_dir():
            files = sorted(path.glob("*.npy")) or sorted(path.glob("*.npz"))
            if len([file for file in files if file.suffix == ".npz"]) > 1:
                raise DataError(f"{path} has several .npz files: give one of them as `data_dir`")
        if not files or files[0].suffix not in (".npy", ".npz"):
            raise DataError(
                f"{path} has no .npy or .npz file: give one, or a folder of such, as `data_dir`"
            )
        if files == [path] and path.suffix == ".npy":  # it has no parts, whatever its name is
            return {"images": (path, None)}
        if files[0].suffix == ".npy":
            return {file.stem: (file, None) for file in files}
        try:
            names = member_names(files[0])
        except (OSError, ValueError) as error:
            raise DataError(f"{files[0]} is damaged ({error}): replace it") from error
        return {name: (files[0], name) for name in names}

    def images(self, part: str, unpack: bool = True) -> np.ndarray:
        """All images of a part as ``N x C x H x W``, or all images if there are no parts.

        Without ``unpack``, only shape and type are those of the images.
        """
        if self.is_split and part == "all":
            raise DataError(
                f"`part` all needs arrays that are not split, and {self.path} has some for "
                "training or testing: choose train or test"
            )
        name = self._named(_IMAGES, part) if self.is_split else self._whole()
        if name is None:
            wanted = ", ".join(each.format(part) for each in _IMAGES)
            raise DataError(
                f"{self.path} has no array for `part` {part}: name one of {self._names()} as one "
                f"of {wanted}"
            )
        array = self._map(name, unpack)
        if array.dtype not in _PIXEL_TYPES:
            raise DataError(
                f"the images in {self.path}, array {name}, are {array.dtype}, not "
                f"{' or '.join(map(str, _PIXEL_TYPES))}: scale them to 0 to 255 or 65535, and "
                "convert them"
            )
        return _channels_first(array, f"{self.path}, array {name}")

    def labels(self, part: str, number: int) -> tuple[np.ndarray, tuple[str, ...]]:
        """The labels of ``images``, int64, from 0 on, and the numbers that stand in the file."""
        patterns = [each.format(part) for each in _LABELS] if self.is_split else _WHOLE_LABELS
        name = next((each for each in patterns if each in self._files), None)
        if name is None:
            raise DataError(
                f"{self.path} has no labels: add an array {patterns[0]} of {number} whole numbers"
            )
        array = self._map(name)
        flat = array.reshape(-1) if array.ndim <= 2 else array
        if flat.shape != (number,) or flat.dtype.kind not in "ui":
            raise DataError(
                f"the labels in {self.path}, array {name}, are {array.dtype} of shape "
                f"{array.shape}, not {number} whole numbers: replace them"
            )
        values, labels = np.unique(flat, return_inverse=True)
        return labels.astype(np.int64), tuple(map(str, values.tolist()))

    def _named(self, patterns: tuple[str, ...], part: str) -> str | None:
        names = (pattern.format(part) for pattern in patterns)
        return next((name for name in names if name in self._files), None)

    def _whole(self) -> str | None:
        """The name of the only array of images."""
        known = [name for name in _WHOLE_IMAGES if name in self._files]
        others = [name for name in self._files if name not in _WHOLE_LABELS]
        if known or len(others) == 1:
            return (known or others)[0]
        raise DataError(
            f"{self.path} has the arrays {self._names()}, none of which is called images, train or "
            "test: rename that of the images"
        )

    def _names(self) -> str:
        return ", ".join(sorted(self._files)[:8]) or "none"

    def _map(self, name: str, unpack: bool = True) -> np.ndarray:
        file, member = self._files[name]
        try:
            return map_npy(file) if member is None else map_member(file, member, unpack)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path} is damaged or has no array {name} of numbers ({error}): replace it"
            ) from error


class _ArraySource(MemorySource):
    """Some images of an array, known by their places in it."""

    def __init__(self, images: np.ndarray, rows: np.ndarray, image_shape: ImageShape) -> None:
        super().__init__(_ChosenImages(images, rows, image_shape))
        self._rows = rows

    def name(self, index: int) -> str:
        return str(self._rows[index])


class _OwnSizesSource(_ArraySource):
    """Some images of an array as they are, in batches of few pixels.

    Attributes:
        image_shapes: (C, H, W) of each, which is that of all.
    """

    def __init__(self, images: np.ndarray, rows: np.ndarray) -> None:
        self._shape: ImageShape = images.shape[1:]
        super().__init__(images, rows, self._shape)
        self.image_shapes = [self._shape] * len(rows)

    def num_batches(self, batch_size: int, first: int = 0) -> int | None:
        return super().num_batches(most_at_once(batch_size, self._shape[1:]), first)

    def batches(
        self, batch_size: int, random: np.random.Generator | None
    ) -> Iterator[tuple[np.ndarray, Images]]:
        return super().batches(most_at_once(batch_size, self._shape[1:]), random)


class _ChosenImages:
    """Some images of an array, each brought to one size."""

    def __init__(self, images: np.ndarray, rows: np.ndarray, image_shape: ImageShape) -> None:
        self._images, self._rows, self._image_shape = images, rows, image_shape

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        chosen = self._images[self._rows[indices]]
        if chosen.shape[1:] == self._image_shape:
            return np.asarray(chosen)
        fitted = np.empty((len(chosen), *self._image_shape), chosen.dtype)
        for place, image in enumerate(chosen):
            fitted[place] = fit(image, *self._image_shape[1:])
        return fitted


def _channels_first(array: np.ndarray, name: str) -> np.ndarray:
    """A view of an array of images as ``N x C x H x W``, whichever of the usual layouts it has.

    Where both the second and the last axis could be the channels, it is the one that has 1 or 3,
    and else the second.
    """
    if array.ndim == 3:
        array = array[:, None]
    known = (
        axis
        for numbers in _CHANNELS
        for axis in (1, 3)
        if array.ndim == 4 and array.shape[axis] in numbers
    )
    axis = next(known, None)
    if axis == 3:
        array = array.transpose(0, 3, 1, 2)
    if axis is None or 0 in array.shape:
        shape = " x ".join(map(str, array.shape)) or "a single number"
        raise DataError(
            f"{name}, is {shape}, not N x H x W, N x H x W x C or N x C x H x W with "
            f"1 to {MOST_CHANNELS} channels: give at least one such image"
        )
    return array
