"""One training at a time in a directory; what a killed one leaves locks nothing."""

import errno
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

from lmconv.training.lock import LockedError, locked
from utils import setup_logging

fcntl = pytest.importorskip("fcntl")


def test_the_second_is_told_who_the_first_is_and_a_killed_one_holds_nothing(tmp_path):
    folder = tmp_path / "new" / "run"
    code = (
        "import sys, time; from pathlib import Path; from lmconv.training.lock import locked\n"
        "with locked(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
        name = f"process {holder.pid} on {socket.gethostname()} trains in "
        with pytest.raises(LockedError, match=name), locked(folder):
            pass
    finally:
        holder.kill()
        holder.wait()
    assert (folder / "train.lock").is_file()
    with locked(folder), pytest.raises(LockedError), locked(folder):
        pass
    assert not list(folder.iterdir())


def test_a_lock_whose_file_was_just_removed_is_taken_anew(tmp_path, monkeypatch):
    real, calls = fcntl.flock, []

    def flock(file, operation):
        calls.append(operation)
        if len(calls) == 1:
            (tmp_path / "train.lock").unlink()  # by the process that had the lock
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        assert len(calls) == 2 and (tmp_path / "train.lock").is_file()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, None])
def test_without_locks_a_line_says_so(number, tmp_path, monkeypatch, capsys):
    def unsupported(file, operation):
        raise OSError(number, "none here")

    setup_logging(None)
    if number is None:
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(tmp_path):
        line = capsys.readouterr().out
    assert line.startswith(f"{tmp_path} cannot be locked") and line.count("\n") == 1


def test_a_lock_that_names_nobody_is_held_by_another_process(tmp_path):
    with locked(tmp_path):
        Path(tmp_path / "train.lock").write_bytes(b"")
        with pytest.raises(LockedError, match=r"^another process trains in"), locked(tmp_path):
            pass
