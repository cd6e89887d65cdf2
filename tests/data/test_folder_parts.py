"""Parts of a folder: which files are for training and for testing, and what is left out."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import (
    MNIST_TRAIN,
    PICTURES,
    counted,
    images_of_test,
    pixels,
    train_images,
    write_pictures,
)

from lmconv.data.datasets import DataConfig, DataError, image_shapes, load_test, load_train


def test_a_folder_with_two_parts_is_read_as_it_is(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train" / "class", PICTURES[:20])
    write_pictures(tmp_path / "test", PICTURES[20:])
    config = DataConfig("folder", str(tmp_path), batch_size=3, image_size=(6, 9))
    assert image_shapes(config) == [(3, 6, 9)]
    chw = PICTURES.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(pixels(images_of_test(config)), chw[20:])
    assert load_train(config).num_images == 20
    assert counted(pixels(train_images(config))) == counted(chw[:20])
    grey = DataConfig("folder", str(tmp_path), channels=1, image_size=(4, 4))
    assert images_of_test(grey).shape == (5, 1, 4, 4)


def test_a_folder_in_one_piece_is_split_by_the_seed(tmp_path: Path) -> None:
    write_pictures(tmp_path, PICTURES)
    splits = []
    for seed in (1, 1, 2):
        config = DataConfig("folder", str(tmp_path), split_seed=seed, image_size=(6, 9))
        train, test = counted(pixels(train_images(config))), counted(pixels(images_of_test(config)))
        assert sum(train.values()) == 23 and sum(test.values()) == 2
        assert train + test == counted(PICTURES.transpose(0, 3, 1, 2))
        splits.append(test)
    assert splits[0] == splits[1] != splits[2]


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
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
    before = images_of_test(config)
    write_pictures(tmp_path / "a" / "run", PICTURES[:9] ^ 1)
    assert torch.equal(images_of_test(config), before)
    assert load_test(config, "all").num_images == 25
