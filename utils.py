"""What a run needs and no other module owns: logging, seeding, its directory, small files."""

import ctypes
import json
import logging
import math
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

__all__ = [
    "ProgressBar",
    "UsageError",
    "choose_device",
    "keep_freed_memory",
    "nats_to_bpd",
    "progress",
    "run_directory_name",
    "set_seed",
    "setup_logging",
    "write_atomically",
    "write_json",
]


class UsageError(Exception):
    """A mistake of the user's: one line that names the value and the remedy."""


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def choose_device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def setup_logging(path: Path | None) -> logging.Logger:
    """The logger ``lmconv``: messages on standard output, with time and level in a file.

    Calling it again replaces the file.
    """
    logger = logging.getLogger("lmconv")
    logger.setLevel(logging.INFO)
    logger.propagate = False
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


def progress(iterable: Iterable[Any], desc: str, total: int | None = None) -> Any:
    """A progress bar over the iterable; silent when standard error is no terminal."""
    return tqdm(iterable, desc=desc, total=total, disable=not sys.stderr.isatty(), leave=False)


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


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one step.

    The suffix is kept. If writing fails, the temporary file is removed and an older file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(path.suffix, f".{path.stem}-", path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
