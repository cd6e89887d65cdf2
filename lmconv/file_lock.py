"""Locks on files: the operating system releases them however the process ends that has them."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

__all__ = ["file_lock"]

# What systems answer if another process has the lock; other errors mean that they have no locks.
_HELD = (errno.EACCES, errno.EAGAIN)

OnText = Callable[[str], object]


@contextmanager
def file_lock(path: Path, on_held: OnText, on_failure: OnText) -> Iterator[None]:
    """Hold the lock on a file, which names this process and is removed at the end.

    A file that a killed process leaves behind locks nothing.

    Args:
        path: the file; it and its folder are made if they do not exist.
        on_held: called with the name of the process that has the lock, on this host or another. If
            it raises no error, this process then waits for the lock.
        on_failure: called with the reason if there are no locks, as on Windows and some network
            file systems; then nothing is locked.

    Raises:
        OSError: the file cannot be written.
    """
    with _open_locked(path, on_held, on_failure) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file
                path.unlink()


def _open_locked(path: Path, on_held: OnText, on_failure: OnText) -> TextIO:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+", encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue  # another process has just removed the empty folder
        try:
            _lock(file, on_held, on_failure)
            with suppress(OSError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()  # the process that had the lock has just removed its file


def _lock(file: TextIO, on_held: OnText, on_failure: OnText) -> None:
    try:
        import fcntl
    except ImportError:
        on_failure("Windows has no such lock")
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _HELD:
            on_failure(str(error.strerror))
            return
        file.seek(0)
        on_held(file.read(200).strip() or "another process")
        fcntl.flock(file, fcntl.LOCK_EX)
