"""The class of each image: the labels of a data set, or the folders that pictures are in."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lmconv.data.file_search import find_images
from lmconv.data.folder_parts import is_split
from lmconv.data.sources import DataError

__all__ = ["LabelError", "folder_classes", "folder_labels", "renumbered"]


class LabelError(DataError):
    """There are no labels, or none that fit; the message is one line that says what to do."""


def folder_classes(folder: Path, run_dir: Path | None = None) -> tuple[str, ...]:
    """The classes of a folder's training images, by name: the first folders below ``train/``.

    If the folder is not split into ``train`` and ``test``, they are the folders in it.

    Args:
        folder: the folder of images.
        run_dir: folder of pictures that the program makes itself, which are left out.

    Raises:
        DataError: there is no such folder, or an image in it is in no folder of a class.
    """
    parts = is_split(folder)
    files, _ = find_images(folder, run_dir)
    if parts:
        files = [path for path in files if path.relative_to(folder).parts[0].lower() == "train"]
    if not files:
        raise LabelError(f"{folder} has no training images, whose folders are classes: add some")
    return tuple(sorted({_class_of(path, folder) for path in files}))


def folder_labels(files: Iterable[Path], folder: Path, classes: Sequence[str]) -> np.ndarray:
    """The label of each image file of a folder, int64 N.

    Raises:
        LabelError: a file is in no folder of a class, or in one of another class.
    """
    names = [_class_of(path, folder) for path in files]
    different = sorted(set(names))
    numbers = renumbered(np.arange(len(different)), different, classes, str(folder))
    number_of = dict(zip(different, numbers.tolist(), strict=True))
    return np.array([number_of[name] for name in names], dtype=np.int64)


def renumbered(
    labels: np.ndarray, names: Sequence[str], classes: Sequence[str], source: str
) -> np.ndarray:
    """Labels as numbers of a model's classes instead of those of a data set.

    Args:
        labels: int64 N, numbers of the data set's classes.
        names: names of the data set's classes.
        classes: names of the model's classes.
        source: name of the data set, for errors.

    Raises:
        LabelError: the model does not know a class of the data set.
    """
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise LabelError(
            f"{source} has a class {unknown[0]!r} that is not among the {len(classes)} classes of "
            "the training images: rename it or leave its images out, or give another data set"
        )
    return np.array([classes.index(name) for name in names], dtype=np.int64)[labels]


def _class_of(path: Path, folder: Path) -> str:
    """The first folder that a file is in, below the folder of its part."""
    *parents, _ = path.relative_to(folder).parts
    if parents and parents[0].lower() in ("train", "test"):
        del parents[0]
    if not parents:
        raise LabelError(
            f"{path} is in no folder of a class: put the images of each class into a folder of "
            "their own, such as train/CLASS"
        )
    return parents[0]
