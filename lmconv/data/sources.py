"""Sources of images: what they all offer, and those in memory and as a stream."""

from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lmconv.pixel_values import ImageShape
from utils import UserError

__all__ = [
    "DataError",
    "ImageArray",
    "Images",
    "LazyImages",
    "MemorySource",
    "OwnSizes",
    "Pictures",
    "Source",
    "StreamSource",
]

_SHUFFLE_BUFFER = 512  # images of a stream held back for shuffling: 100 MB at 3 x 256 x 256


class DataError(UserError):
    """Settings or files do not yield data; the message is one line that says what to do."""


class Images(Protocol):
    """The images of a batch, of which slices are taken: an array, or ``LazyImages``."""

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


class LazyImages:
    """The images of a batch, read where they are taken: a process reads its own share alone."""

    def __init__(self, indices: np.ndarray, read: Callable[[np.ndarray], np.ndarray]) -> None:
        self._indices, self._read = indices, read

    def __getitem__(self, part: slice, /) -> np.ndarray:
        return self._read(self._indices[part])


class Source(Protocol):
    """What every source of images offers; sources inherit from it what most of them share.

    Attributes:
        num_images: number of images; None for a stream, whose length is unknown.
        together: how many images in a row one process should read, as they are stored together; 1
            if any process can read any image.
    """

    num_images: int | None
    together: int = 1

    def batches(
        self, batch_size: int, random: np.random.Generator | None
    ) -> Iterator[tuple[np.ndarray, Images]]:
        """Yield batches: indices, and images, B x C x H x W; shuffled if given ``random``.

        The images of a batch are to be taken before the next batch is asked for, or not at all.
        """

    def name(self, index: int) -> str:
        """The name by which people know an image."""

    def num_batches(self, batch_size: int, first: int = 0) -> int | None:
        """The number of batches from an image on; None if it is not known."""
        return None if self.num_images is None else -(-(self.num_images - first) // batch_size)

    def bounds(self, image_shape: ImageShape) -> tuple[int, int | None]:
        """The numbers of the images to use at a size: the first, and the first that is not.

        None stands for the end where it is not known.
        """
        return 0, self.num_images


@runtime_checkable
class OwnSizes(Protocol):
    """What a source offers as well whose images have their own sizes: the (C, H, W) of each."""

    image_shapes: list[ImageShape]


class ImageArray(Protocol):
    """Images at hand by their indices, N x C x H x W: an array, or several mapped files."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray: ...


class Pictures(Protocol):
    """Pictures by their places: image files, what else holds encoded pictures, or rows of arrays.

    In text, each is what people know it by.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class MemorySource(Source):
    """A set that is kept in memory or mapped into it, or its first images up to a limit."""

    def __init__(self, images: ImageArray, limit: int | None = None) -> None:
        self._images = images
        self._number = len(images) if limit is None else min(limit, len(images))
        self.num_images = self._number

    def batches(
        self, batch_size: int, random: np.random.Generator | None
    ) -> Iterator[tuple[np.ndarray, Images]]:
        number = self._number
        order = np.arange(number) if random is None else random.permutation(number)
        for start in range(0, number, batch_size):
            indices = order[start : start + batch_size]
            yield indices, LazyImages(indices, self._images.__getitem__)

    def name(self, index: int) -> str:
        return str(index)


class StreamSource(Source):
    """A set that is read file by file; its use of memory does not grow with the set."""

    num_images = None

    def __init__(
        self,
        files: list[Path],
        read: Callable[[Path], Iterator[np.ndarray]],
        max_batches: int | None,
    ) -> None:
        self._files, self._read, self._max_batches = files, read, max_batches

    def batches(
        self, batch_size: int, random: np.random.Generator | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = range(len(self._files)) if random is None else random.permutation(len(self._files))
        in_order = (image for number in order for image in self._read(self._files[number]))
        images = in_order if random is None else _shuffled(in_order, random)
        start = 0
        for _ in count() if self._max_batches is None else range(self._max_batches):
            batch = list(islice(images, batch_size))
            if not batch:
                break
            yield np.arange(start, start + len(batch)), np.stack(batch)
            start += len(batch)
        if start == 0:
            raise DataError(
                f"{self._files[0].parent} has no images in its {len(self._files)} files"
            )

    def name(self, index: int) -> str:
        return str(index)


def _shuffled(images: Iterator[np.ndarray], random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the same images in random order: each replaces a random one of those held back."""
    held = list(islice(images, _SHUFFLE_BUFFER))
    for image in images:
        place = random.integers(len(held))
        yield held[place]
        held[place] = image
    for place in random.permutation(len(held)):
        yield held[place]
