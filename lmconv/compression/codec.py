"""A model as a lossless codec, whose files take the number of bits that the model promises."""

import copy
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmconv.checkpoints import CheckpointError, published_state_dict
from lmconv.compression.entropy_coding import (
    CodingError,
    Decoder,
    Encoder,
    EntropyCoder,
    FirstVersionDecoder,
    Recorder,
)
from lmconv.compression.environment import Environment
from lmconv.compression.fields import CompressedFileError
from lmconv.compression.file_format import (
    MOST_IMAGES_AT_ONCE,
    MOST_ORDERS,
    MOST_PIXELS,
    CompressedFile,
    version_for,
)
from lmconv.compression.image_coding import CHECK_BITS, WrongImagesError, bytes_of, code_images
from lmconv.compression.pixel_coding import code_indices
from lmconv.compression.views import num_views, originals_of, view_of, views_of
from lmconv.distributed import Processes
from lmconv.generation.schedule import Schedule, whole_image_schedule
from lmconv.image_model import ImageModel
from lmconv.orders import Order
from lmconv.pixel_values import ImageShape, from_levels, pixel_type
from utils import progress

__all__ = [
    "Encoding",
    "check_file",
    "check_views",
    "decode",
    "encode",
    "file_orders",
    "model_hash",
]

# The share of the bits that checksums may take; small images share a checksum.
_SHARE_OF_CHECKS = 0.002
# Number of images coded at once, and scored at once, unless the caller says otherwise.
_CODED_AT_ONCE, _SCORED_AT_ONCE = 256, 64
# Fewer large images are coded at once: an encoder has all their logits in memory.
_MOST_BYTES_OF_LOGITS = 2**30

OnStep = Callable[[int], object]


class Encoding(NamedTuple):
    """Compressed images.

    Attributes:
        file: the compressed file.
        promised_bits: number of bits that the images take according to their likelihood.
        images_of_orders: number of images that are coded in each order of the file.
        images_of_views: number of images that are coded as each view.
    """

    file: CompressedFile
    promised_bits: float
    images_of_orders: list[int]
    images_of_views: list[int]


