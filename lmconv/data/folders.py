"""Folders of image files, and files that a user names, as sources of images."""

import itertools
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Condition
from typing import Any, TypeVar

import numpy as np

from lmconv.data.buckets import BucketSource, nearest_size
from lmconv.data.folder_parts import FolderPart, left_out_in_words
from lmconv.data.image_files import (
    EncodedImage,
    ImageFileError,
    count_pixels,
    cover,
    fit,
    has_several_frames,
    read_image,
    stored_bits,
)
from lmconv.data.looks import Looks
from lmconv.data.pieces import PieceSource, counted
from lmconv.data.sources import DataError, Images, LazyImages, Pictures, Source
from lmconv.distributed import Processes
from lmconv.pixel_values import ImageShape, PixelType

__all__ = [
    "FolderSource",
    "OwnSizesSource",
    "most_at_once",
    "open_buckets",
    "open_files",
    "open_folder",
    "open_own_sizes",
    "open_pieces",
]

log = logging.getLogger(__name__)

T = TypeVar("T")

# Decoding a pixel takes up to twelve bytes, and of 16 bits 24, so this is 1.5 or 3 gigabytes.
_PIXELS_AT_ONCE = 2**27
_KEPT_BYTES = 2**30
# Of images at their own sizes, a batch has at most so many pixels, or one image.
_BATCH_PIXELS = 2**18
_DECODING_THREADS = min(16, os.cpu_count() or 1)


