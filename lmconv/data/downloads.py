"""Data sets that are not there, downloaded where torchvision or their authors offer them."""

import hashlib
import logging
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

from lmconv.data.sources import DataError
from lmconv.file_lock import file_lock
from utils import write_atomically

__all__ = ["DATA_DIR", "download", "ensure", "fetch"]

log = logging.getLogger(__name__)

# The folder that a set is downloaded into by default; no other is made.
DATA_DIR = "data"

_SECONDS = 30  # that a server may take to answer
_MAX_BYTES = 2**30
_LOCK = "download.lock"


def ensure(data_dir: Path, is_there: Callable[[], object], get: Callable[[], object]) -> None:
    """Get the files of a set if they are not there, in one process at a time.

    Others that need a set of the same folder wait meanwhile: those of the same run, of other runs,
    and of hosts that share the folder.

    Args:
        data_dir: the folder of data sets.
        is_there: whether the files are there, or some of them during a download.
        get: gets them, by ``download`` or ``fetch``.

    Raises:
        DataError: what ``get`` raises.
    """
    if is_there() and not (data_dir / _LOCK).exists():
        return
    with _one_at_a_time(data_dir):
        if not is_there():
            get()


@contextmanager
def _one_at_a_time(data_dir: Path) -> Iterator[None]:
    """Wait until no other process downloads into the folder, and let others wait."""
    is_new = not data_dir.is_dir()
    if is_new and str(data_dir) != DATA_DIR:  # it is not made, and nothing is downloaded
        yield
        return
    try:
        with ExitStack() as lock:
            with suppress(OSError):  # into a folder that cannot be written, nobody downloads
                lock.enter_context(
                    file_lock(
                        data_dir / _LOCK,
                        lambda holder: log.warning(
                            "waiting for %s, which downloads into %s", holder, data_dir
                        ),
                        lambda reason: log.warning(
                            "%s cannot be locked (%s): let no other process download into it now",
                            *(data_dir, reason),
                        ),
                    )
                )
            yield
    finally:
        if is_new:  # the lock may have made it
            with suppress(OSError):  # it is not empty
                data_dir.rmdir()


def download(name: str, data_dir: Path, folder: Path, files: str, **options: str) -> None:
    """Let torchvision download a set to its usual place under ``data_dir``.

    Args:
        name: the set's class in ``torchvision.datasets``.
        data_dir: the folder of data sets.
        folder: where the set's files will be.
        files: what people would have to put there themselves, for errors.
        options: what else the class asks for, such as a ``split``.

    Raises:
        DataError: ``data_dir`` does not exist and is not the default, other files are in the way,
            or downloading fails.
    """
    _check_place(name, data_dir, folder, files)
    try:
        import torchvision
    except ImportError as error:
        raise DataError(
            f"{name} is not in {folder}, and downloading it needs torchvision: pip install "
            f"torchvision, or put {files} there"
        ) from error
    with _failures(name, folder, files):
        getattr(torchvision.datasets, name)(data_dir, download=True, **options)


def fetch(name: str, url: str, data_dir: Path, path: Path, md5: str | None = None) -> None:
    """Download one file of a set from its authors.

    Args:
        name: what people know the set by.
        url: where the authors offer the file.
        data_dir: the folder of data sets.
        path: where to put it.
        md5: the file's MD5, if it is known.

    Raises:
        DataError: ``data_dir`` does not exist and is not the default, downloading fails, or the
            file is not the one that is known.
    """

    def write(temporary: Path) -> None:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            content = answer.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise OSError(f"it has more than {_MAX_BYTES} bytes")
        if md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise OSError(f"{url} is not the file that it was")
        temporary.write_bytes(content)

    _check_place(name, data_dir, data_dir, path.name)
    with _failures(name, path.parent, f"{path.name} ({url})"):
        write_atomically(path, write)


def _check_place(name: str, data_dir: Path, folder: Path, files: str) -> None:
    """Raise DataError if there is no place for a download, or one that has files already."""
    if not data_dir.is_dir() and str(data_dir) != DATA_DIR:
        raise DataError(
            f"the folder {data_dir} does not exist: make it, to have {name} downloaded into it, or "
            "give another `data_dir`"
        )
    if folder != data_dir and folder.is_dir() and any(folder.iterdir()):
        raise DataError(
            f"{folder} has files, but not all of {name}: put {files} there, or remove the folder "
            f"to have {name} downloaded"
        )


@contextmanager
def _failures(name: str, folder: Path, files: str) -> Iterator[None]:
    """Turn what may go wrong with a download into a DataError, and leave no empty folders."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except (OSError, RuntimeError, HTTPException, EOFError) as error:
        for path in new:
            with suppress(OSError):  # it is not empty
                path.rmdir()
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name} is not in {folder} and could not be downloaded ({reason}): put {files} there "
            "or point `data_dir` at a folder that has them"
        ) from error
