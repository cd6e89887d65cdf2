"""Codes images as bits, with exactly the probabilities that a network gives their pixels.

The decoder generates the images along the order, and reads each pixel from the bits. The encoder
knows all pixels, so it computes all logits in one forward pass, and writes what the decoder reads.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lmconv.compression.entropy_coding import Decoder, EntropyCoder
from lmconv.compression.guessed_decoding import choose_windows, decode_windows
from lmconv.compression.pixel_coding import (
    POSITION_BYTES,
    SYMBOLS_AT_ONCE,
    PixelEncodings,
    code_indices,
    decode_pixels,
)
from lmconv.generation.sampler import generate
from lmconv.generation.schedule import Schedule
from lmconv.likelihoods import Likelihood
from lmconv.pixel_values import from_levels
from lmconv.windows import map_in_windows

__all__ = [
    "CHECK_BITS",
    "WrongImagesError",
    "bytes_of",
    "code_images",
]

# Number of pixels whose logits, and of those whose probabilities, an encoder computes at once.
_FORWARD_PIXELS, _PIXELS_AT_ONCE = 2**13, 2**15
# Size of a checksum, which is coded as symbols of a byte each.
CHECK_BITS = 16


class WrongImagesError(Exception):
    """Decoded images are not those that were encoded.

    Args:
        indices: numbers of images in the batch, at least one of which is wrong.
    """

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__(f"images {indices} of the batch fail their check")
        self.indices = indices


@torch.inference_mode()
def code_images(
    model: nn.Module,
    likelihood: Likelihood,
    schedule: Schedule,
    levels: np.ndarray,
    coder: EntropyCoder,
    images_per_check: int,
    on_step: Callable[[int], object] = lambda pixels: None,
    guess: int | None = None,
) -> np.ndarray:
    """Code a batch of images step by step and, within a step, channel by channel.

    An encoder takes the logits from forward passes over whole images, and a decoder from the steps
    of the cached sampler, or from windows of guessed pixels.

    Each channel is coded given the ones before it. The pixels are followed by checksums, each for
    ``images_per_check`` images.

    Args:
        model: a network in evaluation mode, in double precision.
        likelihood: what the network's output means.
        schedule: the schedule of whole images, with masks on the network's device.
        levels: ``B x C x H x W``, uint8 or uint16, pixel values from 0 to V - 1; a decoder only
            uses shape and type.
        coder: where the bits go to or come from.
        images_per_check: number of images that share a checksum.
        on_step: called after each step with the number of pixels coded, over all images.
        guess: number of pixels that a decoder guesses at once, if steps have only one; 0 for none;
            None to choose.

    Returns:
        The images, like ``levels``.

    Raises:
        WrongImagesError: a decoded checksum is not that of the decoded images.
        CodingError: as the coder raises it.
    """
    coded = np.empty_like(levels).reshape(*levels.shape[:2], -1)  # B x C x H*W
    at_once = min(SYMBOLS_AT_ONCE, 256**POSITION_BYTES // likelihood.num_output_channels)
    columns = max(1, at_once // len(levels))
    if coder.knows_symbols:
        coded[:] = levels.reshape(coded.shape)
        _encode_pixels(model, likelihood, schedule, levels, coder, columns, on_step)
    elif not _decode_windows(model, likelihood, schedule, coded, coder, guess, on_step):
        _decode_pixels(model, likelihood, schedule, coded, coder, columns, on_step)
    for first in range(0, len(coded), images_per_check):
        group = coded[first : first + images_per_check]
        if not _check(group, coder):
            raise WrongImagesError(range(first, first + len(group)))
    return coded.reshape(levels.shape)


def _decode_windows(
    model: nn.Module,
    likelihood: Likelihood,
    schedule: Schedule,
    coded: np.ndarray,
    coder: EntropyCoder,
    guess: int | None,
    on_step: Callable[[int], object],
) -> bool:
    """Decode pixels in windows if that is faster, and return whether it was."""
    guessing = choose_windows(model, schedule, len(coded), guess)
    if not guessing.window or not isinstance(coder, Decoder):
        return False
    mark = coder.mark()
    if decode_windows(model, likelihood, schedule, coded, coder, guessing, on_step):
        return True
    coder.go_back(mark)
    return False


def _decode_pixels(
    model: nn.Module,
    likelihood: Likelihood,
    schedule: Schedule,
    coded: np.ndarray,
    coder: EntropyCoder,
    columns: int,
    on_step: Callable[[int], object],
) -> None:
    """Decode pixels into ``coded``, ``B x C x H*W``, at most ``columns`` of an image at once."""
    parameter = next(model.parameters())

    def choose(logits: Tensor, pixels: np.ndarray) -> Tensor:
        logits = logits.double().cpu()
        values = []
        for first in range(0, len(pixels), columns):
            part = slice(first, first + columns)
            values.append(decode_pixels(likelihood, logits[:, :, part], coded, pixels[part], coder))
        on_step(len(coded) * len(pixels))
        return torch.cat(values, dim=2).to(parameter)

    shape = (*coded.shape[:2], *schedule.image_size)
    images = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
    generate(model, schedule, images, choose)


def _encode_pixels(
    model: nn.Module,
    likelihood: Likelihood,
    schedule: Schedule,
    levels: np.ndarray,
    coder: EntropyCoder,
    columns: int,
    on_step: Callable[[int], object],
) -> None:
    """Encode ``levels``, ``B x C x H x W``, in the order and parts in which they are decoded."""
    images = from_levels(torch.from_numpy(levels), likelihood.num_values)
    given = levels.reshape(*levels.shape[:2], -1)
    logits = _all_logits(model, schedule, images, likelihood.num_output_channels)
    parts = [
        step[first : first + columns]
        for step in schedule.steps
        for first in range(0, len(step), columns)
    ]
    for block in _blocks(parts, _PIXELS_AT_ONCE // len(levels)):
        pixels = np.concatenate(block)
        values = images.flatten(2)[:, :, pixels, None].double()
        encodings = PixelEncodings(
            likelihood, logits[:, :, pixels, None], given[:, :, pixels], values
        )
        first = 0
        for part in block:
            encodings.write(slice(first, first + len(part)), coder)
            first += len(part)
        on_step(len(levels) * len(pixels))


def _all_logits(model: nn.Module, schedule: Schedule, images: Tensor, num_outputs: int) -> Tensor:
    """The logits of all pixels, ``B x L x H*W``, in double precision, on the CPU."""
    parameter = next(model.parameters())
    at_once = max(1, _FORWARD_PIXELS // images[0, 0].numel())
    logits = torch.empty(len(images), num_outputs, images[0, 0].numel(), dtype=torch.float64)
    for first in range(0, len(images), at_once):
        part = images[first : first + at_once].to(parameter)
        logits[first : first + at_once] = map_in_windows(
            model, part, schedule.masks, lambda logits, _: logits.cpu().double()
        ).flatten(2)
    return logits


def _blocks(parts: list[np.ndarray], most: int) -> Iterator[list[np.ndarray]]:
    """Group parts in a row so that each group has at most so many pixels, or one part."""
    block: list[np.ndarray] = []
    size = 0
    for part in parts:
        if block and size + len(part) > most:
            yield block
            block, size = [], 0
        block.append(part)
        size += len(part)
    yield block


def bytes_of(levels: np.ndarray) -> bytes:
    """The bytes of levels that checksums are about: two of each, low and high, if it is uint16."""
    return levels.astype(levels.dtype.newbyteorder("<")).tobytes()


def _check(levels: np.ndarray, coder: EntropyCoder) -> bool:
    """Code the checksum of images, and return whether it is right."""
    checksum = zlib.crc32(bytes_of(levels)) % 2**CHECK_BITS
    symbols = np.array(divmod(checksum, 256))
    return bool((code_indices(symbols, 256, coder) == symbols).all())
