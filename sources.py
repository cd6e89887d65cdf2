"""Where images come from: the formats of each data set's files, as uint8 arrays."""

import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from importlib import import_module
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lmconv.data.image_files import SUFFIXES, ImageFileError, find_images, fit, read_image
from pickled_batches import read_pickled_batch
from utils import progress, uniform_numbers

__all__ = [
    "DataError",
    "FolderSource",
    "ImageShape",
    "MemorySource",
    "Source",
    "StreamSource",
    "folder_files",
    "open_celebahq",
    "open_files",
    "open_folder",
    "read_cifar",
    "read_digits",
    "read_mnist",
]

ImageShape = tuple[int, int, int]  # C, H, W

_SHUFFLE_BUFFER = 512  # images of a stream held back to be shuffled, 100 MB of 3 x 256 x 256
_DIGITS_TRAIN_IMAGES = 1500
_CELEBAHQ_SHAPE = 3, 256, 256
_CHECKED_AT_ONCE = 1000
_MAX_CIFAR_BATCH = 2**29  # bytes; 10,000 images take 31 MB
_DECODING_THREADS = min(16, os.cpu_count() or 1)


class DataError(Exception):
    """Settings or files that give no data; the message is one line that says what to do."""


class Source(Protocol):
    """Where images come from."""

    num_images: int | None

    def batches(
        self, batch_size: int, random: np.random.Generator | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Index of each image and the images, uint8 B x C x H x W, shuffled if given ``random``."""

    def name(self, index: int) -> str:
        """What people know an image by."""


class MemorySource:
    """A set held in memory, uint8 N x C x H x W."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = images
        self.num_images: int | None = len(images)

    def batches(
        self, batch_size: int, random: np.random.Generator | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        number = len(self._images)
        order = np.arange(number) if random is None else random.permutation(number)
        for start in range(0, number, batch_size):
            indices = order[start : start + batch_size]
            yield indices, self._images[indices]

    def name(self, index: int) -> str:
        return str(index)


class StreamSource:
    """A set read file by file; its memory does not grow with the set."""

    num_images: int | None = None

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
            raise DataError(f"{self._files[0].parent} holds no images in {len(self._files)} files")

    def name(self, index: int) -> str:
        return str(index)


def _shuffled(images: Iterator[np.ndarray], random: np.random.Generator) -> Iterator[np.ndarray]:
    """The same images, each swapped into a random place of those held back."""
    held = list(islice(images, _SHUFFLE_BUFFER))
    for image in images:
        place = random.integers(len(held))
        yield held[place]
        held[place] = image
    for place in random.permutation(len(held)):
        yield held[place]


class FolderSource:
    """Image files, decoded by several threads; memory does not grow with their number."""

    def __init__(self, files: Sequence[Path], image_shape: ImageShape) -> None:
        self._files, self._image_shape = files, image_shape
        self.num_images: int | None = len(files)

    def batches(
        self, batch_size: int, random: np.random.Generator | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        number = len(self._files)
        order = np.arange(number) if random is None else random.permutation(number)
        with ThreadPoolExecutor(_DECODING_THREADS) as pool:
            for start in range(0, number, batch_size):
                indices = order[start : start + batch_size]
                images = pool.map(self._read, [self._files[index] for index in indices])
                yield indices, np.stack(list(images))

    def name(self, index: int) -> str:
        return str(self._files[index])

    def _read(self, path: Path) -> np.ndarray:
        channels, height, width = self._image_shape
        try:
            return fit(read_image(path, channels), height, width)
        except ImageFileError as error:
            raise DataError(str(error)) from error


def open_folder(
    folder: Path, train: bool, image_shape: ImageShape, seed: int, limit: int | None
) -> Source:
    """Image files in ``train/`` or ``test/``; in a folder without these, nine tenths or the tenth.

    Args:
        folder: of the files.
        train: which of the two parts.
        image_shape: that the images are brought to.
        seed: of the split.
        limit: take the first so many files.

    Raises:
        DataError: there are no images that can be read.
    """
    return FolderSource(_readable(folder_files(folder, train, seed)[:limit]), image_shape)


def open_files(files: Sequence[Path], image_shape: ImageShape, resize: bool) -> Source:
    """Image files that a user names; all of them are checked before any is used.

    Args:
        files: of any kind that ``image_files`` reads.
        image_shape: that the network works with.
        resize: cut and resize images of another size, and turn colours to grey.

    Raises:
        DataError: a file cannot be read; or, without ``resize``, has another size, or colours for a
            network of grey images.
    """
    channels, height, width = image_shape
    for path in files:
        try:
            pixels = read_image(path, 3)
        except ImageFileError as error:
            raise DataError(str(error)) from error
        if resize:
            continue
        if pixels.shape[1:] != (height, width):
            raise DataError(
                f"{path} is {pixels.shape[1]}x{pixels.shape[2]} and the model's images are "
                f"{height}x{width} here: --resize_images cuts and resizes it"
            )
        if channels == 1 and (pixels != pixels[0]).any():
            raise DataError(
                f"{path} has colours and the model's images are grey: --resize_images takes them "
                "away"
            )
    return FolderSource(files, image_shape)


def folder_files(folder: Path, train: bool, seed: int) -> list[Path]:
    """The files of one part of a folder; see ``open_folder``."""
    parts = {name: folder / name for name in ("train", "test")}
    split = [name for name, part in parts.items() if part.is_dir()]
    wanted = "train" if train else "test"
    if split and wanted not in split:
        raise DataError(
            f"{folder} has a folder {split[0]} and no {wanted}: make it, or give -i/--data_dir a "
            "folder with neither, which is split"
        )
    files = find_images(parts[wanted] if split else folder)
    if not split:
        # The same for a seed on every machine; NumPy guarantees the numbers of this generator.
        shuffled = np.random.RandomState(seed % 2**32).permutation(len(files))
        number = max(1, len(files) // 10)
        chosen = shuffled[number:] if train else shuffled[:number]
        files = [files[index] for index in np.sort(chosen)]
    if not files:
        raise DataError(
            f"{parts[wanted] if split else folder} has no images for {wanted}ing: put "
            f"{', '.join(SUFFIXES)} files there, or give another -i/--data_dir"
        )
    return files


def _readable(files: Sequence[Path]) -> list[Path]:
    """The files that can be decoded; the others are named and counted in the log.

    Raises:
        DataError: there are none.
    """

    def problem(path: Path) -> str | None:
        try:
            read_image(path, 1)
        except ImageFileError as error:
            return str(error)
        return None

    log = logging.getLogger("lmconv")
    problems: dict[Path, str | None] = {}
    with ThreadPoolExecutor(_DECODING_THREADS) as pool:
        for first in progress(range(0, len(files), _CHECKED_AT_ONCE), "checking images"):
            some = files[first : first + _CHECKED_AT_ONCE]
            problems.update(zip(some, pool.map(problem, some), strict=True))
    damaged = [text for text in problems.values() if text is not None]
    for text in damaged:
        log.warning("left out: %s", text)
    if damaged:
        log.warning("%d of %d files are left out", len(damaged), len(files))
    readable = [path for path, text in problems.items() if text is None]
    if not readable:
        raise DataError(f"none of {len(files)} files can be read: {damaged[0]}")
    return readable


def _download(name: str, data_dir: Path, folder: Path, files: str) -> None:
    """Let torchvision fetch a set into its layout under ``data_dir``."""
    import torchvision

    try:
        getattr(torchvision.datasets, name)(data_dir, download=True)
    except (OSError, RuntimeError, HTTPException, EOFError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name} is not in {folder} and could not be downloaded ({reason}): put {files} there "
            "or point -i/--data_dir at a folder that has them"
        ) from error


def read_mnist(data_dir: Path, train: bool) -> np.ndarray:
    """Uint8 N x 1 x 28 x 28, from the image file alone; labels are not needed."""
    folder = data_dir / "MNIST" / "raw"
    path = folder / f"{'train' if train else 't10k'}-images-idx3-ubyte"
    if not any(folder.glob("*-images-idx3-ubyte")):
        _download("MNIST", data_dir, folder, "the four idx files (unpacked)")
    # Not downloaded here: that would overwrite the files that are there.
    if not path.is_file():
        raise DataError(
            f"{folder} has no file {path.name}: put it there, point -i/--data_dir at another "
            "folder, or remove this one to have MNIST downloaded"
        )
    content = path.read_bytes()
    header = np.frombuffer(content[:16], ">i4") if len(content) >= 16 else np.zeros(4, ">i4")
    magic, number, height, width = header.tolist()
    # 2051: unsigned bytes in three dimensions.
    if (magic, height, width) != (2051, 28, 28) or len(content) != 16 + number * 784 or number == 0:
        raise DataError(
            f"{path} is damaged or no idx file of 28x28 images ({len(content)} bytes): replace it, "
            "or delete it to have it downloaded again"
        )
    return np.frombuffer(content, np.uint8, offset=16).reshape(number, 1, 28, 28)


def read_cifar(data_dir: Path, train: bool) -> np.ndarray:
    """Uint8 N x 3 x 32 x 32, from whatever batch files there are: other sets may come as such."""
    folder = data_dir / "cifar-10-batches-py"
    if not folder.is_dir():
        files = "the six batch files (data_batch_1 to data_batch_5 and test_batch)"
        _download("CIFAR10", data_dir, folder, files)
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
        # An array of other numbers than uint8 is left out there.
        if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != 3072:
            raise ValueError("`data` must be uint8 of N x 3072")
        if len(images) == 0:
            raise ValueError("`data` has no images")
        return images.reshape(len(images), 3, 32, 32)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is damaged or no CIFAR10 batch ({' '.join(str(error).split())}): replace it, "
            "or remove its folder to have CIFAR10 downloaded again"
        ) from error


def _read_regular_file(path: Path) -> bytes:
    """What a batch file holds: a pipe might never end, and a large file fill the memory.

    Raises:
        ValueError: it is another kind of file, or too large.
    """
    status = path.stat()  # before it is opened, which waits for the other end of a pipe
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    if status.st_size > _MAX_CIFAR_BATCH:
        raise ValueError(
            f"it has {status.st_size} bytes, and no more than {_MAX_CIFAR_BATCH} are read"
        )
    with path.open("rb") as file:
        return file.read(status.st_size)


def read_digits(data_dir: Path, train: bool) -> np.ndarray:
    """Uint8 N x 1 x 8 x 8: scanned digits of 17 grey levels, in a split that no setting changes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("-d digits needs scikit-learn: pip install scikit-learn") from error
    images = np.rint(load_digits().images * 255 / 16).astype(np.uint8)[:, None]
    order = np.argsort(uniform_numbers(np.uint64(0), np.arange(len(images)), 1)[:, 0])
    chosen = order[:_DIGITS_TRAIN_IMAGES] if train else order[_DIGITS_TRAIN_IMAGES:]
    return images[np.sort(chosen)]


def open_celebahq(data_dir: Path, train: bool, max_batches: int | None) -> Source:
    """The TFRecords of one split, uint8 3 x 256 x 256 each.

    Raises:
        DataError: there are no files, or tensorflow is missing.
    """
    split = "train" if train else "validation"
    folder = data_dir / "celeba-tfr" / split
    files = sorted(folder.glob(f"{split}-r08-s-*-of-*.tfrecords"))
    if not files:
        raise DataError(
            f"no files {folder}/{split}-r08-s-*-of-*.tfrecords: put the TFRecords of CelebA-HQ "
            "there or point -i/--data_dir at the folder that holds celeba-tfr"
        )
    _import_tensorflow()
    return StreamSource(files, _read_tfrecords, max_batches)


def _import_tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Torch's compiler, if there is one, comes first: both bring LLVM, and when tensorflow's is
    # loaded before it the process aborts.
    with suppress(ImportError):
        import_module("triton")
    try:
        import tensorflow
    except ImportError as error:
        raise DataError("-d celebahq needs tensorflow: pip install tensorflow") from error
    tensorflow.config.set_visible_devices([], "GPU")  # it would take all memory of every GPU
    return tensorflow


def _read_tfrecords(path: Path) -> Iterator[np.ndarray]:
    """The images of a file, uint8 3 x 256 x 256."""
    tf = _import_tensorflow()
    channels, height, width = _CELEBAHQ_SHAPE
    feature = {"data": tf.io.FixedLenFeature([], tf.string)}
    records = tf.data.TFRecordDataset(str(path))
    try:
        for example in records.map(lambda record: tf.io.parse_single_example(record, feature)):
            image = np.frombuffer(example["data"].numpy(), np.uint8)
            if image.size != channels * height * width:
                raise DataError(
                    f"{path} has an image of {image.size} bytes instead of {height}x{width}x"
                    f"{channels}: replace the file"
                )
            yield image.reshape(height, width, channels).transpose(2, 0, 1)
    except tf.errors.OpError as error:
        reason = " ".join(error.message.split())
        raise DataError(f"{path} is damaged ({reason}): replace the file") from error
