"""Data sets: every image once, on the grid, reproducible draws, and errors that say what to do."""

import gzip
import logging
import os
import pickle
import struct
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from helpers.paths import EXAMPLES
from helpers.records import write_tfrecords
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lmconv.data import cifar, folders, idx_files, set_files, sources
from lmconv.data.celebahq import import_tensorflow
from lmconv.data.datasets import (
    DataConfig,
    DataError,
    image_shapes,
    load_test,
    load_train,
)
from lmconv.data.standard_sets import STANDARD_SETS
from lmconv.pixel_values import Preparation
from lmconv.random_numbers import random_key, uniform_numbers
from tools import photo_patches
from utils import UserError

RANDOM = np.random.default_rng(0)
MNIST_TRAIN = RANDOM.integers(0, 256, (130, 28, 28), dtype=np.uint8)
MNIST_TEST = RANDOM.integers(0, 256, (65, 28, 28), dtype=np.uint8)
CIFAR_TRAIN = RANDOM.integers(0, 256, (25, 3, 32, 32), dtype=np.uint8)
CIFAR_TEST = RANDOM.integers(0, 256, (9, 3, 32, 32), dtype=np.uint8)
CELEBA = RANDOM.integers(0, 256, (12, 256, 256, 3), dtype=np.uint8)


def write_idx(path: Path, images: np.ndarray) -> None:
    path.write_bytes(struct.pack(">4i", 2051, *images.shape) + images.tobytes())


def write_cifar(folder: Path, train: np.ndarray, test: np.ndarray) -> None:
    folder.mkdir(parents=True)
    parts = {f"data_batch_{n}": part for n, part in enumerate(np.array_split(train, 5), 1)}
    for name, images in {**parts, "test_batch": test}.items():
        batch = {"data": images.reshape(len(images), -1), "labels": [0] * len(images)}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


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


def pixels(images: torch.Tensor, n_bits: int = 8) -> np.ndarray:
    """Back from [-1, 1] to whole pixel values."""
    return torch.round((images.double() + 1) / 2 * (2**n_bits - 1)).byte().numpy()


def test_images(config: DataConfig, size: int | None = None) -> torch.Tensor:
    channels, height, width = image_shapes(config)[0]
    shape = (channels, size or height, size or width)
    return torch.cat(list(load_test(config).batches(shape)))


test_images.__test__ = False  # a helper


def train_images(config: DataConfig, epoch: int = 0) -> torch.Tensor:
    return torch.cat(list(load_train(config).epoch(epoch)))


def counted(images: np.ndarray) -> Counter:
    return Counter(image.tobytes() for image in images)


# Files are read as they are


def test_mnist_test_images_are_those_of_the_idx_file_in_order(folder: str) -> None:
    images = test_images(DataConfig("mnist", folder))
    assert images.shape == (65, 1, 28, 28) and images.dtype == torch.float32
    np.testing.assert_array_equal(pixels(images)[:, 0], MNIST_TEST)


def test_cifar_images_are_channels_rows_columns_in_order(folder: str) -> None:
    images = test_images(DataConfig("cifar", folder))
    np.testing.assert_array_equal(pixels(images), CIFAR_TEST)
    assert load_train(DataConfig("cifar", folder)).num_images == len(CIFAR_TRAIN)


