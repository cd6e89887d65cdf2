"""Sets in MATLAB files: SVHN, and Omniglot as papers on likelihoods use it."""

from pathlib import Path

import numpy as np

from lmconv.data.downloads import download, ensure, fetch
from lmconv.data.sources import DataError
from utils import check_regular

__all__ = [
    "NUM_ALPHABETS",
    "read_omniglot_images",
    "read_omniglot_labels",
    "read_svhn_images",
    "read_svhn_labels",
]

# The 28 x 28 images of Burda, Grosse and Salakhutdinov, 2015.
_OMNIGLOT_URL = (
    "https://raw.githubusercontent.com/yburda/iwae/master/datasets/OMNIGLOT/chardata.mat"
)
_OMNIGLOT_MD5 = "21ecaf34373511aa7691cf2e0802aa3d"
NUM_ALPHABETS = 50

_MAX_BYTES = 2**31  # of a file; that of SVHN's training images has 182 MB


def read_svhn_images(data_dir: Path, part: str) -> np.ndarray:
    """Read the house numbers of a part, ``train`` or ``test``, as uint8 N x 3 x 32 x 32.

    Raises:
        DataError: the file is damaged, or it is missing and cannot be downloaded.
    """
    path = _svhn_file(data_dir, part)
    (images,) = _variables(path, "X")  # H x W x C x N
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise _damaged(path, "X must be uint8 of 32 x 32 x 3 x N")
    return images.transpose(3, 2, 0, 1)


def read_svhn_labels(data_dir: Path, part: str) -> np.ndarray:
    """Read the digits in the middle of the images of a part, int64 N.

    Raises:
        DataError: as ``read_svhn_images``.
    """
    path = _svhn_file(data_dir, part)
    images, labels = _variables(path, "X", "y")
    digits = labels.ravel().astype(np.int64) if labels.dtype.kind in "ui" else np.zeros(0, np.int64)
    if digits.size != images.shape[-1] or digits.min() < 1 or digits.max() > 10:
        raise _damaged(path, f"y must be {images.shape[-1]} whole numbers from 1 to 10")
    return digits % 10  # the files have 10 for the digit 0


def _svhn_file(data_dir: Path, part: str) -> Path:
    name = f"{part}_32x32.mat"
    places = [data_dir / name, data_dir / "SVHN" / name, data_dir / "svhn" / name]
    path = next((place for place in places if place.exists()), places[0])
    ensure(data_dir, path.exists, lambda: download("SVHN", data_dir, data_dir, name, split=part))
    return path


def read_omniglot_images(data_dir: Path, part: str) -> np.ndarray:
    """Read the characters of a part, ``train`` or ``test``, as uint8 N x 1 x 28 x 28, ink white.

    The file has intensities in [0, 1], which become the nearest of 256 levels.

    Raises:
        DataError: the file is damaged, or it is missing and cannot be downloaded.
    """
    path = _omniglot_file(data_dir)
    name = "data" if part == "train" else "testdata"
    (pixels,) = _variables(path, name)  # 784 x N, each image column by column
    is_valid = pixels.ndim == 2 and pixels.shape[0] == 784 and pixels.dtype.kind in "fui"
    if not is_valid or not ((pixels >= 0) & (pixels <= 1)).all():
        raise _damaged(path, f"{name} must be 784 x N intensities from 0 to 1")
    levels = np.rint(pixels.T * 255.0).astype(np.uint8)
    return levels.reshape(-1, 1, 28, 28).swapaxes(2, 3)


def read_omniglot_labels(data_dir: Path, part: str) -> np.ndarray:
    """Read which of the 50 alphabets each character of a part is from, int64 N.

    Raises:
        DataError: as ``read_omniglot_images``.
    """
    path = _omniglot_file(data_dir)
    prefix = "" if part == "train" else "test"
    images, alphabets = _variables(path, f"{prefix}data", f"{prefix}target")  # 784 x N, 50 x N
    expected = (NUM_ALPHABETS, images.shape[-1])
    is_valid = alphabets.shape == expected and alphabets.dtype.kind in "fuib"
    if not is_valid or not ((alphabets != 0).sum(axis=0) == 1).all():
        raise _damaged(path, f"{prefix}target must be {expected[0]} x {expected[1]}, one-hot")
    return alphabets.argmax(axis=0).astype(np.int64)


def _omniglot_file(data_dir: Path) -> Path:
    name = "chardata.mat"
    places = [data_dir / place / name for place in ("omniglot", "OMNIGLOT", "")]
    path = next((place for place in places if place.exists()), places[0])
    ensure(
        data_dir,
        path.exists,
        lambda: fetch("Omniglot", _OMNIGLOT_URL, data_dir, path, _OMNIGLOT_MD5),
    )
    return path


def _variables(path: Path, *names: str) -> list[np.ndarray]:
    """Variables of a MATLAB file, which are at least two-dimensional.

    Raises:
        UserError: it is not a regular file.
        DataError: it is damaged or lacks one of them, or scipy is missing.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(f"reading {path} needs scipy: pip install scipy") from error
    check_regular(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes, the most that are read")
        found = loadmat(path, variable_names=names)
        values = [found[name] for name in names]
    except KeyError as error:
        raise _damaged(path, f"it has no variable {error.args[0]}") from error
    except Exception as error:  # on damaged files, the reader can raise almost anything
        raise _damaged(path, " ".join(str(error).split()) or type(error).__name__) from error
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, np.ndarray) or value.ndim < 2 or value.size == 0:
            raise _damaged(path, f"{name} is not an array of numbers")
    return values


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path} is damaged or not a file of this set ({reason}): replace it, or remove it to have "
        "it downloaded again"
    )
