"""The standard data sets, read from their own files as uint8 arrays."""

import os
import stat
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
    "IMAGE_SHAPES",
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

_DIGITS_TRAIN_IMAGES = 1500
_MAX_RECORD = 2**24  # bytes; an image takes 197 kB
_MAX_CIFAR_BATCH = 2**29  # bytes; 10,000 images take 31 MB


def _download(name: str, data_dir: Path, folder: Path, files: str) -> None:
    """Let torchvision download a set to its usual place under ``data_dir``."""
    try:
        import torchvision
    except ImportError as error:
        raise DataError(
            f"{name} is not in {folder}, and downloading it needs torchvision: pip install "
            f"torchvision, or put {files} there"
        ) from error
    try:
        getattr(torchvision.datasets, name)(data_dir, download=True)
    except (OSError, RuntimeError, HTTPException, EOFError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name} is not in {folder} and could not be downloaded ({reason}): put {files} there "
            "or point `data_dir` at a folder that has them"
        ) from error


def read_mnist(data_dir: str | Path, train: bool) -> np.ndarray:
    """Read MNIST as uint8 N x 1 x 28 x 28, only from the image file; labels are not needed."""
    folder = Path(data_dir) / "MNIST" / "raw"
    path = folder / f"{'train' if train else 't10k'}-images-idx3-ubyte"
    if not any(folder.glob("*-images-idx3-ubyte")):
        _download("MNIST", Path(data_dir), folder, "the four idx files (unpacked)")
    # Not downloaded here: that would overwrite the files that are there.
    if not path.is_file():
        raise DataError(
            f"{folder} has no file {path.name}: put it there, point `data_dir` at another "
            "folder, or remove this one to have MNIST downloaded"
        )
    content = path.read_bytes()
    header = np.frombuffer(content[:16], ">i4") if len(content) >= 16 else np.zeros(4, ">i4")
    magic, number, height, width = header.tolist()
    # 2051: unsigned bytes in three dimensions.
    if (magic, height, width) != (2051, 28, 28) or len(content) != 16 + number * 784 or number == 0:
        raise DataError(
            f"{path} is damaged or not an idx file of 28x28 images ({len(content)} bytes): replace "
            "it, or delete it to have it downloaded again"
        )
    return np.frombuffer(content, np.uint8, offset=16).reshape(number, 1, 28, 28)


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
        images = read_pickled_batch(_read_regular_file(path)).get("data")
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


def _read_regular_file(path: Path) -> bytes:
    """Read a batch file, unless it is a pipe, which might never end, or could fill the memory.

    Raises:
        ValueError: it is another kind of file, or too large.
    """
    status = path.stat()  # before opening it, which would wait for the other end of a pipe
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > _MAX_CIFAR_BATCH:
        raise ValueError(
            f"it has {status.st_size} bytes, but no more than {_MAX_CIFAR_BATCH} are read"
        )
    with path.open("rb") as file:
        return file.read(status.st_size)


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
