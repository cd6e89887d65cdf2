"""Codes images as bits, with exactly the probabilities that a network gives their pixels.

The encoder does what the decoder does: it generates the images along the order, and where the
decoder reads a pixel from the bits, the encoder writes it. Even so, the two do not compute exactly
the same numbers: matrix libraries add in an order that depends on the number of threads, on the
processor, and on where a matrix happens to be in memory. So logits are computed in double precision
and rounded to a grid; where the last digits decide how a logit is rounded, the encoder writes down
how it was rounded.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lmconv.compression.entropy_coding import CodingError, EntropyCoder, is_doubtful
from lmconv.generation.sampler import generate
from lmconv.generation.schedule import Schedule
from lmconv.likelihoods import Likelihood
from lmconv.pixel_values import from_levels

__all__ = [
    "CHECK_BITS",
    "LOGIT_MARGIN",
    "LOGIT_STEP",
    "WrongImagesError",
    "code_images",
    "code_indices",
    "code_pixels",
]

# Logits are rounded to multiples of this.
LOGIT_STEP = 2.0**-12
# How much logits may differ from the encoder's. Sums in another order differ by 1e-14.
LOGIT_MARGIN = 2.0**-36
# Probabilities that a list of numbers whose rounding is in doubt ends, or goes on.
_END_OR_MORE = np.array([[1 - 2.0**-16, 2.0**-16]])
# Number of symbols whose probabilities are in memory at once.
_SYMBOLS_AT_ONCE = 2**13
_POSITION_BYTES = 3
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
) -> np.ndarray:
    """Code a batch of images step by step and, within a step, channel by channel.

    Each channel is coded given the ones before it. The pixels are followed by checksums, each for
    ``images_per_check`` images.

    Args:
        model: a network in evaluation mode, in double precision.
        likelihood: what the network's output means.
        schedule: the schedule of whole images, with masks on the network's device.
        levels: ``B x C x H x W``, uint8, pixel values from 0 to V - 1; a decoder only uses the
            shape.
        coder: where the bits go to or come from.
        images_per_check: number of images that share a checksum.
        on_step: called after each step with the number of pixels coded, over all images.

    Returns:
        The images: ``B x C x H x W``, uint8.

    Raises:
        WrongImagesError: a decoded checksum is not that of the decoded images.
        CodingError: as the coder raises it.
    """
    parameter = next(model.parameters())
    coded = np.empty_like(levels).reshape(*levels.shape[:2], -1)  # B x C x H*W
    given = levels.reshape(coded.shape)
    at_once = min(_SYMBOLS_AT_ONCE, 256**_POSITION_BYTES // likelihood.num_output_channels)
    columns = max(1, at_once // len(levels))

    def choose(logits: Tensor, pixels: np.ndarray) -> Tensor:
        logits = logits.double().cpu()
        values = []
        for first in range(0, len(pixels), columns):
            part = slice(first, first + columns)
            values.append(
                code_pixels(likelihood, logits[:, :, part], given, coded, pixels[part], coder)
            )
        on_step(len(levels) * len(pixels))
        return torch.cat(values, dim=2).to(parameter)

    images = torch.zeros(levels.shape, dtype=parameter.dtype, device=parameter.device)
    generate(model, schedule, images, choose)
    for first in range(0, len(coded), images_per_check):
        group = coded[first : first + images_per_check]
        if not _check(group, coder):
            raise WrongImagesError(range(first, first + len(group)))
    return coded.reshape(levels.shape)


def code_pixels(
    likelihood: Likelihood,
    logits: Tensor,
    given: np.ndarray,
    coded: np.ndarray,
    pixels: np.ndarray,
    coder: EntropyCoder,
) -> Tensor:
    """Code P pixels of each image, from ``given`` into ``coded``, both ``B x C x H*W``.

    Returns:
        The pixels' values as the network sees them, ``B x C x P x 1``.
    """
    logits = _code_rounding(logits, coder)
    values = logits.new_zeros(len(logits), 0, *logits.shape[2:])
    for channel in range(likelihood.num_channels):
        probabilities = likelihood.probabilities(logits, values, is_checked=True)
        probabilities = probabilities.contiguous()  # B x V x P x 1
        # For a single image this is a transposed view, by which FirstVersionDecoder finds tables
        # that the first version misread.
        rows = probabilities.permute(0, 2, 3, 1).flatten(0, 2).numpy()
        own = given[:, channel, pixels].ravel()
        # Doubtful symbols are coded without the network's help.
        doubtful = is_doubtful(own, rows, likelihood.rounding_error)
        rows[_code_positions(doubtful, coder)] = 1
        symbols = coder.code(own, rows)
        coded[:, channel, pixels] = symbols.reshape(len(coded), -1)
        levels = torch.from_numpy(coded[:, channel, pixels])[:, None, :, None]
        values = torch.cat([values, from_levels(levels, likelihood.num_values)], dim=1)
    return values


def _code_rounding(logits: Tensor, coder: EntropyCoder) -> Tensor:
    """Round logits of any shape to multiples of ``LOGIT_STEP``, just as the encoder does."""
    scaled = logits / LOGIT_STEP
    below = scaled.floor()
    rest = scaled - below
    is_close = (rest - 0.5).abs() < LOGIT_MARGIN / LOGIT_STEP
    is_up = (rest >= 0.5).flatten().numpy()
    positions = _code_positions(is_close.flatten().numpy(), coder)
    is_up[positions] = code_indices(is_up[positions], 2, coder)
    return (below + torch.from_numpy(is_up).view_as(below)) * LOGIT_STEP


def _code_positions(is_there: np.ndarray, coder: EntropyCoder) -> np.ndarray:
    """Code the positions of the few True values among many in ``is_there``, which is flat.

    Raises:
        CodingError: a decoded position is beyond the end.
    """
    own = np.flatnonzero(is_there).tolist()
    positions: list[int] = []
    while coder.code(np.array([len(positions) < len(own)]), _END_OR_MORE)[0]:
        position = own[len(positions)] if len(positions) < len(own) else 0
        digits = np.array([position // 256**place % 256 for place in range(_POSITION_BYTES)])
        digits = code_indices(digits, 256, coder)
        positions.append(sum(int(digit) * 256**place for place, digit in enumerate(digits)))
        if positions[-1] >= len(is_there):
            raise CodingError("the bits do not encode any symbols")
    return np.array(positions, dtype=np.int64)


def code_indices(indices: np.ndarray, number: int, coder: EntropyCoder) -> np.ndarray:
    """Code numbers from 0 to ``number - 1``, all equally probable."""
    return np.concatenate(
        [
            coder.code(part, np.ones((len(part), number)))
            for part in np.split(indices, range(_SYMBOLS_AT_ONCE, len(indices), _SYMBOLS_AT_ONCE))
        ]
    )


def _check(levels: np.ndarray, coder: EntropyCoder) -> bool:
    """Code the checksum of images, and return whether it is right."""
    checksum = zlib.crc32(np.ascontiguousarray(levels).tobytes()) % 2**CHECK_BITS
    symbols = np.array(divmod(checksum, 256))
    return bool((code_indices(symbols, 256, coder) == symbols).all())