@pytest.mark.parametrize("backwards", [False, True])
def test_celebahq_test_images_are_in_the_order_of_the_file_names(
    celeba: str, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    glob = Path.glob
    listed = lambda folder, pattern: sorted(glob(folder, pattern), reverse=backwards)  # noqa: E731
    monkeypatch.setattr(Path, "glob", listed)
    test_set = load_test(DataConfig("celebahq", celeba, batch_size=4))
    batches = list(test_set.batches((3, 256, 256)))
    assert [len(batch) for batch in batches] == [4, 2]
    assert test_set.num_images is None
    expected = CELEBA[6:].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(pixels(torch.cat(batches)), expected)


def test_digits_are_split_in_two_and_no_setting_changes_the_split() -> None:
    config = DataConfig("digits")
    train, test = train_images(config), test_images(config)
    assert train.shape == (1500, 1, 8, 8) and test.shape == (297, 1, 8, 8)
    from sklearn.datasets import load_digits

    expected = np.array([round(v * 255 / 16) for v in range(17)], np.uint8)
    everything = expected[load_digits().images.astype(int)]
    assert counted(pixels(torch.cat([train, test]))[:, 0]) == counted(everything)
    assert torch.equal(test, test_images(DataConfig("digits", seed=9)))


def test_values_are_those_of_the_published_scaling(folder: str) -> None:
    published = (torch.from_numpy(MNIST_TEST).float() / 255 - 0.5) * 2
    assert torch.equal(test_images(DataConfig("mnist", folder))[:, 0], published)


def test_a_batch_written_by_python_2_is_read(folder: str, tmp_path: Path) -> None:
    class Python2Pickler(pickle._Pickler):
        """Writes text and bytes alike as Python 2's str."""

        def save_str(self, text: str | bytes) -> None:
            content = text.encode("latin1") if isinstance(text, str) else text
            self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
            self.memoize(text)

        dispatch = {**pickle._Pickler.dispatch, str: save_str, bytes: save_str}  # noqa: RUF012

    target = tmp_path / "cifar-10-batches-py"
    target.mkdir()
    with (target / "test_batch").open("wb") as file:
        Python2Pickler(file, protocol=2).dump({"data": CIFAR_TEST.reshape(-1, 3072)})
    content = (target / "test_batch").read_bytes().replace(b"numpy._core", b"numpy.core")
    assert b"_codecs" not in content and b"numpy.core.multiarray\n_reconstruct" in content
    (target / "test_batch").write_bytes(content)
    images = test_images(DataConfig("cifar", str(tmp_path)))
    np.testing.assert_array_equal(pixels(images), CIFAR_TEST)


# Every image once


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("dataset", ["mnist", "cifar", "digits"])
def test_every_image_comes_once_at_any_batch_size(
    folder: str, dataset: str, batch_size: int
) -> None:
    config = DataConfig(dataset, folder, batch_size=batch_size)
    whole = DataConfig(dataset, folder, batch_size=100_000)
    test_set, train_set = load_test(config), load_train(config)
    batches = list(test_set.batches(STANDARD_SETS[dataset].image_shape))
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert torch.equal(torch.cat(batches), test_images(whole))
    assert test_set.num_images == sum(map(len, batches))
    batches = list(train_set.epoch(3))
    assert train_set.num_batches == len(batches)
    assert train_set.num_images == sum(map(len, batches))
    assert torch.equal(torch.cat(batches), train_images(whole, 3))


@pytest.mark.parametrize("dataset", ["mnist", "digits"])
def test_the_number_of_images_can_be_limited_to_the_first(folder: str, dataset: str) -> None:
    everything = DataConfig(dataset, folder)
    some = DataConfig(dataset, folder, max_train_images=20, max_test_images=11, batch_size=8)
    assert load_train(some).num_images == 20 and load_train(some).num_batches == 3
    assert counted(pixels(train_images(some))) <= counted(pixels(train_images(everything)))
    assert torch.equal(test_images(some), test_images(everything)[:11])


def test_shuffling_differs_between_epochs_and_seeds_and_repeats(folder: str) -> None:
    config = DataConfig("mnist", folder)
    first, second = train_images(config, 0), train_images(config, 1)
    assert counted(pixels(first)) == counted(pixels(second)) == counted(MNIST_TRAIN)
    assert not torch.equal(first, second)
    assert not torch.equal(first, train_images(DataConfig("mnist", folder, seed=2), 0))
    assert torch.equal(first, train_images(config, 0))


@pytest.mark.parametrize("held_back", [1, 2, 100])
def test_a_stream_is_shuffled_and_complete(
    celeba: str, monkeypatch: pytest.MonkeyPatch, held_back: int
) -> None:
    monkeypatch.setattr(sources, "_SHUFFLE_BUFFER", held_back)
    config = DataConfig("celebahq", celeba, batch_size=4)
    train_set = load_train(config)
    assert train_set.num_images is None and train_set.num_batches is None
    epochs = [pixels(torch.cat(list(train_set.epoch(epoch)))) for epoch in range(8)]
    expected = counted(CELEBA[:6].transpose(0, 3, 1, 2))
    assert all(counted(epoch) == expected for epoch in epochs)
    orders = len({epoch.tobytes() for epoch in epochs})
    # With one held back, nothing but the order of the two files is left to chance.
    assert orders == 2 if held_back == 1 else orders > 2
    np.testing.assert_array_equal(pixels(train_images(config, 2)), epochs[2])


def test_celebahq_batches_can_be_limited(celeba: str) -> None:
    config = DataConfig(
        "celebahq",
        celeba,
        batch_size=2,
        celeba_size=8,
        max_celeba_train_batches=1,
        max_celeba_test_batches=2,
    )
    assert [len(batch) for batch in load_train(config).epoch(0)] == [2]
    batches = list(load_test(config).batches((3, 8, 8)))
    assert [len(batch) for batch in batches] == [2, 2]


# On the grid


@settings(max_examples=20, deadline=None)
@given(
    dataset=st.sampled_from(["mnist", "cifar", "digits"]),
    n_bits=st.integers(1, 8),
    size=st.sampled_from([(), (5,), (40,)]),
)
def test_images_lie_on_the_grid(
    folder: str, dataset: str, n_bits: int, size: tuple[int, ...]
) -> None:
    config = DataConfig(dataset, folder, preparation=Preparation(n_bits=n_bits), resize_sizes=size)
    grid = 2 * torch.arange(2.0**n_bits) / (2**n_bits - 1) - 1
    for images in (test_images(config), train_images(config)):
        assert torch.equal(images, grid[pixels(images, n_bits).astype(int)])


@pytest.mark.parametrize("n_bits", [1, 5, 8])
def test_fewer_bits_floor_the_pixels(folder: str, n_bits: int) -> None:
    images = test_images(DataConfig("cifar", folder, preparation=Preparation(n_bits=n_bits)))
    np.testing.assert_array_equal(pixels(images, n_bits), CIFAR_TEST // 2 ** (8 - n_bits))


def test_celebahq_is_resized_before_bits_are_dropped(celeba: str) -> None:
    full = pixels(test_images(DataConfig("celebahq", celeba, celeba_size=64)))
    coarse = DataConfig("celebahq", celeba, celeba_size=64, preparation=Preparation(n_bits=5))
    assert full.shape == (6, 3, 64, 64)
    np.testing.assert_array_equal(pixels(test_images(coarse), 5), full >> 3)
    # 4 x 4 pixels become one: antialiasing averages them, which keeps the mean and cuts the spread.
    assert abs(full.mean() - CELEBA[6:].mean()) < 1
    assert full.std() < 0.4 * CELEBA[6:].std()


@pytest.mark.parametrize("size", [7, 20, 45])
def test_resized_pixels_are_rounded(folder: str, size: int) -> None:
    images = torch.from_numpy(CIFAR_TEST).double()
    exact = torch.nn.functional.interpolate(
        images, (size, size), mode="bilinear", antialias=True
    ).numpy()
    error = pixels(test_images(DataConfig("cifar", folder), size)) - exact
    assert abs(error).max() < 0.501


def test_a_size_is_drawn_for_each_batch_by_its_probability(folder: str) -> None:
    config = DataConfig(
        "mnist", folder, batch_size=1, resize_sizes=(4, 28, 6), resize_probs=(0.7, 0.3, 0.0)
    )
    train_set = load_train(config)
    assert train_set.image_shapes == [(1, 4, 4), (1, 28, 28), (1, 6, 6)]
    sizes = [[batch.shape[2] for batch in train_set.epoch(epoch)] for epoch in range(4)]
    assert sizes[0] != sizes[1]
    assert sizes[0] == [batch.shape[2] for batch in train_set.epoch(0)]
    counts = Counter(size for epoch in sizes for size in epoch)
    assert counts[6] == 0
    assert abs(counts[4] / 520 - 0.7) < 0.08  # four standard deviations


def test_sizes_are_equally_likely_without_probabilities(folder: str) -> None:
    train_set = load_train(DataConfig("mnist", folder, batch_size=1, resize_sizes=(3, 5)))
    counts = Counter(batch.shape[2] for epoch in range(4) for batch in train_set.epoch(epoch))
    assert abs(counts[3] / 520 - 0.5) < 0.09


def test_ten_probabilities_of_a_tenth_add_up(folder: str) -> None:
    sizes = tuple(range(1, 11))
    config = DataConfig("mnist", folder, resize_sizes=sizes, resize_probs=(0.1,) * 10)
    assert sum(map(len, load_train(config).epoch(0))) == len(MNIST_TRAIN)


# Binarization


def test_binarized_test_images_depend_on_seed_and_index_alone(folder: str) -> None:
    config = DataConfig("mnist", folder, preparation=Preparation(True))
    images = test_images(config)
    assert set(images.unique().tolist()) == {-1.0, 1.0}
    for batch_size in (1, 7, 100):
        other = DataConfig("mnist", folder, preparation=Preparation(True), batch_size=batch_size)
        assert torch.equal(images, test_images(other))
    assert not torch.equal(
        images, test_images(DataConfig("mnist", folder, preparation=Preparation(True), seed=2))
    )


def test_binarized_training_images_differ_between_epochs_and_repeat(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    write_idx(raw / "train-images-idx3-ubyte", np.full((1, 28, 28), 128, np.uint8))
    config = DataConfig("mnist", str(tmp_path), preparation=Preparation(True))
    first, second = train_images(config, 0), train_images(config, 1)
    assert 0.4 < (first == second).float().mean() < 0.6
    assert torch.equal(first, train_images(config, 0))


def test_binarized_training_images_do_not_depend_on_batching(folder: str) -> None:
    images = [
        train_images(DataConfig("mnist", folder, preparation=Preparation(True), batch_size=size), 5)
        for size in (1, 7, 64)
    ]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])


@pytest.mark.parametrize("value", [0, 1, 64, 200, 255])
def test_the_chance_of_plus_one_is_the_intensity(tmp_path: Path, value: int) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    write_idx(raw / "t10k-images-idx3-ubyte", np.full((400, 28, 28), value, np.uint8))
    # Fewer bits make no difference: all 8 bits of the intensity count.
    images = test_images(DataConfig("mnist", str(tmp_path), preparation=Preparation(True, 2)))
    chance = value / 255
    spread = (chance * (1 - chance)) ** 0.5
    on = (images > 0).double()
    assert abs(on.mean() - chance) <= 5 * spread / on.numel() ** 0.5
    # Neither places nor images repeat each other: their means scatter as independent draws do.
    assert (on.mean(0) - chance).abs().max() <= 5 * spread / 400**0.5
    assert (on.mean((1, 2, 3)) - chance).abs().max() <= 5 * spread / 784**0.5


def test_neighbouring_draws_are_uncorrelated() -> None:
    draws = uniform_numbers(random_key(1, 2), np.arange(2000), 50) - 0.5
    assert 0.99 < draws.var() * 12 < 1.01
    for shifted in (draws[1:, :] * draws[:-1, :], draws[:, 1:] * draws[:, :-1]):
        assert abs(shifted.mean()) * 12 < 5 / shifted.size**0.5


def test_digits_can_be_binarized() -> None:
    images = test_images(DataConfig("digits", preparation=Preparation(True)))
    plain = test_images(DataConfig("digits"))
    assert set(images.unique().tolist()) == {-1.0, 1.0}
    assert abs(images.mean() - plain.mean()) < 0.03


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


def test_test_images_of_another_channel_number_are_refused(folder: str) -> None:
    with pytest.raises(ValueError, match="data set has 1 channels"):
        next(load_test(DataConfig("mnist", folder)).batches((3, 28, 28)))


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


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x03" * 5, struct.pack(">4i", 2051, 2, 28, 28)])
def test_a_damaged_idx_file_is_named(tmp_path: Path, content: bytes) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match="train-images-idx3-ubyte is damaged"):
        load_train(DataConfig("mnist", str(tmp_path)))


