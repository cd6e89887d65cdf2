"""Compression of images of any sizes into one file: those of each size are coded together."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmconv.compression.codec import check_file, check_views, decode, encode
from lmconv.compression.file_format import CompressedCollection
from lmconv.distributed import Processes
from lmconv.image_model import ImageModel
from lmconv.pixel_values import from_levels, pixel_type, to_levels

__all__ = [
    "EncodedCollection",
    "compress",
    "decode_all",
    "decompress",
    "encode_all",
    "read_levels",
]

OnStep = Callable[[int], object]


class EncodedCollection(NamedTuple):
    """Compressed images of any sizes.

    Attributes:
        data: the contents of the file.
        promised_bits: number of bits that the images take according to their likelihood.
        images_of_orders: number of images that are coded in each order of the file.
        images_of_views: number of images that are coded as each view.
    """

    data: bytes
    promised_bits: float
    images_of_orders: list[int]
    images_of_views: list[int]


def compress(
    model: ImageModel,
    images: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
    compress_order: str = "first",
    compress_views: int = 1,
) -> bytes:
    """Compress images to the number of bits that a model promises, as ``--mode compress`` does.

    ::

        >>> import lmconv
        >>> model = lmconv.load("pretrained/binary_mnist_small.pth")
        >>> images = model.prepare(lmconv.read_mnist("examples", train=False)[:20])
        >>> data = lmconv.compress(model, images)
        >>> len(data) < 20 * 28 * 28 / 8 / 4
        True
        >>> bool((lmconv.decompress(model, data) == images).all())
        True

    Args:
        model: the model to compress with, not the baseline; decompression needs the same.
        images: ``B x C x H x W``, as ``ImageModel.prepare`` takes them; or a list of images,
            ``C x H x W``, that may have different sizes.
        compress_order: ``first`` to use the first of the model's orders, or ``best`` to use the
            best one for each image.
        compress_views: number of views that are tried of each image: as it is, mirrored, upside
            down, with its channels in other orders, transposed if it is a square. The best one is
            compressed. There are 4 views of grey images, 8 with two channels and 24 with more, and
            twice as many of squares.

    Returns:
        The contents of a compressed file, which has everything that is needed except the model.

    Raises:
        ValueError: the images do not fit the model, or there are none.
    """
    if compress_order not in ("first", "best"):
        raise ValueError(f"compress_order must be first or best, got {compress_order!r}")
    if model.description.network.architecture == "pixelcnnpp":
        raise ValueError("the model pixelcnnpp cannot compress images: use lmconv")
    if isinstance(images, (Tensor, np.ndarray)):
        prepared = [model.prepare(images)]
    else:
        prepared = [model.prepare(image[None], first=i) for i, image in enumerate(images)]
    levels = read_levels(model, prepared)
    if not levels:
        raise ValueError("there are no images to compress")
    return encode_all(model, levels, (), compress_order == "best", compress_views).data


def decompress(model: ImageModel, data: bytes) -> Tensor | list[Tensor]:
    """Decompress the images that ``compress`` or ``--mode compress`` has stored.

    Args:
        model: the model that the images were compressed with.
        data: the contents of a whole file.

    Returns:
        ``B x C x H x W``, float, on the model's grid in [-1, 1], on the CPU; or a list of images,
        ``C x H x W``, if they have different sizes.

    Raises:
        CompressedFileError: the file is damaged, or was made with another model.
    """
    collection = CompressedCollection.from_bytes(data)
    for file in collection.files:
        check_file(model, file)
    images: dict[int, Tensor] = {}
    for members, levels in decode_all(model, collection):
        values = from_levels(torch.from_numpy(levels), model.likelihood.num_values)
        images.update(zip(members.tolist(), values, strict=True))
    in_order = [images[index] for index in range(collection.num_images)]
    return torch.stack(in_order) if len(collection.files) == 1 else in_order


def read_levels(model: ImageModel, batches: Iterable[Tensor]) -> list[np.ndarray]:
    """Read batches of images, ``B x C x H x W``, as levels from 0 to V - 1.

    Returns:
        For each image ``C x H x W``, of the ``pixel_type`` of V.
    """
    num_values = model.likelihood.num_values
    kind = pixel_type(num_values)
    parts = (to_levels(batch, num_values).cpu().numpy().astype(kind) for batch in batches)
    return [levels for part in parts for levels in part]


def encode_all(
    model: ImageModel,
    levels: Sequence[np.ndarray],
    names: Sequence[str] = (),
    choose_best: bool = False,
    compress_views: int = 1,
    batch_size: int | None = None,
    scored_at_once: int | None = None,
    on_step: OnStep = lambda pixels: None,
    processes: Processes | None = None,
) -> EncodedCollection:
    """Compress images of any sizes.

    Args:
        model: the model to code with.
        levels: N images, ``C x H x W``, pixel values from 0 to V - 1, at least one.
        names: names of the images; empty if the images only have numbers.
        choose_best, compress_views, batch_size, scored_at_once, on_step, processes: as in
            ``codec.encode``.

    Raises:
        ValueError, CheckpointError: as ``codec.encode``.
    """
    shapes = [image.shape for image in levels]
    sizes = list(dict.fromkeys(shapes))
    for size in sizes:
        check_views(size, compress_views)
    places = np.array([sizes.index(shape) for shape in shapes])
    limits = {"batch_size": batch_size, "scored_at_once": scored_at_once}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    files, promised_bits, images_of_orders = [], 0.0, np.zeros(0, dtype=np.int64)
    images_of_views = np.zeros(compress_views, dtype=np.int64)
    for place in range(len(sizes)):
        members = np.flatnonzero(places == place).tolist()
        encoding = encode(
            model,
            np.stack([levels[index] for index in members]),
            [names[index] for index in members] if names else [],
            choose_best,
            compress_views,
            on_step=on_step,
            processes=processes,
            **given,
        )
        files.append(encoding.file)
        promised_bits += encoding.promised_bits
        own = np.array(encoding.images_of_orders)
        # Orders of one size may be equal, and are then coded as one.
        images_of_orders = np.pad(images_of_orders, (0, max(0, len(own) - len(images_of_orders))))
        images_of_orders[: len(own)] += own
        images_of_views += encoding.images_of_views
    data = CompressedCollection(files, places).to_bytes()
    CompressedCollection.from_bytes(data)  # raises now what it would raise for a reader
    counts = images_of_orders.tolist(), images_of_views.tolist()
    return EncodedCollection(data, promised_bits, *counts)


def decode_all(
    model: ImageModel,
    collection: CompressedCollection,
    on_step: OnStep = lambda pixels: None,
    processes: Processes | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decompress images of any sizes, of files that ``check_file`` has found right.

    Processes take turns with the sizes, since images of one size can only be decoded one after the
    other, and all of them get all images.

    Args:
        model: the model that the images were compressed with.
        collection: the compressed images.
        on_step: as in ``codec.decode``.
        processes: the processes that share the work; by default only this one.

    Yields:
        Numbers of images among all, and the images, as ``codec.decode``.

    Raises:
        CompressedFileError: as ``codec.decode``.
    """
    processes = processes or Processes(device=model.device)
    # Those that take long are decoded at the same time.
    places = sorted(range(len(collection.files)), key=lambda place: -collection.num_pixels(place))

    def own_batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for place in places[processes.rank :: processes.number]:
            members = collection.members(place)
            for numbers, levels in decode(model, collection.files[place], on_step):
                yield members[numbers], levels

    yield from processes.in_turn(own_batches(), lambda batch: batch)
