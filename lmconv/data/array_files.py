"""Arrays in NumPy's files, mapped into memory instead of read, and never unpickled."""

import logging
import math
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from utils import check_regular

__all__ = ["JoinedArrays", "map_member", "map_npy", "member_names"]

log = logging.getLogger(__name__)

_HEAD = 30  # bytes of what precedes a member of an archive, without its name
_IN_MEMORY = 2**26  # bytes up to which what is compressed is unpacked into memory


class JoinedArrays:
    """Arrays of images one after the other, as a single one: uint8 ``N x C x H x W``.

    Args:
        arrays: at least one array, of ``n x C x H x W`` each; mapped ones take no memory.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = arrays
        self._ends = np.cumsum([len(array) for array in arrays])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        first = self._arrays[0]
        images = np.empty((len(indices), *first.shape[1:]), first.dtype)
        places = np.searchsorted(self._ends, indices, side="right")
        for place in np.unique(places).tolist():
            array, chosen = self._arrays[place], places == place
            images[chosen] = array[indices[chosen] - (self._ends[place] - len(array))]
        return images


def map_npy(path: Path) -> np.ndarray:
    """Map the array of an ``.npy`` file into memory, read-only.

    Raises:
        UserError: it is not a regular file.
        ValueError: it is damaged, another kind of file, or has Python objects.
    """
    check_regular(path)
    with _short_errors(), path.open("rb") as file:
        header = _Header(file)
        return header.mapped(path, file.tell(), path.stat().st_size)


def member_names(path: Path) -> list[str]:
    """The names of the arrays in an ``.npz`` file.

    Raises:
        UserError: it is not a regular file.
        ValueError: it is damaged or another kind of file.
    """
    check_regular(path)
    with _short_errors(), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def map_member(path: Path, name: str, unpack: bool = True) -> np.ndarray:
    """Map an array of an ``.npz`` file into memory, read-only.

    A large one that is compressed is unpacked into a temporary file in the same folder, which has
    no name and is gone with the program.

    Args:
        path: the file.
        name: name of the array.
        unpack: if False, one that is compressed is not unpacked: it has its shape and type, but
            zeros for its values, and takes no memory.

    Raises:
        UserError: it is not a regular file.
        ValueError: it is damaged, has no such array, or one with Python objects.
    """
    check_regular(path)
    with _short_errors(), zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise ValueError(f"it has no array {name}")
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as member:
            header = _Header(member)
            offset, size = member.tell(), info.file_size
            if offset + header.num_bytes != size:
                raise ValueError(f"{name} has {size - offset} bytes for {header.num_bytes}")
            if info.compress_type == zipfile.ZIP_STORED:
                start = _start(path, info)
                return header.mapped(path, start + offset, start + size)
            return header.unpacked(path, member) if unpack else header.zeros()


class _Header:
    """What an array in NumPy's format is like, which precedes its bytes in a file."""

    def __init__(self, file: IO[bytes]) -> None:
        version = np.lib.format.read_magic(file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise ValueError(f"it has an array in version {version} of the format")
        shape, is_fortran, dtype = readers[version](file)
        if dtype.hasobject or dtype.names is not None:
            raise ValueError("it has an array of Python objects: refused")
        if not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("it has an array with an impossible shape")
        self._shape, self._dtype = shape, dtype
        self._order: Literal["C", "F"] = "F" if is_fortran else "C"
        self.num_bytes = math.prod(shape) * dtype.itemsize

    def mapped(self, path: Path, start: int, end: int) -> np.ndarray:
        """The array in the bytes of a file between two places."""
        if start + self.num_bytes > end:
            raise ValueError("it ends too early")
        if self.num_bytes == 0:
            return np.empty(self._shape, self._dtype)
        return np.memmap(path, self._dtype, "r", start, self._shape, self._order)

    def zeros(self) -> np.ndarray:
        """Zeros of the array's shape and type, in no memory."""
        return np.broadcast_to(np.zeros((), self._dtype), self._shape)

    def unpacked(self, path: Path, member: IO[bytes]) -> np.ndarray:
        """The array in what follows of a compressed member of an archive."""
        if self.num_bytes <= _IN_MEMORY:
            array = np.frombuffer(member.read(self.num_bytes), self._dtype)
            return array.reshape(self._shape, order=self._order)
        if (free := shutil.disk_usage(path.parent).free) < self.num_bytes:
            raise ValueError(
                f"it is compressed and takes {self.num_bytes} bytes unpacked, but {path.parent} "
                f"has room for {free}"
            )
        log.info("unpacking %s: %.1f GB in %s for now", path, self.num_bytes / 1e9, path.parent)
        with tempfile.TemporaryFile(dir=path.parent) as file:
            shutil.copyfileobj(member, file, 2**18)
            file.flush()
            return np.memmap(file, self._dtype, "r", 0, self._shape, self._order)


def _start(path: Path, info: zipfile.ZipInfo) -> int:
    """The place of the first byte of a member in its archive."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        head = file.read(_HEAD)
    lengths = np.frombuffer(head[26:30], "<u2")  # of its name, and of what else is said of it
    return info.header_offset + _HEAD + int(lengths.sum())


@contextmanager
def _short_errors() -> Iterator[Any]:
    """Turn whatever a reader says of a damaged file into a ValueError with one short line."""
    try:
        yield
    except Exception as error:  # on damaged files, readers can raise almost anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(reason) from error