def test_a_missing_split_of_mnist_is_named_and_not_downloaded_over_the_other() -> None:
    examples = EXAMPLES  # test digits alone
    expected = "no file train-images-idx3-ubyte: put it there, point `data_dir`"
    with pytest.raises(DataError, match=expected):
        load_train(DataConfig("mnist", str(examples)))


def test_a_missing_cifar_batch_is_named_and_not_downloaded(tmp_path: Path) -> None:
    target = tmp_path / "cifar-10-batches-py"
    write_cifar(target, CIFAR_TRAIN, CIFAR_TEST)
    (target / "data_batch_3").unlink()
    with pytest.raises(DataError, match="has no file data_batch_3"):
        load_train(DataConfig("cifar", str(tmp_path)))


class Malicious:
    def __reduce__(self) -> tuple:
        return print, ("code was run",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pickle.dumps({"data": CIFAR_TEST}, protocol=2)[:5000],
        pickle.dumps({"labels": []}, protocol=2),
        pickle.dumps({"data": "text"}, protocol=2),
        pickle.dumps({"data": CIFAR_TEST.reshape(-1, 3072) / 255}, protocol=2),
        pickle.dumps({"data": CIFAR_TEST.reshape(-1, 3072)[:, 1:]}, protocol=2),
        pickle.dumps({"data": CIFAR_TEST[:0].reshape(-1, 3072)}, protocol=2),
        pickle.dumps({"data": CIFAR_TEST}, protocol=2),
        pickle.dumps({"data": CIFAR_TEST.reshape(-1, 3072).tolist()}, protocol=2),
        pickle.dumps([], protocol=2),
        # objects of raw bytes; a key nested deeply; a large place to keep a value
        pickle.dumps({"data": CIFAR_TEST[:1, 0, 0]}, protocol=2).replace(b"u1", b"O8"),
        b"})" + b"\x85" * 300_000 + b"Ns.",
        b"\x80\x02Nr\xff\xff\xff\x0f.",
    ],
)
def test_a_damaged_cifar_batch_is_named(tmp_path: Path, content: bytes) -> None:
    target = tmp_path / "cifar-10-batches-py"
    write_cifar(target, CIFAR_TRAIN, CIFAR_TEST)
    (target / "test_batch").write_bytes(content)
    expected = "test_batch is damaged or not a CIFAR10 batch .*: replace it, or remove its folder"
    with pytest.raises(DataError, match=expected) as error:
        load_test(DataConfig("cifar", str(tmp_path)))
    assert "\n" not in str(error.value)


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
    images = test_images(DataConfig("mnist", str(tmp_path)))
    np.testing.assert_array_equal(pixels(images)[:, 0], MNIST_TEST)
    with pytest.raises(DataError, match="has no file train-images-idx3-ubyte: put it there"):
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
            test_images(DataConfig(dataset, str(tmp_path)))
        (tmp_path / path).unlink()


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_of_a_set_beyond_the_largest_size_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    content = (Path(folder) / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()
    name = "t10k-images-idx3-ubyte" + ".gz" * packed
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    monkeypatch.setattr(set_files, "_MAX_BYTES", len(content))
    assert len(test_images(DataConfig("mnist", str(tmp_path)))) == len(MNIST_TEST)
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


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_cifar_batch_may_name_its_images_in_text_or_in_bytes(
    tmp_path: Path, protocol: int
) -> None:
    target = tmp_path / "cifar-10-batches-py"
    target.mkdir()
    for name in ("data", b"data"):
        content = pickle.dumps({name: CIFAR_TEST.reshape(-1, 3072)}, protocol)
        (target / "test_batch").write_bytes(content)
        images = test_images(DataConfig("cifar", str(tmp_path)))
        np.testing.assert_array_equal(pixels(images), CIFAR_TEST)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_cifar_batch_cannot_run_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: int
) -> None:
    target = tmp_path / "cifar-10-batches-py"
    write_cifar(target, CIFAR_TRAIN, CIFAR_TEST)
    (target / "test_batch").write_bytes(pickle.dumps(Malicious(), protocol=protocol))
    with pytest.raises(DataError, match=r"print, which may run code: refused"):
        load_test(DataConfig("cifar", str(tmp_path)))
    assert "code was run" not in capsys.readouterr().out


