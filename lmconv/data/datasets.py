"""Data sets by their settings: what opens their files, and makes batches of the images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmconv.data.arrays import (
    is_split_array,
    open_array,
    open_array_pieces,
    read_array_labels,
)
from lmconv.data.config import DATASETS, PARTS, DataConfig, brought_shape, image_shapes
from lmconv.data.folder_parts import FolderPart, folder_part, is_split
from lmconv.data.folders import (
    open_buckets,
    open_files,
    open_folder,
    open_own_sizes,
    open_pieces,
)
from lmconv.data.labels import LabelError, folder_classes, folder_labels, renumbered
from lmconv.data.looks import Looks
from lmconv.data.parquet_files import (
    check_parquet,
    is_split_parquet,
    open_parquet,
    open_parquet_at_own_sizes,
    open_parquet_pieces,
    read_parquet_labels,
)
from lmconv.data.pipeline import TestData, TrainData
from lmconv.data.sources import DataError, Source
from lmconv.data.standard_sets import STANDARD_SETS
from lmconv.distributed import Processes
from lmconv.pixel_values import ImageShape

__all__ = [
    "DATASETS",
    "PARTS",
    "DataConfig",
    "DataError",
    "ImageShape",
    "LabelError",
    "check_files",
    "class_names",
    "has_parts",
    "image_shapes",
    "load_files",
    "load_test",
    "load_train",
    "read_labels",
]

_PIECES_HAVE_NO_CLASS = "`crop` cuts pieces of pictures, which have no class"


def load_train(config: DataConfig, processes: Processes | None = None) -> TrainData:
    """Load the training set; mnist and cifar are downloaded if their files are absent.

    Args:
        config: what to load.
        processes: the processes that share it; by default only this one.

    Raises:
        DataError: the settings are wrong, or files or a package are missing or damaged.
    """
    source = _open(config, "train", processes, random_crop=config.random_crop)
    return TrainData(
        source,
        image_shapes(config),
        config.preparation,
        config.batch_size,
        config.seed,
        config.resize_probs,
        processes,
        config.flip,
        config.permute_channels,
        _labels(config, "train", source),
        len(config.classes),
    )


def load_test(
    config: DataConfig, part: str = "test", processes: Processes | None = None
) -> TestData:
    """Load the test set (the validation set of celebahq), or another part; see ``load_train``.

    Args:
        config: what to load.
        part: one of ``PARTS``. Its images come in their own order, as those of a test set do.
        processes: the processes that share the set; each looks at its share of a folder's files.

    Raises:
        DataError: as ``load_train``, or the part does not exist.
        LabelError: there are classes, and the part has no labels, or those of other classes.
    """
    source = _open(config, part, processes, _looks(config, processes))
    return _test_data(config, source, _labels(config, part, source))


def _looks(config: DataConfig, processes: Processes | None) -> Looks:
    """How the files of a set that processes share are looked at: each by one that uses it."""
    if processes is None or processes.number == 1:
        return Looks()
    return Looks(processes, config.batch_size)


def check_files(config: DataConfig, part: str) -> None:
    """Check that a data set can be loaded; of a folder's images, only that there are some.

    Raises:
        DataError: as ``load_test``, except that a folder's files may not be images.
    """
    _check_part(config, part)
    if config.dataset == "folder":
        files = _folder_part(config, part).files
        if config.classes:
            folder_labels(files, Path(config.data_dir), config.classes)
    elif config.dataset == "parquet":
        check_parquet(Path(config.data_dir), part)
        _stored_labels(config, part)
    elif config.dataset not in STANDARD_SETS or STANDARD_SETS[config.dataset].needs_files:
        _open(config, part)
        _stored_labels(config, part)


def class_names(config: DataConfig) -> tuple[str, ...]:
    """The names of a data set's classes, by label.

    Raises:
        DataError: it has none.
    """
    if config.crop:
        raise LabelError(f"{_PIECES_HAVE_NO_CLASS}: leave it out, or `class_conditional`")
    if config.dataset == "folder":
        return folder_classes(Path(config.data_dir), config.run_dir)
    if config.dataset not in STANDARD_SETS:
        return read_labels(config, "train")[1]
    names = STANDARD_SETS[config.dataset].label_names
    if not names:
        raise LabelError(
            f"the images of {config.dataset} have no labels: leave out `class_conditional`, or "
            "choose another `dataset`"
        )
    return names


def _labels(config: DataConfig, part: str, source: Source) -> np.ndarray | None:
    """The class of each image of a part, by its index in the source; None for no classes.

    Raises:
        LabelError: there are no labels, or they are damaged or those of other classes.
    """
    if config.classes and config.dataset == "folder" and not config.crop:
        files = (Path(source.name(index)) for index in range(source.num_images or 0))
        return folder_labels(files, Path(config.data_dir), config.classes)
    return _stored_labels(config, part)


def _stored_labels(config: DataConfig, part: str) -> np.ndarray | None:
    """The class of each image of a part of a data set that stores labels; see ``_labels``."""
    if not config.classes:
        return None
    if config.crop:
        raise LabelError(f"{_PIECES_HAVE_NO_CLASS}: leave it out to use labels")
    try:
        labels, names = read_labels(config, part)
    except DataError as error:
        raise LabelError(str(error)) from error
    return renumbered(labels, names, config.classes, config.dataset)


def has_parts(config: DataConfig) -> bool:
    """Whether a data set comes in two parts: all do, except for most that people bring.

    Raises:
        DataError: there is no such folder or file.
    """
    look = {"folder": is_split, "array": is_split_array, "parquet": is_split_parquet}
    return config.dataset in STANDARD_SETS or look[config.dataset](Path(config.data_dir))


def read_labels(config: DataConfig, part: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read the labels of the images of a part: int64 N, in their order, and the labels' names.

    Raises:
        DataError: the set has no labels, or they are missing or damaged.
    """
    _check_part(config, part)
    folder, seed, limit = Path(config.data_dir), config.split_seed, _limit(config, part)
    if config.dataset == "array":
        return read_array_labels(folder, part, seed, limit)
    if config.dataset == "parquet":
        return read_parquet_labels(folder, part, seed, limit)
    known = STANDARD_SETS.get(config.dataset)
    if known is None or known.read_labels is None:
        raise DataError(f"the data set {config.dataset} has no labels: choose another")
    return known.read_labels(folder, part)[:limit], known.label_names


