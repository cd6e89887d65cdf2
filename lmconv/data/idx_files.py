"""MNIST, read from its idx files of images and of labels."""

from pathlib import Path

import numpy as np

from lmconv.data.downloads import download
from lmconv.data.set_files import read_bytes
from lmconv.data.sources import DataError

__all__ = ["read_mnist", "read_mnist_images", "read_mnist_labels"]

# What the names of a part's files begin with.
_BEGINNINGS = {"train": "train", "test": "t10k"}
# How an idx file begins that has unsigned bytes in one dimension or in three.
_MAGIC = {1: 2049, 3: 2051}


def read_mnist(data_dir: str | Path, train: bool) -> np.ndarray:
    """Read MNIST as uint8 N x 1 x 28 x 28, only from the image file; labels are not needed.

    The file is in ``data_dir/MNIST/raw``, ``data_dir/raw`` or ``data_dir``, as it is or packed, and
    under one of the names that it is passed on by.
    """
    return read_mnist_images(Path(data_dir), "train" if train else "test")


def read_mnist_images(folder: Path, part: str) -> np.ndarray:
    """Read the images of a part, ``train`` or ``test``; see ``read_mnist``.

    Raises:
        DataError: the file is damaged, or it is missing and cannot be downloaded.
    """
    path = _find_mnist(folder, part, "images-idx3")
    if path is None:
        other = "test" if part == "train" else "train"
        if (there := _find_mnist(folder, other, "images-idx3")) is not None:
            # Not downloaded here: that would overwrite the files that are there.
            raise DataError(
                f"{there.parent} has no file {_BEGINNINGS[part]}-images-idx3-ubyte: put it there, "
                f"point `data_dir` at another folder, or remove {there.name} to have MNIST "
                "downloaded"
            )
        download("MNIST", folder, folder / "MNIST" / "raw", "the two idx files of images")
        path = folder / "MNIST" / "raw" / f"{_BEGINNINGS[part]}-images-idx3-ubyte"
    try:
        return _read_idx(path, (28, 28))[:, None]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is damaged or not an idx file of 28x28 images ({error}): replace it, or "
            "remove it to have MNIST downloaded again"
        ) from error


def read_mnist_labels(folder: Path, part: str) -> np.ndarray:
    """Read the labels of a part, int64 N, from the place of its images.

    Raises:
        DataError: as ``read_mnist_images``, or the labels are not as many as the images.
    """
    number = len(read_mnist_images(folder, part))  # downloads both if there are none
    path = _find_mnist(folder, part, "labels-idx1")
    if path is None:
        raise DataError(
            f"{folder} has no file {_BEGINNINGS[part]}-labels-idx1-ubyte, with the labels of its "
            "images: put it next to them"
        )
    try:
        labels = _read_idx(path, ())
        if len(labels) != number:
            raise ValueError(f"{len(labels)} labels for {number} images")
        if labels.max() > 9:
            raise ValueError(f"a label is {labels.max()}, above 9")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is damaged or not an idx file of labels ({error}): replace it"
        ) from error
    return labels.astype(np.int64)


def _find_mnist(folder: Path, part: str, kind: str) -> Path | None:
    """The file of a part's images or labels, at one of the places that it may be."""
    beginning = _BEGINNINGS[part]
    for place in (folder / "MNIST" / "raw", folder / "raw", folder):
        for name in (f"{beginning}-{kind}-ubyte", f"{beginning}-{kind.replace('-', '.')}-ubyte"):
            for path in (place / name, place / f"{name}.gz"):
                if path.exists() and not path.is_dir():
                    return path
    return None


def _read_idx(path: Path, item_shape: tuple[int, ...]) -> np.ndarray:
    """The items of an idx file of unsigned bytes, uint8 ``N x *item_shape``.

    Raises:
        UserError, OSError: it cannot be read.
        ValueError: it is not such a file; the message is short.
    """
    content = read_bytes(path)
    axes = 1 + len(item_shape)
    size = 4 * (1 + axes)
    header = np.frombuffer(content[:size], ">i4") if len(content) >= size else np.zeros(4, ">i4")
    magic, number, *sides = header.tolist()
    if (magic, tuple(sides)) != (_MAGIC[axes], item_shape) or number <= 0:
        raise ValueError("its header is not that of one")
    items = np.frombuffer(content, np.uint8, offset=size)
    if items.size != number * int(np.prod(item_shape)):
        raise ValueError(f"{len(content)} bytes for {number} {'images' if sides else 'labels'}")
    return items.reshape(number, *item_shape)
