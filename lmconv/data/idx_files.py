"""MNIST and the sets that come in files like its own: idx files of images and of labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmconv.data.downloads import download, ensure
from lmconv.data.set_files import read_bytes
from lmconv.data.sources import DataError

__all__ = ["FASHION_MNIST", "KMNIST", "MNIST", "IdxSet", "emnist", "read_mnist"]

# How an idx file begins that has unsigned bytes in one dimension or in three.
_MAGIC = {1: 2049, 3: 2051}


@dataclass(frozen=True)
class IdxSet:
    """A set in a pair of idx files for each part, of images of 28 x 28 and of labels.

    Attributes:
        name: its name, as that of its class in torchvision.
        beginnings: what the names of the files of each part begin with.
        places: the folders in that of the data sets that its files may be in, the first being the
            one that torchvision downloads into. Names such as MNIST's, which other sets use as
            well, are looked for only in folders of the set's own.
        label_names: the names of the labels.
        split: the split to download, for a set that has several.
        first_label: the label in the files that stands for the first name.
        is_transposed: whether the files have images column by column.
    """

    name: str
    beginnings: tuple[str, str]
    places: tuple[str, ...]
    label_names: tuple[str, ...]
    split: str | None = None
    first_label: int = 0
    is_transposed: bool = False

    def read_images(self, data_dir: Path, part: str) -> np.ndarray:
        """Read the images of a part, ``train`` or ``test``, as uint8 N x 1 x 28 x 28.

        Raises:
            DataError: the file is damaged, or it is missing and cannot be downloaded.
        """
        ensure(
            data_dir,
            lambda: self._find(data_dir, part, "images-idx3"),
            lambda: self._download(data_dir, part),
        )
        path = self._find(data_dir, part, "images-idx3")
        if path is None:  # the error below will say so
            path = data_dir / self.places[0] / f"{self._beginning(part)}-images-idx3-ubyte"
        try:
            images = _read_idx(path, (28, 28))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} is damaged or not an idx file of 28x28 images ({error}): replace it, or "
                f"remove it to have {self.name} downloaded again"
            ) from error
        return (images.swapaxes(1, 2) if self.is_transposed else images)[:, None]

    def read_labels(self, data_dir: Path, part: str) -> np.ndarray:
        """Read the labels of a part, int64 N, from 0 on.

        Raises:
            DataError: as ``read_images``, or the labels are not as many as the images.
        """
        number = len(self.read_images(data_dir, part))  # downloads both if there are none
        path = self._find(data_dir, part, "labels-idx1")
        if path is None:
            raise DataError(
                f"{data_dir} has no file {self._beginning(part)}-labels-idx1-ubyte, with the "
                "labels of its images: put it next to them"
            )
        first, last = self.first_label, self.first_label + len(self.label_names) - 1
        try:
            labels = _read_idx(path, ())
            if len(labels) != number:
                raise ValueError(f"{len(labels)} labels for {number} images")
            if labels.min() < first or labels.max() > last:
                raise ValueError(f"labels are not from {first} to {last}")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} is damaged or not an idx file of labels ({error}): replace it"
            ) from error
        return labels.astype(np.int64) - first

    def _beginning(self, part: str) -> str:
        return self.beginnings[0 if part == "train" else 1]

    def _find(self, data_dir: Path, part: str, kind: str) -> Path | None:
        """The file of a part's images or labels, at one of the places that it may be."""
        beginning = self._beginning(part)
        for place in self.places:
            for end in (kind, kind.replace("-", ".")):
                path = data_dir / place / f"{beginning}-{end}-ubyte"
                for each in (path, path.with_name(f"{path.name}.gz")):
                    if each.exists() and not each.is_dir():
                        return each
        return None

    def _download(self, data_dir: Path, part: str) -> None:
        other = "test" if part == "train" else "train"
        if (there := self._find(data_dir, other, "images-idx3")) is not None:
            # Not downloaded here: that would overwrite the files that are there.
            raise DataError(
                f"{there.parent} has no file {self._beginning(part)}-images-idx3-ubyte: put it "
                f"there, point `data_dir` at another folder, or remove {there.name} to have "
                f"{self.name} downloaded"
            )
        files = f"the two idx files of images ({'-images..., '.join(self.beginnings)}-images...)"
        options = {} if self.split is None else {"split": self.split}
        download(self.name, data_dir, data_dir / self.places[0], files, **options)


_USUAL = ("train", "t10k")
MNIST = IdxSet("MNIST", _USUAL, ("MNIST/raw", "raw", ""), tuple("0123456789"))
FASHION_MNIST = IdxSet(
    "FashionMNIST",
    _USUAL,
    ("FashionMNIST/raw", "FashionMNIST"),
    (
        *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
)
# Ten hiragana, by how they are read.
KMNIST = IdxSet(
    "KMNIST",
    _USUAL,
    ("KMNIST/raw", "KMNIST"),
    ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
)

_CAPITALS, _SMALL = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"
# The small letters that EMNIST does not tell from their capitals where classes are merged.
_MERGED = "cijklmopsuvwxyz"
_EMNIST_LABELS = {
    "byclass": f"0123456789{_CAPITALS}{_SMALL}",
    "bymerge": f"0123456789{_CAPITALS}{''.join(c for c in _SMALL if c not in _MERGED)}",
    "balanced": f"0123456789{_CAPITALS}{''.join(c for c in _SMALL if c not in _MERGED)}",
    "letters": _SMALL,
    "digits": "0123456789",
    "mnist": "0123456789",
}


def emnist(split: str) -> IdxSet:
    """One of the splits of EMNIST.

    Its files have images column by column; what is read of them is upright.
    """
    return IdxSet(
        "EMNIST",
        (f"emnist-{split}-train", f"emnist-{split}-test"),
        ("EMNIST/raw", "EMNIST", "EMNIST/gzip", "gzip", ""),
        tuple(_EMNIST_LABELS[split]),
        split,
        first_label=1 if split == "letters" else 0,
        is_transposed=True,
    )


def read_mnist(data_dir: str | Path, train: bool) -> np.ndarray:
    """Read MNIST as uint8 N x 1 x 28 x 28, only from the image file; labels are not needed.

    The file is in ``data_dir/MNIST/raw``, ``data_dir/raw`` or ``data_dir``, as it is or packed, and
    under one of the names that it is passed on by.
    """
    return MNIST.read_images(Path(data_dir), "train" if train else "test")


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
