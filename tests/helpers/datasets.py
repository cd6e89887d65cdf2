"""Small data sets with random images, written in several formats, and their images as read."""

import pickle
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lmconv.data.datasets import DataConfig, image_shapes, load_test, load_train

# One generator draws all of them: in another order they would be others.
RANDOM = np.random.default_rng(0)
MNIST_TRAIN = RANDOM.integers(0, 256, (130, 28, 28), dtype=np.uint8)
MNIST_TEST = RANDOM.integers(0, 256, (65, 28, 28), dtype=np.uint8)
CIFAR_TRAIN = RANDOM.integers(0, 256, (25, 3, 32, 32), dtype=np.uint8)
CIFAR_TEST = RANDOM.integers(0, 256, (9, 3, 32, 32), dtype=np.uint8)
CELEBA = RANDOM.integers(0, 256, (12, 256, 256, 3), dtype=np.uint8)
PICTURES = RANDOM.integers(0, 256, (25, 6, 9, 3), dtype=np.uint8)


def write_idx(path: Path, images: np.ndarray) -> None:
    """Write images, N x 28 x 28, as a file of MNIST."""
    path.write_bytes(struct.pack(">4i", 2051, *images.shape) + images.tobytes())


def write_cifar(folder: Path, train: np.ndarray, test: np.ndarray) -> None:
    """Write the six batch files of CIFAR10, all of whose labels are 0."""
    folder.mkdir(parents=True)
    parts = {f"data_batch_{n}": part for n, part in enumerate(np.array_split(train, 5), 1)}
    for name, images in {**parts, "test_batch": test}.items():
        batch = {"data": images.reshape(len(images), -1), "labels": [0] * len(images)}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def write_pictures(folder: Path, pictures: np.ndarray) -> None:
    """Write pictures, H x W x 3, as ``000.png``, ``001.png`` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:03d}.png")


def pixels(images: torch.Tensor, n_bits: int = 8) -> np.ndarray:
    """Back from [-1, 1] to whole pixel values."""
    return torch.round((images.double() + 1) / 2 * (2**n_bits - 1)).byte().numpy()


def images_of_test(config: DataConfig, size: int | None = None) -> torch.Tensor:
    """All test images in their order, in a square of ``size`` if one is given."""
    channels, height, width = image_shapes(config)[0]
    shape = (channels, size or height, size or width)
    return torch.cat(list(load_test(config).batches(shape)))


def train_images(config: DataConfig, epoch: int = 0) -> torch.Tensor:
    """All training images in the order of an epoch."""
    return torch.cat(list(load_train(config).epoch(epoch)))


def counted(images: np.ndarray) -> Counter:
    """How often each image is there."""
    return Counter(image.tobytes() for image in images)
