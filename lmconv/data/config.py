"""Which images to load and how to prepare them: the settings of data sets and their checks."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from lmconv.data.arrays import array_shape
from lmconv.data.deep_files import MOST_FILE_CHANNELS
from lmconv.data.downloads import DATA_DIR
from lmconv.data.sources import DataError
from lmconv.data.standard_sets import STANDARD_SETS
from lmconv.pixel_values import MOST_BITS, ImageShape, Preparation

__all__ = ["DATASETS", "PARTS", "DataConfig", "brought_shape", "image_shapes"]

# The data sets by name: those that are known, and those that people bring.
DATASETS = (*STANDARD_SETS, "folder", "parquet", "array")
# The parts of a data set: few have one for validation, and only what people bring can be used as a
# whole.
PARTS = ("train", "test", "valid", "all")


@dataclass(frozen=True)
class DataConfig:
    """Which images to load, and how to prepare them.

    Attributes:
        dataset: a name from ``DATASETS``.
        data_dir: the folder that contains the data sets, or the images that people bring, which may
            be a single file of a table or of arrays.
        batch_size: images per batch in each process.
        preparation: how stored images become the model's images.
        seed: seed of shuffling, of the sizes drawn, and of binarization.
        celeba_size: height and width that celebahq is resized to.
        channels: channels of the images of a folder, a Parquet file or an array, 1 to 4, of
            arrays to 8; an array says it itself if there is no ``image_size``.
        image_size: (height, width) that these images are brought to; an array needs none.
        buckets: several sizes, (height, width), that stand for ``image_size``: each picture of a
            folder is brought to the one that ``nearest_size`` chooses, and a batch has one size.
        own_sizes: whether these images are tested at their own sizes instead.
        crop: (height, width) of the pieces that these images are cut into, without being resized;
            training cuts them at random places, anew in each epoch. It stands for ``image_size``.
        max_reduction: with ``crop``, each piece of a training picture is reduced by a random factor
            from 1 to this.
        split_seed: seed for choosing the tenth of what people bring that is its test set, if it is
            not already split into two parts, and those of its images that are used.
        max_celeba_train_batches: maximum number of celebahq batches per epoch, -1 for all.
        max_celeba_test_batches: maximum number of celebahq test batches, -1 for all.
        max_train_images: number of training images to use from the other sets, the first ones, or
            of what people bring, drawn by ``split_seed``; -1 for all.
        max_test_images: the same for test images.
        resize_sizes: square sizes to resize to, one drawn per training batch; () for the set's own.
        resize_probs: probability of each size; () for equal ones.
        random_crop: whether training images of a folder or a Parquet file are cropped at a random
            place, anew in each epoch, and not to their middle.
        flip: whether each training image is mirrored from left to right with probability 1/2, drawn
            anew in each epoch.
        permute_channels: whether the channels of each training image are put in random order, anew
            in each epoch.
        run_dir: directory of the run, whose pictures are no data if it is inside the folder.
        classes: names of the classes whose labels come with the images, () for images alone.
    """

    dataset: str
    data_dir: str = DATA_DIR
    batch_size: int = 64
    preparation: Preparation = field(default_factory=Preparation)
    seed: int = 1
    celeba_size: int = 256
    channels: int = 3
    image_size: tuple[int, int] | None = None
    buckets: tuple[tuple[int, int], ...] = ()
    own_sizes: bool = False
    crop: tuple[int, int] | None = None
    max_reduction: float = 1.0
    split_seed: int = 0
    max_celeba_train_batches: int = -1
    max_celeba_test_batches: int = -1
    max_train_images: int = -1
    max_test_images: int = -1
    resize_sizes: tuple[int, ...] = ()
    resize_probs: tuple[float, ...] = ()
    random_crop: bool = False
    flip: bool = False
    permute_channels: bool = False
    run_dir: Path | None = None
    classes: tuple[str, ...] = ()


def image_shapes(config: DataConfig) -> list[ImageShape]:
    """Check the settings and return the (C, H, W) of each image size.

    No files are touched, except that arrays say the size of their images.

    Raises:
        DataError: a setting is invalid or contradicts another.
    """
    if config.dataset not in DATASETS:
        raise DataError(f"unknown data set {config.dataset!r}: choose one of {', '.join(DATASETS)}")
    known = STANDARD_SETS.get(config.dataset)
    channels, height, width = known.image_shape if known else brought_shape(config)
    if config.permute_channels and channels == 1:
        raise DataError("`permute_channels` has no meaning for images of one channel: leave it out")
    if config.preparation.binarize and channels != 1:
        raise DataError(
            f"`binarize` needs one-channel images, but those of {config.dataset} have {channels} "
            "channels: leave it out, or use images of one channel"
        )
    if known and known.is_binary and not config.preparation.binarize:
        raise DataError(
            f"{config.dataset} has black and white pixels, which need a model of binary images: "
            "use `binarize`, which leaves them as they are"
        )
    if not 1 <= config.preparation.n_bits <= MOST_BITS:
        raise DataError(
            f"`n_bits` must be between 1 and {MOST_BITS}, got {config.preparation.n_bits}"
        )
    if config.preparation.n_bits > 8 and config.dataset not in ("folder", "array"):
        raise DataError(
            f"`n_bits` {config.preparation.n_bits} is too much for {config.dataset}, whose images "
            "have 8 bits: give 1 to 8"
        )
    for name in ("batch_size", "celeba_size"):
        if getattr(config, name) < 1:
            raise DataError(f"`{name}` must be at least 1, got {getattr(config, name)}")
    if config.random_crop and config.dataset not in ("folder", "parquet"):
        raise DataError(
            f"`random_crop` needs -d folder or parquet: images of {config.dataset} are not cropped"
        )
    if config.crop is not None and known:
        raise DataError(
            f"`crop` needs -d folder, parquet or array: images of {config.dataset} are not cut"
        )
    if config.crop is not None and config.random_crop:
        raise DataError("`random_crop` has no meaning with `crop`: leave it out")
    _check_buckets(config)
    if config.max_reduction < 1:
        raise DataError(f"`max_reduction` must be at least 1, got {config.max_reduction}")
    if config.crop is None and config.max_reduction > 1:
        raise DataError("`max_reduction` needs `crop`: give both, or neither")
    if config.crop is not None and config.resize_sizes:
        raise DataError(
            "`crop` cuts pieces of one size, which contradicts `resize_sizes`: leave one out"
        )
    if config.seed < 0:
        raise DataError(f"`seed` must be at least 0, got {config.seed}")
    for name in (
        "max_celeba_train_batches",
        "max_celeba_test_batches",
        "max_train_images",
        "max_test_images",
    ):
        limit = getattr(config, name)
        if limit != -1 and limit < 1:
            raise DataError(f"`{name}` must be at least 1, or -1 for no limit, got {limit}")
    _check_sizes(config.resize_sizes, config.resize_probs)
    if config.dataset == "celebahq":
        height = width = config.celeba_size
    if config.resize_sizes:
        return [(channels, size, size) for size in config.resize_sizes]
    if config.buckets:
        return [(channels, *size) for size in config.buckets]
    return [(channels, height, width)]


def brought_shape(config: DataConfig) -> ImageShape:
    """The (C, H, W) that images are brought to which people bring, or that they are cut into.

    Arrays say it themselves if the settings do not.

    Raises:
        DataError: the settings do not say it.
    """
    size = config.crop or config.image_size or next(iter(config.buckets), None)
    path = Path(config.data_dir)
    if config.dataset == "array" and (size is None or path.exists()):
        channels, height, width = array_shape(path)
        return channels, *(size or (height, width))
    if size is None:
        raise DataError(
            f"-d {config.dataset} needs `image_size` HxW, which all images are brought to"
            ", or `crop` HxW, the pieces that they are cut into"
        )
    if config.dataset != "array" and not 1 <= config.channels <= MOST_FILE_CHANNELS:
        raise DataError(
            f"`channels` must be 1 to {MOST_FILE_CHANNELS} for pictures in files, got "
            f"{config.channels}"
        )
    return config.channels, *size


def _check_buckets(config: DataConfig) -> None:
    """Raise DataError if several sizes are given that cannot be buckets."""
    if not config.buckets:
        return
    if config.dataset != "folder":
        raise DataError(
            f"-d {config.dataset} takes one `image_size`, not several, which are for -d folder"
        )
    for name, value in (("crop", config.crop), ("resize_sizes", config.resize_sizes)):
        if value:
            raise DataError(
                f"`{name}` and several sizes in `image_size` contradict each other: leave one out, "
                "or give one `image_size` if the several are the model's"
            )
    for size, number in Counter(config.buckets).items():
        if number > 1:
            raise DataError(
                f"`image_size` has {size[0]}x{size[1]} more than once: leave the others out"
            )


def _check_sizes(sizes: tuple[int, ...], probs: tuple[float, ...]) -> None:
    for size in sizes:
        if size < 1:
            raise DataError(f"`resize_sizes` must be at least 1, got {size}")
    if probs and len(probs) != len(sizes):
        raise DataError(
            f"`resize_probs` needs one value per size: got {len(probs)} for {len(sizes)} sizes"
        )
    for probability in probs:
        if not probability >= 0:
            raise DataError(f"`resize_probs` must not be negative, got {probability:g}")
    if probs and not abs(sum(probs) - 1) <= 1e-6:
        raise DataError(f"`resize_probs` must add up to 1, got {sum(probs):g}")