class _Decoders:
    """Threads that decode image files, in bounded memory: the largest pictures one at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_DECODING_THREADS)
        self._free, self._change = _PIXELS_AT_ONCE, Condition()

    def __enter__(self) -> "_Decoders":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()

    def map(self, decode: Callable[[Any], T], files: Iterable[Path | EncodedImage]) -> Iterator[T]:
        """Yield what ``decode`` makes of each file."""
        return self._pool.map(lambda path: self._in_turn(decode, path), files)

    def _in_turn(self, decode: Callable[[Any], T], path: Path | EncodedImage) -> T:
        number = min(count_pixels(path), _PIXELS_AT_ONCE)
        with self._change:
            self._change.wait_for(lambda: number <= self._free)
            self._free -= number
        try:
            return decode(path)
        finally:
            with self._change:
                self._free += number
                self._change.notify_all()


class OwnSizesSource(Source):
    """Image files, or pictures in the rows of a table, at different sizes.

    They are decoded when they are needed.

    Args:
        files: the files.
        sizes: height and width that each is brought to, such as its own.
        channels: C, 1 to 4.
        kind: type of the pixels.
        together: how many files in a row one process should read.

    Attributes:
        image_shapes: (C, H, W) of each image.
    """

    def __init__(
        self,
        files: Pictures,
        sizes: Sequence[tuple[int, int]],
        channels: int,
        kind: PixelType = np.uint8,
        together: int = 1,
    ) -> None:
        self._files, self._channels, self._kind = files, channels, kind
        self.num_images = len(files)
        self.together = together
        shapes: dict[tuple[int, int], ImageShape] = {size: (channels, *size) for size in sizes}
        self.image_shapes = [shapes[size] for size in sizes]  # few in memory, if most are the same

    def num_batches(self, batch_size: int, first: int = 0) -> None:
        return None

    def batches(
        self, batch_size: int, random: np.random.Generator | None
    ) -> Iterator[tuple[np.ndarray, Images]]:
        """Yield the images in their own order, in batches of images in a row of one size."""
        with _Decoders() as decoders:
            for shape, members in itertools.groupby(
                range(len(self._files)), self.image_shapes.__getitem__
            ):
                at_once = most_at_once(batch_size, shape[1:])
                while batch := list(itertools.islice(members, at_once)):
                    indices = np.array(batch)
                    yield indices, LazyImages(indices, partial(self._read, decoders))

    def name(self, index: int) -> str:
        return str(self._files[index])

    def _read(self, decoders: _Decoders, indices: np.ndarray) -> np.ndarray:
        files = [self._files[index] for index in indices.tolist()]
        _, height, width = self.image_shapes[indices[0]]  # that of the whole batch

        def read(path: Path) -> np.ndarray:
            return fit(read_image(path, self._channels, self._kind), height, width)

        return np.stack(list(decoders.map(read, files)))


def most_at_once(batch_size: int, size: tuple[int, int]) -> int:
    """The most images of a size, height and width, that a batch of ``batch_size`` has."""
    return min(batch_size, max(1, _BATCH_PIXELS // math.prod(size)))


class FolderSource(Source):
    """Image files, or pictures in the rows of a table, decoded by several threads.

    Images of the size that they are brought to are kept until they take a gigabyte. All others are
    decoded each time, so memory does not grow with the number of files.

    Args:
        files: the files.
        image_shape: (C, H, W) that the images are brought to.
        random_crop: whether shuffled images are cropped at a random place, not to their middle.
        read: what reads a file as an image of that size, instead of cropping and resizing it.
        permute: what draws the order of shuffled images, which come in batches of a size that it
            is given, if not all orders are as good.
        kind: type of the pixels.
        together: how many files in a row one process should read.
        share: this source's share of the gigabyte, if there are others.
    """

    def __init__(
        self,
        files: Pictures,
        image_shape: ImageShape,
        random_crop: bool = False,
        read: Callable[[Path], np.ndarray] | None = None,
        permute: Callable[[np.random.Generator, int], np.ndarray] | None = None,
        kind: PixelType = np.uint8,
        together: int = 1,
        share: float = 1.0,
    ) -> None:
        self._decode, self._permute = read or self._read, permute
        self._files, self._image_shape, self._random_crop = files, image_shape, random_crop
        self._pixel_type = kind
        self._kept: dict[int, np.ndarray] = {}
        self._free_bytes = int(share * _KEPT_BYTES)
        self.num_images = len(files)
        self.together = together

    def batches(
        self, batch_size: int, random: np.random.Generator | None
    ) -> Iterator[tuple[np.ndarray, Images]]:
        number = len(self._files)
        order = np.arange(number)
        if random is not None:
            permute = self._permute
            order = permute(random, batch_size) if permute else random.permutation(number)
        places = np.full((number, 2), 0.5)
        if self._random_crop and random is not None:
            places = random.random((number, 2))
        with _Decoders() as decoders:
            for start in range(0, number, batch_size):
                indices = order[start : start + batch_size]
                yield indices, LazyImages(indices, partial(self._windows, places, decoders))

    def name(self, index: int) -> str:
        return str(self._files[index])

    def _windows(self, places: np.ndarray, decoders: _Decoders, indices: np.ndarray) -> np.ndarray:
        """The images that are brought to one size, cropped at the places of all: B x C x H x W."""
        windows = np.empty((len(indices), *self._image_shape), self._pixel_type)
        images = self._images(indices.tolist(), decoders)
        for window, image, place in zip(windows, images, places[indices], strict=True):
            window[:] = self._window(image, place)
        return windows

    def _images(self, indices: Sequence[int], decoders: _Decoders) -> list[np.ndarray]:
        """The images, kept or decoded: ``C x H x W``, or larger if they are yet to be cropped."""
        new = [index for index in indices if index not in self._kept]
        images = dict(
            zip(new, decoders.map(self._decode, [self._files[i] for i in new]), strict=True)
        )
        for index, image in images.items():
            if image.nbytes <= self._free_bytes:
                self._kept[index] = image
                self._free_bytes -= image.nbytes
        return [images[index] if index in images else self._kept[index] for index in indices]

    def _window(self, image: np.ndarray, place: np.ndarray) -> np.ndarray:
        """The part of an image at a place between (0, 0), the first, and (1, 1), the last."""
        _, height, width = self._image_shape
        starts = np.array(image.shape[1:]) - (height, width) + 1
        top, left = (starts * place).astype(int)
        return image[:, top : top + height, left : left + width]

    def _read(self, path: Path | EncodedImage) -> np.ndarray:
        channels, height, width = self._image_shape
        pixels = read_image(path, channels, self._pixel_type)
        return (cover if self._random_crop else fit)(pixels, height, width)


def open_folder(
    part: FolderPart,
    image_shape: ImageShape,
    random_crop: bool = False,
    looks: Looks | None = None,
    kind: PixelType = np.uint8,
) -> Source:
    """Open the image files of one part of a folder; a line in the log counts them.

    Args:
        part: what ``folder_part`` has found.
        image_shape: (C, H, W) that the images are brought to.
        random_crop, kind: see ``FolderSource``.
        looks: how the files are looked at beforehand; by default all by this process.

    Raises:
        DataError: no file can be read.
    """
    looks = looks or Looks()
    files = list(_readable(part, looks, image_shape[0], kind))
    _warn(part, files, looks, kind)
    return FolderSource(files, image_shape, random_crop, kind=kind)


def open_buckets(
    part: FolderPart,
    image_shapes: Sequence[ImageShape],
    random_crop: bool = False,
    looks: Looks | None = None,
    kind: PixelType = np.uint8,
) -> BucketSource:
    """Open the image files of one part of a folder in buckets; lines in the log count them.

    Args:
        part: what ``folder_part`` has found.
        image_shapes: (C, H, W) of each bucket; an image is in that of ``nearest_size``.
        random_crop, kind: see ``FolderSource``.
        looks: see ``open_folder``.

    Raises:
        DataError: no file can be read.
    """
    looks, channels = looks or Looks(), image_shapes[0][0]
    sizes = [(height, width) for _, height, width in image_shapes]
    files: dict[tuple[int, int], list[Path]] = {size: [] for size in sizes}
    readable = _readable(part, looks, channels, kind)
    for path, size in readable.items():
        files[nearest_size(size, sizes)].append(path)
    counts = [f"{len(files[size]) or 'none'} at {size[0]}x{size[1]}" for size in sizes]
    log.info("images in buckets: %s", ", ".join(counts))
    _warn(part, list(readable), looks, kind)
    num_pixels = {size: len(files[size]) * math.prod(size) for size in sizes}
    shares = {size: number / sum(num_pixels.values()) for size, number in num_pixels.items()}
    return BucketSource(
        {
            (channels, *size): FolderSource(
                files[size], (channels, *size), random_crop, kind=kind, share=shares[size]
            )
            for size in sizes
        }
    )


def open_pieces(
    part: FolderPart,
    image_shape: ImageShape,
    limit: int | None = None,
    seed: int = 0,
    max_reduction: float = 1.0,
    looks: Looks | None = None,
    kind: PixelType = np.uint8,
    processes: Processes | None = None,
) -> Source:
    """Open pieces of the image files of one part of a folder; a line in the log counts them.

    Args:
        part: what ``folder_part`` has found.
        image_shape, limit, seed, max_reduction, kind, processes: see ``PieceSource``.
        looks: see ``open_folder``.

    Raises:
        DataError: no file can be read, or no picture is large enough.
    """
    looks = looks or Looks()
    readable = _readable(part, looks, image_shape[0], kind)
    files, sizes = list(readable), list(readable.values())
    source = PieceSource(
        files, sizes, image_shape, limit, seed, max_reduction, kind, processes=processes
    )
    counted(source, part.name)
    _warn(part, files, looks, kind)
    return source


def _warn(part: FolderPart, files: Sequence[Path], looks: Looks, kind: PixelType) -> None:
    """Say what is not as people may expect of the files of a part that are used."""
    _warn_of_bits(files, looks, kind)
    are_animated = looks.at(files, lambda some: list(map(has_several_frames, some)))
    if animations := list(itertools.compress(files, are_animated)):
        log.warning(
            "%d of these files, the first being %s, have several frames: only the first is used",
            *(len(animations), animations[0]),
        )
    if part.also_for_training:
        log.warning(
            "%d of these images, the first being %s, are also training images, which the model may "
            "know by heart",
            *(len(part.also_for_training), part.also_for_training[0]),
        )


def _warn_of_bits(files: Sequence[Path], looks: Looks, kind: PixelType) -> None:
    """Say which files have more or fewer bits than the pixels that they are read as."""
    wanted = 8 * kind().itemsize
    bits = looks.at(files, lambda some: list(map(stored_bits, some)))
    others = [path for path, own in zip(files, bits, strict=True) if own != wanted]
    if others:
        remedy = "" if wanted == 16 else " (models of more bits keep them)"
        log.warning(
            "%d of these files, the first being %s, have %d bits: their values are scaled to %d%s",
            *(len(others), others[0], 24 - wanted, wanted, remedy),
        )


def open_own_sizes(
    part: FolderPart,
    channels: int,
    looks: Looks | None = None,
    kind: PixelType = np.uint8,
) -> OwnSizesSource:
    """Open the image files of one part of a folder, each at its own size; the log counts them.

    Args:
        part: what ``folder_part`` has found.
        channels, kind: see ``OwnSizesSource``.
        looks: see ``open_folder``.

    Raises:
        DataError: no file can be read.
    """
    looks = looks or Looks()
    readable = _readable(part, looks, channels, kind)
    _warn(part, list(readable), looks, kind)
    return OwnSizesSource(list(readable), list(readable.values()), channels, kind)


def open_files(
    files: Sequence[Path],
    image_shapes: Sequence[ImageShape],
    resize: bool,
    own_sizes: bool = False,
    looks: Looks | None = None,
    kind: PixelType = np.uint8,
) -> Source:
    """Open image files that a user names; all of them are checked before any is used.

    Args:
        files: files of any kind that ``image_files`` reads.
        image_shapes: (C, H, W) that the network works with; of several, an image has that of
            ``nearest_size``.
        resize: whether to cut and resize images of another size, and to turn colours to grey.
        own_sizes: whether to take each image at its own size instead.
        looks: see ``open_folder``.
        kind: type of the pixels.

    Raises:
        DataError: a file cannot be read or, without ``resize``, has another size, or has colours
            while the network's images are grey.
    """
    channels, wanted = image_shapes[0][0], [(height, width) for _, height, width in image_shapes]

    def checked_size(path: Path) -> tuple[int, int]:
        pixels = read_image(path, 3, kind)
        size = pixels.shape[1], pixels.shape[2]
        if not (resize or own_sizes) and size not in wanted:
            raise DataError(
                f"{path} is {size[0]}x{size[1]}, but the model's images are "
                f"{' or '.join(f'{height}x{width}' for height, width in wanted)}: use "
                "`resize_images` to cut and resize it"
            )
        if not resize and channels <= 2 and (pixels != pixels[0]).any():
            raise DataError(
                f"{path} has colours, but the model's images are grey: use `resize_images` to turn "
                "it to grey"
            )
        return size

    looks = looks or Looks()
    sizes = looks.at(files, lambda some: list(map(checked_size, some)))
    _warn_of_bits(files, looks, kind)
    if own_sizes:
        return OwnSizesSource(files, sizes, channels, kind)
    if len(wanted) > 1:
        return OwnSizesSource(files, [nearest_size(each, wanted) for each in sizes], channels, kind)
    return FolderSource(files, image_shapes[0], kind=kind)


def _readable(
    part: FolderPart, looks: Looks, channels: int, kind: PixelType
) -> dict[Path, tuple[int, int]]:
    """The files of a part that can be decoded, with height and width; the log names the others.

    They are decoded with the channels and the type that they are used with.

    Raises:
        DataError: none can be decoded.
    """

    def size_or_problem(path: Path) -> tuple[int, int] | str:
        try:
            _, height, width = read_image(path, channels, kind).shape
        except ImageFileError as error:
            return str(error)
        return height, width

    files = part.files
    with _Decoders() as decoders:
        looked = looks.at(
            files, lambda some: list(decoders.map(size_or_problem, some)), "checking images"
        )
    found = dict(zip(files, looked, strict=True))
    damaged = [problem for problem in found.values() if isinstance(problem, str)]
    for text in damaged:
        log.warning("left out: %s", text)
    readable = {path: size for path, size in found.items() if not isinstance(size, str)}
    if not readable:
        raise DataError(f"none of {len(files)} files can be read: {damaged[0]}")
    left_out = left_out_in_words(part.left_out + Counter(damaged=len(damaged)))
    log.info(
        "%d image%s of %s%s",
        *(len(readable), "s" * (len(readable) != 1), part.name),
        f"; left out: {left_out}" * bool(left_out),
    )
    return readable
