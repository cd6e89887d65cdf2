"""MNIST binarized once and for all, read from text files of zeros and ones.

The set of Salakhutdinov and Murray, 2008, as Larochelle and Murray, 2011, offer it: most published
nats of MNIST are on its 10,000 test images.
"""

from pathlib import Path

import numpy as np

from lmconv.data.downloads import ensure, fetch
from lmconv.data.set_files import read_bytes
from lmconv.data.sources import DataError

__all__ = ["read_binary_mnist"]

_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"
_SIDE = 28
_ZERO, _ONE, _NEWLINE = b"01\n"
_BLANKS = np.frombuffer(b" \t\r\n", np.uint8)


def read_binary_mnist(data_dir: Path, part: str) -> np.ndarray:
    """Read a part, ``train``, ``valid`` or ``test``, as uint8 N x 1 x 28 x 28 of 0 and 255.

    Its file is in ``data_dir/binarized_mnist`` or ``data_dir``.

    Raises:
        DataError: the file is damaged, or it is missing and cannot be downloaded.
    """
    name = f"binarized_mnist_{part}.amat"
    places = [data_dir / "binarized_mnist" / name, data_dir / name]
    path = next((place for place in places if place.exists()), places[0])
    ensure(
        data_dir, path.exists, lambda: fetch("binarized MNIST", f"{_URL}/{name}", data_dir, path)
    )
    try:
        return _read_amat(read_bytes(path)) * np.uint8(255)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is damaged or not a file of binarized digits ({error}): replace it, or remove "
            "it to have it downloaded again"
        ) from error


def _read_amat(content: bytes) -> np.ndarray:
    """The images in lines of 784 zeros and ones, one image a line: uint8 N x 1 x 28 x 28.

    Raises:
        ValueError: there is anything else; the message is short.
    """
    text = np.frombuffer(content, np.uint8)
    is_pixel = (text == _ZERO) | (text == _ONE)
    if not np.isin(text[~is_pixel], _BLANKS).all():
        raise ValueError("it has more than zeros, ones and blanks")
    if (is_pixel[1:] & is_pixel[:-1]).any():
        raise ValueError("it has numbers of several digits")
    starts = np.append(0, np.flatnonzero(text[:-1] == _NEWLINE))
    in_lines = np.add.reduceat(is_pixel, starts, dtype=np.int64) if len(text) else np.zeros(1)
    wrong = in_lines[(in_lines != 0) & (in_lines != _SIDE**2)]
    if len(wrong) or not in_lines.any():
        number = wrong[0] if len(wrong) else 0
        raise ValueError(f"a line has {number} pixels instead of {_SIDE**2}")
    return (text[is_pixel] == _ONE).astype(np.uint8).reshape(-1, 1, _SIDE, _SIDE)
