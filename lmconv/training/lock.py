"""The lock on a run directory, so that two trainings do not overwrite each other's files."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from lmconv.file_lock import file_lock
from utils import UserError

__all__ = ["LockedError", "locked"]

log = logging.getLogger(__name__)


class LockedError(UserError):
    """Another process trains in the run directory; the message is one line with the remedy."""


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keep other trainings out of a run directory, which is made if it does not exist.

    The lock is that of the file ``train.lock``, which names the process. Testing and sampling need
    no lock. Without locks, a warning says so.

    Raises:
        LockedError: another process trains in the directory, on this host or another.
        OSError: the directory cannot be written.
    """

    def refuse(holder: str) -> NoReturn:
        raise LockedError(
            f"{holder} trains in {run_dir}: wait until it has ended, or give another `run_dir` or "
            "`exp_name`"
        )

    def warn(reason: str) -> None:
        log.warning("%s cannot be locked (%s): let no other run train in it", run_dir, reason)

    with file_lock(run_dir / "train.lock", refuse, warn):
        yield
