"""``--mode compress``: store images in the number of bits that the model promises."""

import errno
import importlib.util
import itertools
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lmconv.compression.codec import check_views, file_orders
from lmconv.compression.collection import EncodedCollection, encode_all, read_levels
from lmconv.compression.fields import is_compressed_file
from lmconv.compression.other_formats import other_formats
from lmconv.data.image_files import unseen
from lmconv.file_names import distinct_names, name_limit, portable_name, printable
from lmconv.modes import UsageError
from lmconv.modes.results import ResultFiles
from lmconv.modes.run import Run, checked_one_size
from lmconv.pixel_values import ImageShape, sizes_in_words, to_pixels
from utils import progress, write_atomically

__all__ = ["check", "check_codec", "run"]

log = logging.getLogger(__name__)


def check(run: Run) -> None:
    """Raise UserError if the model, the images or the file to write are not suitable."""
    check_codec(run, "a file to write")
    output = Path(run.args.output)
    if output.exists() and not is_compressed_file(output):
        raise UsageError(
            f"--output {output} already exists and is not a compressed file: give another name"
        )
    takes_best, views = run.args.compress_order == "best", run.args.compress_views or 1

    def check_shape(shape: ImageShape) -> None:
        file_orders(run.model, shape, takes_best)
        check_views(shape, views)

    run.check_images(check_shape)


def check_codec(run: Run, output: str) -> None:
    """Check what compressing and decompressing have in common.

    Args:
        run: the run.
        output: what ``--output`` is, for an error.

    Raises:
        UsageError: a flag or a package is missing, or does not fit.
    """
    args = run.args
    if args.output is None:
        raise UsageError(f"--mode {args.mode} needs --output: {output}")
    _check_output(Path(args.output), run.run_dir)
    if importlib.util.find_spec("constriction") is None:
        raise UsageError(f"--mode {args.mode} needs constriction: pip install constriction")
    if args.model == "pixelcnnpp":
        raise UsageError(f"--mode {args.mode} needs masked convolutions: use --model lmconv")
    if args.precision != "fp32":
        raise UsageError(
            f"--mode {args.mode} has a precision of its own: leave out --precision {args.precision}"
        )
    checked_one_size(run)


def _check_output(output: Path, run_dir: Path) -> None:
    """Raise UsageError if a file or folder cannot be written, before the work that goes into it."""
    path, run_path = Path(os.path.realpath(output)), run_dir.resolve()
    if path == run_path or path in run_path.parents:
        raise UsageError(f"--output {output} is the run directory or above it: give another path")
    folder = path.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        longest = max(len(os.fsencode(part)) for part in path.relative_to(folder).parts)
        if longest > name_limit(folder):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with suppress(FileNotFoundError):
            path.stat()
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"--output {output} cannot be written ({error.strerror}): give another path"
        ) from error


@dataclass(frozen=True)
class _ImageSet:
    """Images as they are coded.

    Attributes:
        levels: N images, ``C x H x W``, from 0 to V - 1, of the ``pixel_type`` of V.
        names: names for the files; empty if the images only have numbers.
    """

    levels: list[np.ndarray]
    names: list[str]

    @property
    def num_pixels(self) -> int:
        """The number of pixels of all images."""
        return sum(image[0].size for image in self.levels)


def run(run: Run) -> None:
    """Compress ``--images``, or the test set, into the file ``--output``.

    The report, which is printed and written to ``compress_NAME.json`` in the run directory, has the
    bits that the likelihood promises, those of the file, and those of other formats.
    """
    args, begin = run.args, time.monotonic()
    if run.model.description.classes:
        log.info("compressing without labels: files do not hold the classes of images")
    images = _read_images(run)
    number = len(images.levels)
    with run.progress_bar("compressing", number, images.num_pixels / number) as bar:
        encoding = encode_all(
            run.model,
            images.levels,
            images.names,
            args.compress_order == "best",
            args.compress_views or 1,
            args.sample_batch_size,
            args.batch_size,
            bar.update,
            run.processes,
        )
    files = ResultFiles(run, f"compress_{Path(args.output).stem}")
    if run.processes.is_main:
        write_atomically(Path(args.output), lambda temporary: temporary.write_bytes(encoding.data))
        _report(run, files, images, encoding, time.monotonic() - begin)


