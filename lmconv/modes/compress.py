"""``--mode compress`` and ``--mode decompress``: images in the bits that the model promises."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmconv.checkpoints import CheckpointError, published_state_dict
from lmconv.compression.entropy_coding import (
    CodingError,
    Decoder,
    Encoder,
    EntropyCoder,
    FirstVersionDecoder,
)
from lmconv.compression.environment import Environment
from lmconv.compression.file_format import (
    MOST_IMAGES_AT_ONCE,
    CompressedFile,
    CompressedFileError,
    is_file_name,
)
from lmconv.compression.image_coding import CHECK_BITS, WrongImagesError, code_images, code_indices
from lmconv.compression.other_formats import other_codecs
from lmconv.data.image_files import holds_exactly, to_picture
from lmconv.generation.sampler import whole_image_schedule
from lmconv.likelihoods import from_levels, to_levels
from lmconv.modes.run import Experiment
from lmconv.scoring import log_likelihood_maps
from utils import ProgressBar, folder_in_place, progress, write_atomically, write_json

__all__ = ["compress", "decompress", "open_compressed"]

# What checksums may take of the bits; small images share them.
_SHARE_OF_CHECKS = 0.002


@dataclass(frozen=True)
class _ImageSet:
    """Images as they are coded.

    Attributes:
        levels: ``N x C x H x W``, uint8, from 0 to V - 1.
        names: what the files are to be called; none for images that have numbers alone.
    """

    levels: np.ndarray
    names: list[str]


class _Codec:
    """The network of a run in double precision, for some orders.

    Args:
        experiment: the run, with the weights loaded; its network is changed to that precision.
        orders: that images are coded in.
    """

    def __init__(self, experiment: Experiment, orders: Sequence[np.ndarray]) -> None:
        self._likelihood = experiment.likelihood
        self._model, shape = experiment.model.eval().double(), experiment.image_shapes[0]
        self._schedules = [
            whole_image_schedule(self._model, order, experiment.masks_of(order, shape))
            for order in orders
        ]
        self.images_at_once = min(schedule.images_at_once for schedule in self._schedules)

    def code(
        self,
        levels: np.ndarray,
        order_indices: np.ndarray,
        batch_size: int,
        images_per_check: int,
        coder: EntropyCoder,
        on_step: Callable[[int], object],
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Code images in batches of one order each; a decoder looks at the numbers of both alone.

        Args:
            levels: ``N x C x H x W``, uint8.
            order_indices: N, the order of each image.
            batch_size, images_per_check, coder, on_step: as in ``code_images``.

        Yields:
            Numbers of the images of a batch, and the images.

        Raises:
            WrongImagesError: with the numbers of images.
            CodingError: as ``code_images``.
        """
        number = len(self._schedules)
        if number > 1:
            order_indices = code_indices(order_indices, number, coder)
        for index, schedule in enumerate(self._schedules):
            members = np.flatnonzero(order_indices == index)
            for first in range(0, len(members), batch_size):
                batch = members[first : first + batch_size]
                try:
                    yield (
                        batch,
                        code_images(
                            self._model,
                            self._likelihood,
                            schedule,
                            levels[batch],
                            coder,
                            images_per_check,
                            on_step,
                        ),
                    )
                except WrongImagesError as error:
                    raise WrongImagesError(batch[error.indices].tolist()) from error


def compress(experiment: Experiment) -> None:
    """``--mode compress``: write ``--images``, or the test set, into the file ``--output``.

    The report (lines, and ``compress_NAME.json`` in the run directory) has the bits that the
    likelihood promises, those of the file, and those of other formats.
    """
    args, shape = experiment.args, experiment.image_shapes[0]
    begin = time.monotonic()
    experiment.load_weights()
    experiment.model.eval()
    images = _read_images(experiment)
    number = len(images.levels)
    orders = experiment.orders(shape)[: None if args.compress_order == "best" else 1]
    orders = list({order.tobytes(): order for order in orders}.values())
    order_indices, promised_bits = _choose_orders(experiment, images.levels, orders)
    model_hash = _model_hash(experiment)
    codec = _Codec(experiment, orders)
    batch_size = min(args.sample_batch_size, codec.images_at_once, number, MOST_IMAGES_AT_ONCE)
    bits_of_image = max(1, promised_bits / number)
    images_per_check = min(batch_size, math.ceil(CHECK_BITS / (_SHARE_OF_CHECKS * bits_of_image)))
    encoder, digest = Encoder(), hashlib.blake2b(digest_size=8)
    with ProgressBar("compressing", number, shape[1] * shape[2]) as bar:
        for _, coded in codec.code(
            images.levels, order_indices, batch_size, images_per_check, encoder, bar.update
        ):
            digest.update(coded.tobytes())
    file = CompressedFile(
        model=model_hash,
        image_shape=shape,
        num_values=experiment.likelihood.num_values,
        num_images=number,
        batch_size=batch_size,
        images_per_check=images_per_check,
        kernel_size=args.kernel_size,
        max_dilation=args.max_dilation,
        orders=orders,
        environment=Environment.here(experiment.device),
        names=images.names,
        digest=digest.digest(),
        bits=encoder.finish(),
    ).to_bytes()
    CompressedFile.from_bytes(file, shape)  # raises what it would raise to whoever reads it
    write_atomically(Path(args.output), lambda temporary: temporary.write_bytes(file))
    seconds = time.monotonic() - begin
    images_of_orders = np.bincount(order_indices, minlength=len(orders)).tolist()
    _report(experiment, images, images_of_orders, promised_bits, len(file), seconds)


