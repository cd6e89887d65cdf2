"""Folders of images: random crops, pictures decoded once and few at a time, and damaged files."""

import logging
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import (
    PICTURES,
    counted,
    images_of_test,
    pixels,
    train_images,
    write_pictures,
)
from PIL import Image

from lmconv.data import folders
from lmconv.data.datasets import DataConfig, DataError, load_test, load_train


def test_animations_of_a_folder_are_counted_and_the_first_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "test"
    folder.mkdir()
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 99, 200)]
    for name in ("b.png", "c.webp"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    frames[0].save(folder / "a.png")
    with caplog.at_level(logging.INFO):
        images_of_test(DataConfig("folder", str(tmp_path), batch_size=2, image_size=(4, 4)))
    assert f"2 of these files, the first being {folder / 'b.png'}, have several" in caplog.text


def test_damaged_files_of_a_folder_are_named_counted_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pictures(tmp_path / "test", PICTURES[:5])
    whole = (tmp_path / "test" / "001.png").read_bytes()
    (tmp_path / "test" / "001.png").write_bytes(whole[:60])
    (tmp_path / "test" / "003.png").write_text("no image")
    config = DataConfig("folder", str(tmp_path), batch_size=2, image_size=(6, 9))
    kept = PICTURES[[0, 2, 4]].transpose(0, 3, 1, 2)
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(pixels(images_of_test(config)), kept)
    assert "001.png" in caplog.text and "003.png" in caplog.text
    assert "3 images of" in caplog.text and "left out: 2 damaged" in caplog.text
    for number in (0, 2, 4):
        (tmp_path / "test" / f"{number:03d}.png").unlink()
    with pytest.raises(DataError, match=r"none of 2 files can be read.*001\.png"):
        images_of_test(config)


def test_a_file_that_vanishes_while_a_folder_is_read_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "test", PICTURES[:3])
    test_set = load_test(DataConfig("folder", str(tmp_path), image_size=(6, 9)))
    (tmp_path / "test" / "002.png").unlink()
    with pytest.raises(DataError, match=r"002\.png"):
        list(test_set.batches((3, 6, 9)))


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
    assert torch.equal(images_of_test(config), images_of_test(replace(config, random_crop=False)))


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
    images = images_of_test(DataConfig("folder", str(tmp_path), image_size=(6, 9)))
    assert counted(pixels(images)) == counted(PICTURES[:12].transpose(0, 3, 1, 2))
    assert at_work[1] == most
