"""The standard data sets, read from their own files as uint8 arrays."""

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from lmconv.data.pickled_batches import read_pickled_batch
from lmconv.data.sources import DataError, Source, StreamSource
from lmconv.pixel_values import ImageShape
from lmconv.random_numbers import uniform_numbers
from utils import check_regular

__all__ = [
    "DATA_DIR",
    "IMAGE_SHAPES",
    "NUM_IMAGES",
    "import_tensorflow",
    "open_celebahq",
    "read_cifar",
    "read_digits",
    "read_mnist",
]

# The data sets by name, each with the C x H x W of its images as stored.
IMAGE_SHAPES: dict[str, ImageShape] = {
    "mnist": (1, 28, 28),
    "cifar": (3, 32, 32),
    "celebahq": (3, 256, 256),
    "digits": (1, 8, 8),
}

# Number of images in the training and the test set of each.
NUM_IMAGES = {
    "mnist": (60_000, 10_000),
    "cifar": (50_000, 10_000),
    "celebahq": (27_000, 3_000),
    "digits": (1500, 297),
}
# The folder that a set is downloaded into by default; no other is made.
DATA_DIR = "data"

_DIGITS_TRAIN_IMAGES = NUM_IMAGES["digits"][0]
_MAX_RECORD = 2**24  # bytes; an image takes 197 kB
_MAX_BYTES = 2**29  # of a file; 60,000 digits take 47 MB, and 10,000 photographs 31 MB


def _download(name: str, data_dir: Path, folder: Path, files: str) -> None:
    """Let torchvision download a set to its usual place under ``data_dir``.

    Raises:
        DataError: ``data_dir`` does not exist and is not the default, or downloading fails.
    """
    if not data_dir.is_dir() and str(data_dir) != DATA_DIR:
        raise DataError(
            f"the folder {data_dir} does not exist: make it, to have {name} downloaded into it, or "
            "give another `data_dir`"
        )
    try:
        import torchvision
    except ImportError as error:
        raise DataError(
            f"{name} is not in {folder}, and downloading it needs torchvision: pip install "
            f"torchvision, or put {files} there"
        ) from error
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        getattr(torchvision.datasets, name)(data_dir, download=True)
    except (OSError, RuntimeError, HTTPException, EOFError) as error:
        for path in new:
            with suppress(OSError):  # it is not empty
                path.rmdir()
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name} is not in {folder} and could not be downloaded ({reason}): put {files} there "
            "or point `data_dir` at a folder that has them"
        ) from error


def read_mnist(data_dir: str | Path, train: bool) -> np.ndarray:
    """Read MNIST as uint8 N x 1 x 28 x 28, only from the image file; labels are not needed.

    The file is in ``data_dir/MNIST/raw``, ``data_dir/raw`` or ``data_dir``, as it is or packed, and
    under one of the names that it is passed on by.
    """
    folder = Path(data_dir)
    wanted, other = ("train", "t10k") if train else ("t10k", "train")
    path = _find_mnist(folder, wanted)
    if path is None:
        if (there := _find_mnist(folder, other)) is not None:
            # Not downloaded here: that would overwrite the files that are there.
            raise DataError(
                f"{there.parent} has no file {wanted}-images-idx3-ubyte: put it there, point "
                f"`data_dir` at another folder, or remove {there.name} to have MNIST downloaded"
            )
        _download("MNIST", folder, folder / "MNIST" / "raw", "the two idx files of images")
        path = folder / "MNIST" / "raw" / f"{wanted}-images-idx3-ubyte"
    try:
        content = _read_bytes(path)
        header = np.frombuffer(content[:16], ">i4") if len(content) >= 16 else np.zeros(4, ">i4")
        magic, number, height, width = header.tolist()
        # 2051: unsigned bytes in three dimensions.
        if (magic, height, width) != (2051, 28, 28) or number == 0:
            raise ValueError("its header is not that of one")
        if len(content) != 16 + number * 784:
            raise ValueError(f"{len(content)} bytes for {number} images")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is damaged or not an idx file of 28x28 images ({error}): replace it, or "
            "remove it to have MNIST downloaded again"
        ) from error
    return np.frombuffer(content, np.uint8, offset=16).reshape(number, 1, 28, 28)


def _find_mnist(folder: Path, part: str) -> Path | None:
    """The file of a part's images, ``train`` or ``t10k``, at one of the places that it may be."""
    for place in (folder / "MNIST" / "raw", folder / "raw", folder):
        for name in (f"{part}-images-idx3-ubyte", f"{part}-images.idx3-ubyte"):
            for path in (place / name, place / f"{name}.gz"):
                if path.exists() and not path.is_dir():
                    return path
    return None


def read_cifar(data_dir: str | Path, train: bool) -> np.ndarray:
    """Read CIFAR10, or another set in batch files like its own, as uint8 N x 3 x 32 x 32."""
    folder = Path(data_dir) / "cifar-10-batches-py"
    if not folder.is_dir():
        files = "the six batch files (data_batch_1 to data_batch_5 and test_batch)"
        _download("CIFAR10", Path(data_dir), folder, files)
    names = [f"data_batch_{number}" for number in range(1, 6)] if train else ["test_batch"]
    for name in names:
        # Not downloaded here: that would overwrite the files that are there.
        if not (folder / name).exists():
            raise DataError(
                f"{folder} has no file {name}: put it there, or remove the folder to have CIFAR10 "
                "downloaded again"
            )
    return np.concatenate([_read_cifar_batch(folder / name) for name in names])


