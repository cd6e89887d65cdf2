"""CelebA at 64 x 64: faces cut from the aligned JPEGs and resized."""

import re
from pathlib import Path

import numpy as np

from lmconv.data.downloads import download, ensure
from lmconv.data.folders import FolderSource
from lmconv.data.image_files import fit, read_image
from lmconv.data.set_files import read_bytes
from lmconv.data.sources import DataError, Source

__all__ = ["open_celeba"]

_SIDE = 64
# The central square of the aligned pictures that Dinh, Sohl-Dickstein and Bengio, 2017, "Density
# estimation using Real NVP", section 4.1, resize to 64 x 64, and most papers on likelihoods since.
_CROP = 148
_SIZE = (218, 178)
_PARTS = {"train": "0", "valid": "1", "test": "2"}


def open_celeba(data_dir: Path, part: str, limit: int | None = None) -> Source:
    """Open the faces of a part, ``train``, ``valid`` or ``test``: uint8 3 x 64 x 64 each.

    They are in ``data_dir/celeba`` or ``data_dir``: ``list_eval_partition.txt``, and the pictures
    in ``img_align_celeba``. Reading one brings it to its size by the mean of the area that each new
    pixel covers.

    Raises:
        DataError: files are missing and cannot be downloaded, or the list is damaged.
    """
    name = "list_eval_partition.txt"
    folders = [data_dir / "celeba", data_dir]
    folder = next((folder for folder in folders if (folder / name).exists()), folders[0])
    files = f"{name} and the folder img_align_celeba"
    ensure(
        data_dir,
        (folder / name).exists,
        lambda: download("CelebA", data_dir, folder, files, split="all"),
    )
    names = _names(folder / name, part)[:limit]
    pictures = folder / "img_align_celeba"
    there = {path.name for path in pictures.iterdir()} if pictures.is_dir() else set()
    missing = [each for each in names if each not in there]
    if missing:
        raise DataError(
            f"{pictures} lacks {len(missing)} of {len(names)} pictures, the first being "
            f"{missing[0]}: unpack img_align_celeba.zip there"
        )
    return FolderSource([pictures / each for each in names], (3, _SIDE, _SIDE), read=_read_face)


def _names(path: Path, part: str) -> list[str]:
    """The names of the pictures of a part, in the order of the list."""
    try:
        lines = read_bytes(path).decode("ascii").splitlines()
        pairs = [line.split() for line in lines if line.strip()]
        # Nothing but plain names: others could lead out of the folder.
        for pair in pairs:
            if len(pair) != 2 or not re.fullmatch(r"\w+\.jpg", pair[0]) or pair[1] not in "012":
                raise ValueError(f"a line is {' '.join(pair)[:40]!r}")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is damaged or not the list of CelebA's parts ({error}): replace it"
        ) from error
    names = [name for name, place in pairs if place == _PARTS[part]]
    if not names:
        raise DataError(f"{path} has no pictures of the part {part}: replace it")
    return names


def _read_face(path: Path) -> np.ndarray:
    """The face in an aligned picture, uint8 3 x 64 x 64."""
    pixels = read_image(path, 3)
    if pixels.shape[1:] != _SIZE:
        height, width = pixels.shape[1:]
        raise DataError(
            f"{path} is {height}x{width}, but the aligned pictures of CelebA are "
            f"{_SIZE[0]}x{_SIZE[1]}: replace it"
        )
    top, left = ((side - _CROP) // 2 for side in _SIZE)
    return fit(pixels[:, top : top + _CROP, left : left + _CROP], _SIDE, _SIDE)
