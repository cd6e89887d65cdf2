"""The lock on a run directory, so that two trainings do not overwrite each other's files."""

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from utils import UserError

__all__ = ["LockedError", "locked"]

log = logging.getLogger(__name__)

# What systems answer if another process has the lock; other errors mean that they have no locks.
_HELD = (errno.EACCES, errno.EAGAIN)


class LockedError(UserError):
    """Another process trains in the run directory; the message is one line with the remedy."""


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keep other trainings out of a run directory, which is made if it does not exist.

    The operating system holds the lock on the file ``train.lock``, which names the process. It
    releases the lock however the process ends, so a file that a killed process leaves behind locks
    nothing. Testing and sampling need no lock. Without locks, as on Windows and some network file
    systems, a warning says so.

    Raises:
        LockedError: another process trains in the directory, on this host or another.
        OSError: the directory cannot be written.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "train.lock"
    with _open_locked(path) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file
                path.unlink()


def _open_locked(path: Path) -> TextIO:
    while True:
        file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            _lock(file, path)
            with suppress(OSError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()  # the process that had the lock has just removed its file


def _lock(file: TextIO, path: Path) -> None:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        _warn(path, "Windows has no such lock")
    except OSError as error:
        if error.errno not in _HELD:
            _warn(path, error.strerror)
            return
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        raise LockedError(
            f"{holder} trains in {path.parent}: wait until it has ended, or give another `run_dir` "
            "or `exp_name`"
        ) from error


def _warn(path: Path, reason: str | None) -> None:
    log.warning("%s cannot be locked (%s): let no other run train in it", path.parent, reason)
