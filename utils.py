"""What a run needs and no other module owns: logging, signals, its directory, small files."""

import ctypes
import json
import logging
import math
import os
import queue
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

__all__ = [
    "ProgressBar",
    "StopRequest",
    "Stopped",
    "UsageError",
    "ahead",
    "folder_in_place",
    "keep_freed_memory",
    "nats_to_bpd",
    "peak_memory",
    "progress",
    "remove_unfinished",
    "run_directory_name",
    "set_seed",
    "setup_logging",
    "uniform_numbers",
    "write_atomically",
    "write_json",
]

T = TypeVar("T")

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SECONDS_OF_ONE_SIGNAL = 2.0
# What the names of files that are not finished begin with.
_TEMPORARY_PREFIX = ".unfinished-"


class UsageError(Exception):
    """A mistake of the user's: one line that names the value and the remedy."""


class Stopped(KeyboardInterrupt):
    """A signal has ended the run in good order.

    Args:
        signum: of the signal.
        message: what is saved, and how to go on.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}: {message}")
        self.signum = signum


class StopRequest:
    """SIGTERM and Ctrl-C as a wish that is looked at between steps.

    A second one ends the run at once, unless it comes right after the first: a launcher passes on
    what a terminal has sent already. Use it as a context, in the main thread.

    Attributes:
        signum: of the signal that has come, or None.
    """

    signum: int | None = None

    def __enter__(self) -> "StopRequest":
        self._at_once: str | None = None
        self._before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
        for number in _STOP_SIGNALS:
            signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self, message: str) -> Iterator[None]:
        """Inside, a signal raises ``Stopped`` with this message: there is nothing to save."""
        self._at_once = message
        try:
            if self.signum is not None:
                raise Stopped(self.signum, message)
            yield
        finally:
            self._at_once = None

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._time = signum, now
        elif now - self._time > _SECONDS_OF_ONE_SIGNAL:
            raise KeyboardInterrupt
        if self._at_once is not None:
            raise Stopped(signum, self._at_once)


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def uniform_numbers(key: np.uint64, indices: np.ndarray, length: int) -> np.ndarray:
    """``length`` numbers in [0, 1) for each index, B x length, whichever come together: float64.

    SplitMix64 (Steele, Lea and Flood, 2014), whose n-th number is a function of n alone.
    """
    first = indices.astype(np.uint64)[:, None] * np.uint64(length)
    number = first + np.arange(1, length + 1, dtype=np.uint64)
    bits = key + number * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return (bits >> np.uint64(11)) * 2.0**-53


def keep_freed_memory() -> None:
    """Let glibc, where there is one, keep freed blocks of up to 64 MB instead of returning them.

    A network allocates the same blocks at every step, and pages that come fresh from the operating
    system have to be cleared first: on a CPU they take a tenth of a training step.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # the names that malloc.h gives to these numbers
        libc.mallopt(mmap_threshold, 64 * 2**20)
        libc.mallopt(trim_threshold, 2**31 - 1)


def peak_memory(device: torch.device) -> int:
    """The most bytes so far: of the GPU, as PyTorch allocates it, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def ahead(items: Iterable[T], number: int) -> Iterator[T]:
    """The same items, up to ``number`` of them made in advance by a thread."""
    made: queue.Queue[tuple[str, Any]] = queue.Queue(number)
    is_closed = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not is_closed.is_set():
            try:
                made.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def make() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # raised again where the items are taken
            put("error", error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        is_closed.set()
        thread.join()


def nats_to_bpd(nats: float, num_dimensions: int) -> float:
    """Nats of so many numbers (C*H*W) in bits per dimension."""
    return nats / (num_dimensions * math.log(2))


def run_directory_name(
    exp_id: int,
    dataset: str,
    binarize: bool,
    lr: float,
    batch_size: int,
    clip: float,
    kernel_size: int,
    max_dilation: int,
    normalization: str,
    exp_name: str | None,
) -> str:
    """The run directory of these settings, named as the published code names it."""
    name = (
        f"runs/{exp_id:05d}_{'binary_' if binarize else ''}{dataset}_lr{lr:.5f}_bs{batch_size}"
        f"_gc{clip}_k{kernel_size}_md{max_dilation}"
    )
    if normalization != "weight_norm":
        name += f"_{normalization}"
    return f"{name}+{exp_name}" if exp_name else name


class _ProgressHandler(logging.Handler):
    """Prints messages above a progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def setup_logging(path: Path | None, level: int = logging.INFO) -> logging.Logger:
    """The logger ``lmconv``: messages on standard output, with time and level in a file.

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
    """A progress bar over the iterable; silent when standard error is no terminal."""
    is_off = not (is_on and sys.stderr.isatty())
    return tqdm(iterable, desc, total, disable=is_off, leave=False, initial=initial)


class ProgressBar:
    """Pixels that are done of a number of images; silent when standard error is no terminal.

    Args:
        desc: what is done.
        num_images: to do.
        pixels_per_image: to do in each.
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


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one step.

    The suffix is kept. If writing fails, the temporary file is removed and an older file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{_TEMPORARY_PREFIX}{path.stem}-"
    descriptor, name = tempfile.mkstemp(path.suffix, prefix, path.parent)
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
    """A temporary folder beside ``path`` that takes its place at the end; removed on failure.

    Raises:
        OSError: ``path`` is there and not an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp("", f"{_TEMPORARY_PREFIX}{path.name}-", path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp lets in the owner alone
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
