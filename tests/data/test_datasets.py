"""Data sets by their settings: wrong ones are refused, and errors say what to put where."""

import gzip
import os
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from helpers.datasets import MNIST_TEST, counted, images_of_test, pixels, train_images

from lmconv.data import cifar, idx_files, set_files
from lmconv.data.datasets import DataConfig, DataError, image_shapes, load_test, load_train
from lmconv.pixel_values import Preparation
from utils import UserError


def test_digits_are_split_in_two_and_no_setting_changes_the_split() -> None:
    config = DataConfig("digits")
    train, test = train_images(config), images_of_test(config)
    assert train.shape == (1500, 1, 8, 8) and test.shape == (297, 1, 8, 8)
    from sklearn.datasets import load_digits

    expected = np.array([round(v * 255 / 16) for v in range(17)], np.uint8)
    everything = expected[load_digits().images.astype(int)]
    assert counted(pixels(torch.cat([train, test]))[:, 0]) == counted(everything)
    assert torch.equal(test, images_of_test(DataConfig("digits", seed=9)))


@pytest.mark.parametrize("dataset", ["mnist", "digits"])
def test_the_number_of_images_can_be_limited_to_the_first(folder: str, dataset: str) -> None:
    everything = DataConfig(dataset, folder)
    some = DataConfig(dataset, folder, max_train_images=20, max_test_images=11, batch_size=8)
    assert load_train(some).num_images == 20 and load_train(some).num_batches == 3
    assert counted(pixels(train_images(some))) <= counted(pixels(train_images(everything)))
    assert torch.equal(images_of_test(some), images_of_test(everything)[:11])


