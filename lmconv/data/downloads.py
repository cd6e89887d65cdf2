"""Data sets that are not there, downloaded where torchvision or their authors offer them."""

from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from lmconv.data.sources import DataError

__all__ = ["DATA_DIR", "download"]

# The folder that a set is downloaded into by default; no other is made.
DATA_DIR = "data"


def download(name: str, data_dir: Path, folder: Path, files: str) -> None:
    """Let torchvision download a set to its usual place under ``data_dir``.

    Args:
        name: the set's class in ``torchvision.datasets``.
        data_dir: the folder of data sets.
        folder: where the set's files will be.
        files: what people would have to put there themselves, for errors.

    Raises:
        DataError: ``data_dir`` does not exist and is not the default, or downloading fails.
    """
    if not data_dir.is_dir() and str(data_dir) != DATA_DIR:
        raise DataError(
            f"the folder {data_dir} does not exist: make it, to have {name} downloaded into it, or "
            "give another `data_dir`"
        )
    try:
        import torchvision
    except ImportError as error:
        raise DataError(
            f"{name} is not in {folder}, and downloading it needs torchvision: pip install "
            f"torchvision, or put {files} there"
        ) from error
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        getattr(torchvision.datasets, name)(data_dir, download=True)
    except (OSError, RuntimeError, HTTPException, EOFError) as error:
        for path in new:
            with suppress(OSError):  # it is not empty
                path.rmdir()
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name} is not in {folder} and could not be downloaded ({reason}): put {files} there "
            "or point `data_dir` at a folder that has them"
        ) from error