def load_files(
    config: DataConfig,
    files: Sequence[Path],
    resize: bool,
    processes: Processes | None = None,
) -> TestData:
    """Load image files that a user names, prepared like the data set's; see ``open_files``.

    If processes share them, each looks at its share of the files.

    Raises:
        DataError: the settings are wrong, or a file does not fit them.
    """
    looks, kind = _looks(config, processes), config.preparation.pixel_type
    source = open_files(files, image_shapes(config), resize, config.own_sizes, looks, kind)
    return _test_data(config, source)


def _test_data(config: DataConfig, source: Source, labels: np.ndarray | None = None) -> TestData:
    channels = image_shapes(config)[0][0]
    return TestData(source, channels, config.preparation, config.batch_size, config.seed, labels)


def _open(
    config: DataConfig,
    part: str,
    processes: Processes | None = None,
    looks: Looks | None = None,
    random_crop: bool = False,
) -> Source:
    image_shapes(config)  # refuses wrong settings before any file is read or downloaded
    _check_part(config, part)
    if config.dataset in STANDARD_SETS:
        return STANDARD_SETS[config.dataset].open(Path(config.data_dir), part, _limit(config, part))
    shape, limit, seed = brought_shape(config), _limit(config, part), config.split_seed
    if config.dataset == "folder":
        files, kind = _folder_part(config, part), config.preparation.pixel_type
        if config.own_sizes:
            return open_own_sizes(files, shape[0], looks, kind)
        if config.crop:
            reduction = config.max_reduction
            return open_pieces(files, shape, limit, seed, reduction, looks, kind, processes)
        if config.buckets:
            return open_buckets(files, image_shapes(config), random_crop, looks, kind)
        return open_folder(files, shape, random_crop, looks, kind)
    path, bits = Path(config.data_dir), config.preparation.n_bits
    if config.dataset == "array":
        if config.crop and not config.own_sizes:
            reduction = config.max_reduction
            return open_array_pieces(path, part, shape, seed, limit, bits, reduction, processes)
        return open_array(path, part, shape, seed, limit, bits, config.own_sizes)
    if config.own_sizes:
        return open_parquet_at_own_sizes(path, part, shape[0], seed, limit, processes)
    if config.crop:
        reduction = config.max_reduction
        return open_parquet_pieces(path, part, shape, seed, limit, reduction, processes)
    return open_parquet(path, part, shape, seed, limit, random_crop, processes)


def _folder_part(config: DataConfig, part: str) -> FolderPart:
    folder, limit = Path(config.data_dir), None if config.crop else _limit(config, part)
    return folder_part(folder, part, config.split_seed, limit, config.run_dir)


def _check_part(config: DataConfig, part: str) -> None:
    if part not in PARTS:
        raise DataError(f"unknown `part` {part!r}: choose one of {', '.join(PARTS)}")
    known = STANDARD_SETS.get(config.dataset)
    parts = ("train", "test", "all") if known is None else known.num_images
    if part not in parts:
        raise DataError(f"{config.dataset} has no `part` {part}: choose one of {', '.join(parts)}")


def _limit(config: DataConfig, part: str) -> int | None:
    """The number of images (batches of celebahq) of a part to use; None for all."""
    if part == "all":
        return None
    kind = "train" if part == "train" else "test"
    what = f"celeba_{kind}_batches" if config.dataset == "celebahq" else f"{kind}_images"
    limit: int = getattr(config, f"max_{what}")
    return None if limit == -1 else limit
