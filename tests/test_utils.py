"""Names of run directories, logging, atomic files."""

import ctypes
import io
import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
from helpers.paths import ROOT
from helpers.screens import SCREENS
from hypothesis import given, settings
from hypothesis import strategies as st

import utils
from utils import (
    ProgressBar,
    UserError,
    as_json,
    check_regular,
    folder_in_place,
    keep_freed_memory,
    nats_to_bpd,
    remove_unfinished,
    setup_logging,
    tolerant_screen,
    write_atomically,
    write_json,
)


def test_messages_go_to_the_screen_and_with_time_and_level_to_the_file(tmp_path, capsys):
    for name in ("a", "b"):
        setup_logging(tmp_path / name).info("hello %d", 7)
    assert capsys.readouterr().out == "hello 7\nhello 7\n"
    for name in ("a", "b"):
        (line,) = (tmp_path / name).read_text().splitlines()
        assert line.startswith("[") and line.endswith("|INFO] hello 7")


def test_only_regular_files_and_links_to_them_are_regular(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets must be short
    Path("file").touch()
    Path("link").symlink_to("file")
    Path("folder").mkdir()
    Path("to folder").symlink_to("folder")
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    for name in ("file", "link"):
        check_regular(Path(name))
    for name, kind in (
        *(("folder", "a folder"), ("to folder", "a folder"), ("pipe", "a pipe")),
        *(("socket", "a socket"), ("/dev/zero", "a device")),
    ):
        with pytest.raises(UserError, match=f"^{name} is {kind}, not a regular file"):
            check_regular(Path(name))
    with pytest.raises(FileNotFoundError, match="lost"):
        check_regular(Path("lost"))


@pytest.mark.parametrize("kind", SCREENS)
def test_what_the_screen_cannot_show_is_dropped_and_in_the_file(kind, tmp_path, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, SCREENS[kind]())
    before = sys.stdout, sys.stderr
    with tolerant_screen():
        log = setup_logging(tmp_path / "log")
        log.info("run ü, \udcff")
        print("run ü, \udcff", file=sys.stderr, flush=True)
        with ProgressBar("ü", num_images=1, pixels_per_image=1) as bar:
            bar.update(1)
        assert not sys.stdout.isatty()
    assert (sys.stdout, sys.stderr) == before
    assert (tmp_path / "log").read_text(encoding="utf-8").endswith("|INFO] run ü, \\udcff\n")


def test_letters_that_the_screen_lacks_are_escaped(monkeypatch):
    for encoding, shown in (("ascii", "\\xfc \\udcff"), ("utf-8", "ü \\udcff")):
        screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", screen)
        with tolerant_screen():
            print("ü \udcff")
        assert screen.buffer.getvalue().decode("utf-8") == f"{shown}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="closes the descriptors of a process")
def test_files_do_not_take_the_place_of_a_closed_screen(tmp_path):
    code = (
        "import os\nfor number in (0, 1, 2): os.close(number)\n"
        "from utils import leave_after, tolerant_screen\n"
        "def main():\n with tolerant_screen(), open('file', 'w') as file: return file.fileno()\n"
        "leave_after(main)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode > 2


def test_without_standard_error_there_is_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert list(utils.progress(range(3), "counting")) == [0, 1, 2]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_is_read_by_strict_readers(value):
    def refuse(name):
        raise AssertionError(name)

    def same(read, written):
        if isinstance(written, float) and not math.isfinite(written):
            return read is None
        if isinstance(written, dict):
            return all(same(read[key], each) for key, each in written.items())
        if isinstance(written, (list, tuple)):
            return all(map(same, read, written))
        return read == written

    assert same(json.loads(as_json(value), parse_constant=refuse), value)


def test_one_nat_per_dimension_is_one_over_ln_2_bits():
    assert nats_to_bpd(12.0, 12) == pytest.approx(1 / math.log(2))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
def test_freed_blocks_come_back_without_being_cleared_by_the_system():
    keep_freed_memory()
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    block = libc.malloc(ctypes.c_size_t(32 * 2**20))
    end = libc.sbrk(0)
    assert block < end  # in the heap, not mapped by itself
    libc.free(ctypes.c_void_p(block))
    assert libc.sbrk(0) == end  # and the heap does not shrink


def test_other_systems_are_left_alone():
    with patch.object(sys, "platform", "darwin"), patch.object(ctypes, "CDLL") as library:
        keep_freed_memory()
    library.assert_not_called()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_counts_pixels_and_images_on_a_terminal_alone(is_terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with ProgressBar("sampling", num_images=4, pixels_per_image=500) as bar:
        for _ in range(4):
            time.sleep(0.15)  # it is drawn ten times in a second
            bar.update(500)
    shown = capsys.readouterr().err
    assert ("2.00k/2.00k" in shown and "pixels/s" in shown and "images/s" in shown) == is_terminal
    assert is_terminal or shown == ""


def test_unfinished_files_of_killed_runs_are_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.pth", _killed_while_writing(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / "kept.pth").touch()
    (tmp_path / f"{utils._TEMPORARY_PREFIX}folder").mkdir()
    (tmp_path / f"{utils._TEMPORARY_PREFIX}folder" / "file").touch()
    remove_unfinished(tmp_path, "other")
    assert len(list(tmp_path.iterdir())) == 3
    remove_unfinished(tmp_path, "a")
    remove_unfinished(tmp_path, "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.pth"]


def _killed_while_writing(folder):
    def write(path):
        path.rename(folder / f"{path.name}-x")  # so that nobody removes it
        raise KeyboardInterrupt

    return write


def test_a_folder_appears_when_it_is_complete(tmp_path):
    folder = tmp_path / "new" / "folder"
    with folder_in_place(folder) as temporary:
        (temporary / "file").write_text("text")
        assert not folder.exists()
    assert (folder / "file").read_text() == "text"
    assert folder.stat().st_mode & 0o777 == 0o777 & ~utils._umask()
    with pytest.raises(KeyboardInterrupt), folder_in_place(tmp_path / "other") as temporary:
        (temporary / "file").write_text("text")
        raise KeyboardInterrupt
    with pytest.raises(OSError), folder_in_place(folder):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "new"]


def test_links_stay_and_what_they_lead_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    link, target = tmp_path / "a.json", tmp_path / "disk" / "b.json"
    link.symlink_to(Path("c.json"))
    (tmp_path / "c.json").symlink_to(target)
    for value in (1, 2):
        write_json(link, value)
        assert link.is_symlink() and (tmp_path / "c.json").is_symlink()
        assert target.read_text() == f"{value}\n"
    with pytest.raises(TypeError):
        write_json(link, object())
    assert target.read_text() == "2\n" and list(target.parent.iterdir()) == [target]


def test_the_longest_names_can_be_written(tmp_path):
    for name in ("x" * 255, f"{'x' * 250}.json", f"x.{'y' * 253}"):
        write_json(tmp_path / name, 1)
    with folder_in_place(tmp_path / ("f" * 255)):
        pass
    assert len(list(tmp_path.iterdir())) == 4