def decompress(experiment: Experiment) -> None:
    """``--mode decompress``: write the images of ``--input`` as PNG files into ``--output``.

    The folder appears when all images are in it and right.

    Raises:
        CompressedFileError: the file is damaged or of another model, or an image is not what it
            was.
    """
    args = experiment.args
    begin = time.monotonic()
    experiment.load_weights()
    file = open_compressed(experiment)
    if file.model != _model_hash(experiment):
        raise CompressedFileError(
            f"{args.input} was made with another model: give the --load_params and the flags of "
            "the model that made it"
        )
    differences = file.environment.differences(Environment.here(experiment.device))
    if differences:
        experiment.log.warning(
            "%s was made with %s; an error will say if an image comes out otherwise",
            *(args.input, ", ".join(differences)),
        )
    codec = _Codec(experiment, file.orders)
    if file.batch_size > codec.images_at_once:
        raise CompressedFileError(
            f"{args.input} wants {file.batch_size} images at once, which do not fit into memory"
        )
    decoder = FirstVersionDecoder if file.version == 1 else Decoder
    digest = hashlib.blake2b(digest_size=8)
    # Zeros without memory: the decoder finds out what is there.
    nothing = np.broadcast_to(np.uint8(0), (file.num_images, *file.image_shape))
    unknown = np.zeros(file.num_images, dtype=np.int64)
    _, height, width = file.image_shape
    with (
        folder_in_place(Path(args.output)) as folder,
        ProgressBar("decompressing", file.num_images, height * width) as bar,
    ):
        try:
            for members, levels in codec.code(
                nothing,
                unknown,
                file.batch_size,
                file.images_per_check,
                decoder(file.bits),
                bar.update,
            ):
                digest.update(levels.tobytes())
                for member, pixels in zip(
                    members, _to_pixels(levels, file.num_values), strict=True
                ):
                    to_picture(pixels).save(folder / f"{_name(file, member)}.png")
            if digest.digest() != file.digest:
                raise WrongImagesError(range(file.num_images))
        except (CodingError, WrongImagesError) as error:
            raise CompressedFileError(_failure(args.input, file, error, differences)) from error
    seconds = time.monotonic() - begin
    experiment.log.info(
        "%d images of %s in %s, all as they were; %.1f s",
        *(file.num_images, "x".join(map(str, file.image_shape)), args.output, seconds),
    )


def open_compressed(experiment: Experiment) -> CompressedFile:
    """Read the file ``--input``, and check all that can be checked without the weights.

    Raises:
        CompressedFileError: it is missing or damaged, or of images or masks that the command line
            does not describe.
    """
    args = experiment.args
    try:
        data = Path(args.input).read_bytes()
    except OSError as error:
        raise CompressedFileError(f"--input {args.input}: {error.strerror}") from error
    try:
        file = CompressedFile.from_bytes(data, experiment.image_shapes[0])
    except CompressedFileError as error:
        raise CompressedFileError(f"--input {args.input}: {error}") from error
    for what, theirs, ours, flag in (
        ("pixels of as many values", file.num_values, experiment.likelihood.num_values, "n_bits"),
        ("a kernel of size", file.kernel_size, args.kernel_size, "kernel_size"),
        ("a dilation of", file.max_dilation, args.max_dilation, "max_dilation"),
    ):
        if theirs != ours:
            raise CompressedFileError(
                f"--input {args.input} was made with {what}: {theirs}, and the model has {ours}: "
                f"give --{flag} and the other flags of the model that made it"
            )
    return file


def _name(file: CompressedFile, index: int) -> str:
    return file.names[index] if file.names else f"{index:05d}"


def _failure(name: str, file: CompressedFile, error: Exception, differences: Sequence[str]) -> str:
    """What to tell about a file that decodes to something else than was encoded."""
    what = f"{name} cannot be decoded: {error}"
    if isinstance(error, WrongImagesError):
        number = len(error.indices)
        first, last = _name(file, error.indices[0]), _name(file, error.indices[-1])
        others = f" or another of the {number} up to {last}" if number > 1 else ""
        what = f"the image {first}{others} of {name} is not what it was when it was compressed"
    if not differences:
        return f"{what}: the file is damaged, and nothing was written"
    return f"{what}, and nothing was written: decompress it where there is {', '.join(differences)}"


