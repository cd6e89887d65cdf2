"""The standard data sets: one entry for each, with its facts and what reads its files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lmconv.data.binary_mnist import read_binary_mnist
from lmconv.data.celeba import open_celeba
from lmconv.data.celebahq import CELEBAHQ_SHAPE, open_celebahq
from lmconv.data.cifar import CIFAR10, CIFAR100, CifarSet
from lmconv.data.digits import NUM_DIGITS, read_digit_images, read_digit_labels
from lmconv.data.idx_files import FASHION_MNIST, KMNIST, MNIST, IdxSet, emnist
from lmconv.data.imagenet import NUM_CLASSES, DownsampledImageNet
from lmconv.data.mat_files import (
    NUM_ALPHABETS,
    read_omniglot_images,
    read_omniglot_labels,
    read_svhn_images,
    read_svhn_labels,
)
from lmconv.data.sources import ImageArray, MemorySource, Source
from lmconv.pixel_values import ImageShape

__all__ = ["STANDARD_SETS", "StandardSet"]


@dataclass(frozen=True)
class StandardSet:
    """A data set that people know by name. Either ``read`` or ``open_limited`` gives its images.

    Attributes:
        image_shape: (C, H, W) of its images as stored.
        num_images: number of images in each of its parts, ``train``, ``test`` and perhaps more.
        read: reads a part from the folder of data sets: uint8 ``N x C x H x W``, in memory or
            mapped into it.
        open_limited: opens a part that is too large for memory as a source of at most so many
            images, or batches for a source that does not know its length; None for all.
        read_labels: reads the labels of a part, int64 N, from 0 on, in the order of its images;
            None if the set has none. Files of labels are needed only for this.
        label_names: the name of each label.
        is_binary: whether its pixels are all black or white, as a model of binary images needs.
        needs_files: whether the set is read from files that may be missing.
    """

    image_shape: ImageShape
    num_images: Mapping[str, int]
    read: Callable[[Path, str], ImageArray] | None = None
    open_limited: Callable[[Path, str, int | None], Source] | None = field(
        default=None, kw_only=True
    )
    read_labels: Callable[[Path, str], np.ndarray] | None = None
    label_names: tuple[str, ...] = ()
    is_binary: bool = False
    needs_files: bool = True

    def open(self, folder: Path, part: str, limit: int | None = None) -> Source:
        """Open a part, or its first images, as a source.

        Raises:
            DataError: files or a package are missing, or a file is damaged.
        """
        if self.open_limited is not None:
            return self.open_limited(folder, part, limit)
        assert self.read is not None
        return MemorySource(self.read(folder, part), limit)


def _idx(known: IdxSet, num_train: int = 60_000, num_test: int = 10_000) -> StandardSet:
    numbers = {"train": num_train, "test": num_test}
    return StandardSet(
        (1, 28, 28), numbers, known.read_images, known.read_labels, known.label_names
    )


def _cifar(known: CifarSet) -> StandardSet:
    numbers = {"train": 50_000, "test": 10_000}
    return StandardSet(
        (3, 32, 32), numbers, known.read_images, known.read_labels, known.label_names
    )


def _imagenet(side: int) -> StandardSet:
    known = DownsampledImageNet(side)
    return StandardSet(
        (3, side, side),
        {"train": 1_281_167, "test": 50_000},
        known.read_images,
        known.read_labels,
        tuple(str(number) for number in range(1, NUM_CLASSES + 1)),
    )


STANDARD_SETS: dict[str, StandardSet] = {
    "mnist": _idx(MNIST),
    "cifar": _cifar(CIFAR10),
    "celebahq": StandardSet(
        CELEBAHQ_SHAPE, {"train": 27_000, "test": 3_000}, open_limited=open_celebahq
    ),
    "digits": StandardSet(
        (1, 8, 8),
        NUM_DIGITS,
        read_digit_images,
        read_digit_labels,
        tuple("0123456789"),
        needs_files=False,
    ),
    "binary_mnist": StandardSet(
        (1, 28, 28),
        {"train": 50_000, "valid": 10_000, "test": 10_000},
        read_binary_mnist,
        is_binary=True,
    ),
    "fashion_mnist": _idx(FASHION_MNIST),
    "kmnist": _idx(KMNIST),
    "emnist_balanced": _idx(emnist("balanced"), 112_800, 18_800),
    "emnist_byclass": _idx(emnist("byclass"), 697_932, 116_323),
    "emnist_bymerge": _idx(emnist("bymerge"), 697_932, 116_323),
    "emnist_digits": _idx(emnist("digits"), 240_000, 40_000),
    "emnist_letters": _idx(emnist("letters"), 124_800, 20_800),
    "emnist_mnist": _idx(emnist("mnist")),
    "omniglot": StandardSet(
        (1, 28, 28),
        {"train": 24_345, "test": 8_070},
        read_omniglot_images,
        read_omniglot_labels,
        tuple(f"alphabet {number}" for number in range(1, NUM_ALPHABETS + 1)),
    ),
    "svhn": StandardSet(
        (3, 32, 32),
        {"train": 73_257, "test": 26_032},
        read_svhn_images,
        read_svhn_labels,
        tuple("0123456789"),
    ),
    "cifar100": _cifar(CIFAR100),
    "imagenet32": _imagenet(32),
    "imagenet64": _imagenet(64),
    "celeba64": StandardSet(
        (3, 64, 64),
        {"train": 162_770, "valid": 19_867, "test": 19_962},
        open_limited=open_celeba,
    ),
}