def test_absent_tfrecords_are_named_by_their_pattern(tmp_path: Path) -> None:
    config = DataConfig("celebahq", str(tmp_path))
    with pytest.raises(DataError, match=r"celeba-tfr/train/train-r08-s-\*-of-\*\.tfrecords"):
        load_train(config)
    with pytest.raises(DataError, match=r"validation/validation-r08-s-\*-of-\*\.tfrecords"):
        load_test(config)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("flipped", "is damaged"),
        ("truncated", "is damaged"),
        ("short", "has an image of 10 bytes instead of 256x256x3"),
        ("nameless", "is damaged"),
        ("empty", "has no images in its 1 files"),
    ],
)
def test_damaged_tfrecords_are_named(tmp_path: Path, damage: str, message: str) -> None:
    name = "validation-r08-s-0000-of-0001.tfrecords"
    path = tmp_path / "celeba-tfr" / "validation" / name
    image = CELEBA[0].tobytes()
    records = {"short": [{"data": image[:10]}], "nameless": [{"image": image}], "empty": []}
    write_tfrecords(path, records.get(damage, [{"data": image}]))
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[1000] ^= 255
    path.write_bytes(content[:-100] if damage == "truncated" else content)
    with pytest.raises(DataError, match=message) as error:
        test_images(DataConfig("celebahq", str(tmp_path)))
    assert "validation" in str(error.value) and "\n" not in str(error.value)