# Settings


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig("celeba"), "unknown data set 'celeba'.*celebahq"),
        (DataConfig("cifar", preparation=Preparation(True)), "`binarize` needs one-channel images"),
        (
            DataConfig("mnist", preparation=Preparation(n_bits=0)),
            "`n_bits` must be between 1 and 16, got 0",
        ),
        (
            DataConfig("folder", image_size=(4, 4), preparation=Preparation(n_bits=17)),
            "`n_bits` must be between 1 and 16, got 17",
        ),
        (
            DataConfig("mnist", preparation=Preparation(n_bits=9)),
            "`n_bits` 9 is too much for mnist, whose images have 8 bits: give 1 to 8",
        ),
        (DataConfig("mnist", batch_size=0), "`batch_size` must be at least 1, got 0"),
        (DataConfig("celebahq", celeba_size=0), "`celeba_size` must be at least 1, got 0"),
        (DataConfig("mnist", seed=-1), "`seed` must be at least 0, got -1"),
        (DataConfig("celebahq", max_celeba_train_batches=0), "`max_celeba_train_batches` must"),
        (DataConfig("celebahq", max_celeba_test_batches=-2), "`max_celeba_test_batches` must"),
        (DataConfig("mnist", max_train_images=0), "`max_train_images` must be at least 1"),
        (DataConfig("mnist", max_test_images=-5), "`max_test_images` must be at least 1"),
        (DataConfig("mnist", resize_sizes=(8, 0)), "`resize_sizes` must be at least 1, got 0"),
        (DataConfig("mnist", resize_probs=(1.0,)), "got 1 for 0 sizes"),
        (DataConfig("mnist", resize_sizes=(8, 9), resize_probs=(1.0,)), "got 1 for 2 sizes"),
        (DataConfig("mnist", resize_sizes=(8, 9), resize_probs=(1.5, -0.5)), "not be negative"),
        (DataConfig("mnist", resize_sizes=(8, 9), resize_probs=(0.5, 0.4)), "add up to 1, got 0.9"),
        (DataConfig("mnist", resize_sizes=(8,), resize_probs=(float("nan"),)), "not be negative"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(config: DataConfig, message: str) -> None:
    for function in (image_shapes, load_train, load_test):
        with pytest.raises(DataError, match=message) as error:
            function(config)
        assert "\n" not in str(error.value)


def test_image_shapes_need_no_files() -> None:
    nowhere = "no-such-folder"
    assert image_shapes(DataConfig("mnist", nowhere)) == [(1, 28, 28)]
    assert image_shapes(DataConfig("celebahq", nowhere, celeba_size=64)) == [(3, 64, 64)]
    config = DataConfig("cifar", nowhere, resize_sizes=(8, 32))
    assert image_shapes(config) == [(3, 8, 8), (3, 32, 32)]


def test_a_folder_needs_a_size_and_one_to_four_channels() -> None:
    with pytest.raises(DataError, match="`image_size` HxW"):
        image_shapes(DataConfig("folder"))
    with pytest.raises(DataError, match=r"`channels` must be 1 to 4 .*, got 5"):
        image_shapes(DataConfig("folder", channels=5, image_size=(4, 4)))


def test_random_crops_need_a_folder(folder: str) -> None:
    with pytest.raises(DataError, match="`random_crop` needs -d folder"):
        load_train(DataConfig("mnist", folder, random_crop=True))


def test_a_single_channel_has_no_order(folder: str) -> None:
    with pytest.raises(DataError, match="`permute_channels` has no meaning for images of one"):
        load_train(DataConfig("mnist", folder, permute_channels=True))


# Missing and damaged files


@pytest.mark.parametrize(
    ("dataset", "module", "expected"),
    [
        ("mnist", "mnist", "MNIST is not in .*MNIST/raw and could not be downloaded .*two idx"),
        ("cifar", "cifar", "CIFAR10 is not in .*cifar-10-batches-py and could .*six batch"),
    ],
)
def test_without_a_network_the_error_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, module: str, expected: str
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    target = f"torchvision.datasets.{module}.download_and_extract_archive"
    monkeypatch.setattr(target, no_network)
    with pytest.raises(DataError, match=expected) as error:
        load_train(DataConfig(dataset, str(tmp_path)))
    assert "no route to host" in str(error.value) and "`data_dir`" in str(error.value)
    assert not list(tmp_path.iterdir()), "an empty folder was left behind"
    assert "\n" not in str(error.value)


def test_nothing_is_downloaded_when_the_files_exist(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a download was started")

    monkeypatch.setattr(idx_files, "download", refuse)
    monkeypatch.setattr(cifar, "download", refuse)
    for dataset in ("mnist", "cifar"):
        load_train(DataConfig(dataset, folder))
        load_test(DataConfig(dataset, folder))


@pytest.mark.parametrize(
    ("dataset", "path"),
    [
        ("mnist", "MNIST/raw/t10k-images-idx3-ubyte"),
        ("mnist", "t10k-images.idx3-ubyte.gz"),
        ("cifar", "cifar-10-batches-py/test_batch"),
        ("celebahq", "celeba-tfr/validation/validation-r08-s-0000-of-0001.tfrecords"),
    ],
)
def test_a_file_of_a_set_that_is_not_regular_is_refused_and_not_opened(
    tmp_path: Path, dataset: str, path: str
) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    for make, kind in (
        (os.mkfifo, "a pipe"),
        (lambda target: target.symlink_to("/dev/zero"), "a device"),
    ):
        make(tmp_path / path)
        with pytest.raises(UserError, match=f"{path} is {kind}, not a regular file"):
            images_of_test(DataConfig(dataset, str(tmp_path)))
        (tmp_path / path).unlink()


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_of_a_set_beyond_the_largest_size_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    content = (Path(folder) / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()
    name = "t10k-images-idx3-ubyte" + ".gz" * packed
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    monkeypatch.setattr(set_files, "_MAX_BYTES", len(content))
    assert len(images_of_test(DataConfig("mnist", str(tmp_path)))) == len(MNIST_TEST)
    monkeypatch.setattr(set_files, "_MAX_BYTES", len(content) - 1)
    expected = f"it has more than {len(content) - 1} bytes, the most that are read"
    with pytest.raises(DataError, match=expected):
        load_test(DataConfig("mnist", str(tmp_path)))
    monkeypatch.setattr(set_files, "_MAX_BYTES", 99)
    with pytest.raises(DataError, match=r"test_batch is damaged .*it has more than 99 bytes"):
        load_test(DataConfig("cifar", folder))


@pytest.mark.parametrize("dataset", ["mnist", "cifar", "celebahq", "folder"])
def test_a_folder_that_does_not_exist_is_not_made(tmp_path: Path, dataset: str) -> None:
    config = DataConfig(dataset, str(tmp_path / "mistyped"), image_size=(6, 9))
    with pytest.raises(DataError, match=r"mistyped.*`data_dir`"):
        load_train(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dataset", "package"), [("digits", "sklearn.datasets"), ("celebahq", "tensorflow")]
)
def test_a_missing_package_is_named(
    celeba: str, monkeypatch: pytest.MonkeyPatch, dataset: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=r"needs .*: pip install"):
        load_train(DataConfig(dataset, celeba))