def _read_images(experiment: Experiment) -> _ImageSet:
    """The images of the command line as the model sees them; says which files have more in them."""
    args, num_values = experiment.args, experiment.likelihood.num_values
    data = experiment.open_images()
    parts = [
        to_levels(batch, num_values).to(torch.uint8).numpy()
        for batch in progress(data.batches(experiment.image_shapes[0]), "reading")
    ]
    levels = np.concatenate(parts)
    if not args.images and args.dataset != "folder":
        return _ImageSet(levels, [])
    paths = [Path(data.name(index)) for index in range(len(levels))]
    changed = [
        path
        for path, pixels in zip(paths, _to_pixels(levels, num_values), strict=True)
        if not holds_exactly(path, pixels)
    ]
    if changed:
        experiment.log.warning(
            "%d of %d files, %s the first, are not as the model sees images (size, colours, bits, "
            "transparency): what is compressed is what the model sees",
            *(len(changed), len(paths), changed[0]),
        )
    return _ImageSet(levels, _file_names(paths))


def _file_names(paths: Sequence[Path]) -> list[str]:
    """A different name for each of several files, without folder and suffix."""
    names = []
    for path in paths:
        name = "".join(
            letter if is_file_name(letter) or letter == "." else "_" for letter in path.stem
        )
        names.append(name if is_file_name(name) else "image")
    if len({name.casefold() for name in names}) == len(names):
        return names
    return [f"{index:05d}" for index in range(len(names))]


def _choose_orders(
    experiment: Experiment, levels: np.ndarray, orders: Sequence[np.ndarray]
) -> tuple[np.ndarray, float]:
    """The order in which each image is the likeliest, and the bits of all images in theirs."""
    shape, size = experiment.image_shapes[0], experiment.args.batch_size
    masks = [experiment.masks_of(order, shape) for order in orders]
    bits = []
    for first in progress(range(0, len(levels), size), "choosing orders"):
        part = torch.from_numpy(levels[first : first + size])
        images = from_levels(part, experiment.likelihood.num_values).to(experiment.device)
        maps = log_likelihood_maps(experiment.model, experiment.likelihood, images, masks)
        joint = torch.stack([per_pixel.double().sum(dim=(1, 2)).cpu() for per_pixel in maps])
        bits.append(-joint / math.log(2))
    fewest, indices = torch.cat(bits, dim=1).min(dim=0)
    if not fewest.isfinite().all():
        raise CheckpointError(
            "the weights give images no probability (not a number): use another checkpoint"
        )
    return indices.numpy(), fewest.sum().item()


def _to_pixels(levels: np.ndarray, num_values: int) -> np.ndarray:
    """Levels from 0 to V - 1 as 8 bits; images with these pixels have these levels."""
    return np.rint(levels * (255 / (num_values - 1))).astype(np.uint8)


def _model_hash(experiment: Experiment) -> bytes:
    """Eight bytes that another network, or another meaning of its output, does not have."""
    args, likelihood = experiment.args, experiment.likelihood
    settings = (
        *(args.model, args.nr_resnet, args.nr_filters, args.kernel_size, args.max_dilation),
        *(args.normalization, args.no_bias, args.learn_weight_for_masks),
        *(type(likelihood).__name__, likelihood.num_channels, likelihood.num_values),
        likelihood.num_output_channels,
    )
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=8)
    for name, weight in sorted(published_state_dict(experiment.model).items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.cpu().numpy().astype("<f4").tobytes())
    return digest.digest()


def _report(
    experiment: Experiment,
    images: _ImageSet,
    images_of_orders: list[int],
    promised_bits: float,
    num_bytes: int,
    seconds: float,
) -> None:
    """Say what was promised, what was paid, and what other formats take."""
    args, log = experiment.args, experiment.log
    number, dimensions = len(images.levels), images.levels.size
    codecs = other_codecs(_to_pixels(images.levels, experiment.likelihood.num_values))
    record: dict[str, Any] = {
        "output": args.output,
        "num_images": number,
        "image_shape": list(experiment.image_shapes[0]),
        "bytes": num_bytes,
        "promised_bytes": promised_bits / 8,
        "bpd": 8 * num_bytes / dimensions,
        "promised_bpd": promised_bits / dimensions,
        "images_of_orders": images_of_orders,
        "other_codecs": codecs,
        "seconds": seconds,
        "args": vars(args),
    }
    path = experiment.run_dir / f"compress_{Path(args.output).stem}.json"
    write_json(path, record)
    log.info(
        "%d images of %s in %s: %s bytes in %.1f s",
        *(number, "x".join(map(str, record["image_shape"])), args.output),
        *(f"{num_bytes:,}", seconds),
    )
    more = 100 * (8 * num_bytes / max(1, promised_bits) - 1)
    log.info(
        "  bits per dimension: promised %.4f (%s bytes), paid %.4f (%+.2f%%)",
        *(record["promised_bpd"], f"{promised_bits / 8:,.1f}", record["bpd"], more),
    )
    for name, sizes in codecs.items():
        parts = [
            f"{size:,} bytes {what} ({size / num_bytes:.2f} times as many)"
            for what, size in (("in files", sizes["files"]), ("as one sheet", sizes["sheet"]))
            if size is not None
        ]
        log.info("  %-8s %s", f"{name}:", "; ".join(parts))
    log.info("results in %s", path)
