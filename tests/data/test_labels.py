"""Labels: where they come from, how training draws unknown ones, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import EXAMPLES
from PIL import Image

from lmconv.data.datasets import (
    DataConfig,
    DataError,
    LabelError,
    TrainData,
    check_files,
    class_names,
    load_test,
    load_train,
)
from lmconv.data.labels import renumbered
from lmconv.data.sources import MemorySource
from lmconv.data.standard_sets import STANDARD_SETS
from lmconv.distributed import Processes
from lmconv.pixel_values import Preparation

SHAPE = (1, 2, 2)


def train_data(number=1000, batch_size=100, processes=None, **settings):
    """Images that show their index, whose label is the index modulo 3."""
    images = np.arange(number)[:, None, None, None] // [[[1, 1], [256, 256]]]
    labels = np.arange(number) % 3
    source = MemorySource(images.astype(np.uint8))
    return TrainData(
        *(source, [SHAPE], Preparation(), batch_size),
        processes=processes,
        labels=labels,
        num_classes=3,
        **settings,
    )


def drawn(data, epoch, first_batch=0):
    images, labels = zip(*data.labelled_epoch(epoch, first_batch), strict=True)
    return torch.cat(images), torch.cat(labels)


def indices_of(images):
    levels = ((images[:, 0] + 1) * 127.5).round().long()
    return levels[:, 0, 0] + 256 * levels[:, 1, 0]


def test_labels_go_with_their_images_and_a_tenth_of_them_is_unknown():
    images, labels = drawn(train_data(4000), epoch=0)
    is_unknown = labels == 3
    assert torch.equal(labels[~is_unknown], indices_of(images)[~is_unknown] % 3)
    assert 0.085 < is_unknown.double().mean() < 0.115
    assert labels.dtype == torch.int64


def unknown_indices(data, epoch):
    images, labels = drawn(data, epoch)
    return set(indices_of(images)[labels == 3].tolist())


def test_which_labels_are_unknown_depends_on_the_seed_the_epoch_and_the_image_alone():
    expected = unknown_indices(train_data(), epoch=4)
    assert unknown_indices(train_data(batch_size=7), epoch=4) == expected
    assert unknown_indices(train_data(), epoch=5) != expected
    assert unknown_indices(train_data(seed=2), epoch=4) != expected


def test_batches_after_a_stop_have_the_labels_of_an_epoch_from_the_start():
    whole = list(train_data(batch_size=30).labelled_epoch(2))
    rest = list(train_data(batch_size=30).labelled_epoch(2, first_batch=20))
    assert len(rest) == len(whole) - 20
    for expected, got in zip(whole[20:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_processes_share_the_labels_of_each_batch():
    whole = train_data(batch_size=30).labelled_epoch(1)
    parts = [
        train_data(batch_size=10, processes=Processes(rank, 3, torch.device("cpu"))).labelled_epoch(
            1
        )
        for rank in range(3)
    ]
    for (_, expected), *shares in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([label for _, label in shares]), expected)


def test_images_without_classes_come_without_labels():
    data = load_train(DataConfig("digits", batch_size=500))
    assert all(label is None for _, label in data.labelled_epoch(0))
    assert load_test(DataConfig("digits")).labels is None


def test_digits_come_with_what_they_show():
    classes = class_names(DataConfig("digits"))
    assert classes == tuple("0123456789")
    data = load_test(DataConfig("digits", classes=classes, max_test_images=50))
    expected = STANDARD_SETS["digits"].read_labels(Path(), "test")[:50]
    assert data.labels.tolist() == expected.tolist()


def test_labels_are_numbers_of_the_models_classes():
    labels = renumbered(np.array([0, 1, 0, 2]), ["cat", "dog", "emu"], ["emu", "cat", "dog"], "x")
    assert labels.tolist() == [1, 2, 1, 0]
    with pytest.raises(LabelError, match="x has a class 'emu'"):
        renumbered(np.array([0]), ["cat", "emu"], ["cat", "dog"], "x")


# Folders


def write(*names):
    for number, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 10 * number, dtype=np.uint8)).save(name)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def folder(**settings):
    settings = {"channels": 1, "image_size": (4, 4), "batch_size": 2} | settings
    return DataConfig("folder", "x", **settings)


SPLIT = [f"x/train/{name}.png" for name in ("emu/a", "ant/b", "emu/deep/c", "bee/d")]


@pytest.mark.parametrize("names", [SPLIT, [name.replace("train/", "") for name in SPLIT]])
def test_the_classes_of_a_folder_are_its_first_folders_by_name(names):
    write(*names)
    assert class_names(folder()) == ("ant", "bee", "emu")


def test_the_label_of_a_picture_is_the_folder_that_it_is_in():
    write(*SPLIT, "x/TEST/emu/e.png", "x/TEST/ant/f.png", "x/TEST/ant/g.png")
    config = folder(classes=class_names(folder()))
    check_files(config, "train")
    for part, number in (("train", 4), ("test", 3), ("all", 7)):
        data = load_test(config, part)
        names = [Path(data.name(index)).relative_to("x").parts[1] for index in range(number)]
        assert [config.classes[label] for label in data.labels] == names
    (_, labels), *_ = load_train(folder(classes=config.classes, batch_size=4)).labelled_epoch(0)
    assert len(labels) == 4 and set(labels.tolist()) <= {0, 1, 2, 3}


def test_damaged_pictures_do_not_shift_the_labels_of_others():
    write(*SPLIT)
    Path("x/train/ant/a.png").write_bytes(b"no picture")
    config = folder(classes=class_names(folder()))
    data = load_test(config, "train")
    assert [config.classes[label] for label in data.labels] == ["ant", "bee", "emu", "emu"]


@pytest.mark.parametrize(
    ("names", "part", "words"),
    [
        ([*SPLIT, "x/train/loose.png"], "train", "x/train/loose.png is in no folder of a class"),
        ([*SPLIT, "x/test/cow/e.png"], "test", "class 'cow' that is not among the 3"),
        ([*SPLIT, "x/test/e.png"], "test", "x/test/e.png is in no folder of a class"),
    ],
)
def test_pictures_of_no_class_or_another_are_refused(names, part, words):
    write(*names)
    with pytest.raises(LabelError, match=words):
        check_files(folder(classes=class_names(folder())), part)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (DataConfig("celebahq"), "celebahq have no labels: leave out `class_conditional`"),
        (folder(crop=(2, 2), image_size=None), "`crop`"),
        (folder(), "folder of images x does not exist"),
    ],
)
def test_sets_without_classes_are_refused_in_a_line(config, words):
    with pytest.raises(DataError, match=words) as caught:
        class_names(config)
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_files_of_labels_are_refused(tmp_path):
    shutil.copytree(EXAMPLES / "MNIST", tmp_path / "MNIST")
    config = DataConfig("mnist", str(tmp_path), classes=tuple("0123456789"))
    assert load_test(config).labels[:5].tolist() == [7, 2, 1, 0, 4]
    labels = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(LabelError, match="t10k-labels-idx1-ubyte is damaged"):
        load_test(config)
    labels.unlink()
    with pytest.raises(LabelError, match="no file t10k-labels-idx1-ubyte"):
        load_test(config)
    load_test(DataConfig("mnist", str(tmp_path)))  # labels that are not asked for are not read
