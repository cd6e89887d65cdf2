"""Data sets as batches of images on the grid of [-1, 1]; the only module that knows file formats.

Every set is a source of uint8 images; one pipeline resizes, coarsens or binarizes, and scales them.
"""

import math
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from importlib import import_module
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from distributed import Processes
from utils import ahead

__all__ = [
    "DATASETS",
    "DataConfig",
    "DataError",
    "ImageShape",
    "TestData",
    "TrainData",
    "image_shapes",
    "load_test",
    "load_train",
]

ImageShape = tuple[int, int, int]  # C, H, W

# The data sets by name, each with the C x H x W of its images as they are stored.
DATASETS: dict[str, ImageShape] = {
    "mnist": (1, 28, 28),
    "cifar": (3, 32, 32),
    "celebahq": (3, 256, 256),
    "digits": (1, 8, 8),
}

# What random numbers are for. Not 0: numpy gives [seed, epoch] and [seed, epoch, 0] one stream.
_SHUFFLE, _SIZE, _BINARIZE_TRAIN, _BINARIZE_TEST = 1, 2, 3, 4
_SHUFFLE_BUFFER = 512  # images of a stream held back to be shuffled, 100 MB of 3 x 256 x 256
_DIGITS_TRAIN_IMAGES = 1500
# Batches that are made ready while the network is at work.
_BATCHES_AHEAD = 3


class DataError(Exception):
    """Settings or files that give no data; the message is one line that says what to do."""


@dataclass(frozen=True)
class DataConfig:
    """What images to load and how to prepare them.

    Attributes:
        dataset: a name of ``DATASETS``.
        data_dir: the folder that holds the data sets.
        batch_size: images per batch, of each process.
        binarize: draw each pixel from {-1, +1} with its intensity as the probability of +1.
        n_bits: bits per channel; pixels are floored to this grid. Binarization takes all 8.
        seed: of shuffling, of the sizes drawn, and of binarization.
        celeba_size: height and width that celebahq is resized to.
        max_celeba_train_batches: celebahq batches per epoch at most, -1 for all.
        max_celeba_test_batches: celebahq test batches at most, -1 for all.
        max_train_images: use the first so many training images of the other sets, -1 for all.
        max_test_images: likewise test images.
        resize_sizes: square sizes to resize to, one drawn per training batch; () for the set's own.
        resize_probs: probability of each size; () for equal ones.
    """

    dataset: str
    data_dir: str = "data"
    batch_size: int = 64
    binarize: bool = False
    n_bits: int = 8
    seed: int = 1
    celeba_size: int = 256
    max_celeba_train_batches: int = -1
    max_celeba_test_batches: int = -1
    max_train_images: int = -1
    max_test_images: int = -1
    resize_sizes: tuple[int, ...] = ()
    resize_probs: tuple[float, ...] = ()


def image_shapes(config: DataConfig) -> list[ImageShape]:
    """Check the settings and give the (C, H, W) of each image size; touches no files.

    Raises:
        DataError: a setting has no meaning or contradicts another.
    """
    if config.dataset not in DATASETS:
        raise DataError(f"unknown data set {config.dataset!r}: choose one of {', '.join(DATASETS)}")
    channels, native_size, _ = DATASETS[config.dataset]
    if config.binarize and channels != 1:
        raise DataError(f"--binarize needs one-channel images and {config.dataset} has {channels}")
    if not 1 <= config.n_bits <= 8:
        raise DataError(f"--n_bits must be between 1 and 8, got {config.n_bits}")
    for name in ("batch_size", "celeba_size"):
        if getattr(config, name) < 1:
            raise DataError(f"--{name} must be at least 1, got {getattr(config, name)}")
    if config.seed < 0:
        raise DataError(f"--seed must be at least 0, got {config.seed}")
    for name in (
        "max_celeba_train_batches",
        "max_celeba_test_batches",
        "max_train_images",
        "max_test_images",
    ):
        limit = getattr(config, name)
        if limit != -1 and limit < 1:
            raise DataError(f"--{name} must be at least 1, or -1 for no limit, got {limit}")
    _check_sizes(config.resize_sizes, config.resize_probs)
    if config.dataset == "celebahq":
        native_size = config.celeba_size
    return [(channels, size, size) for size in config.resize_sizes or (native_size,)]


def _check_sizes(sizes: tuple[int, ...], probs: tuple[float, ...]) -> None:
    for size in sizes:
        if size < 1:
            raise DataError(f"--resize_sizes must be at least 1, got {size}")
    if probs and len(probs) != len(sizes):
        raise DataError(
            f"--resize_probs needs one value per size: got {len(probs)} for {len(sizes)} sizes"
        )
    for probability in probs:
        if not probability >= 0:
            raise DataError(f"--resize_probs must not be negative, got {probability:g}")
    if probs and not abs(sum(probs) - 1) <= 1e-6:
        raise DataError(f"--resize_probs must add up to 1, got {sum(probs):g}")


