"""The parts that compressed files are made of, and reading them from files that may be hostile."""

import os
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

from utils import UserError, check_regular

__all__ = [
    "CHECKSUM_BYTES",
    "CompressedFileError",
    "Reader",
    "block_field",
    "is_compressed_file",
    "number_field",
    "read_compressed",
    "sealed",
    "unsealed",
]

_MAGIC = b"\x89LMC"
CHECKSUM_BYTES = 4
_MOST_BYTES = 2**31  # a file is read as a whole


class CompressedFileError(UserError):
    """A file cannot be decoded; the message is one line that says why."""


def is_compressed_file(path: Path) -> bool:
    """Whether a file begins like those that ``CompressedFile`` writes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_compressed(path: Path) -> bytes:
    """Read a file as a whole, once it is known to be of compressed images.

    Raises:
        OSError: it cannot be read.
        UserError: it is not a regular file.
        CompressedFileError: it is too large to be read.
    """
    check_regular(path)
    with path.open("rb") as file:
        beginning = file.read(len(_MAGIC))
        if beginning == _MAGIC and os.fstat(file.fileno()).st_size > _MOST_BYTES:
            raise CompressedFileError(f"it is larger than {_MOST_BYTES} bytes")
        if beginning == _MAGIC:
            beginning += file.read(_MOST_BYTES)
    return beginning


def sealed(version: int, contents: bytes) -> bytes:
    """A whole file: the contents, with what says what they are, and with a checksum."""
    data = _MAGIC + bytes([version]) + contents
    return data + zlib.crc32(data).to_bytes(CHECKSUM_BYTES, "little")


def unsealed(data: bytes, versions: Collection[int]) -> tuple[int, bytes]:
    """The version and the contents of a whole file.

    Raises:
        CompressedFileError: the file is damaged, is not a compressed file, or has another version.
    """
    if data[: len(_MAGIC)] != _MAGIC:
        raise CompressedFileError("it is not a file of compressed images")
    version = data[len(_MAGIC) : len(_MAGIC) + 1]
    if version and version[0] not in versions:
        raise CompressedFileError(
            f"it has version {version[0]} of the format, which this program does not read here: "
            "decompress it with the program that made it"
        )
    contents, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if zlib.crc32(contents) != int.from_bytes(checksum, "little"):
        raise CompressedFileError("it is damaged or cut off: its checksum is wrong")
    return version[0], contents[len(_MAGIC) + 1 :]


class Reader:
    """Reads the contents of a file piece by piece, never more than there is.

    All methods raise CompressedFileError where the contents are damaged.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def take(self, number: int) -> bytes:
        """Read this many bytes."""
        end = self._place + number
        if end > len(self._data):
            raise CompressedFileError("it is damaged: it ends too early")
        piece, self._place = self._data[self._place : end], end
        return piece

    def rest(self) -> bytes:
        """Read all that is left."""
        return self.take(len(self._data) - self._place)

    def number(self, most: int, at_least: int = 0) -> int:
        """Read a number that ``number_field`` has written."""
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
        """Read which of some values is meant, a byte."""
        (index,) = self.take(1)
        if index >= len(values):
            raise CompressedFileError(f"it is damaged: {index} does not stand for any of {values}")
        return values[index]

    def block(self, most: int) -> bytes:
        """Read bytes that ``block_field`` has written, at most ``most`` once they are unpacked."""
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


def number_field(value: int) -> bytes:
    """Write a whole number from 0, 7 bits a byte, lowest first; only the last byte is below 128."""
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def block_field(data: bytes) -> bytes:
    """Pack bytes, and put their packed length before them."""
    packed = zlib.compress(data, 9) if data else b""
    return number_field(len(packed)) + packed
