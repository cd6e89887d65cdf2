"""Which image files of a folder are for training, and which for testing."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from lmconv.data.file_search import copies, count_images, find_images, is_hidden
from lmconv.data.image_files import SUFFIXES
from lmconv.data.sources import DataError
from lmconv.data.splits import drawn, split

__all__ = ["FolderPart", "folder_part", "is_split", "left_out_in_words"]


@dataclass(frozen=True)
class FolderPart:
    """Image files of a folder: those for training, those for testing, or all.

    Attributes:
        name: what people know the part by.
        files: the files to use, sorted by name.
        left_out: how many files of the folder are left out for each reason.
        also_for_training: the files for testing that have the contents of a file for training.
    """

    name: str
    files: list[Path]
    left_out: Counter[str]
    also_for_training: list[Path] = field(default_factory=list)


def folder_part(
    folder: Path, part: str, seed: int, limit: int | None = None, run_dir: Path | None = None
) -> FolderPart:
    """Find the files of one part of a folder.

    The parts ``train`` and ``test`` are the folders of these names, in upper or lower case. A
    folder that has neither is split: nine tenths of its files are for training, and one tenth is
    for testing. These parts have no two files with the same contents, and if the folder is split,
    they share none. The part ``all`` has every file.

    Args:
        folder: folder of the files.
        part: ``train``, ``test`` or ``all``.
        seed: seed of the split, and of the choice if there is a limit.
        limit: draw this many files of the part; None for all.
        run_dir: folder of pictures that the program makes itself, which are left out.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    folders = _part_folders(folder)
    if part != "all" and folders and part not in folders:
        there = next(iter(folders.values()))
        raise DataError(
            f"{folder} has a folder {there.name} but no {part}: make it, or point `data_dir` at a "
            "folder with neither, which is then split"
        )
    place = folder if part == "all" else folders.get(part, folder)
    files, left_out = find_images(place, run_dir)
    purpose = {"train": " for training", "test": " for testing", "all": ""}[part]
    name = f"{place}{purpose or ' as a whole'}"
    if part != "all":
        copied = copies(files)
        left_out["duplicate"] = len(copied)
        unique = files = [path for path in files if path not in copied]
        if not folders:
            files = [files[index] for index in split(len(files), part, seed)]
        files = [files[index] for index in drawn(len(files), limit, seed)]
        if len(files) < len(unique):
            name += f", drawn from {len(unique)} with seed {seed}"
    if place != folder:
        outside = f"outside {' and '.join(path.name for path in folders.values())}"
        left_out[outside] = _count_others(folder, folders.values())
    if not files:
        counts = left_out_in_words(left_out)
        raise DataError(
            f"{place} has no images{purpose}{f' (left out: {counts})' * bool(counts)}: put "
            f"{', '.join(SUFFIXES)} files there, or give another `data_dir`"
        )
    known = []
    if part == "test" and "train" in folders:
        copied = copies([*find_images(folders["train"])[0], *files])
        known = [path for path in files if path in copied]
    return FolderPart(name, files, left_out, known)


def is_split(folder: Path) -> bool:
    """Whether a folder has a folder for training or one for testing.

    Raises:
        DataError: there is no such folder.
    """
    return bool(_part_folders(folder))


def _part_folders(folder: Path) -> dict[str, Path]:
    """The folders ``train`` and ``test`` in a folder, in upper or lower case, if there are any.

    Raises:
        DataError: there is no such folder, or a part of it is there twice.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"the folder of images {folder} {what}: give another `data_dir`")
    parts: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = path.name.lower()
        if name not in ("train", "test") or not path.is_dir():
            continue
        if name in parts:
            raise DataError(
                f"{folder} has both {parts[name].name} and {path.name}: put their images into one"
            )
        parts[name] = path
    return parts


def _count_others(folder: Path, parts: Collection[Path]) -> int:
    """The number of image files of a folder that are in none of its parts."""
    others = (path for path in folder.iterdir() if path not in parts and not is_hidden(path))
    return sum(map(count_images, others))


def left_out_in_words(left_out: Counter[str]) -> str:
    """How many files are left out for each reason, for people to read."""
    return ", ".join(f"{number} {reason}" for reason, number in left_out.items() if number)