class _Source(Protocol):
    """Where images come from."""

    num_images: int | None

    def batches(
        self, batch_size: int, random: np.random.Generator | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Index of each image and the images, uint8 B x C x H x W, shuffled if given ``random``."""


class TrainData:
    """The training set: shuffled, drawn anew every epoch, and the same for one seed and epoch.

    A batch is shared by all processes: each has ``batch_size`` images of it.

    Attributes:
        image_shapes: (C, H, W) of each size that batches may have.
        num_images: images per epoch, None for a stream, which does not know.
        batch_size: images per batch, of all processes together.
        num_batches: batches per epoch, None for a stream.
    """

    def __init__(self, config: DataConfig, source: _Source, processes: Processes) -> None:
        self.image_shapes = image_shapes(config)
        self.num_images = source.num_images
        self.batch_size = config.batch_size * processes.number
        self.num_batches: int | None = None
        if self.num_images is not None:
            self.num_batches = -(-self.num_images // self.batch_size)
        self._config, self._source, self._processes = config, source, processes

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Tensor]:
        """Every image once: B x C x H x W float32 on the grid in [-1, 1], the last batch smaller.

        Order, sizes and binarization depend on the seed and ``epoch`` alone: one that starts later
        has the same batches from there on. This process's share of the last batch can be empty.
        Batches are made in advance, in memory that a GPU reads directly.

        Raises:
            DataError: a file of a stream is damaged.
        """
        return ahead(self._batches(epoch, first_batch), _BATCHES_AHEAD)

    def _batches(self, epoch: int, first_batch: int) -> Iterator[Tensor]:
        config, device = self._config, self._processes.device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of the thread that makes the batches
        shuffling, sizing = (
            np.random.default_rng([config.seed, epoch, purpose]) for purpose in (_SHUFFLE, _SIZE)
        )
        key = _random_key(config.seed, epoch, _BINARIZE_TRAIN)
        probs = np.array(config.resize_probs or [1.0] * len(self.image_shapes))
        probs /= probs.sum()
        batches = self._source.batches(self.batch_size, shuffling)
        for number, (indices, pixels) in enumerate(batches):
            _, height, width = self.image_shapes[sizing.choice(len(probs), p=probs)]
            if number < first_batch:
                continue
            own = self._processes.share(len(indices))
            images = _prepare(config, _resize(pixels[own], height, width), indices[own], key)
            yield images.pin_memory() if device.type == "cuda" else images


class TestData:
    """The test set, in its own order.

    Attributes:
        num_images: images in the set, None for a stream, which does not know.
    """

    __test__ = False  # no test, whatever pytest makes of the name

    def __init__(self, config: DataConfig, source: _Source) -> None:
        self.num_images = source.num_images
        self._channels = image_shapes(config)[0][0]
        self._config, self._source = config, source

    def batches(self, image_shape: ImageShape) -> Iterator[Tensor]:
        """Every image once, resized to (C, H, W): B x C x H x W float32 on the grid in [-1, 1].

        Binarization depends on the seed and the image's index alone, not on the batch size.

        Raises:
            ValueError: the images have another number of channels.
            DataError: a file of a stream is damaged.
        """
        channels, height, width = image_shape
        if channels != self._channels:
            raise ValueError(
                f"{self._config.dataset} has {self._channels} channels: it has no images of shape "
                f"{channels}x{height}x{width}"
            )
        key = _random_key(self._config.seed, _BINARIZE_TEST)
        for indices, pixels in self._source.batches(self._config.batch_size, None):
            yield _prepare(self._config, _resize(pixels, height, width), indices, key)


def load_train(config: DataConfig, processes: Processes | None = None) -> TrainData:
    """The training set; downloads mnist and cifar when their files are absent.

    Args:
        config: what to load.
        processes: those that share it; by default this one has all.

    Raises:
        DataError: the settings are wrong, or files or a package are missing or damaged.
    """
    return TrainData(config, _open(config, train=True), processes or Processes())


def load_test(config: DataConfig) -> TestData:
    """The test set (of celebahq: the validation set); see ``load_train``."""
    return TestData(config, _open(config, train=False))


def _prepare(config: DataConfig, pixels: np.ndarray, indices: np.ndarray, key: np.uint64) -> Tensor:
    """From uint8 B x C x H x W to float32 on the grid of [-1, 1]."""
    largest = 1 if config.binarize else 2**config.n_bits - 1
    grid = 2 * np.arange(largest + 1, dtype=np.float32) / largest - 1
    if config.binarize:
        pixels_per_image = math.prod(pixels.shape[1:])
        threshold = _uniform(key, indices, pixels_per_image).reshape(pixels.shape)
        return torch.from_numpy(grid[(threshold < pixels / 255).astype(np.uint8)])
    return torch.from_numpy(grid[pixels >> (8 - config.n_bits)])


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with antialiasing, rounded to pixel values again, so that data stay discrete."""
    if pixels.shape[2:] == (height, width):
        return pixels
    if len(pixels) == 0:
        return np.empty((0, pixels.shape[1], height, width), np.uint8)
    # In float32: the uint8 kernels of torch round differently from machine to machine.
    images = torch.from_numpy(pixels).float()
    images = interpolate(images, (height, width), mode="bilinear", antialias=True)
    return images.round().clamp(0, 255).byte().numpy()


def _random_key(*numbers: int) -> np.uint64:
    return np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]


