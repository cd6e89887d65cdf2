"""CIFAR10 and CIFAR100, read from their batch files, which are pickles, as data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmconv.data.downloads import download, ensure
from lmconv.data.pickled_batches import labels_of_batch, read_pickled_batch
from lmconv.data.set_files import read_bytes
from lmconv.data.sources import DataError

__all__ = ["CIFAR10", "CIFAR100", "CifarSet", "read_cifar"]


@dataclass(frozen=True)
class CifarSet:
    """A set of images of 32 x 32 in batch files.

    Attributes:
        name: its name, as that of its class in torchvision.
        folder: the folder of its files in that of the data sets.
        files: what people would have to put there, in words.
        train_files: the names of the files for training.
        test_file: the name of the file for testing.
        label_key: what a batch calls its labels.
        label_names: the names of the labels.
    """

    name: str
    folder: str
    files: str
    train_files: tuple[str, ...]
    test_file: str
    label_key: str
    label_names: tuple[str, ...]

    def read_images(self, data_dir: Path, part: str) -> np.ndarray:
        """Read the images of a part, ``train`` or ``test``, as uint8 N x 3 x 32 x 32.

        Raises:
            DataError: files are missing or damaged.
        """
        paths = self._files(data_dir, part)
        return np.concatenate([self._read_batch(path)[0] for path in paths])

    def read_labels(self, data_dir: Path, part: str) -> np.ndarray:
        """Read the labels of a part, int64 N.

        Raises:
            DataError: as ``read_images``, or a batch has no labels that fit its images.
        """
        return np.concatenate([self._read_labels(path) for path in self._files(data_dir, part)])

    def _files(self, data_dir: Path, part: str) -> list[Path]:
        folder = data_dir / self.folder
        ensure(data_dir, folder.is_dir, lambda: download(self.name, data_dir, folder, self.files))
        names = self.train_files if part == "train" else (self.test_file,)
        for name in names:
            # Not downloaded here: that would overwrite the files that are there.
            if not (folder / name).exists():
                raise DataError(
                    f"{folder} has no file {name}: put it there, or remove the folder to have "
                    f"{self.name} downloaded again"
                )
        return [folder / name for name in names]

    def _read_batch(self, path: Path) -> tuple[np.ndarray, dict[str | int, Any]]:
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
            raise self._damaged(path, error) from error

    def _read_labels(self, path: Path) -> np.ndarray:
        images, batch = self._read_batch(path)
        try:
            return labels_of_batch(batch, self.label_key, len(images), 0, len(self.label_names))
        except ValueError as error:
            raise self._damaged(path, error) from error

    def _damaged(self, path: Path, error: Exception) -> DataError:
        return DataError(
            f"{path} is damaged or not a {self.name} batch ({' '.join(str(error).split())}): "
            f"replace it, or remove its folder to have {self.name} downloaded again"
        )


CIFAR10 = CifarSet(
    "CIFAR10",
    "cifar-10-batches-py",
    "the six batch files (data_batch_1 to data_batch_5 and test_batch)",
    tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test_batch",
    "labels",
    (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
)
CIFAR100 = CifarSet(
    "CIFAR100",
    "cifar-100-python",
    "the files train and test",
    ("train",),
    "test",
    "fine_labels",
    (
        *("apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle"),
        *("bicycle", "bottle", "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can"),
        *("castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud"),
        *("cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant"),
        *("flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard"),
        *("lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree"),
        *("motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid"),
        *("otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate"),
        *("poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket"),
        *("rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake"),
        *("spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank"),
        *("telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle"),
        *("wardrobe", "whale", "willow_tree", "wolf", "woman", "worm"),
    ),
)


def read_cifar(data_dir: str | Path, train: bool) -> np.ndarray:
    """Read CIFAR10, or another set in batch files like its own, as uint8 N x 3 x 32 x 32."""
    return CIFAR10.read_images(Path(data_dir), "train" if train else "test")
