"""MNIST: its idx files are found at each place and name, as they are or packed."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import MNIST_TEST, images_of_test, pixels, write_idx
from helpers.paths import EXAMPLES

from lmconv.data import idx_files
from lmconv.data.datasets import DataConfig, DataError, load_test, load_train


def test_mnist_test_images_are_those_of_the_idx_file_in_order(folder: str) -> None:
    images = images_of_test(DataConfig("mnist", folder))
    assert images.shape == (65, 1, 28, 28) and images.dtype == torch.float32
    np.testing.assert_array_equal(pixels(images)[:, 0], MNIST_TEST)


def mnist_places(*names: str) -> list[str]:
    return [f"{place}{name}" for place in ("MNIST/raw/", "raw/", "") for name in names]


@pytest.mark.parametrize("path", mnist_places("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"))
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_read_from_each_place_and_name_without_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, packed: bool
) -> None:
    monkeypatch.setattr(idx_files, "download", None)
    target = tmp_path / path
    target.parent.mkdir(parents=True, exist_ok=True)
    write_idx(target, MNIST_TEST)
    if packed:
        target.with_name(f"{target.name}.gz").write_bytes(gzip.compress(target.read_bytes()))
        target.unlink()
        target.mkdir()  # unpacked by some programs into a folder of the same name
    images = images_of_test(DataConfig("mnist", str(tmp_path)))
    np.testing.assert_array_equal(pixels(images)[:, 0], MNIST_TEST)
    with pytest.raises(DataError, match="has no file train-images-idx3-ubyte: put it there"):
        load_train(DataConfig("mnist", str(tmp_path)))


def test_a_missing_split_of_mnist_is_named_and_not_downloaded_over_the_other() -> None:
    examples = EXAMPLES  # test digits alone
    expected = "no file train-images-idx3-ubyte: put it there, point `data_dir`"
    with pytest.raises(DataError, match=expected):
        load_train(DataConfig("mnist", str(examples)))


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x03" * 5, struct.pack(">4i", 2051, 2, 28, 28)])
def test_a_damaged_idx_file_is_named(tmp_path: Path, content: bytes) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match="train-images-idx3-ubyte is damaged"):
        load_train(DataConfig("mnist", str(tmp_path)))


@pytest.mark.parametrize(
    "content",
    [b"", b"not packed", gzip.compress(b"0" * 90)[:-9], gzip.compress(b"0" * 90)],
    ids=["empty", "not packed", "cut", "not a file of digits"],
)
def test_damaged_packed_digits_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz is damaged or not") as error:
        load_test(DataConfig("mnist", str(tmp_path)))
    assert "\n" not in str(error.value)
