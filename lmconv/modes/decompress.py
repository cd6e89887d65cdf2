"""``--mode decompress``: write the images of a compressed file as PNG files, or as arrays."""

import logging
import os
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lmconv.compression.codec import check_file
from lmconv.compression.collection import decode_all
from lmconv.compression.environment import Environment
from lmconv.compression.fields import CompressedFileError, read_compressed
from lmconv.compression.file_format import CompressedCollection
from lmconv.data.image_files import suffix_for, write_pixels
from lmconv.file_names import printable
from lmconv.modes import UsageError
from lmconv.modes.compress import check_codec
from lmconv.modes.run import Run
from lmconv.pixel_values import sizes_in_words, to_pixels
from utils import UserError, folder_in_place

__all__ = ["check", "run"]

log = logging.getLogger(__name__)


def check(run: Run) -> None:
    """Raise UserError if the file is missing, damaged, or made with another model."""
    check_codec(run, "a folder to write")
    if run.args.input is None:
        raise UsageError("--mode decompress needs --input: the file to decompress")
    output = Path(run.args.output)
    if os.path.lexists(output):
        raise UsageError(f"--output {output} exists: give a new folder")
    _open(run)


def run(run: Run) -> None:
    """Write the images of ``--input`` as files, PNG or arrays, into ``--output``.

    The folder only appears once all images are in it and known to be right. Processes share out the
    sizes of the images, and process 0 writes the files.

    Raises:
        CompressedFileError: an image differs from the one that was compressed.
    """
    args, processes, begin = run.args, run.processes, time.monotonic()
    collection = _open(run)
    environment = collection.files[0].environment
    differences = environment.differences(Environment.here(run.model.device))
    if differences:
        log.warning(
            "%s was made with %s; an error will say so if an image comes out differently",
            *(printable(args.input), ", ".join(differences)),
        )
    shapes = [file.image_shape for file in collection.files]
    if len(shapes) < processes.number:
        log.warning(
            "processes share out the sizes of images: %s has %d, so no more than %d of the %d "
            "processes can work",
            *(printable(args.input), len(shapes), len(shapes), processes.number),
        )
    per_image = sum(map(collection.num_pixels, range(len(shapes)))) / collection.num_images
    with run.progress_bar("decompressing", collection.num_images, per_image) as bar:
        batches = decode_all(run.model, collection, bar.update, processes)
        try:
            if processes.is_main:
                _write(run, collection, batches)
            else:
                deque(batches, maxlen=0)  # decodes this process's share
        except CompressedFileError as error:
            raise CompressedFileError(f"--input {args.input}: {error}") from error
    log.info(
        "%d images of %s in %s, all the same as before compression; %.1f s",
        *(collection.num_images, sizes_in_words(shapes), printable(args.output)),
        time.monotonic() - begin,
    )


def _write(
    run: Run, collection: CompressedCollection, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> None:
    """Write the images of all batches, as ``decode_all`` yields them, into ``--output``."""
    with folder_in_place(Path(run.args.output)) as folder:
        for members, levels in batches:
            pictures = to_pixels(levels, run.model.likelihood.num_values)
            for member, pixels in zip(members.tolist(), pictures, strict=True):
                suffix = suffix_for(len(pixels))
                write_pixels(pixels, folder / f"{collection.names[member]}{suffix}")


def _open(run: Run) -> CompressedCollection:
    """Read the file ``--input``.

    Raises:
        CompressedFileError: it is missing, damaged, or made with another model.
    """
    name = run.args.input
    try:
        collection = CompressedCollection.from_bytes(read_compressed(Path(name)))
        for file in collection.files:
            check_file(run.model, file)
    except OSError as error:
        raise CompressedFileError(f"--input {name}: {error.strerror}") from error
    except UserError as error:
        raise CompressedFileError(f"--input {name}: {error}") from error
    return collection