def encode(
    model: ImageModel,
    levels: np.ndarray,
    names: Sequence[str] = (),
    choose_best: bool = False,
    compress_views: int = 1,
    batch_size: int = _CODED_AT_ONCE,
    scored_at_once: int = _SCORED_AT_ONCE,
    on_step: OnStep = lambda pixels: None,
    processes: Processes | None = None,
) -> Encoding:
    """Compress images.

    Processes take turns with the batches, which are the same for any number of processes, and all
    of them get the same file.

    Args:
        model: the model to code with.
        levels: ``N x C x H x W``, pixel values from 0 to V - 1, of the ``pixel_type`` of V; at
            least one image.
        names: names of the images; empty if the images only have numbers.
        choose_best: code each image in the order in which it takes the fewest bits, instead of
            coding all in the first order.
        compress_views: of this many views of each image (``views.view_of``), code the one that
            takes the fewest bits.
        batch_size: maximum number of images to code at once.
        scored_at_once: number of images whose likelihood is computed at once.
        on_step: called after each step with the number of pixels that it coded.
        processes: the processes that share the work, all with all images; by default only this one.

    Raises:
        ValueError: a level is too high, or there are more orders or larger images than a file can
            hold, or fewer views than asked for.
        CheckpointError: the weights do not give the images a valid probability.
    """
    number, shape = len(levels), levels.shape[1:]
    if levels.max() >= model.likelihood.num_values:
        largest = model.likelihood.num_values - 1
        raise ValueError(f"levels must be at most {largest}, got {levels.max()}")
    orders = file_orders(model, shape, choose_best)
    check_views(shape, compress_views)
    processes = processes or Processes(device=model.device)
    views, order_indices, promised_bits = _choose(
        model, levels, compress_views, orders, scored_at_once, processes
    )
    codec = _Codec(model, orders)
    bytes_of_logits = 8 * model.likelihood.num_output_channels * shape[1] * shape[2]
    at_once = max(1, _MOST_BYTES_OF_LOGITS // bytes_of_logits)
    batch_size = min(batch_size, codec.images_at_once, at_once, number, MOST_IMAGES_AT_ONCE)
    bits_of_image = max(1, promised_bits / number)
    images_per_check = min(batch_size, math.ceil(CHECK_BITS / (_SHARE_OF_CHECKS * bits_of_image)))
    encoder, digest = Encoder(), hashlib.blake2b(digest_size=8)
    if compress_views > 1:
        code_indices(views, compress_views, encoder)
    codec.encode(
        *(views_of(levels, views), order_indices, batch_size, images_per_check),
        *(encoder, on_step, processes),
    )
    for _, batch in codec.batches(order_indices, batch_size):
        digest.update(bytes_of(levels[batch]))
    network = model.description.network
    file = CompressedFile(
        model=model_hash(model),
        image_shape=shape,
        num_values=model.likelihood.num_values,
        num_images=number,
        batch_size=batch_size,
        images_per_check=images_per_check,
        kernel_size=network.kernel_size,
        max_dilation=network.max_dilation,
        orders=[order.pixels for order in orders],
        num_views=compress_views,
        environment=Environment.here(model.device),
        names=names,
        digest=digest.digest(),
        bits=encoder.finish(),
        version=version_for(shape, model.likelihood.num_values, compress_views),
    )
    images_of_orders = np.bincount(order_indices, minlength=len(orders)).tolist()
    images_of_views = np.bincount(views, minlength=compress_views).tolist()
    return Encoding(file, promised_bits, images_of_orders, images_of_views)


def file_orders(model: ImageModel, image_shape: ImageShape, choose_best: bool) -> list[Order]:
    """The different orders that a file has: the first of the model's, or all.

    Raises:
        ValueError: there are more orders or larger images than a file can hold.
    """
    orders = model.orders(image_shape)[: None if choose_best else 1]
    different = list({order.pixels.tobytes(): order for order in orders}.values())
    if len(different) > MOST_ORDERS:
        raise ValueError(
            f"the model has {len(different)} orders, but a compressed file holds at most "
            f"{MOST_ORDERS}: choose some with `order_variants`, or leave out `compress_order` best"
        )
    if image_shape[1] * image_shape[2] > MOST_PIXELS:
        raise ValueError(
            f"images in a compressed file have at most {MOST_PIXELS} pixels, but these are "
            f"{image_shape[1]}x{image_shape[2]}: make them smaller"
        )
    return different


def check_views(image_shape: ImageShape, number: int) -> None:
    """Raise ValueError if images of a shape do not have this number of views."""
    most = num_views(image_shape)
    if not 1 <= number <= most:
        size = "x".join(map(str, image_shape))
        raise ValueError(
            f"`compress_views` must be from 1 to {most}, the number of views of images of {size}, "
            f"got {number}"
        )


def check_file(model: ImageModel, file: CompressedFile) -> None:
    """Check that a file was made with this model.

    Raises:
        CompressedFileError: it was made with another one.
    """
    network, channels = model.description.network, model.image_shape[0]
    for what, theirs, ours in (
        ("number of channels", file.image_shape[0], channels),
        ("number of pixel values", file.num_values, model.likelihood.num_values),
        ("kernel size", file.kernel_size, network.kernel_size),
        ("dilation", file.max_dilation, network.max_dilation),
    ):
        if theirs != ours:
            raise CompressedFileError(
                f"it was made with another model, whose {what} is {theirs}, not {ours}: give that "
                "model"
            )
    if file.model != model_hash(model):
        raise CompressedFileError("it was made with another model: give the one that made it")


def decode(
    model: ImageModel, file: CompressedFile, on_step: OnStep = lambda pixels: None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decompress a file that ``check_file`` has found to be made with the model.

    Yields:
        For each batch, the numbers of its images, and the images, ``B x C x H x W``, pixel values
        from 0 to V - 1, of the ``pixel_type`` of V. Do not trust them before the iterator has come
        to its end.

    Raises:
        CompressedFileError: the file is damaged, its images do not fit into memory, or they come
            out otherwise here than in the environment that the file was made in.
    """
    codec = _Codec(model, [model.order(pixels) for pixels in file.orders])
    if file.batch_size > codec.images_at_once:
        raise CompressedFileError(
            f"it decodes {file.batch_size} images at once, which do not fit into memory: "
            "decompress it on a machine that has more"
        )
    digest = hashlib.blake2b(digest_size=8)
    views = np.zeros(file.num_images, dtype=np.int64)
    try:
        decoder = FirstVersionDecoder(file.bits) if file.version == 1 else Decoder(file.bits)
        if file.num_views > 1:
            views = code_indices(views, file.num_views, decoder)
        for members, viewed in codec.decode(
            file.num_images,
            file.image_shape,
            file.batch_size,
            file.images_per_check,
            decoder,
            on_step,
        ):
            levels = originals_of(viewed, views[members])
            digest.update(bytes_of(levels))
            yield members, levels
        if digest.digest() != file.digest:
            raise WrongImagesError(range(file.num_images))
    except (CodingError, WrongImagesError) as error:
        raise CompressedFileError(_failure(file, error, model.device)) from error


def _failure(file: CompressedFile, error: Exception, device: torch.device) -> str:
    """The error message for a file that does not decode to what was encoded."""
    what = f"it cannot be decoded: {error}"
    if isinstance(error, WrongImagesError):
        number = len(error.indices)
        first, last = file.name(error.indices[0]), file.name(error.indices[-1])
        several = f"one of the {number} images from {first} to {last}"
        which = several if number > 1 else f"the image {first}"
        what = f"{which} differs from the one that was compressed"
    differences = file.environment.differences(Environment.here(device))
    if not differences:
        return f"{what}: the file is damaged, and nothing was written"
    return (
        f"{what}, and nothing was written; the file was made with {', '.join(differences)}: "
        "decompress it in that environment"
    )


class _Codec:
    """Codes images in some orders, with the network of a model in double precision."""

    def __init__(self, model: ImageModel, orders: Sequence[Order]) -> None:
        self._likelihood = model.likelihood
        self._network = copy.deepcopy(model.network).eval().double()
        self._schedules = [
            whole_image_schedule(self._network, order.pixels, order.masks) for order in orders
        ]
        self.images_at_once = min(schedule.images_at_once for schedule in self._schedules)

    def batches(
        self, order_indices: np.ndarray, batch_size: int
    ) -> Iterator[tuple[Schedule, np.ndarray]]:
        """The batches in which images are coded, each of images with the same order.

        Yields:
            The schedule of the order, and the numbers of the images.
        """
        for index, schedule in enumerate(self._schedules):
            members = np.flatnonzero(order_indices == index)
            for first in range(0, len(members), batch_size):
                yield schedule, members[first : first + batch_size]

    def encode(
        self,
        levels: np.ndarray,
        order_indices: np.ndarray,
        batch_size: int,
        images_per_check: int,
        encoder: Encoder,
        on_step: OnStep,
        processes: Processes,
    ) -> None:
        """Encode images in batches, which the processes share.

        Args:
            levels: ``N x C x H x W``.
            order_indices: the order of each image, N.
            encoder: where the bits go to, in all processes.
            batch_size, images_per_check, on_step: as in ``code_images``.
            processes: the processes.
        """

        def record(item: tuple[Schedule, np.ndarray]) -> np.ndarray:
            recorder = Recorder()
            self._code(*item, levels, recorder, images_per_check, on_step)
            return recorder.intervals()

        if len(self._schedules) > 1:
            code_indices(order_indices, len(self._schedules), encoder)
        batches = self.batches(order_indices, batch_size)
        own = itertools.islice(batches, processes.rank, None, processes.number)
        for intervals in processes.in_turn(own, record):
            encoder.replay(intervals)

    def decode(
        self,
        number: int,
        shape: ImageShape,
        batch_size: int,
        images_per_check: int,
        decoder: Decoder,
        on_step: OnStep,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Decode images in batches.

        Args:
            number: number of images.
            shape: (C, H, W).
            decoder: where the bits come from.
            batch_size, images_per_check, on_step: as in ``code_images``.

        Yields:
            For each batch, the numbers of its images, and the images.

        Raises:
            WrongImagesError: decoded images are wrong; it has their numbers among all images.
            CodingError: as in ``code_images``.
        """
        # Placeholders that take no memory, since a decoder ignores the values.
        zero = pixel_type(self._likelihood.num_values)(0)
        nothing = np.broadcast_to(zero, (number, *shape))
        order_indices = np.zeros(number, dtype=np.int64)
        if len(self._schedules) > 1:
            order_indices = code_indices(order_indices, len(self._schedules), decoder)
        for schedule, batch in self.batches(order_indices, batch_size):
            try:
                levels = self._code(schedule, batch, nothing, decoder, images_per_check, on_step)
            except WrongImagesError as error:
                raise WrongImagesError(batch[error.indices].tolist()) from error
            yield batch, levels

    def _code(
        self,
        schedule: Schedule,
        batch: np.ndarray,
        levels: np.ndarray,
        coder: EntropyCoder,
        images_per_check: int,
        on_step: OnStep,
    ) -> np.ndarray:
        """Code the images of a batch."""
        return code_images(
            *(self._network, self._likelihood, schedule, levels[batch], coder),
            *(images_per_check, on_step),
        )


def _choose(
    model: ImageModel,
    levels: np.ndarray,
    compress_views: int,
    orders: Sequence[Order],
    batch_size: int,
    processes: Processes,
) -> tuple[np.ndarray, np.ndarray, float]:
    """The view and the order in which each image is likeliest, and the bits of all of them."""

    def bits_of(first: int) -> Tensor:
        part = levels[first : first + batch_size]
        return torch.cat([bits_of_view(view_of(part, view)) for view in range(compress_views)])

    def bits_of_view(part: np.ndarray) -> Tensor:
        given = torch.from_numpy(part.copy())  # PyTorch takes no negative strides
        images = from_levels(given, model.likelihood.num_values).to(model.device)
        return -model.log_likelihoods(images, orders) / math.log(2)

    firsts = range(0, len(levels), batch_size)
    found = processes.in_turn(firsts[processes.rank :: processes.number], bits_of)
    chosen = "choosing views" if compress_views > 1 else "choosing orders"
    bits = list(progress(found, chosen, len(firsts), is_on=processes.is_main))
    fewest, indices = torch.cat(bits, dim=1).min(dim=0)
    if not fewest.isfinite().all():
        raise CheckpointError(
            "the weights give the images no probability (not a number): use another checkpoint"
        )
    views, order_indices = np.divmod(indices.numpy(), len(orders))
    return views, order_indices, fewest.sum().item()


def model_hash(model: ImageModel) -> bytes:
    """A hash of the network and of what its output means, 8 bytes."""
    network, likelihood = model.description.network, model.likelihood
    bound = model.description.likelihood.coefficient_bound
    settings = (
        *(network.architecture, network.nr_resnet, network.nr_filters, network.kernel_size),
        *(network.max_dilation, network.normalization, not network.bias, network.mask_weight),
        *(type(likelihood).__name__, likelihood.num_channels, likelihood.num_values),
        likelihood.num_output_channels,
        *(() if bound == 1 else (bound,)),  # files from before there was a bound stay readable
    )
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=8)
    for name, weight in sorted(published_state_dict(model.network).items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.cpu().numpy().astype("<f4").tobytes())
    return digest.digest()
