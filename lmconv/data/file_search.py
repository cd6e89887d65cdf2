"""Which image files a folder has: hidden ones are left out, and copies are found by content."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lmconv.data.image_files import SUFFIXES

__all__ = ["copies", "count_images", "find_images", "is_hidden"]

# What file managers, archives and storage servers leave behind beside pictures, in lower case.
_LEFT_BEHIND = frozenset(
    {
        "__macosx",
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "~snapshot",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",
    }
)
_READING_THREADS = 8
_TAIL = 4096  # bytes
_CHUNK = 2**20  # bytes


def find_images(folder: Path, run_dir: Path | None = None) -> tuple[list[Path], Counter[str]]:
    """All image files in a folder and in the folders inside it.

    Links to folders are followed, and each real folder is looked at once, under its own name if it
    has one here. Names that begin with a dot are hidden, and so is what file managers leave behind.

    Args:
        folder: the folder to look into.
        run_dir: a folder with pictures that the program makes itself, which are left out.

    Returns:
        The files, sorted by name, and how many others there are of each kind: ``hidden`` image
        files, those that are not regular files, and those with other suffixes.

    Raises:
        OSError: a folder cannot be read.
    """
    files, others = [], Counter[str]()
    # A link to a folder that contains this one would lead back here.
    seen = {_identity(parent) for parent in folder.resolve().parents}
    own = _identity(run_dir) if run_dir is not None and run_dir.is_dir() else None
    real, linked = [folder], list[Path]()
    while real or linked:
        place = (real or linked).pop(0)
        if _identity(place) in seen:
            continue
        seen.add(_identity(place))
        if _identity(place) == own and place != folder:
            others["in the run directory"] += count_images(place)
            continue
        for path in sorted(place.iterdir()):
            if is_hidden(path):
                others["hidden"] += count_images(path)
            elif path.is_dir():
                (linked if path.is_symlink() else real).append(path)
            elif path.suffix.lower() not in SUFFIXES:
                others[path.suffix.lower() or "without suffix"] += 1
            elif path.is_file():
                files.append(path)
            else:
                others["not regular"] += 1
    return sorted(files), +others


def is_hidden(path: Path) -> bool:
    """Whether people do not see a file or folder as one of their own."""
    return path.name.startswith(".") or path.name.lower() in _LEFT_BEHIND


def count_images(path: Path) -> int:
    """The number of files with an image's suffix in a folder, hidden or not, or 1 for such a file.

    Links to folders are not followed.
    """
    if path.is_dir() and not path.is_symlink():
        return sum(_has_suffix(name) for _, _, names in os.walk(path) for name in names)
    return int(_has_suffix(path.name))


def copies(files: Sequence[Path]) -> dict[Path, Path]:
    """Each file whose bytes are those of a file before it, with the first such file.

    Only files of the same size are read, and only those with the same end are read as a whole.
    """
    alike: dict[tuple, list[Path]] = {(): list(files)}
    with ThreadPoolExecutor(_READING_THREADS) as pool:
        for measure in (_size, _tail, _digest):
            pairs = [(key, path) for key, same in alike.items() if len(same) > 1 for path in same]
            alike = defaultdict(list)
            values = pool.map(measure, [path for _, path in pairs])
            for (key, path), value in zip(pairs, values, strict=True):
                finer = (*key, value)
                alike[finer].append(path)
    return {path: same[0] for same in alike.values() for path in same[1:]}


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _has_suffix(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _size(path: Path) -> int | Path:
    try:
        return path.stat().st_size
    except OSError:
        return path  # like no other: what is wrong with it is said where it is decoded


def _tail(path: Path) -> bytes | Path:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            return file.read(_TAIL)
    except OSError:
        return path


def _digest(path: Path) -> bytes | Path:
    digest = hashlib.blake2b()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return path
    return digest.digest()
