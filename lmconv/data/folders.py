"""Folders of image files, and files that a user names, as sources of images of one size."""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lmconv.data.image_files import SUFFIXES, ImageFileError, find_images, fit, read_image
from lmconv.data.sources import DataError, Source
from lmconv.pixel_values import ImageShape
from utils import progress

__all__ = ["FolderSource", "folder_files", "open_files", "open_folder"]

log = logging.getLogger(__name__)

_CHECKED_AT_ONCE = 1000
_DECODING_THREADS = min(16, os.cpu_count() or 1)


class FolderSource:
    """Image files, decoded by several threads; memory does not grow with their number."""

    def __init__(self, files: Sequence[Path], image_shape: ImageShape) -> None:
        self._files, self._image_shape = files, image_shape
        self.num_images: int | None = len(files)

    def batches(
        self, batch_size: int, random: np.random.Generator | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        number = len(self._files)
        order = np.arange(number) if random is None else random.permutation(number)
        with ThreadPoolExecutor(_DECODING_THREADS) as pool:
            for start in range(0, number, batch_size):
                indices = order[start : start + batch_size]
                images = pool.map(self._read, [self._files[index] for index in indices])
                yield indices, np.stack(list(images))

    def name(self, index: int) -> str:
        return str(self._files[index])

    def _read(self, path: Path) -> np.ndarray:
        channels, height, width = self._image_shape
        try:
            return fit(read_image(path, channels), height, width)
        except ImageFileError as error:
            raise DataError(str(error)) from error


def open_folder(
    folder: Path, train: bool, image_shape: ImageShape, seed: int, limit: int | None
) -> Source:
    """Open the image files of a folder for training or for testing.

    These are the files in ``train/`` or ``test/``. A folder without these two is split: nine tenths
    of its files are for training, and one tenth is for testing.

    Args:
        folder: folder of the files.
        train: whether to open the files for training, not those for testing.
        image_shape: (C, H, W) that the images are brought to.
        seed: seed of the split.
        limit: use only this many files, the first ones; None for all.

    Raises:
        DataError: there are no images that can be read.
    """
    return FolderSource(_readable(folder_files(folder, train, seed)[:limit]), image_shape)


def open_files(files: Sequence[Path], image_shape: ImageShape, resize: bool) -> Source:
    """Open image files that a user names; all of them are checked before any is used.

    Args:
        files: files of any kind that ``image_files`` reads.
        image_shape: (C, H, W) that the network works with.
        resize: whether to cut and resize images of another size, and to turn colours to grey.

    Raises:
        DataError: a file cannot be read or, without ``resize``, has another size, or has colours
            while the network's images are grey.
    """
    channels, height, width = image_shape
    for path in files:
        try:
            pixels = read_image(path, 3)
        except ImageFileError as error:
            raise DataError(str(error)) from error
        if resize:
            continue
        if pixels.shape[1:] != (height, width):
            raise DataError(
                f"{path} is {pixels.shape[1]}x{pixels.shape[2]}, but the model's images are "
                f"{height}x{width}: use `resize_images` to cut and resize it"
            )
        if channels == 1 and (pixels != pixels[0]).any():
            raise DataError(
                f"{path} has colours, but the model's images are grey: use `resize_images` to turn "
                "it to grey"
            )
    return FolderSource(files, image_shape)


def folder_files(folder: Path, train: bool, seed: int) -> list[Path]:
    """The files of one part of a folder; see ``open_folder``."""
    parts = {name: folder / name for name in ("train", "test")}
    split = [name for name, part in parts.items() if part.is_dir()]
    wanted = "train" if train else "test"
    if split and wanted not in split:
        raise DataError(
            f"{folder} has a folder {split[0]} but no {wanted}: make it, or point `data_dir` at a "
            "folder with neither, which is then split"
        )
    files = find_images(parts[wanted] if split else folder)
    if not split:
        # A seed makes the same split on every machine: NumPy guarantees this generator's numbers.
        shuffled = np.random.RandomState(seed % 2**32).permutation(len(files))
        number = max(1, len(files) // 10)
        chosen = shuffled[number:] if train else shuffled[:number]
        files = [files[index] for index in np.sort(chosen)]
    if not files:
        raise DataError(
            f"{parts[wanted] if split else folder} has no images for {wanted}ing: put "
            f"{', '.join(SUFFIXES)} files there, or give another `data_dir`"
        )
    return files


def _readable(files: Sequence[Path]) -> list[Path]:
    """The files that can be decoded; the others are named and counted in the log.

    Raises:
        DataError: there are none.
    """

    def problem(path: Path) -> str | None:
        try:
            read_image(path, 1)
        except ImageFileError as error:
            return str(error)
        return None

    problems: dict[Path, str | None] = {}
    with ThreadPoolExecutor(_DECODING_THREADS) as pool:
        for first in progress(range(0, len(files), _CHECKED_AT_ONCE), "checking images"):
            some = files[first : first + _CHECKED_AT_ONCE]
            problems.update(zip(some, pool.map(problem, some), strict=True))
    damaged = [text for text in problems.values() if text is not None]
    for text in damaged:
        log.warning("left out: %s", text)
    if damaged:
        log.warning("%d of %d files are left out", len(damaged), len(files))
    readable = [path for path, text in problems.items() if text is None]
    if not readable:
        raise DataError(f"none of {len(files)} files can be read: {damaged[0]}")
    return readable
