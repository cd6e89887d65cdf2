"""Data sets as batches of images on a grid in [-1, 1].

Every set is a source of uint8 or uint16 images (``sources.py``); one pipeline resizes, coarsens or
binarizes, and scales them.
"""

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lmconv.data.arrays import (
    is_split_array,
    open_array,
    open_array_pieces,
    read_array_labels,
)
from lmconv.data.buckets import BucketSource
from lmconv.data.config import DATASETS, PARTS, DataConfig, brought_shape, image_shapes
from lmconv.data.folders import (
    FolderPart,
    folder_part,
    is_split,
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
from lmconv.data.sources import DataError, OwnSizes, Source
from lmconv.data.standard_sets import STANDARD_SETS
from lmconv.distributed import Processes, Turns
from lmconv.pixel_values import ImageShape, Preparation
from lmconv.random_numbers import TEST_BINARIZATION, random_key, uniform_numbers

__all__ = [
    "DATASETS",
    "PARTS",
    "DataConfig",
    "DataError",
    "ImageShape",
    "LabelError",
    "TestData",
    "TrainData",
    "ahead",
    "check_files",
    "class_names",
    "has_parts",
    "image_shapes",
    "load_files",
    "load_test",
    "load_train",
    "read_labels",
]

T = TypeVar("T")

# Purposes of random numbers, in addition to TEST_BINARIZATION. None is 0, since NumPy makes the
# same stream from [seed, epoch] and [seed, epoch, 0].
_SHUFFLE, _SIZE, _BINARIZE_TRAIN, _FLIP, _HIDE_LABEL, _PERMUTE = 1, 2, 3, 5, 6, 7
# The share of the training images whose class the network is not told.
_UNKNOWN_SHARE = 0.1
_PIECES_HAVE_NO_CLASS = "`crop` cuts pieces of pictures, which have no class"
# Most images of a turn where processes take turns: results are exchanged only after it.
_MOST_TOGETHER = 2**11
# Number of batches that are prepared while the network is at work.
_BATCHES_AHEAD = 3


class TrainData:
    """The training set: shuffled and drawn anew every epoch, but the same for a seed and epoch.

    Every batch is shared by all processes: each gets ``batch_size`` of its images.

    Args:
        source: source of the images.
        shapes: (C, H, W) that images are resized to, one drawn for each batch; those of the
            buckets if the source has some, whose images stay as they are.
        preparation: how stored images become the model's images.
        batch_size: images per batch in each process.
        seed: seed of shuffling, sizes, crops, mirroring and binarization.
        shape_probs: probability of each shape; () for equal ones.
        processes: the processes that share each batch; by default only this one.
        flip: whether each image is mirrored from left to right with probability 1/2.
        permute_channels: whether the channels of each image are put in random order.
        labels: the class of each image of the source, by its index, int64; None for no classes.
        num_classes: number of classes.

    Attributes:
        image_shapes: (C, H, W) of each size that batches may have.
        num_images: images per epoch; None for a stream, whose length is unknown.
        batch_size: images per batch in all processes together.
        num_batches: batches per epoch; None for a stream.
    """

    def __init__(
        self,
        source: Source,
        shapes: Sequence[ImageShape],
        preparation: Preparation,
        batch_size: int,
        seed: int = 1,
        shape_probs: Sequence[float] = (),
        processes: Processes | None = None,
        flip: bool = False,
        permute_channels: bool = False,
        labels: np.ndarray | None = None,
        num_classes: int = 0,
    ) -> None:
        self.image_shapes = list(shapes)
        self._source, self._preparation, self._seed = source, preparation, seed
        self._flip, self._permute_channels = flip, permute_channels
        self._labels, self._num_classes = labels, num_classes
        self._processes = processes or Processes()
        self.num_images = source.num_images
        self.batch_size = batch_size * self._processes.number
        self._has_buckets = isinstance(source, BucketSource)
        self.num_batches: int | None = None
        if isinstance(source, BucketSource):
            self.num_batches = source.num_batches(self.batch_size)
        elif self.num_images is not None:
            self.num_batches = -(-self.num_images // self.batch_size)
        probs = np.array(list(shape_probs) or [1.0] * len(self.image_shapes))
        self._shape_probs = probs / probs.sum()

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Tensor]:
        """The images of ``labelled_epoch``, without their labels."""
        return (images for images, _ in self.labelled_epoch(epoch, first_batch))

    def labelled_epoch(
        self, epoch: int, first_batch: int = 0
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield every image once: B x C x H x W float32 on the grid in [-1, 1]; and the labels.

        Labels are None without classes. Otherwise they are B, int64, with the number of classes in
        a tenth of the places, drawn at random: it stands for an unknown class.

        The last batch may be smaller, and this process's share of it can be empty. Order, sizes,
        crops, mirroring, binarization and unknown classes depend only on the seed and ``epoch``.
        For tables and pieces, where each process reads its own, they also depend on the number of
        processes and the size of batches. From ``first_batch`` on, batches are the same as in an
        epoch from the start. They are made in advance, in memory that a GPU can read directly.

        Raises:
            DataError: a file of a stream is damaged.
        """
        return ahead(self._batches(epoch, first_batch), _BATCHES_AHEAD)

    def _batches(self, epoch: int, first_batch: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        device = self._processes.device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # for the thread that makes the batches
        shuffling, sizing = (
            np.random.default_rng([self._seed, epoch, purpose]) for purpose in (_SHUFFLE, _SIZE)
        )
        key = random_key(self._seed, epoch, _BINARIZE_TRAIN)
        flip_key = random_key(self._seed, epoch, _FLIP)
        permutation_key = random_key(self._seed, epoch, _PERMUTE)
        batches = self._source.batches(self.batch_size, shuffling)
        for number, (indices, pixels) in enumerate(batches):
            place = sizing.choice(len(self._shape_probs), p=self._shape_probs)
            _, height, width = self.image_shapes[place]
            if number < first_batch:
                continue
            own = self._processes.share(len(indices))
            shown = pixels[own]
            if self._flip:
                shown = _mirrored(shown, indices[own], flip_key)
            if self._permute_channels:
                shown = _with_permuted_channels(shown, indices[own], permutation_key)
            if not self._has_buckets:
                shown = _resize(shown, height, width)
            images = self._preparation.apply(shown, indices[own], key)
            label = self._label(indices[own], epoch)
            if device.type == "cuda":
                images, label = images.pin_memory(), label if label is None else label.pin_memory()
            yield images, label

    def _label(self, indices: np.ndarray, epoch: int) -> Tensor | None:
        """The labels of some images in an epoch, a tenth of which are unknown."""
        if self._labels is None:
            return None
        key = random_key(self._seed, epoch, _HIDE_LABEL)
        is_unknown = uniform_numbers(key, indices, 1)[:, 0] < _UNKNOWN_SHARE
        return torch.from_numpy(np.where(is_unknown, self._num_classes, self._labels[indices]))


class TestData:
    """The test set, in its own order.

    Args:
        source: source of the images.
        channels: number of channels of the images.
        preparation: how stored images become the model's images.
        batch_size: images per batch.
        seed: seed of binarization.
        labels: the class of each image of the source, by its index, int64; None for no classes.

    Attributes:
        num_images: images in the set; None for a stream, whose length is unknown.
        batch_size: images per batch.
        own_shapes: (C, H, W) of each image, if images are taken at their own sizes or at those of
            their buckets; otherwise empty.
        labels: the class of each image, in their order, int64; None for no classes.
    """

    __test__ = False  # tells pytest that this is not a test, despite its name

    def __init__(
        self,
        source: Source,
        channels: int,
        preparation: Preparation,
        batch_size: int,
        seed: int = 1,
        labels: np.ndarray | None = None,
    ) -> None:
        self.num_images = source.num_images
        self.own_shapes: list[ImageShape] = []
        if isinstance(source, OwnSizes):
            self.own_shapes = source.image_shapes
        self.labels = None if labels is None else torch.from_numpy(labels[: source.num_images])
        self._source, self._channels, self._preparation = source, channels, preparation
        self.batch_size, self._seed = batch_size, seed

    def name(self, index: int) -> str:
        """The path of an image's file, or the image's number in the set."""
        return self._source.name(index)

    def bounds(self, image_shape: ImageShape) -> tuple[int, int | None]:
        """The numbers of the images to use at a size: the first, and the first that is not.

        These are all images (None where the end is not known) or, of buckets, those of this size.
        """
        if isinstance(self._source, BucketSource):
            return self._source.bounds(image_shape)
        return 0, self.num_images

    def used(self, image_shapes: Sequence[ImageShape]) -> list[ImageShape]:
        """Those of some sizes that images are used at: all but those of empty buckets."""
        return [s for s in image_shapes if not self.own_shapes or s in self.own_shapes]

    def num_batches(self, first: int = 0) -> int | None:
        """The number of batches from an image on; None if it is not known."""
        if isinstance(self._source, BucketSource):
            return self._source.num_batches(self.batch_size, first)
        if self.num_images is None or self.own_shapes:
            return None
        return -(-(self.num_images - first) // self.batch_size)

    def batches(self, image_shape: ImageShape | None) -> Iterator[Tensor]:
        """Yield every image once, resized: B x C x H x W float32 on the grid in [-1, 1].

        Without a shape, images keep their sizes, of which a batch has only one.

        Binarization depends only on the seed and the image's index, not on the batch size.

        Raises:
            ValueError: the images have another number of channels.
            DataError: a file of a stream is damaged.
        """
        for _, images in self.shared_batches(image_shape, Processes()):
            yield images

    def shared_batches(
        self,
        image_shape: ImageShape | None,
        processes: Processes,
        first: int = 0,
        end: int | None = None,
        batch_size: int | None = None,
    ) -> Turns[tuple[int, Tensor]]:
        """This process's share of the images from ``first`` to ``end`` in batches.

        Processes take turns with the batches, or, where images are stored together, with several
        batches in a row, for ``Processes.in_turn``. The files of images of other processes, and of
        those before ``first``, are not opened, except by a stream.

        Args:
            image_shape: as in ``batches``.
            processes: the processes that share the images.
            first: number of the first image.
            end: number of the image to stop before; None for all.
            batch_size: images per batch; by default that of the set.

        Returns:
            The number of the first image of each batch, and the images as ``batches`` yields them.

        Raises:
            ValueError, DataError: as ``batches``.
        """
        if image_shape is not None and image_shape[0] != self._channels:
            raise ValueError(
                f"the data set has {self._channels} channels, so it cannot yield images of shape "
                f"{'x'.join(map(str, image_shape))}"
            )
        size, total = batch_size or self.batch_size, self.num_images or 0
        number = (total if end is None else min(total, end)) - first
        at_once = _batches_at_once(processes, number, size, self._source.together)
        own = self._own_batches(image_shape, processes, first, end, size, at_once)
        return Turns(own, at_once)

    def _own_batches(
        self,
        image_shape: ImageShape | None,
        processes: Processes,
        first: int,
        end: int | None,
        batch_size: int,
        at_once: int,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield what ``shared_batches`` returns, in turns of ``at_once`` batches."""
        key = random_key(self._seed, TEST_BINARIZATION)
        place = 0
        for indices, pixels in self._source.batches(batch_size, None):
            if end is not None and indices[0] >= end:
                return
            left = max(0, first - int(indices[0]))
            wanted = slice(left, None if end is None else end - int(indices[0]))
            if not len(own := indices[wanted]):
                continue
            if place // at_once % processes.number == processes.rank:
                shown = pixels[wanted]
                sized = shown if image_shape is None else _resize(shown, *image_shape[1:])
                yield int(own[0]), self._preparation.apply(sized, own, key)
            place += 1


def load_train(config: DataConfig, processes: Processes | None = None) -> TrainData:
    """Load the training set; mnist and cifar are downloaded if their files are absent.

    Args:
        config: what to load.
        processes: the processes that share it; by default only this one.

    Raises:
        DataError: the settings are wrong, or files or a package are missing or damaged.
    """
    shapes = image_shapes(config)
    if config.permute_channels and shapes[0][0] == 1:
        raise DataError("`permute_channels` has no meaning for images of one channel: leave it out")
    source = _open(config, "train", processes, random_crop=config.random_crop)
    return TrainData(
        source,
        shapes,
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


def _batches_at_once(processes: Processes, number: int, batch_size: int, together: int) -> int:
    """How many batches in a row a process works on when it is its turn.

    They are those of the images that one process should read together, but no more than keep all
    processes at work to the end, as turns of one length do.
    """
    if processes.number == 1:
        return 1
    most = -(-min(together, _MOST_TOGETHER) // batch_size)
    batches = -(-number // batch_size)
    rounds = max(1, -(-batches // (most * processes.number)))
    return max(1, -(-batches // (rounds * processes.number)))


def _mirrored(pixels: np.ndarray, indices: np.ndarray, key: np.uint64) -> np.ndarray:
    """Mirror about half of the images from left to right; their indices decide which."""
    is_mirrored = uniform_numbers(key, indices, 1)[:, 0] < 0.5
    return np.where(is_mirrored[:, None, None, None], pixels[..., ::-1], pixels)


def _with_permuted_channels(pixels: np.ndarray, indices: np.ndarray, key: np.uint64) -> np.ndarray:
    """Put the channels of each image in random order; their indices decide about it."""
    order = uniform_numbers(key, indices, pixels.shape[1]).argsort(axis=1)
    return np.take_along_axis(pixels, order[:, :, None, None], axis=1)


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize images bilinearly with antialiasing, and round them, so that data stay discrete."""
    if pixels.shape[2:] == (height, width):
        return pixels
    if len(pixels) == 0:
        return np.empty((0, pixels.shape[1], height, width), pixels.dtype)
    # In float32, since torch's kernels for uint8 round differently on different machines.
    images = torch.from_numpy(pixels).float()
    images = interpolate(images, (height, width), mode="bilinear", antialias=True)
    largest = np.iinfo(pixels.dtype).max
    return images.round().clamp(0, largest).numpy().astype(pixels.dtype)


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


def ahead(items: Iterable[T], number: int) -> Iterator[T]:
    """Yield the same items, up to ``number`` of which a thread makes in advance."""
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
        except BaseException as error:  # raised again where the items are used
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