def records_file(folder: Path, *records: bytes) -> Path:
    """A file of validation records with these contents, and right checksums."""
    tf = import_tensorflow()
    path = folder / "celeba-tfr" / "validation" / "validation-r08-s-0000-of-0001.tfrecords"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def refused_records(folder: Path) -> str:
    """What is said of a file of validation records, in one short line; nothing if it is read."""
    try:
        test_images(DataConfig("celebahq", str(folder), celeba_size=8))
    except DataError as error:
        message = str(error)
        assert "validation-r08-s-0000-of-0001.tfrecords" in message
        assert "\n" not in message and len(message) < 500
        return message
    return ""


def example(**features: object) -> bytes:
    tf = import_tensorflow()
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def test_records_that_are_no_examples_are_refused_in_one_line(tmp_path: Path) -> None:
    tf = import_tensorflow()
    number = tf.train.Feature(int64_list=tf.train.Int64List(value=[1]))
    two = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"a", b"b"]))
    for record, expected in (
        (b"no example", "a record is not an Example"),
        (b"\xff" * 50, "a record is not an Example"),
        (np.random.default_rng(0).bytes(100), "a record is not an Example"),
        (b"", "a record has 0 values of 'data' in bytes"),
        (example(data=number), "a record has 0 values"),
        (example(data=two), "a record has 2 values"),
    ):
        records_file(tmp_path, record)
        assert expected in refused_records(tmp_path)
    for content in (b"hello world, there are no records here", b"\xff" * 100, bytes(100)):
        records_file(tmp_path).write_bytes(content)
        assert "damaged" in refused_records(tmp_path)


def test_a_record_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    """Its checksum may be right: TensorFlow would try to make room for it, and abort."""
    head = struct.pack("<Q", 2**40) + bytes.fromhex("aa3d6be4")
    records_file(tmp_path).write_bytes(head + b"abc")
    assert "a record of 1099511627776 bytes is too long" in refused_records(tmp_path)


@pytest.mark.parametrize("whole", [True, False])
def test_changed_records_are_refused_in_one_line_or_read(tmp_path: Path, whole: bool) -> None:
    """Bytes of the file, and bytes of a record whose checksum is right."""
    tf, random = import_tensorflow(), np.random.default_rng(0)
    image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[CELEBA[0].tobytes()]))
    record = example(data=image)
    path = records_file(tmp_path, record)
    content = path.read_bytes() if whole else record
    said = []
    for _ in range(60):
        changed = bytearray(content)
        changed[random.integers(min(40, len(content)))] = random.integers(256)
        if whole:
            path.write_bytes(changed)
        else:
            records_file(tmp_path, bytes(changed))
        said.append(refused_records(tmp_path))
    assert sum(map(bool, said)) > 20


@pytest.mark.parametrize(
    ("dataset", "package"), [("digits", "sklearn.datasets"), ("celebahq", "tensorflow")]
)
def test_a_missing_package_is_named(
    celeba: str, monkeypatch: pytest.MonkeyPatch, dataset: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=r"needs .*: pip install"):
        load_train(DataConfig(dataset, celeba))


# tools/photo_patches.py


def contains(photo: np.ndarray, patch: np.ndarray) -> bool:
    """Whether a patch (3 x 32 x 32) is somewhere in a photo (H x W x 3)."""
    windows = np.lib.stride_tricks.sliding_window_view(photo, (32, 32), axis=(0, 1))
    candidates = windows[(windows[..., 0, 0] == patch[:, 0, 0]).all(-1)]
    return bool((candidates == patch).all(axis=(1, 2, 3)).any())


def test_the_parts_of_the_photos_share_no_pixel() -> None:
    from sklearn.datasets import load_sample_image

    for label, train, test in zip(photo_patches.LABELS, *photo_patches.load_parts(), strict=True):
        whole = np.concatenate([train[0], test[0], train[2]], axis=1)  # every other one is halved
        np.testing.assert_array_equal(whole, load_sample_image(f"{label}.jpg"))


def test_photo_patches_are_a_cifar_set_with_disjoint_parts(tmp_path: Path) -> None:
    arguments = ["--output", str(tmp_path), "--train-images", "23", "--test-images", "7"]
    photo_patches.main(arguments)
    config = DataConfig("cifar", str(tmp_path))
    train, test = pixels(train_images(config)), pixels(test_images(config))
    assert train.shape == (23, 3, 32, 32) and test.shape == (7, 3, 32, 32)
    for patches, parts in zip((train, test), photo_patches.load_parts(), strict=True):
        photos = [photo for sizes in parts for photo in sizes]
        assert all(any(contains(photo, patch) for photo in photos) for patch in patches)
    with pytest.raises(SystemExit):
        photo_patches.main(arguments)  # never writes over a set


# Folders of images


