"""Writes and reads compressed images in the format of ``docs/compressed_format.md``.

A file is checked from its first byte on, and its claims are checked against what it contains
before any memory is allocated for them.
"""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmconv.compression.environment import LIBRARIES, Environment
from lmconv.compression.image_coding import CHECK_BITS
from lmconv.file_names import MOST_NAME_BYTES, distinct_names, is_portable, portable_name
from lmconv.pixel_values import ImageShape
from masking import generation_orders
from utils import UserError, check_regular

__all__ = [
    "MOST_IMAGES_AT_ONCE",
    "MOST_ORDERS",
    "MOST_PIXELS",
    "CompressedFile",
    "CompressedFileError",
    "is_compressed_file",
]

_MAGIC = b"\x89LMC"
_VERSION = 2
_READ_VERSIONS = (1, 2)
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
_CHECKSUM_BYTES = 4
MOST_IMAGES_AT_ONCE = 2**16
_MOST_IMAGES = 2**22
MOST_PIXELS = 2**22
MOST_ORDERS = 256
_MOST_THREADS = 1024
_MOST_BYTES_OF_NAMES = 2**26
_MOST_BYTES = 2**31  # a file is read as a whole


class CompressedFileError(UserError):
    """A file cannot be decoded; the message is one line that says why."""


