"""CIFAR10, read from its batch files, which are pickles, as data."""

from pathlib import Path
from typing import Any

import numpy as np

from lmconv.data.downloads import download
from lmconv.data.pickled_batches import read_pickled_batch
from lmconv.data.set_files import read_bytes
from lmconv.data.sources import DataError

__all__ = ["CIFAR10_CLASSES", "read_cifar", "read_cifar_images", "read_cifar_labels"]

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def read_cifar(data_dir: str | Path, train: bool) -> np.ndarray:
    """Read CIFAR10, or another set in batch files like its own, as uint8 N x 3 x 32 x 32."""
    return read_cifar_images(Path(data_dir), "train" if train else "test")


def read_cifar_images(folder: Path, part: str) -> np.ndarray:
    """Read the images of a part, ``train`` or ``test``; see ``read_cifar``.

    Raises:
        DataError: files are missing or damaged.
    """
    return np.concatenate([_read_batch(path)[0] for path in _batch_files(folder, part)])


def read_cifar_labels(folder: Path, part: str) -> np.ndarray:
    """Read the labels of a part, int64 N.

    Raises:
        DataError: as ``read_cifar_images``, or a batch has no labels that fit its images.
    """
    return np.concatenate([_read_labels(path) for path in _batch_files(folder, part)])


def _batch_files(data_dir: Path, part: str) -> list[Path]:
    folder = data_dir / "cifar-10-batches-py"
    if not folder.is_dir():
        files = "the six batch files (data_batch_1 to data_batch_5 and test_batch)"
        download("CIFAR10", data_dir, folder, files)
    train = [f"data_batch_{number}" for number in range(1, 6)]
    paths = [folder / name for name in (train if part == "train" else ["test_batch"])]
    for path in paths:
        # Not downloaded here: that would overwrite the files that are there.
        if not path.exists():
            raise DataError(
                f"{folder} has no file {path.name}: put it there, or remove the folder to have "
                "CIFAR10 downloaded again"
            )
    return paths


def _read_batch(path: Path) -> tuple[np.ndarray, dict[str | int, Any]]:
    """The images of a pickled batch, uint8 N x 3 x 32 x 32, and all that is in it."""
    try:
        batch = read_pickled_batch(read_bytes(path))
        images = batch.get("data")
        # Arrays of numbers other than uint8 are None here.
        if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != 3072:
            raise ValueError("'data' must be a uint8 array of N x 3072")
        if len(images) == 0:
            raise ValueError("'data' has no images")
        return images.reshape(len(images), 3, 32, 32), batch
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _read_labels(path: Path) -> np.ndarray:
    images, batch = _read_batch(path)
    number, labels = len(CIFAR10_CLASSES), batch.get("labels")
    if (
        not isinstance(labels, list)
        or len(labels) != len(images)
        or not all(type(label) is int and 0 <= label < number for label in labels)
    ):
        expected = f"'labels' must be {len(images)} whole numbers from 0 to {number - 1}"
        raise _damaged(path, ValueError(expected))
    return np.array(labels, np.int64)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is damaged or not a CIFAR10 batch ({' '.join(str(error).split())}): replace "
        "it, or remove its folder to have CIFAR10 downloaded again"
    )