PICTURES = RANDOM.integers(0, 256, (25, 6, 9, 3), dtype=np.uint8)


def write_pictures(folder: Path, pictures: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:03d}.png")


def test_a_folder_with_two_parts_is_read_as_it_is(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train" / "class", PICTURES[:20])
    write_pictures(tmp_path / "test", PICTURES[20:])
    config = DataConfig("folder", str(tmp_path), batch_size=3, image_size=(6, 9))
    assert image_shapes(config) == [(3, 6, 9)]
    chw = PICTURES.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(pixels(test_images(config)), chw[20:])
    assert load_train(config).num_images == 20
    assert counted(pixels(train_images(config))) == counted(chw[:20])
    grey = DataConfig("folder", str(tmp_path), channels=1, image_size=(4, 4))
    assert test_images(grey).shape == (5, 1, 4, 4)


def test_a_folder_in_one_piece_is_split_by_the_seed(tmp_path: Path) -> None:
    write_pictures(tmp_path, PICTURES)
    splits = []
    for seed in (1, 1, 2):
        config = DataConfig("folder", str(tmp_path), split_seed=seed, image_size=(6, 9))
        train, test = counted(pixels(train_images(config))), counted(pixels(test_images(config)))
        assert sum(train.values()) == 23 and sum(test.values()) == 2
        assert train + test == counted(PICTURES.transpose(0, 3, 1, 2))
        splits.append(test)
    assert splits[0] == splits[1] != splits[2]


def test_animations_of_a_folder_are_counted_and_the_first_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lmconv"), "propagate", True)
    folder = tmp_path / "test"
    folder.mkdir()
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 99, 200)]
    for name in ("b.png", "c.webp"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    frames[0].save(folder / "a.png")
    with caplog.at_level(logging.INFO):
        test_images(DataConfig("folder", str(tmp_path), batch_size=2, image_size=(4, 4)))
    assert f"2 of these files, the first being {folder / 'b.png'}, have several" in caplog.text


def test_damaged_files_of_a_folder_are_named_counted_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lmconv"), "propagate", True)
    write_pictures(tmp_path / "test", PICTURES[:5])
    whole = (tmp_path / "test" / "001.png").read_bytes()
    (tmp_path / "test" / "001.png").write_bytes(whole[:60])
    (tmp_path / "test" / "003.png").write_text("no image")
    config = DataConfig("folder", str(tmp_path), batch_size=2, image_size=(6, 9))
    kept = PICTURES[[0, 2, 4]].transpose(0, 3, 1, 2)
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(pixels(test_images(config)), kept)
    assert "001.png" in caplog.text and "003.png" in caplog.text
    assert "3 images of" in caplog.text and "left out: 2 damaged" in caplog.text
    for number in (0, 2, 4):
        (tmp_path / "test" / f"{number:03d}.png").unlink()
    with pytest.raises(DataError, match=r"none of 2 files can be read.*001\.png"):
        test_images(config)


def test_a_file_that_vanishes_while_a_folder_is_read_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "test", PICTURES[:3])
    test_set = load_test(DataConfig("folder", str(tmp_path), image_size=(6, 9)))
    (tmp_path / "test" / "002.png").unlink()
    with pytest.raises(DataError, match=r"002\.png"):
        list(test_set.batches((3, 6, 9)))


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ({}, "has no images for testing: put .png"),
        ({"test": 0}, "test has no images for testing"),
        ({"train": 2}, "has a folder train but no test"),
        ({"TRAIN": 2}, "has a folder TRAIN but no test"),
        ({"test": 1, "Test": 1}, "has both Test and test: put their images into one"),
    ],
)
def test_a_folder_without_images_says_what_is_missing(
    tmp_path: Path, layout: dict[str, int], expected: str
) -> None:
    for name, number in layout.items():
        write_pictures(tmp_path / name, PICTURES[:number])
    with pytest.raises(DataError, match=expected):
        load_test(DataConfig("folder", str(tmp_path), image_size=(6, 9)))


def test_a_missing_folder_and_a_file_are_not_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, expected in (("lost", "lost does not exist"), ("file", "file is a file, not a")):
        with pytest.raises(DataError, match=f"{expected}.*: give another `data_dir`"):
            load_train(DataConfig("folder", str(tmp_path / name), image_size=(6, 9)))


def test_a_folder_without_images_names_what_is_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path / ".hidden", PICTURES[:2])
    (tmp_path / "scan.gif").touch()
    expected = r"no images for training \(left out: 2 hidden, 1 \.gif\): put"
    with pytest.raises(DataError, match=expected):
        load_train(DataConfig("folder", str(tmp_path), image_size=(6, 9)))


def folder_parts(folder: Path, **options: int) -> tuple[list[str], list[str]]:
    """The names of the files for training and for testing."""
    config = DataConfig("folder", str(folder), image_size=(6, 9), **options)
    parts = []
    for data in (load_train(config), load_test(config)):
        source = data._source
        parts.append([Path(source.name(index)).name for index in range(source.num_images)])
    return parts[0], parts[1]