def _read_images(run: Run) -> _ImageSet:
    """Read the images as the model sees them, with a warning if files contain more than that.

    Each process reads its share, and all get all of them.
    """
    args, num_values, processes = run.args, run.model.likelihood.num_values, run.processes
    data = run.images
    are_files = bool(args.images) or args.dataset == "folder"
    are_pieces = args.crop and not args.images  # which leave out more by intention

    def read(numbered: tuple[int, Tensor]) -> list[tuple[np.ndarray, list[str]]]:
        """The levels of each image of a batch, and what its file contains beyond them."""
        first, batch = numbered
        levels = read_levels(run.model, [batch])
        if not are_files or are_pieces:
            return [(each, []) for each in levels]
        paths = [Path(data.name(first + index)) for index in range(len(levels))]
        pairs = zip(paths, levels, strict=True)
        return [(each, unseen(path, to_pixels(each, num_values))) for path, each in pairs]

    parts = processes.in_turn(run.batches_of(data), read)
    shown = progress(parts, "reading", data.num_batches(), is_on=processes.is_main)
    levels, found = zip(*itertools.chain.from_iterable(shown), strict=True)
    if not are_files:
        return _ImageSet(list(levels), [])
    paths = [Path(data.name(index)) for index in range(len(levels))]
    changed = [(path, what) for path, what in zip(paths, found, strict=True) if what]
    if changed:
        counts = Counter(itertools.chain.from_iterable(what for _, what in changed))
        log.warning(
            "%d of %d files, the first being %s, contain more than the model sees (%s): only what "
            "the model sees is compressed",
            *(len(changed), len(paths), printable(changed[0][0])),
            ", ".join(f"{what}: {number}" for what, number in counts.items()),
        )
    return _ImageSet(list(levels), [] if args.no_names else _file_names(paths))


def _file_names(paths: Sequence[Path]) -> list[str]:
    """Make a different name for each of several files, without folder and suffix."""
    names = distinct_names(portable_name(path.stem) for path in paths)
    renamed = [pair for pair in zip(paths, names, strict=True) if pair[0].stem != pair[1]]
    if renamed:
        log.warning(
            "%d of %d files get other names, the first being %s, stored as %s: names have to be "
            "different, and possible on every system",
            *(len(renamed), len(paths), printable(renamed[0][0]), renamed[0][1]),
        )
    return names


def _report(
    run: Run,
    files: ResultFiles,
    images: _ImageSet,
    encoding: EncodedCollection,
    seconds: float,
) -> None:
    """Report what was promised, what the file takes, and what other formats take."""
    args, promised_bits, num_bytes = run.args, encoding.promised_bits, len(encoding.data)
    number, channels = len(images.levels), run.model.image_shape[0]
    dimensions = channels * images.num_pixels
    num_values, shapes = run.model.likelihood.num_values, [each.shape for each in images.levels]
    others = other_formats([to_pixels(each, num_values) for each in images.levels])
    record: dict[str, Any] = {
        "output": args.output,
        "part": None if args.images else run.part,
        "num_images": number,
        "image_shape": list(shapes[0]) if len(set(shapes)) == 1 else None,
        "bytes": num_bytes,
        "promised_bytes": promised_bits / 8,
        "bpd": 8 * num_bytes / dimensions,
        "promised_bpd": promised_bits / dimensions,
        "images_of_orders": encoding.images_of_orders,
        "images_of_views": encoding.images_of_views,
        "other_codecs": others,
        "seconds": seconds,
    }
    path = files.write(record)
    log.info(
        "%d images of %s in %s: %s bytes in %.1f s",
        *(number, sizes_in_words(list(dict.fromkeys(shapes))), printable(args.output)),
        *(f"{num_bytes:,}", seconds),
    )
    more = 100 * (8 * num_bytes / max(1, promised_bits) - 1)
    log.info(
        "  bits per dimension: promised %.4f (%s bytes), paid %.4f (%+.2f%%)",
        *(record["promised_bpd"], f"{promised_bits / 8:,.1f}", record["bpd"], more),
    )
    for name, sizes in others.items():
        parts = [
            f"{size:,} bytes {what} ({size / num_bytes:.2f} times as many)"
            for what, size in (("in files", sizes["files"]), ("as one sheet", sizes["sheet"]))
            if size is not None
        ]
        log.info("  %-8s %s", f"{name}:", "; ".join(parts))
    log.info("results in %s", printable(path))
