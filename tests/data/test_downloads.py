"""Downloads: one process at a time gets a set, and others wait for the whole of it."""

import multiprocessing
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from lmconv.data import downloads
from lmconv.data.idx_files import MNIST
from lmconv.data.sources import DataError
from utils import setup_logging

IMAGES = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)


class SlowMNIST:
    """What torchvision does: files appear in their places piece by piece."""

    def __init__(self, data_dir, download):
        assert download
        with Path("calls").open("a") as calls:
            calls.write(f"{os.getpid()}\n")
        folder = data_dir / "MNIST" / "raw"
        folder.mkdir(parents=True)
        for part in ("train", "t10k"):
            with (folder / f"{part}-images-idx3-ubyte").open("wb") as file:
                file.write(struct.pack(">4I", 2051, *IMAGES.shape))
                file.flush()
                time.sleep(0.3)
                file.write(IMAGES.tobytes())


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.datasets.MNIST", SlowMNIST)


def read_mnist():
    assert np.array_equal(MNIST.read_images(Path("data"), "test")[:, 0], IMAGES)


def read_aloud():
    setup_logging(None)
    read_mnist()


def test_one_of_several_processes_downloads_and_the_others_wait(capfd):
    context = multiprocessing.get_context("fork")
    readers = [context.Process(target=read_aloud) for _ in range(3)]
    for reader in readers:
        reader.start()
    while not Path("data/MNIST/raw/train-images-idx3-ubyte").exists():
        time.sleep(0.01)
    readers.append(context.Process(target=read_aloud))  # it finds a set that is not yet whole
    readers[-1].start()
    for reader in readers:
        reader.join(60)
    said = capfd.readouterr().out
    assert [reader.exitcode for reader in readers] == [0, 0, 0, 0]
    (downloader,) = Path("calls").read_text().split()
    assert downloader in map(str, (reader.pid for reader in readers))
    assert said.count("waiting for ") >= 3 and ", which downloads into data\n" in said
    assert not Path("data/download.lock").exists()


def test_a_download_that_fails_leaves_neither_a_lock_nor_the_default_folder(monkeypatch):
    def no_network(data_dir, download):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.MNIST", no_network)

    def fail():
        with pytest.raises(DataError, match="no route to host"):
            read_mnist()

    context = multiprocessing.get_context("fork")
    readers = [context.Process(target=fail) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert [reader.exitcode for reader in readers] == [0, 0, 0]
    assert not list(Path().iterdir())


def test_what_a_killed_process_leaves_locks_nothing():
    Path("data").mkdir()
    Path("data/download.lock").write_text("process 1 on host")
    for _ in range(2):
        read_mnist()
    assert Path("calls").read_text().count("\n") == 1
    assert [path.name for path in Path("data").iterdir()] == ["MNIST"]


def test_a_set_in_a_folder_that_cannot_be_written_is_read(monkeypatch):
    read_mnist()
    Path("data/download.lock").write_text("process 1 on host")

    def unwritable(*arguments):
        raise PermissionError("read-only")

    monkeypatch.setattr(downloads, "file_lock", unwritable)
    read_mnist()
    assert Path("calls").read_text().count("\n") == 1