def is_compressed_file(path: Path) -> bool:
    """Whether a file begins like those that ``CompressedFile`` writes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


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
            (``entropy_coding.FirstVersionDecoder``).
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
    version: int = _VERSION

    def name(self, index: int) -> str:
        """The name for the file of an image, without suffix."""
        return self.names[index] if self.names else f"{index:05d}"

    def to_bytes(self) -> bytes:
        """Write the file; ``from_bytes`` reads it."""
        environment = self.environment
        channels, height, width = self.image_shape
        parts = [
            _MAGIC,
            bytes([self.version]),
            self.model,
            *map(_number, (channels, height, width, self.num_values - 1)),
            *map(_number, (self.num_images, self.batch_size, self.images_per_check)),
            *map(_number, (self.kernel_size, self.max_dilation, len(self.orders))),
            *(_write_order(order, self.image_shape) for order in self.orders),
            *(_number(part) for version in environment.versions for part in version),
            bytes([_DEVICES.index(environment.device)]),
            environment.processor.to_bytes(_CHECKSUM_BYTES, "little"),
            _number(min(environment.threads, _MOST_THREADS)),
            _block("\n".join(self.names).encode() if self.names else b""),
            self.digest,
            self.bits,
        ]
        contents = b"".join(parts)
        return contents + zlib.crc32(contents).to_bytes(_CHECKSUM_BYTES, "little")

    @classmethod
    def from_file(cls, path: Path) -> "CompressedFile":
        """Read a file, once it is known to be one.

        Raises:
            OSError: it cannot be read.
            UserError: it is not a regular file.
            CompressedFileError: as for ``from_bytes``, or it is too large to be read.
        """
        check_regular(path)
        with path.open("rb") as file:
            beginning = file.read(len(_MAGIC))
            if beginning == _MAGIC and os.fstat(file.fileno()).st_size > _MOST_BYTES:
                raise CompressedFileError(f"it is larger than {_MOST_BYTES} bytes")
            if beginning == _MAGIC:
                beginning += file.read(_MOST_BYTES)
        return cls.from_bytes(beginning)

    @classmethod
    def from_bytes(cls, data: bytes) -> "CompressedFile":
        """Read the contents of a whole file, whose images may have at most 2^22 pixels.

        Raises:
            CompressedFileError: the file is damaged, is not a compressed file, or has another
                version.
        """
        version, contents = _checked_contents(data)
        reader = _Reader(contents)
        model = reader.take(_HASH_BYTES)
        shape = reader.number(3), reader.number(2**32), reader.number(2**32)
        if not 0 < shape[1] * shape[2] <= MOST_PIXELS:
            raise CompressedFileError(f"its images are {shape[1]}x{shape[2]}: too large, or empty")
        num_values = reader.number(255) + 1
        num_images = reader.number(_MOST_IMAGES, at_least=1)
        batch_size = reader.number(MOST_IMAGES_AT_ONCE, at_least=1)
        images_per_check = reader.number(batch_size, at_least=1)
        kernel_size, max_dilation = reader.number(2**16), reader.number(2**16)
        num_orders = reader.number(MOST_ORDERS, at_least=1)
        orders = [_read_order(reader, shape) for _ in range(num_orders)]
        environment = Environment(
            tuple(tuple(reader.number(2**32) for _ in range(3)) for _ in LIBRARIES),
            reader.choice(_DEVICES),
            int.from_bytes(reader.take(_CHECKSUM_BYTES), "little"),
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
        )


def _checked_contents(data: bytes) -> tuple[int, bytes]:
    """The version, and the bytes between it and the checksum."""
    if data[: len(_MAGIC)] != _MAGIC:
        raise CompressedFileError("it is not a file of compressed images")
    version = data[len(_MAGIC) : len(_MAGIC) + 1]
    if version and version[0] not in _READ_VERSIONS:
        raise CompressedFileError(
            f"it has version {version[0]} of the format, but this program only reads versions up "
            f"to {_VERSION}: decompress it with the program that made it"
        )
    contents, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if zlib.crc32(contents) != int.from_bytes(checksum, "little"):
        raise CompressedFileError("it is damaged or cut off: its checksum is wrong")
    return version[0], contents[len(_MAGIC) + 1 :]


class _Reader:
    """Reads the contents of a file piece by piece, never more than there is."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def take(self, number: int) -> bytes:
        end = self._place + number
        if end > len(self._data):
            raise CompressedFileError("it is damaged: it ends too early")
        piece, self._place = self._data[self._place : end], end
        return piece

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._place)

    def number(self, most: int, at_least: int = 0) -> int:
        """Read a number that ``_number`` has written."""
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            shift += 7
            if value > most or shift > 63:
                raise CompressedFileError(f"it is damaged: it has a number above {most}")
            if byte < 128:
                break
        if value < at_least:
            raise CompressedFileError("it is damaged: a number is 0 that must be at least 1")
        return value

    def choice(self, values: Sequence[str]) -> str:
        (index,) = self.take(1)
        if index >= len(values):
            raise CompressedFileError(f"it is damaged: {index} does not stand for any of {values}")
        return values[index]

    def block(self, most: int) -> bytes:
        """Read bytes that ``_block`` has written, at most ``most`` once they are unpacked."""
        packed = self.take(self.number(2**40))
        if not packed:
            return b""
        unpacker = zlib.decompressobj()
        try:
            unpacked = unpacker.decompress(packed, most)
        except zlib.error as error:
            raise CompressedFileError(f"it is damaged ({error})") from error
        if unpacker.unused_data:
            raise CompressedFileError("it is damaged: a part goes on beyond its end")
        if not unpacker.eof:
            raise CompressedFileError(f"it is damaged: a part has more than {most} bytes")
        return unpacked


def _number(value: int) -> bytes:
    """Write a whole number from 0, 7 bits a byte, lowest first; only the last byte is below 128."""
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _block(data: bytes) -> bytes:
    """Pack bytes, and put their packed length before them."""
    packed = zlib.compress(data, 9) if data else b""
    return _number(len(packed)) + packed


def _write_order(order: np.ndarray, image_shape: ImageShape) -> bytes:
    for family, name in enumerate(_FAMILIES):
        for variant, known in enumerate(_variants(name, image_shape)):
            if np.array_equal(known, order):
                return bytes([family, variant])
    pixels = order @ [image_shape[2], 1]
    return bytes([_OTHER_ORDER]) + _block(pixels.astype("<u4").tobytes())


def _variants(name: str, image_shape: ImageShape) -> list[np.ndarray]:
    try:
        return generation_orders([name], image_shape, all_variants=True)
    except ValueError:  # hilbert exists only for squares whose side is a power of two
        return []


def _read_order(reader: _Reader, image_shape: ImageShape) -> np.ndarray:
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


def _read_names(reader: _Reader, num_images: int) -> list[str]:
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
