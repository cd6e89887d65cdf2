"""Batches of any set: every image once, on the grid, and draws that repeat for a seed."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import (
    CELEBA,
    CIFAR_TEST,
    MNIST_TEST,
    MNIST_TRAIN,
    PICTURES,
    counted,
    images_of_test,
    pixels,
    train_images,
    write_idx,
    write_pictures,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lmconv.data import sources
from lmconv.data.datasets import DataConfig, load_test, load_train
from lmconv.data.standard_sets import STANDARD_SETS
from lmconv.pixel_values import Preparation

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
    assert torch.equal(torch.cat(batches), images_of_test(whole))
    assert test_set.num_images == sum(map(len, batches))
    batches = list(train_set.epoch(3))
    assert train_set.num_batches == len(batches)
    assert train_set.num_images == sum(map(len, batches))
    assert torch.equal(torch.cat(batches), train_images(whole, 3))


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


def test_test_images_of_another_channel_number_are_refused(folder: str) -> None:
    with pytest.raises(ValueError, match="data set has 1 channels"):
        next(load_test(DataConfig("mnist", folder)).batches((3, 28, 28)))


# On the grid


def test_values_are_those_of_the_published_scaling(folder: str) -> None:
    published = (torch.from_numpy(MNIST_TEST).float() / 255 - 0.5) * 2
    assert torch.equal(images_of_test(DataConfig("mnist", folder))[:, 0], published)


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
    for images in (images_of_test(config), train_images(config)):
        assert torch.equal(images, grid[pixels(images, n_bits).astype(int)])


@pytest.mark.parametrize("n_bits", [1, 5, 8])
def test_fewer_bits_floor_the_pixels(folder: str, n_bits: int) -> None:
    images = images_of_test(DataConfig("cifar", folder, preparation=Preparation(n_bits=n_bits)))
    np.testing.assert_array_equal(pixels(images, n_bits), CIFAR_TEST // 2 ** (8 - n_bits))


def test_celebahq_is_resized_before_bits_are_dropped(celeba: str) -> None:
    full = pixels(images_of_test(DataConfig("celebahq", celeba, celeba_size=64)))
    coarse = DataConfig("celebahq", celeba, celeba_size=64, preparation=Preparation(n_bits=5))
    assert full.shape == (6, 3, 64, 64)
    np.testing.assert_array_equal(pixels(images_of_test(coarse), 5), full >> 3)
    # 4 x 4 pixels become one: antialiasing averages them, which keeps the mean and cuts the spread.
    assert abs(full.mean() - CELEBA[6:].mean()) < 1
    assert full.std() < 0.4 * CELEBA[6:].std()


@pytest.mark.parametrize("size", [7, 20, 45])
def test_resized_pixels_are_rounded(folder: str, size: int) -> None:
    images = torch.from_numpy(CIFAR_TEST).double()
    exact = torch.nn.functional.interpolate(
        images, (size, size), mode="bilinear", antialias=True
    ).numpy()
    error = pixels(images_of_test(DataConfig("cifar", folder), size)) - exact
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
    images = images_of_test(config)
    assert set(images.unique().tolist()) == {-1.0, 1.0}
    for batch_size in (1, 7, 100):
        other = DataConfig("mnist", folder, preparation=Preparation(True), batch_size=batch_size)
        assert torch.equal(images, images_of_test(other))
    assert not torch.equal(
        images, images_of_test(DataConfig("mnist", folder, preparation=Preparation(True), seed=2))
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
    images = images_of_test(DataConfig("mnist", str(tmp_path), preparation=Preparation(True, 2)))
    chance = value / 255
    spread = (chance * (1 - chance)) ** 0.5
    on = (images > 0).double()
    assert abs(on.mean() - chance) <= 5 * spread / on.numel() ** 0.5
    # Neither places nor images repeat each other: their means scatter as independent draws do.
    assert (on.mean(0) - chance).abs().max() <= 5 * spread / 400**0.5
    assert (on.mean((1, 2, 3)) - chance).abs().max() <= 5 * spread / 784**0.5


def test_digits_can_be_binarized() -> None:
    images = images_of_test(DataConfig("digits", preparation=Preparation(True)))
    plain = images_of_test(DataConfig("digits"))
    assert set(images.unique().tolist()) == {-1.0, 1.0}
    assert abs(images.mean() - plain.mean()) < 0.03


# Mirrored images, and channels in another order


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
    assert torch.equal(images_of_test(plain), images_of_test(flipped))


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
    assert torch.equal(images_of_test(plain), images_of_test(permuted))
