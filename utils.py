"""What any module may need: user errors, logging, progress, small files."""

import ctypes
import json
import logging
import math
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

__all__ = [
    "ProgressBar",
    "UserError",
    "check_regular",
    "folder_in_place",
    "keep_freed_memory",
    "nats_to_bpd",
    "progress",
    "remove_unfinished",
    "setup_logging",
    "write_atomically",
    "write_json",
]

# What the names of unfinished files begin with.
_TEMPORARY_PREFIX = ".unfinished-"


class UserError(Exception):
    """A mistake that the user can correct; the message is one line with the value and the remedy.

    Parameters are in backquotes in the message; the command line turns them into its flags.

    Attributes:
        exit_code: exit code of a program that ends with this error.
    """

    exit_code = 2


def keep_freed_memory() -> None:
    """Let glibc, if it is used, keep freed blocks of up to 64 MB instead of returning them.

    A network allocates the same blocks at every step, and new pages from the operating system have
    to be cleared first, which takes a tenth of a training step on a CPU.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # named as in malloc.h
        libc.mallopt(mmap_threshold, 64 * 2**20)
        libc.mallopt(trim_threshold, 2**31 - 1)


def nats_to_bpd(nats: float, num_dimensions: int) -> float:
    """Convert the nats of ``num_dimensions`` numbers (C*H*W) to bits per dimension."""
    return nats / (num_dimensions * math.log(2))


class _ProgressHandler(logging.Handler):
    """Prints messages above a progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def setup_logging(path: Path | None, level: int = logging.INFO) -> logging.Logger:
    """Set up the logger ``lmconv``, for standard output and, with time and level, a file.

    Calling it again replaces the file.
    """
    logger = logging.getLogger("lmconv")
    logger.setLevel(level)
    logger.propagate = False
    logging.raiseExceptions = False  # a log that cannot be written must not fill the screen
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    screen = _ProgressHandler()
    screen.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(screen)
    if path is not None:
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("[%(asctime)s|%(levelname)s] %(message)s"))
        logger.addHandler(file)
    return logger


def progress(
    iterable: Iterable[Any],
    desc: str,
    total: int | None = None,
    initial: int = 0,
    is_on: bool = True,
) -> Any:
    """Show a progress bar over the iterable; silent if standard error is not a terminal."""
    is_off = not (is_on and sys.stderr.isatty())
    return tqdm(iterable, desc, total, disable=is_off, leave=False, initial=initial)


class ProgressBar:
    """Shows how many pixels of some images are done; silent if standard error is not a terminal.

    Args:
        desc: what is being done.
        num_images: number of images to do.
        pixels_per_image: number of pixels to do in each image.
    """

    def __init__(self, desc: str, num_images: int, pixels_per_image: int) -> None:
        self._pixels_per_image = pixels_per_image
        self._bar = tqdm(
            desc=desc,
            total=num_images * pixels_per_image,
            unit=" pixels",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
            leave=False,
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def update(self, pixels: int) -> None:
        """Count pixels as done."""
        if not self._bar.disable:
            images = (self._bar.n + pixels) / self._pixels_per_image
            seconds = self._bar.format_dict["elapsed"]
            self._bar.set_postfix_str(f"{images / max(seconds, 1e-9):.3g} images/s", refresh=False)
            self._bar.update(pixels)


def check_regular(path: Path) -> None:
    """Raise UserError if a path is not a regular file, which could be endless: a pipe or a device.

    The path is not opened, since opening a pipe waits for its other end. Links are followed.

    Raises:
        UserError: the path is a folder, pipe, socket or device.
        OSError: there is nothing at the path, or it cannot be looked at.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    raise UserError(f"{path} is {kind}, not a regular file: give a regular file")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file next to ``path``, then move it into place in one step.

    The temporary file has the same suffix. If writing fails, it is removed, and an older file
    stays. A symbolic link stays as well, and the file that it leads to is replaced.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # The rest of the name is left out, since the two together may be too long.
    suffix = path.suffix if len(path.suffix) < 16 else ""
    descriptor, name = tempfile.mkstemp(suffix, _TEMPORARY_PREFIX, path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def folder_in_place(path: Path) -> Iterator[Path]:
    """Make a temporary folder next to ``path``, to be moved into place at the end if all goes well.

    Raises:
        OSError: ``path`` exists and is not an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp("", _TEMPORARY_PREFIX, path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes folders only for their owner
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files and folders that a killed process has left."""
    for path in folder.glob(f"{_TEMPORARY_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))
