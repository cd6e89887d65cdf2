"""Small data sets in the formats of their own files, for the tests of data."""

import pytest
from helpers.datasets import (
    CELEBA,
    CIFAR_TEST,
    CIFAR_TRAIN,
    MNIST_TEST,
    MNIST_TRAIN,
    write_cifar,
    write_idx,
)
from helpers.records import write_tfrecords


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small MNIST and a small CIFAR10 in torchvision's layout; MNIST without its labels."""
    root = tmp_path_factory.mktemp("data")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    write_idx(raw / "train-images-idx3-ubyte", MNIST_TRAIN)
    write_idx(raw / "t10k-images-idx3-ubyte", MNIST_TEST)
    write_cifar(root / "cifar-10-batches-py", CIFAR_TRAIN, CIFAR_TEST)
    return str(root)


@pytest.fixture(scope="module")
def celeba(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six training and six validation images in two files each, written last file first."""
    root = tmp_path_factory.mktemp("celeba")
    for split, images in (("train", CELEBA[:6]), ("validation", CELEBA[6:])):
        for number in (1, 0):
            records = [
                {"label": b"x", "data": image.tobytes()}
                for image in images[3 * number : 3 * number + 3]
            ]
            name = f"{split}-r08-s-{number:04d}-of-0002.tfrecords"
            write_tfrecords(root / "celeba-tfr" / split / name, records)
    return str(root)
