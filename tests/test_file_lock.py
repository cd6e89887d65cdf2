"""Locks on files: one process has a lock, and others wait for it or are refused."""

import threading
import time

import pytest

from lmconv.file_lock import file_lock

pytest.importorskip("fcntl")


def refuse(text):
    raise AssertionError(text)


def test_who_waits_gets_the_lock_when_it_is_free_and_the_file_is_its_own(tmp_path):
    path, happened = tmp_path / "new" / "a.lock", []

    def wait():
        with file_lock(path, happened.append, refuse):
            happened.append("locked again")
            assert path.is_file()

    waiting = threading.Thread(target=wait)
    with file_lock(path, refuse, refuse):
        waiting.start()
        while not happened:
            time.sleep(0.01)
        happened.append("free")
    waiting.join(10)
    assert happened == [happened[0], "free", "locked again"]
    assert happened[0].startswith("process ")
    assert not list(path.parent.iterdir())


def test_an_error_about_the_holder_is_raised_and_the_lock_stays(tmp_path):
    path = tmp_path / "a.lock"
    with file_lock(path, refuse, refuse):
        with pytest.raises(AssertionError, match="process "), file_lock(path, refuse, refuse):
            pass
        assert path.is_file()


def test_a_file_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), file_lock(tmp_path / "file" / "a.lock", refuse, refuse):
        pass
