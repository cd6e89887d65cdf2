"""The standard data sets: one entry for each, with its facts and what reads its files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lmconv.data.celebahq import CELEBAHQ_SHAPE, open_celebahq
from lmconv.data.cifar import CIFAR10_CLASSES, read_cifar_images, read_cifar_labels
from lmconv.data.digits import NUM_DIGITS, read_digit_images, read_digit_labels
from lmconv.data.idx_files import read_mnist_images, read_mnist_labels
from lmconv.data.sources import MemorySource, Source
from lmconv.pixel_values import ImageShape

__all__ = ["STANDARD_SETS", "StandardSet"]

_DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class StandardSet:
    """A data set that people know by name. Either ``read`` or ``open_limited`` gives its images.

    Attributes:
        image_shape: (C, H, W) of its images as stored.
        num_images: number of images in each of its parts, ``train``, ``test`` and perhaps more.
        read: reads a part from the folder of data sets: uint8 ``N x C x H x W``.
        open_limited: opens a part that is too large for memory as a source of at most so many
            images, or batches for a source that does not know its length; None for all.
        read_labels: reads the labels of a part, int64 N, from 0 on, in the order of its images;
            None if the set has none. Files of labels are needed only for this.
        label_names: the name of each label.
        needs_files: whether the set is read from files that may be missing.
    """

    image_shape: ImageShape
    num_images: Mapping[str, int]
    read: Callable[[Path, str], np.ndarray] | None = None
    open_limited: Callable[[Path, str, int | None], Source] | None = field(
        default=None, kw_only=True
    )
    read_labels: Callable[[Path, str], np.ndarray] | None = None
    label_names: tuple[str, ...] = ()
    needs_files: bool = True

    def open(self, folder: Path, part: str, limit: int | None = None) -> Source:
        """Open a part, or its first images, as a source.

        Raises:
            DataError: files or a package are missing, or a file is damaged.
        """
        if self.open_limited is not None:
            return self.open_limited(folder, part, limit)
        assert self.read is not None
        return MemorySource(self.read(folder, part)[:limit])


STANDARD_SETS: dict[str, StandardSet] = {
    "mnist": StandardSet(
        (1, 28, 28),
        {"train": 60_000, "test": 10_000},
        read_mnist_images,
        read_mnist_labels,
        _DIGITS,
    ),
    "cifar": StandardSet(
        (3, 32, 32),
        {"train": 50_000, "test": 10_000},
        read_cifar_images,
        read_cifar_labels,
        CIFAR10_CLASSES,
    ),
    "celebahq": StandardSet(
        CELEBAHQ_SHAPE, {"train": 27_000, "test": 3_000}, open_limited=open_celebahq
    ),
    "digits": StandardSet(
        (1, 8, 8), NUM_DIGITS, read_digit_images, read_digit_labels, _DIGITS, needs_files=False
    ),
}