def test_hidden_files_and_copies_leave_the_drawn_parts_as_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lmconv"), "propagate", True)
    write_pictures(tmp_path, PICTURES)
    train, test = folder_parts(tmp_path)
    # As NumPy's generator draws them, on every machine.
    assert test == ["002.png", "005.png"] and len(train) == 23
    write_pictures(tmp_path / ".ipynb_checkpoints", PICTURES)
    write_pictures(tmp_path / "__MACOSX", PICTURES[:3])
    write_pictures(tmp_path / "zcopies", PICTURES[:20])
    (tmp_path / "._000.png").touch()
    (tmp_path / "notes.txt").touch()
    with caplog.at_level(logging.INFO):
        assert folder_parts(tmp_path) == (train, test)
    for line in (f"23 images of {tmp_path} for training", f"2 images of {tmp_path} for testing"):
        left_out = "left out: 29 hidden, 1 .txt, 20 duplicate"
        assert f"{line}, drawn from 25 with seed 0; {left_out}" in caplog.text


def test_test_images_that_are_also_training_images_are_counted_and_the_first_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lmconv"), "propagate", True)
    write_pictures(tmp_path / "Train", PICTURES[:10])
    write_pictures(tmp_path / "Train" / "copies", PICTURES[:4])
    write_pictures(tmp_path / "TEST", PICTURES[8:14])
    write_pictures(tmp_path / "TEST" / "copies", PICTURES[12:14])
    write_pictures(tmp_path / "val", PICTURES[20:])
    with caplog.at_level(logging.INFO):
        train, test = folder_parts(tmp_path)
    assert len(train) == 10 and len(test) == 6
    first = tmp_path / "TEST" / "000.png"
    assert f"2 of these images, the first being {first}, are also training images" in caplog.text
    assert "left out: 4 duplicate, 5 outside TEST and Train" in caplog.text


def test_a_folder_has_three_parts_and_other_sets_have_two(folder: str, tmp_path: Path) -> None:
    write_pictures(tmp_path, PICTURES)
    write_pictures(tmp_path / "same", PICTURES[:3])
    config = DataConfig("folder", str(tmp_path), image_size=(6, 9))
    assert load_test(config).num_images == 2
    assert load_test(config, "train").num_images == load_train(config).num_images == 23
    everything = load_test(config, "all")
    assert everything.num_images == 28
    names = [everything.name(index) for index in range(28)]
    assert names == sorted(map(str, tmp_path.rglob("*.png")))
    train = torch.cat(list(load_test(DataConfig("mnist", folder), "train").batches((1, 28, 28))))
    np.testing.assert_array_equal(pixels(train)[:, 0], MNIST_TRAIN)
    for part, expected in (
        ("all", "no `part` all: choose one of train, test"),
        ("rest", "unknown `part` 'rest'"),
    ):
        with pytest.raises(DataError, match=expected):
            load_test(DataConfig("mnist", folder), part)


def test_a_limited_number_of_images_is_drawn_from_all_of_a_part(tmp_path: Path) -> None:
    """The first ones by name would be of the first class alone."""
    for kind in range(5):
        write_pictures(tmp_path / "train" / f"class{kind}", PICTURES[5 * kind : 5 * kind + 4])
        write_pictures(tmp_path / "test" / f"class{kind}", PICTURES[5 * kind + 4 : 5 * kind + 5])

    def chosen(**options: int) -> list[str]:
        data = load_train(DataConfig("folder", str(tmp_path), image_size=(6, 9), **options))
        return [data._source.name(index) for index in range(data.num_images)]

    few = chosen(max_train_images=6)
    assert few == chosen(max_train_images=6) != chosen(max_train_images=6, split_seed=1)
    assert few == sorted(few) and len({Path(name).parent for name in few}) > 2
    assert set(few) < set(chosen(max_train_images=12)) < set(chosen())
    assert len(chosen()) == len(chosen(max_train_images=100)) == 20


def test_pictures_that_a_run_makes_inside_its_folder_do_not_become_data(tmp_path: Path) -> None:
    write_pictures(tmp_path, PICTURES)
    config = DataConfig("folder", str(tmp_path), image_size=(6, 9), run_dir=tmp_path / "a" / "run")
    before = test_images(config)
    write_pictures(tmp_path / "a" / "run", PICTURES[:9] ^ 1)
    assert torch.equal(test_images(config), before)
    assert load_test(config, "all").num_images == 25


# Random crops and mirrored images


