"""CelebA-HQ, read from TFRecords."""

import os
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from lmconv.data.sources import DataError, Source, StreamSource
from utils import check_regular

__all__ = ["CELEBAHQ_SHAPE", "import_tensorflow", "open_celebahq"]

CELEBAHQ_SHAPE = (3, 256, 256)

_MAX_RECORD = 2**24  # bytes; an image takes 197 kB


def open_celebahq(data_dir: Path, part: str, max_batches: int | None) -> Source:
    """Open the TFRecords of one split, whose images are uint8 3 x 256 x 256.

    Raises:
        DataError: there are no files, or tensorflow is missing.
    """
    split = "train" if part == "train" else "validation"
    folder = Path(data_dir) / "celeba-tfr" / split
    files = sorted(folder.glob(f"{split}-r08-s-*-of-*.tfrecords"))
    if not files:
        raise DataError(
            f"there are no files {folder}/{split}-r08-s-*-of-*.tfrecords: put the TFRecords of "
            "CelebA-HQ there or point `data_dir` at the folder that contains celeba-tfr"
        )
    import_tensorflow()
    return StreamSource(files, _read_tfrecords, max_batches)


def import_tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Torch's compiler, if there is one, must be loaded first: both bring LLVM, and the process
    # aborts if tensorflow's is loaded before.
    with suppress(ImportError):
        import_module("triton")
    try:
        import tensorflow
    except ImportError as error:
        raise DataError("the data set celebahq needs tensorflow: pip install tensorflow") from error
    tensorflow.config.set_visible_devices([], "GPU")  # it would take all memory of every GPU
    return tensorflow


def _read_tfrecords(path: Path) -> Iterator[np.ndarray]:
    """Yield the images of a file, uint8 3 x 256 x 256."""
    tf = import_tensorflow()
    check_regular(path)
    try:
        _check_lengths(path)
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            yield _image_of_record(tf, record)
    # TensorFlow's own messages may hold a whole record, and may not even be text.
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged, or not a TFRecord: replace the file") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): replace the file") from error


def _check_lengths(path: Path) -> None:
    """Raise ValueError if a record is longer than its file: TensorFlow would end the process."""
    size, place = path.stat().st_size, 0
    with path.open("rb") as file:
        while head := file.read(8):
            length = int.from_bytes(head, "little")
            place += 16 + length  # its length and its contents, each with a checksum
            if length > _MAX_RECORD or place > size:
                raise ValueError(f"a record of {length} bytes is too long")
            file.seek(place)


def _image_of_record(tf: Any, record: bytes) -> np.ndarray:
    """The image of a record, uint8 3 x 256 x 256.

    Raises:
        ValueError: the record does not have one; the message is short.
    """
    from google.protobuf.message import DecodeError  # comes with tensorflow

    try:
        example = tf.train.Example.FromString(record)
    except DecodeError:
        raise ValueError("a record is not an Example") from None
    values = example.features.feature["data"].bytes_list.value
    if len(values) != 1:
        raise ValueError(f"a record has {len(values)} values of 'data' in bytes instead of one")
    channels, height, width = CELEBAHQ_SHAPE
    if len(values[0]) != channels * height * width:
        raise ValueError(
            f"it has an image of {len(values[0])} bytes instead of {height}x{width}x{channels}"
        )
    image = np.frombuffer(values[0], np.uint8)
    return image.reshape(height, width, channels).transpose(2, 0, 1)
