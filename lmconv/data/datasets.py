"""Data sets as batches of images on the grid of [-1, 1].

Every set is a source of uint8 images (``sources.py``); one pipeline resizes, coarsens or binarizes,
and scales them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lmconv.distributed import Processes
from sources import (
    DataError,
    ImageShape,
    MemorySource,
    Source,
    folder_files,
    open_celebahq,
    open_files,
    open_folder,
    read_cifar,
    read_digits,
    read_mnist,
)
from utils import ahead, uniform_numbers

__all__ = [
    "DATASETS",
    "DataConfig",
    "DataError",
    "ImageShape",
    "TestData",
    "TrainData",
    "check_files",
    "image_shapes",
    "load_files",
    "load_test",
    "load_train",
]

# The data sets by name, each with the C x H x W of its images as they are stored, where all agree.
DATASETS: dict[str, ImageShape | None] = {
    "mnist": (1, 28, 28),
    "cifar": (3, 32, 32),
    "celebahq": (3, 256, 256),
    "digits": (1, 8, 8),
    "folder": None,
}

# What random numbers are for. Not 0: numpy gives [seed, epoch] and [seed, epoch, 0] one stream.
_SHUFFLE, _SIZE, _BINARIZE_TRAIN, _BINARIZE_TEST = 1, 2, 3, 4
# Batches that are made ready while the network is at work.
_BATCHES_AHEAD = 3


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
        channels: of the images of a folder, 1 or 3.
        image_size: (height, width) that the images of a folder are brought to.
        split_seed: of the tenth of a folder that is its test set, where it has no two parts.
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
    channels: int = 3
    image_size: tuple[int, int] | None = None
    split_seed: int = 0
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
    channels, height, width = DATASETS[config.dataset] or _folder_shape(config)
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
        height = width = config.celeba_size
    if config.resize_sizes:
        return [(channels, size, size) for size in config.resize_sizes]
    return [(channels, height, width)]


def _folder_shape(config: DataConfig) -> ImageShape:
    if config.image_size is None:
        raise DataError("-d folder needs --image_size HxW: its images are brought to one size")
    if config.channels not in (1, 3):
        raise DataError(f"--channels must be 1 or 3, got {config.channels}")
    return config.channels, *config.image_size


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


class TrainData:
    """The training set: shuffled, drawn anew every epoch, and the same for one seed and epoch.

    A batch is shared by all processes: each has ``batch_size`` images of it.

    Attributes:
        image_shapes: (C, H, W) of each size that batches may have.
        num_images: images per epoch, None for a stream, which does not know.
        batch_size: images per batch, of all processes together.
        num_batches: batches per epoch, None for a stream.
    """

    def __init__(self, config: DataConfig, source: Source, processes: Processes) -> None:
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

    def __init__(self, config: DataConfig, source: Source) -> None:
        self.num_images = source.num_images
        self._channels = image_shapes(config)[0][0]
        self._config, self._source = config, source

    def name(self, index: int) -> str:
        """The file of an image, or its number in the set."""
        return self._source.name(index)

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


def check_files(config: DataConfig, train: bool) -> None:
    """Find out, without reading any, that there are no files where it can be known beforehand.

    Raises:
        DataError: a folder has no images for training (or testing).
    """
    if config.dataset == "folder":
        folder_files(Path(config.data_dir), train, config.split_seed)


def load_files(config: DataConfig, files: Sequence[Path], resize: bool) -> TestData:
    """Image files of one's own, prepared as the data set's; see ``open_files``.

    Raises:
        DataError: the settings are wrong, or a file does not fit them.
    """
    return TestData(config, open_files(files, image_shapes(config)[0], resize))


def _prepare(config: DataConfig, pixels: np.ndarray, indices: np.ndarray, key: np.uint64) -> Tensor:
    """From uint8 B x C x H x W to float32 on the grid of [-1, 1]."""
    largest = 1 if config.binarize else 2**config.n_bits - 1
    grid = 2 * np.arange(largest + 1, dtype=np.float32) / largest - 1
    if config.binarize:
        pixels_per_image = math.prod(pixels.shape[1:])
        threshold = uniform_numbers(key, indices, pixels_per_image).reshape(pixels.shape)
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


def _open(config: DataConfig, train: bool) -> Source:
    image_shapes(config)  # refuses wrong settings before any file is read or downloaded
    folder = Path(config.data_dir)
    if config.dataset == "celebahq":
        batches = config.max_celeba_train_batches if train else config.max_celeba_test_batches
        return open_celebahq(folder, train, None if batches == -1 else batches)
    images = config.max_train_images if train else config.max_test_images
    limit = None if images == -1 else images
    if config.dataset == "folder":
        return open_folder(folder, train, _folder_shape(config), config.split_seed, limit)
    read = {"mnist": read_mnist, "cifar": read_cifar, "digits": read_digits}[config.dataset]
    return MemorySource(read(folder, train)[:limit])