def _read_cifar_batch(path: Path) -> np.ndarray:
    """The images of a pickled batch, uint8 N x 3 x 32 x 32."""
    try:
        images = read_pickled_batch(_read_bytes(path)).get("data")
        # Arrays of numbers other than uint8 are None here.
        if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != 3072:
            raise ValueError("'data' must be a uint8 array of N x 3072")
        if len(images) == 0:
            raise ValueError("'data' has no images")
        return images.reshape(len(images), 3, 32, 32)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is damaged or not a CIFAR10 batch ({' '.join(str(error).split())}): replace "
            "it, or remove its folder to have CIFAR10 downloaded again"
        ) from error


def _read_bytes(path: Path) -> bytes:
    """Read a file of a set, unpacked if its name ends with ``.gz``.

    Raises:
        UserError: it is not a regular file.
        ValueError: it is too large to be a set's, or is not packed as its name says.
        OSError: it cannot be read.
    """
    check_regular(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content: bytes = file.read(_MAX_BYTES + 1)
    except (EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error
    if len(content) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES} bytes, the most that are read")
    return content


def read_digits(train: bool) -> np.ndarray:
    """Read scanned digits with 17 grey levels, as uint8 N x 1 x 8 x 8; their split is fixed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the data set digits needs scikit-learn: pip install scikit-learn"
        ) from error
    images = np.rint(load_digits().images * 255 / 16).astype(np.uint8)[:, None]
    order = np.argsort(uniform_numbers(np.uint64(0), np.arange(len(images)), 1)[:, 0])
    chosen = order[:_DIGITS_TRAIN_IMAGES] if train else order[_DIGITS_TRAIN_IMAGES:]
    return images[np.sort(chosen)]


def open_celebahq(data_dir: Path, train: bool, max_batches: int | None) -> Source:
    """Open the TFRecords of one split, whose images are uint8 3 x 256 x 256.

    Raises:
        DataError: there are no files, or tensorflow is missing.
    """
    split = "train" if train else "validation"
    folder = Path(data_dir) / "celeba-tfr" / split
    files = sorted(folder.glob(f"{split}-r08-s-*-of-*.tfrecords"))
    if not files:
        raise DataError(
            f"there are no files {folder}/{split}-r08-s-*-of-*.tfrecords: put the TFRecords of "
            "CelebA-HQ there or point `data_dir` at the folder that contains celeba-tfr"
        )
    import_tensorflow()
    return StreamSource(files, _read_tfrecords, max_batches)


def import_tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Torch's compiler, if there is one, must be loaded first: both bring LLVM, and the process
    # aborts if tensorflow's is loaded before.
    with suppress(ImportError):
        import_module("triton")
    try:
        import tensorflow
    except ImportError as error:
        raise DataError("the data set celebahq needs tensorflow: pip install tensorflow") from error
    tensorflow.config.set_visible_devices([], "GPU")  # it would take all memory of every GPU
    return tensorflow


def _read_tfrecords(path: Path) -> Iterator[np.ndarray]:
    """Yield the images of a file, uint8 3 x 256 x 256."""
    tf = import_tensorflow()
    check_regular(path)
    try:
        _check_lengths(path)
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            yield _image_of_record(tf, record)
    # TensorFlow's own messages may hold a whole record, and may not even be text.
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged, or not a TFRecord: replace the file") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): replace the file") from error


def _check_lengths(path: Path) -> None:
    """Raise ValueError if a record is longer than its file: TensorFlow would end the process."""
    size, place = path.stat().st_size, 0
    with path.open("rb") as file:
        while head := file.read(8):
            length = int.from_bytes(head, "little")
            place += 16 + length  # its length and its contents, each with a checksum
            if length > _MAX_RECORD or place > size:
                raise ValueError(f"a record of {length} bytes is too long")
            file.seek(place)


def _image_of_record(tf: Any, record: bytes) -> np.ndarray:
    """The image of a record, uint8 3 x 256 x 256.

    Raises:
        ValueError: the record does not have one; the message is short.
    """
    from google.protobuf.message import DecodeError  # comes with tensorflow

    try:
        example = tf.train.Example.FromString(record)
    except DecodeError:
        raise ValueError("a record is not an Example") from None
    values = example.features.feature["data"].bytes_list.value
    if len(values) != 1:
        raise ValueError(f"a record has {len(values)} values of 'data' in bytes instead of one")
    channels, height, width = IMAGE_SHAPES["celebahq"]
    if len(values[0]) != channels * height * width:
        raise ValueError(
            f"it has an image of {len(values[0])} bytes instead of {height}x{width}x{channels}"
        )
    image = np.frombuffer(values[0], np.uint8)
    return image.reshape(height, width, channels).transpose(2, 0, 1)
