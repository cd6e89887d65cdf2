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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from tqdm import tqdm

__all__ = [
    "ProgressBar",
    "UserError",
    "as_json",
    "check_regular",
    "escaped",
    "folder_in_place",
    "keep_freed_memory",
    "leave_after",
    "nats_to_bpd",
    "progress",
    "remove_unfinished",
    "setup_logging",
    "tolerant_screen",
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


def nats_to_bpd(nats: float, num_dimensions: float) -> float:
    """Convert the nats of ``num_dimensions`` numbers (C*H*W) to bits per dimension."""
    return nats / (num_dimensions * math.log(2))


def escaped(text: str, encoding: str = "utf-8") -> str:
    """Escape what an encoding lacks, such as bytes in the names of files that are not text."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


class _Screen:
    """Standard output or error as a stream that shows what it can and drops the rest."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        """Whether it is a terminal, which may be gone by now."""
        with suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def write(self, text: str) -> int:
        """Show a text, with escapes for letters that the screen's encoding lacks."""
        if self._stream is not None:
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            with suppress(OSError, ValueError):  # ValueError: it is closed
                self._stream.write(escaped(text, encoding))
        return len(text)

    def flush(self) -> None:
        """Show now what has been written."""
        if self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def tolerant_screen() -> Iterator[None]:
    """Drop what standard output and error cannot show, as work must not be lost with the screen.

    They may be closed, on a full disk, a pipe that nobody reads, a terminal that is gone, or lack
    letters of a message.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file that is opened must not become the screen
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Screen(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def leave_after(main: Callable[[], int]) -> NoReturn:
    """Run a program and end the process with its exit code, whatever has become of the screen.

    The exit handlers of libraries are skipped: one that waits for a server would hang.
    """
    try:
        code = main()
    except SystemExit as end:  # after --help
        code = int(end.code or 0)
    logging.shutdown()
    os._exit(code)


class _ProgressHandler(logging.Handler):
    """Prints messages above a progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def setup_logging(path: Path | None, level: int = logging.INFO) -> logging.Logger:
    """Set up the logger ``lmconv``, for standard output and, with time and level, a file.

    The file is in UTF-8, with escapes for what file names have that is not text. Calling this again
    replaces the file.
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
        file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
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
    is_off = not (is_on and _is_terminal())
    return tqdm(iterable, desc, total, disable=is_off, leave=False, initial=initial)


def _is_terminal() -> bool:
    """Whether standard error is a terminal; programs without a console have no standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


class ProgressBar:
    """Shows how many pixels of some images are done; silent if standard error is not a terminal.

    Args:
        desc: what is being done.
        num_images: number of images to do.
        pixels_per_image: number of pixels to do in each image, on average.
        num_processes: number of processes that share the images. What this one has done counts for
            all of them, which do about as much at the same time.
        is_on: whether to show anything; only one of the processes does.
    """

    def __init__(
        self,
        desc: str,
        num_images: int,
        pixels_per_image: float,
        num_processes: int = 1,
        is_on: bool = True,
    ) -> None:
        self._pixels_per_image, self._num_processes = pixels_per_image, num_processes
        self._total = round(num_images * pixels_per_image)
        self._bar = tqdm(
            desc=desc,
            total=self._total,
            unit=" pixels",
            unit_scale=True,
            disable=not (is_on and _is_terminal()),
            leave=False,
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def update(self, pixels: int) -> None:
        """Count pixels as done."""
        if not self._bar.disable:
            if self._num_processes > 1:  # in the last round, others may have nothing to do
                left = max(0, self._total - round(self._bar.n))
                pixels = min(pixels * self._num_processes, left)
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
    suffix = path.suffix if len(path.suffix) < 16 else ""
    descriptor, name = tempfile.mkstemp(suffix, _temporary_prefix(path.stem), path.parent)
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
    temporary = Path(tempfile.mkdtemp("", _temporary_prefix(path.name), path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes folders only for their owner
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _temporary_prefix(name: str) -> str:
    """What the name of an unfinished file begins with; all of a long name would be too long."""
    return f"{_TEMPORARY_PREFIX}{name[:40]}-"


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def remove_unfinished(folder: Path, beginning: str) -> None:
    """Remove what a killed process has left of files and folders whose names begin like this."""
    for path in folder.glob(f"{_TEMPORARY_PREFIX}{beginning}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; numbers that are not finite become null."""
    text = as_json(value, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def as_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON, which has neither NaN nor infinity: these become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