def test_crops_are_at_every_place_and_depend_on_seed_epoch_and_image_alone(tmp_path: Path) -> None:
    """Columns are numbered, so that a crop tells its place."""
    columns = np.broadcast_to(np.arange(0, 200, 10, dtype=np.uint8), (4, 20))
    (tmp_path / "train").mkdir()
    for number in range(30):
        picture = np.vstack([columns, np.full_like(columns, number)])
        Image.fromarray(picture).save(tmp_path / "train" / f"{number:02d}.png")
    config = DataConfig("folder", str(tmp_path), channels=1, image_size=(8, 8), random_crop=True)

    def places(epoch: int, **changes: int) -> dict[int, int]:
        images = pixels(train_images(replace(config, **changes), epoch))[:, 0]
        for image in images:
            assert (np.diff(image[0].astype(int)) == 10).all()  # a window, and not stretched
        return {int(image[-1, 0]): int(image[0, 0]) // 10 for image in images}

    first = places(0)
    assert sorted(first) == list(range(30)) and first == places(0, batch_size=4)
    assert first != places(1) and first != places(0, seed=2)
    assert set(first.values()) | set(places(1).values()) | set(places(2).values()) == set(range(13))
    whole = load_train(replace(config, batch_size=4))
    rest = torch.cat(list(whole.epoch(1, first_batch=3)))
    assert torch.equal(rest, torch.cat(list(whole.epoch(1))[3:]))
    # Not for testing: these are the middle parts.
    (tmp_path / "train").rename(tmp_path / "test")
    assert torch.equal(test_images(config), test_images(replace(config, random_crop=False)))


@pytest.mark.parametrize("dataset", ["mnist", "cifar", "folder"])
def test_half_of_the_training_images_are_mirrored_anew_in_each_epoch(
    folder: str, tmp_path: Path, dataset: str
) -> None:
    write_pictures(tmp_path / "train", PICTURES)
    write_pictures(tmp_path / "test", PICTURES[:2])
    where = str(tmp_path) if dataset == "folder" else folder
    plain = DataConfig(dataset, where, image_size=(6, 9), batch_size=8)
    flipped = replace(plain, flip=True)
    numbers = []
    for epoch in (0, 1):
        images, mirrored = train_images(plain, epoch), train_images(flipped, epoch)
        is_mirrored = (images != mirrored).flatten(1).any(1)
        assert torch.equal(mirrored[is_mirrored], images[is_mirrored].flip(3))
        assert torch.equal(mirrored, train_images(replace(flipped, batch_size=3), epoch))
        numbers.append(is_mirrored.tolist())
        assert 0.2 < is_mirrored.float().mean() < 0.8
        rest = torch.cat(list(load_train(flipped).epoch(epoch, first_batch=2)))
        assert torch.equal(rest, mirrored[16:])
    assert numbers[0] != numbers[1]
    assert torch.equal(test_images(plain), test_images(flipped))


def test_channels_are_put_in_random_order_anew_in_each_epoch(folder: str) -> None:
    plain = DataConfig("cifar", folder, batch_size=8)
    permuted = replace(plain, permute_channels=True)
    orders = []
    for epoch in (0, 1):
        images, others = train_images(plain, epoch), train_images(permuted, epoch)
        found = []
        for image, other in zip(images, others, strict=True):
            found.append([int((image == channel).all((1, 2)).nonzero()) for channel in other])
        assert all(sorted(order) == [0, 1, 2] for order in found)
        assert len(set(map(tuple, found))) > 3
        assert torch.equal(others, train_images(replace(permuted, batch_size=3), epoch))
        rest = torch.cat(list(load_train(permuted).epoch(epoch, first_batch=2)))
        assert torch.equal(rest, others[16:])
        orders.append(found)
    assert orders[0] != orders[1]
    assert torch.equal(test_images(plain), test_images(permuted))


def test_a_single_channel_has_no_order(folder: str) -> None:
    with pytest.raises(DataError, match="`permute_channels` has no meaning for images of one"):
        load_train(DataConfig("mnist", folder, permute_channels=True))


def test_random_crops_need_a_folder(folder: str) -> None:
    with pytest.raises(DataError, match="`random_crop` needs -d folder"):
        load_train(DataConfig("mnist", folder, random_crop=True))


# Decoding


@pytest.mark.parametrize("room", [0, 3 * 6 * 9 * 10, 2**30])
def test_images_are_decoded_once_as_far_as_there_is_room_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(folders, "_KEPT_BYTES", room)
    write_pictures(tmp_path / "train", PICTURES)
    train_set = load_train(DataConfig("folder", str(tmp_path), image_size=(6, 9), batch_size=4))
    decoded, read = [], folders.read_image

    def counting(path: Path, *arguments: object) -> np.ndarray:
        decoded.append(path)
        return read(path, *arguments)

    monkeypatch.setattr(folders, "read_image", counting)
    epochs = [pixels(torch.cat(list(train_set.epoch(epoch)))) for epoch in range(3)]
    assert all(counted(epoch) == counted(PICTURES.transpose(0, 3, 1, 2)) for epoch in epochs)
    kept = min(25, room // (3 * 6 * 9))
    assert len(decoded) == 25 + 2 * (25 - kept)


@pytest.mark.parametrize(("pixels_at_once", "most"), [(54, 1), (110, 2), (10, 1), (10_000, 4)])
def test_large_pictures_are_decoded_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels_at_once: int, most: int
) -> None:
    monkeypatch.setattr(folders, "_PIXELS_AT_ONCE", pixels_at_once)
    monkeypatch.setattr(folders, "_DECODING_THREADS", 4)
    write_pictures(tmp_path / "test", PICTURES[:12])
    at_work, read, lock = [0, 0], folders.read_image, threading.Lock()

    def slow(path: Path, *arguments: object) -> np.ndarray:
        with lock:
            at_work[0] += 1
            at_work[1] = max(at_work)
        time.sleep(0.01)
        with lock:
            at_work[0] -= 1
        return read(path, *arguments)

    monkeypatch.setattr(folders, "read_image", slow)
    images = test_images(DataConfig("folder", str(tmp_path), image_size=(6, 9)))
    assert counted(pixels(images)) == counted(PICTURES[:12].transpose(0, 3, 1, 2))
    assert at_work[1] == most


def test_a_folder_needs_a_size_and_one_to_four_channels() -> None:
    with pytest.raises(DataError, match="`image_size` HxW"):
        image_shapes(DataConfig("folder"))
    with pytest.raises(DataError, match=r"`channels` must be 1 to 4 .*, got 5"):
        image_shapes(DataConfig("folder", channels=5, image_size=(4, 4)))
