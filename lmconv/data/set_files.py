"""Reading the files of data sets whole, within bounds."""

import gzip
import zlib
from pathlib import Path

from utils import check_regular

__all__ = ["read_bytes"]

_MAX_BYTES = 2**30  # of a file; the largest, of 697,932 letters, takes 547 MB


def read_bytes(path: Path) -> bytes:
    """Read a file of a set, unpacked if its name ends with ``.gz``.

    Raises:
        UserError: it is not a regular file.
        ValueError: it is too large to be a set's, or is not packed as its name says.
        OSError: it cannot be read.
    """
    check_regular(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content: bytes = file.read(_MAX_BYTES + 1)
    except (EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error
    if len(content) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES} bytes, the most that are read")
    return content
