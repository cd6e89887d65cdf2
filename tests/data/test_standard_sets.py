"""The registry of standard sets: labels in the order of the images, from exact files."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from lmconv.data.sources import DataError
from lmconv.data.standard_sets import STANDARD_SETS

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (12, 28, 28), dtype=np.uint8)
LABELS = RANDOM.integers(0, 10, 12, dtype=np.uint8)


def idx(items: np.ndarray) -> bytes:
    """The contents of an idx file of unsigned bytes."""
    return (
        bytes([0, 0, 8, items.ndim]) + struct.pack(f">{items.ndim}i", *items.shape) + bytes(items)
    )


def test_facts_of_the_sets_fit_each_other() -> None:
    for name, known in STANDARD_SETS.items():
        assert "train" in known.num_images and "test" in known.num_images, name
        assert (known.read is None) != (known.open_limited is None), name
        assert bool(known.label_names) == (known.read_labels is not None), name
        assert len(set(known.label_names)) == len(known.label_names), name


def test_labels_of_the_digits_are_those_of_their_images() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    known = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes(): label
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    for part, number in STANDARD_SETS["digits"].num_images.items():
        images = STANDARD_SETS["digits"].read(Path(), part)
        labels = STANDARD_SETS["digits"].read_labels(Path(), part)
        assert labels.dtype == np.int64 and len(labels) == number
        assert [known[image.tobytes()] for image in images] == labels.tolist()


@pytest.mark.parametrize("name", ["t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"])
@pytest.mark.parametrize("packed", [False, True])
def test_labels_of_mnist_are_read_only_when_asked_for(
    tmp_path: Path, name: str, packed: bool
) -> None:
    mnist = STANDARD_SETS["mnist"]
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(IMAGES))
    np.testing.assert_array_equal(mnist.read(tmp_path, "test")[:, 0], IMAGES)
    with pytest.raises(DataError, match=r"has no file t10k-labels-idx1-ubyte.*: put it next to"):
        mnist.read_labels(tmp_path, "test")
    content = idx(LABELS)
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    labels = mnist.read_labels(tmp_path, "test")
    assert labels.dtype == np.int64 and labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "its header is not that of one"),
        (idx(IMAGES), "its header"),
        (idx(LABELS)[:-1], "bytes for 12 labels"),
        (idx(LABELS[:-1]), "11 labels for 12 images"),
        (idx(LABELS + 1), "a label is 10, above 9"),
    ],
)
def test_damaged_labels_of_mnist_are_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=rf"labels-idx1-ubyte is damaged .*{reason}.*: replace it"):
        STANDARD_SETS["mnist"].read_labels(tmp_path, "train")


def test_labels_of_cifar_follow_the_batches_and_are_checked(tmp_path: Path) -> None:
    folder, images = tmp_path / "cifar-10-batches-py", RANDOM.integers(0, 256, (2, 3072), np.uint8)
    folder.mkdir()
    for number in range(1, 6):
        batch = {"data": images, "labels": [number, number + 1]}
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps(batch, protocol=2))
    labels = STANDARD_SETS["cifar"].read_labels(tmp_path, "train")
    assert labels.dtype == np.int64 and labels.tolist() == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    for wrong in ([1], [1, 10], [1, -1], [1, True], ["1", "2"], "12", None):
        batch = {"data": images, "labels": wrong}
        (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
        with pytest.raises(DataError, match=r"test_batch is damaged .*'labels' must be 2 whole"):
            STANDARD_SETS["cifar"].read_labels(tmp_path, "test")
