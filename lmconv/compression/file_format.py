"""Writes and reads compressed images in the format of ``docs/compressed_format.md``.

A file is checked from its first byte on, and its claims are checked against what it contains
before any memory is allocated for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lmconv.compression.environment import LIBRARIES, Environment
from lmconv.compression.fields import (
    CHECKSUM_BYTES,
    CompressedFileError,
    Reader,
    block_field,
    number_field,
    sealed,
    unsealed,
)
from lmconv.compression.image_coding import CHECK_BITS
from lmconv.compression.views import num_views
from lmconv.file_names import MOST_NAME_BYTES, distinct_names, is_portable, portable_name
from lmconv.pixel_values import ImageShape
from masking import generation_orders

__all__ = [
    "MOST_IMAGES_AT_ONCE",
    "MOST_ORDERS",
    "MOST_PIXELS",
    "CompressedCollection",
    "CompressedFile",
    "version_for",
]

# The versions of files of images of one size: the most channels, and values of a channel, of each.
_LIMITS = {1: (3, 256), 2: (3, 256), 4: (8, 65536), 5: (8, 65536)}
_VERSION_WITH_VIEWS = 5
# Files refer to these by position, which is part of the format: new ones must come last.
_DEVICES = ("cpu", "cuda")
_FAMILIES = (
    "raster_scan",
    "s_curve",
    "hilbert",
    "gilbert2d",
    "s_curve_center_quarter_last",
    "diagonal",
    "spiral_in",
    "spiral_out",
    "zipper",
)
_OTHER_ORDER = 255  # stands for an order that is given pixel by pixel
_HASH_BYTES = 8
MOST_IMAGES_AT_ONCE = 2**16
_MOST_IMAGES = 2**22
MOST_PIXELS = 2**22
MOST_ORDERS = 256
_MOST_THREADS = 1024
_MOST_BYTES_OF_NAMES = 2**26
_COLLECTION_VERSION = 3
_MOST_PIXELS_OF_ORDERS = 2**26  # all of a file; each takes 16 bytes
_MOST_SIZES = 2**16


@dataclass(frozen=True)
class CompressedFile:
    """The contents of a compressed file.

    Attributes:
        model: hash of the network, 8 bytes.
        image_shape: (C, H, W).
        num_values: V, the number of values of a channel.
        num_images: number of images in the file.
        batch_size: number of images that are decoded at once.
        images_per_check: number of consecutive images of a batch that share a checksum.
        kernel_size, max_dilation: those of the masks.
        orders: each ``(H*W) x 2``; if there are several, each image names its own.
        environment: the environment that the file was made in.
        names: names of the images, without suffix; empty if the images only have numbers.
        digest: hash of all images in the order in which they are coded, 8 bytes.
        bits: the bits of the entropy coder.
        version: version of the format; version 1 differs only in how its bits are decoded
            (``entropy_coding.FirstVersionDecoder``), version 4 only in that it may have more
            channels and values, and version 5 has a number of views after its orders.
        num_views: number of views; if there are several, each image names the one that is coded.
    """

    model: bytes
    image_shape: ImageShape
    num_values: int
    num_images: int
    batch_size: int
    images_per_check: int
    kernel_size: int
    max_dilation: int
    orders: Sequence[np.ndarray]
    environment: Environment
    names: Sequence[str]
    digest: bytes
    bits: bytes
    version: int = 2
    num_views: int = 1

    def name(self, index: int) -> str:
        """The name for the file of an image, without suffix."""
        return self.names[index] if self.names else f"{index:05d}"

    def to_bytes(self) -> bytes:
        """Write the file; ``from_bytes`` reads it."""
        environment = self.environment
        channels, height, width = self.image_shape
        parts = [
            self.model,
            *map(number_field, (channels, height, width, self.num_values - 1)),
            *map(number_field, (self.num_images, self.batch_size, self.images_per_check)),
            *map(number_field, (self.kernel_size, self.max_dilation, len(self.orders))),
            *(_write_order(order, self.image_shape) for order in self.orders),
            number_field(self.num_views) if self.version == _VERSION_WITH_VIEWS else b"",
            *(number_field(part) for version in environment.versions for part in version),
            bytes([_DEVICES.index(environment.device)]),
            environment.processor.to_bytes(CHECKSUM_BYTES, "little"),
            number_field(min(environment.threads, _MOST_THREADS)),
            block_field("\n".join(self.names).encode() if self.names else b""),
            self.digest,
            self.bits,
        ]
        return sealed(self.version, b"".join(parts))

    @classmethod
    def from_bytes(cls, data: bytes) -> "CompressedFile":
        """Read the contents of a whole file, whose images may have at most 2^22 pixels.

        Raises:
            CompressedFileError: the file is damaged, is not a compressed file, or has another
                version.
        """
        version, contents = unsealed(data, _LIMITS)
        reader, (most_channels, most_values) = Reader(contents), _LIMITS[version]
        model = reader.take(_HASH_BYTES)
        shape = reader.number(most_channels), reader.number(2**32), reader.number(2**32)
        if not 0 < shape[1] * shape[2] <= MOST_PIXELS:
            raise CompressedFileError(f"its images are {shape[1]}x{shape[2]}: too large, or empty")
        num_values = reader.number(most_values - 1) + 1
        num_images = reader.number(_MOST_IMAGES, at_least=1)
        batch_size = reader.number(MOST_IMAGES_AT_ONCE, at_least=1)
        images_per_check = reader.number(batch_size, at_least=1)
        kernel_size, max_dilation = reader.number(2**16), reader.number(2**16)
        num_orders = reader.number(MOST_ORDERS, at_least=1)
        _check_orders(num_orders * shape[1] * shape[2])
        orders = [_read_order(reader, shape) for _ in range(num_orders)]
        has_views = version == _VERSION_WITH_VIEWS
        views = reader.number(num_views(shape), at_least=1) if has_views else 1
        environment = Environment(
            tuple(tuple(reader.number(2**32) for _ in range(3)) for _ in LIBRARIES),
            reader.choice(_DEVICES),
            int.from_bytes(reader.take(CHECKSUM_BYTES), "little"),
            reader.number(_MOST_THREADS, at_least=1),
        )
        names = _read_names(reader, num_images)
        digest, bits = reader.take(_HASH_BYTES), reader.rest()
        if len({order.tobytes() for order in orders}) < num_orders:
            raise CompressedFileError("it is damaged: it has the same order twice")
        if num_images // images_per_check * CHECK_BITS > len(bits) * 8:
            raise CompressedFileError(f"it is damaged: it is too short for {num_images} images")
        return cls(
            model,
            shape,
            num_values,
            num_images,
            batch_size,
            images_per_check,
            kernel_size,
            max_dilation,
            orders,
            environment,
            names,
            digest,
            bits,
            version,
            views,
        )


def _check_orders(num_pixels: int) -> None:
    if num_pixels > _MOST_PIXELS_OF_ORDERS:
        raise CompressedFileError(
            f"its orders have more than {_MOST_PIXELS_OF_ORDERS} pixels, the most that fit: "
            "compress the images in several files"
        )


def version_for(image_shape: ImageShape, num_values: int, num_views: int = 1) -> int:
    """The lowest version for such images and views, so that older programs read the file."""
    if num_views > 1:
        return _VERSION_WITH_VIEWS
    is_usual = image_shape[0] in (1, 3) and num_values <= 256
    return 2 if is_usual else 4


@dataclass(frozen=True)
class CompressedCollection:
    """Compressed images of any sizes: a file for those of each size.

    Attributes:
        files: one for each size.
        places: for each image, the number of its file, where it comes after all earlier images that
            are in the same file.
    """

    files: Sequence[CompressedFile]
    places: np.ndarray

    @property
    def num_images(self) -> int:
        """The number of images of all sizes."""
        return len(self.places)

    def members(self, place: int) -> np.ndarray:
        """The numbers, among all images, of those of one file."""
        return np.flatnonzero(self.places == place)

    def num_pixels(self, place: int) -> int:
        """The number of pixels of all images of one file."""
        _, height, width = self.files[place].image_shape
        return self.files[place].num_images * height * width

    @cached_property
    def names(self) -> list[str]:
        """The name for the file of each image, without suffix."""
        names = [f"{index:05d}" for index in range(self.num_images)]
        for place, file in enumerate(self.files):
            for member, name in zip(self.members(place).tolist(), file.names, strict=False):
                names[member] = name
        return names

    def to_bytes(self) -> bytes:
        """Write the collection: as a file of images of one size, if they have one size."""
        parts = [file.to_bytes() for file in self.files]
        if len(parts) == 1:
            return parts[0]
        head = number_field(len(parts)) + number_field(self.num_images)
        places = block_field(self.places.astype("<u2").tobytes())
        sized = (number_field(len(part)) + part for part in parts)
        return sealed(_COLLECTION_VERSION, b"".join([head, places, *sized]))

    @classmethod
    def from_bytes(cls, data: bytes) -> "CompressedCollection":
        """Read the contents of a whole file, of images of one size or of several.

        Raises:
            CompressedFileError: as ``CompressedFile.from_bytes``.
        """
        version, contents = unsealed(data, (*_LIMITS, _COLLECTION_VERSION))
        if version != _COLLECTION_VERSION:
            file = CompressedFile.from_bytes(data)
            return cls([file], np.zeros(file.num_images, dtype=np.int64))
        reader = Reader(contents)
        number = reader.number(_MOST_SIZES, at_least=1)
        num_images = reader.number(_MOST_IMAGES, at_least=1)
        places = np.frombuffer(reader.block(2 * num_images), dtype="<u2").astype(np.int64)
        files: list[CompressedFile] = []
        num_pixels = 0
        for _ in range(number):
            files.append(CompressedFile.from_bytes(reader.take(reader.number(len(contents)))))
            num_pixels += sum(len(order) for order in files[-1].orders)
            _check_orders(num_pixels)
        counts = np.bincount(places, minlength=number).tolist()
        if reader.rest() or counts != [file.num_images for file in files]:
            raise CompressedFileError("it is damaged: its parts do not have the images that it has")
        if len({file.image_shape for file in files}) < number:
            raise CompressedFileError("it is damaged: it has the same size twice")
        names = [name.casefold() for file in files for name in file.names]
        if len(names) not in (0, num_images) or len(set(names)) < len(names):
            raise CompressedFileError(
                "it is damaged: it does not have a different name for each image"
            )
        return cls(files, places)


def _write_order(order: np.ndarray, image_shape: ImageShape) -> bytes:
    for family, name in enumerate(_FAMILIES):
        for variant, known in enumerate(_variants(name, image_shape)):
            if np.array_equal(known, order):
                return bytes([family, variant])
    pixels = order @ [image_shape[2], 1]
    return bytes([_OTHER_ORDER]) + block_field(pixels.astype("<u4").tobytes())


def _variants(name: str, image_shape: ImageShape) -> list[np.ndarray]:
    try:
        return generation_orders([name], image_shape, all_variants=True)
    except ValueError:  # hilbert exists only for squares whose side is a power of two
        return []


def _read_order(reader: Reader, image_shape: ImageShape) -> np.ndarray:
    (family,) = reader.take(1)
    _, height, width = image_shape
    if family == _OTHER_ORDER:
        packed = reader.block(4 * height * width)
        pixels = np.frombuffer(packed[: len(packed) // 4 * 4], dtype="<u4").astype(np.int64)
        if not np.array_equal(np.sort(pixels), np.arange(height * width)):
            raise CompressedFileError("it is damaged: an order does not have every pixel once")
        return np.stack(np.divmod(pixels, width), axis=1)
    (variant,) = reader.take(1)
    variants = _variants(_FAMILIES[family], image_shape) if family < len(_FAMILIES) else []
    if variant >= len(variants):
        raise CompressedFileError(f"it is damaged: there is no order {family}, {variant}")
    return variants[variant]


def _read_names(reader: Reader, num_images: int) -> list[str]:
    packed = reader.block(min(num_images * (MOST_NAME_BYTES + 1), _MOST_BYTES_OF_NAMES))
    if not packed:
        return []
    try:
        names = packed.decode().split("\n")
    except UnicodeDecodeError as error:
        raise CompressedFileError("it is damaged: the names of its images are not text") from error
    if len(names) != num_images or len({name.casefold() for name in names}) != num_images:
        raise CompressedFileError("it is damaged: it does not have a different name for each image")
    for name in names:
        if not is_portable(name):
            raise CompressedFileError(f"it is hostile: {name!r} is not allowed as an image's name")
    portable = list(map(portable_name, names))  # which changes names of Windows devices
    return names if portable == names else distinct_names(portable)
