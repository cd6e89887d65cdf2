"""ImageNet at 32 x 32 and 64 x 64, mapped into memory from its batch files.

The set of Chrabaszcz, Loshchilov and Hutter, 2017, "A downsampled variant of ImageNet". Its files
are pickles, which are read as data, or NumPy archives.
"""

from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from lmconv.data.array_files import JoinedArrays, map_member
from lmconv.data.pickled_batches import labels_of_batch, read_pickled_batch
from lmconv.data.sources import DataError
from utils import check_regular

__all__ = ["NUM_CLASSES", "DownsampledImageNet"]

NUM_CLASSES = 1000

_TRAIN_FILES = tuple(f"train_data_batch_{number}" for number in range(1, 11))
_TEST_FILES = ("val_data",)  # the usual test set, as that of the challenge has no labels
# Pickles of protocols before 3 have arrays as text, which cannot be mapped.
_MAX_BYTES_OF_TEXT = 2**26


@dataclass(frozen=True)
class DownsampledImageNet:
    """The set at one size.

    Attributes:
        side: height and width of its images, 32 or 64.
    """

    side: int

    def read_images(self, data_dir: Path, part: str) -> JoinedArrays:
        """Map the images of a part, ``train`` or ``test``: uint8 N x 3 x side x side.

        Raises:
            DataError: files are missing or damaged.
        """
        return JoinedArrays([self._map(path) for path in self._files(data_dir, part)])

    def read_labels(self, data_dir: Path, part: str) -> np.ndarray:
        """Read the labels of a part, int64 N; the files count from 1 on, and this from 0.

        Raises:
            DataError: files are missing or damaged.
        """
        return np.concatenate([self._labels(path) for path in self._files(data_dir, part)])

    def _files(self, data_dir: Path, part: str) -> list[Path]:
        names = _TRAIN_FILES if part == "train" else _TEST_FILES
        # As the archives of image-net.org unpack, or all files in one folder.
        base = f"Imagenet{self.side}"
        folders = [f"imagenet{self.side}", base, ""]
        for end in ("train", "train_part1", "train_part2", "val"):
            folders += [f"{base}_{end}", f"{base}_{end}_npz"]
        paths = []
        for name in names:
            places = (data_dir / folder / name for folder in folders)
            files = (path.with_name(f"{name}{end}") for path in places for end in ("", ".npz"))
            path = next((path for path in files if path.exists() and not path.is_dir()), None)
            if path is None:
                raise DataError(
                    f"{data_dir / folders[0]} has no file {name} or {name}.npz: download "
                    f"ImageNet {self.side}x{self.side} from image-net.org, which needs an account, "
                    "and put its files there, or give another `data_dir`"
                )
            paths.append(path)
        return paths

    def _map(self, path: Path) -> np.ndarray:
        """The images of a batch, uint8 ``N x 3 x side x side``."""
        try:
            is_npz = path.suffix == ".npz"
            images = map_member(path, "data") if is_npz else _read_pickle(path).get("data")
            length = 3 * self.side**2
            # Pickled arrays of numbers other than uint8 are None here.
            if not isinstance(images, np.ndarray) or images.shape[1:] != (length,):
                raise ValueError(f"'data' must be a uint8 array of N x {length}")
            if images.dtype != np.uint8:
                raise ValueError(f"'data' must be uint8, not {images.dtype}")
            if len(images) == 0:
                raise ValueError("'data' has no images")
            return images.reshape(len(images), 3, self.side, self.side)
        except (OSError, ValueError) as error:
            raise self._damaged(path, error) from error

    def _labels(self, path: Path) -> np.ndarray:
        number = len(self._map(path))
        try:
            if path.suffix == ".npz":
                batch: dict[str | int, Any] = {"labels": map_member(path, "labels").tolist()}
            else:
                batch = _read_pickle(path)
            return labels_of_batch(batch, "labels", number, 1, NUM_CLASSES)
        except (OSError, ValueError) as error:
            raise self._damaged(path, error) from error

    def _damaged(self, path: Path, error: Exception) -> DataError:
        return DataError(
            f"{path} is damaged or not a batch of ImageNet {self.side}x{self.side} "
            f"({' '.join(str(error).split())}): replace it"
        )


def _read_pickle(path: Path) -> dict[str | int, Any]:
    """A pickled batch, whose arrays are mapped.

    Raises:
        UserError: it is not a regular file.
        ValueError: it is damaged, or so large and written as text that it would fill the memory.
    """
    check_regular(path)
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise ValueError("it is empty")
        content = mmap(file.fileno(), 0, access=ACCESS_READ)
    if len(content) > _MAX_BYTES_OF_TEXT and (content[:1] != b"\x80" or content[1] < 3):
        raise ValueError(
            "it is a pickle of protocol 2 or less, which cannot be mapped: write it again with "
            "protocol 4, or as .npz"
        )
    return read_pickled_batch(content)
