"""Images of a source as batches on a grid in [-1, 1], for training and for everything else.

Every set is a source of uint8 or uint16 images (``sources.py``); one pipeline mirrors, resizes,
coarsens or binarizes, and scales them.
"""

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lmconv.data.sources import OwnSizes, Source
from lmconv.distributed import Processes, Turns
from lmconv.pixel_values import ImageShape, Preparation
from lmconv.random_numbers import TEST_BINARIZATION, random_key, uniform_numbers

__all__ = ["TestData", "TrainData", "ahead"]

T = TypeVar("T")

# Purposes of random numbers, in addition to TEST_BINARIZATION. None is 0, since NumPy makes the
# same stream from [seed, epoch] and [seed, epoch, 0].
_SHUFFLE, _SIZE, _BINARIZE_TRAIN, _FLIP, _HIDE_LABEL, _PERMUTE = 1, 2, 3, 5, 6, 7
# The share of the training images whose class the network is not told.
_UNKNOWN_SHARE = 0.1
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
        seed: seed of shuffling, sizes, crops, mirroring, channels and binarization.
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
        self.num_batches = source.num_batches(self.batch_size)
        self._resizes = not isinstance(source, OwnSizes)
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
        crops, mirroring, channels, binarization and unknown classes depend only on the seed and
        ``epoch``. For tables and pieces, where each process reads its own, they also depend on the
        number of processes and the size of batches. From ``first_batch`` on, batches are the same
        as in an epoch from the start. They are made in advance, in memory that a GPU can read
        directly.

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
            if self._resizes:
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
        return self._source.bounds(image_shape)

    def used(self, image_shapes: Sequence[ImageShape]) -> list[ImageShape]:
        """Those of some sizes that images are used at: all but those of empty buckets."""
        return [s for s in image_shapes if not self.own_shapes or s in self.own_shapes]

    def num_batches(self, first: int = 0) -> int | None:
        """The number of batches from an image on; None if it is not known."""
        return self._source.num_batches(self.batch_size, first)

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