def _uniform(key: np.uint64, indices: np.ndarray, length: int) -> np.ndarray:
    """``length`` numbers in [0, 1) for each index, B x length, whichever indices come together.

    SplitMix64 (Steele, Lea and Flood, 2014), whose n-th number is a function of n alone.
    """
    first = indices.astype(np.uint64)[:, None] * np.uint64(length)
    number = first + np.arange(1, length + 1, dtype=np.uint64)
    bits = key + number * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return (bits >> np.uint64(11)) * 2.0**-53


class _Memory:
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


class _Stream:
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


def _shuffled(images: Iterator[np.ndarray], random: np.random.Generator) -> Iterator[np.ndarray]:
    """The same images, each swapped into a random place of those held back."""
    held = list(islice(images, _SHUFFLE_BUFFER))
    for image in images:
        place = random.integers(len(held))
        yield held[place]
        held[place] = image
    for place in random.permutation(len(held)):
        yield held[place]


def _open(config: DataConfig, train: bool) -> _Source:
    image_shapes(config)  # refuses wrong settings before any file is read or downloaded
    if config.dataset == "celebahq":
        return _open_celebahq(config, train)
    if config.dataset == "digits":
        images = _digits(train)
    else:
        read = _mnist if config.dataset == "mnist" else _cifar
        images = read(Path(config.data_dir), train)
    limit = config.max_train_images if train else config.max_test_images
    return _Memory(images if limit == -1 else images[:limit])


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


def _mnist(data_dir: Path, train: bool) -> np.ndarray:
    """The image file alone; labels are not needed."""
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


def _cifar(data_dir: Path, train: bool) -> np.ndarray:
    """The batch files as they are, so that other sets of 32x32 images may come in this format."""
    folder = data_dir / "cifar-10-batches-py"
    if not folder.is_dir():
        files = "the six batch files (data_batch_1 to data_batch_5 and test_batch)"
        _download("CIFAR10", data_dir, folder, files)
    names = [f"data_batch_{number}" for number in range(1, 6)] if train else ["test_batch"]
    for name in names:
        # Not downloaded here: that would overwrite the files that are there.
        if not (folder / name).is_file():
            raise DataError(
                f"{folder} has no file {name}: put it there, or remove the folder to have CIFAR10 "
                "downloaded again"
            )
    return np.concatenate([_read_cifar_batch(folder / name) for name in names])


def _read_cifar_batch(path: Path) -> np.ndarray:
    """The images of a pickled batch, uint8 N x 3 x 32 x 32."""
    try:
        with path.open("rb") as file:
            # latin1 turns the strings that Python 2 wrote, names as well as array contents, to str.
            batch = _ArrayUnpickler(file, encoding="latin1").load()
        images = batch["data"]
        if images.dtype != np.uint8 or images.ndim != 2 or images.size == 0:
            raise ValueError("`data` must be uint8 of N x 3072")
        return images.reshape(len(images), 3, 32, 32)
    except _UNPICKLING_ERRORS as error:
        raise DataError(
            f"{path} is damaged or no CIFAR10 batch ({' '.join(str(error).split())}): replace it, "
            "or remove its folder to have CIFAR10 downloaded again"
        ) from error


# A damaged pickle may raise nearly anything while its instructions are followed.
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and plain containers and refuses everything else a pickle may call."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.empty(0).__reduce__()[0]
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return _encode_latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which may run code: refused")


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}: refused")
    return text.encode("latin1")


def _digits(train: bool) -> np.ndarray:
    """Scanned digits of 8x8 pixels and 17 grey levels, in a split that no setting changes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("-d digits needs scikit-learn: pip install scikit-learn") from error
    images = np.rint(load_digits().images * 255 / 16).astype(np.uint8)[:, None]
    order = np.argsort(_uniform(np.uint64(0), np.arange(len(images)), 1)[:, 0])
    chosen = order[:_DIGITS_TRAIN_IMAGES] if train else order[_DIGITS_TRAIN_IMAGES:]
    return images[np.sort(chosen)]


def _open_celebahq(config: DataConfig, train: bool) -> _Source:
    split = "train" if train else "validation"
    folder = Path(config.data_dir) / "celeba-tfr" / split
    files = sorted(folder.glob(f"{split}-r08-s-*-of-*.tfrecords"))
    if not files:
        raise DataError(
            f"no files {folder}/{split}-r08-s-*-of-*.tfrecords: put the TFRecords of CelebA-HQ "
            "there or point -i/--data_dir at the folder that holds celeba-tfr"
        )
    _import_tensorflow()
    limit = config.max_celeba_train_batches if train else config.max_celeba_test_batches
    return _Stream(files, _read_tfrecords, None if limit == -1 else limit)


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
    channels, height, width = DATASETS["celebahq"]
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
