"""Codes images as bits, with exactly the probabilities that a network gives their pixels.

The decoder generates the images along the order, and reads each pixel from the bits. The encoder
knows all pixels, so it computes all logits in one forward pass, and writes what the decoder reads.
The two do not compute exactly the same numbers: matrix libraries add in an order that depends on
the shapes, on the number of threads, on the processor, and on where a matrix happens to be in
memory. So logits are computed in double precision and rounded to a grid; where the last digits
decide how a logit is rounded, the encoder writes down how it was rounded.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence

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
# Number of pixels whose logits, and of those whose probabilities, an encoder computes at once.
_FORWARD_PIXELS, _PIXELS_AT_ONCE = 2**16, 2**15
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

    An encoder takes the logits from forward passes over whole images, and a decoder from the steps
    of the cached sampler.

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
    coded = np.empty_like(levels).reshape(*levels.shape[:2], -1)  # B x C x H*W
    at_once = min(_SYMBOLS_AT_ONCE, 256**_POSITION_BYTES // likelihood.num_output_channels)
    columns = max(1, at_once // len(levels))
    if coder.knows_symbols:
        coded[:] = levels.reshape(coded.shape)
        _encode_pixels(model, likelihood, schedule, levels, coder, columns, on_step)
    else:
        _decode_pixels(model, likelihood, schedule, coded, coder, columns, on_step)
    for first in range(0, len(coded), images_per_check):
        group = coded[first : first + images_per_check]
        if not _check(group, coder):
            raise WrongImagesError(range(first, first + len(group)))
    return coded.reshape(levels.shape)


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
            values.append(code_pixels(likelihood, logits[:, :, part], coded, pixels[part], coder))
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
    logits = _all_logits(model, schedule, images)
    parts = [
        step[first : first + columns]
        for step in schedule.steps
        for first in range(0, len(step), columns)
    ]
    for block in _blocks(parts, _PIXELS_AT_ONCE // len(levels)):
        pixels = np.concatenate(block)
        values = images.flatten(2)[:, :, pixels, None].double()
        encodings = _PixelEncodings(
            likelihood, logits[:, :, pixels, None], given[:, :, pixels], values
        )
        first = 0
        for part in block:
            encodings.write(slice(first, first + len(part)), coder)
            first += len(part)
        on_step(len(levels) * len(pixels))


def _all_logits(model: nn.Module, schedule: Schedule, images: Tensor) -> Tensor:
    """The logits of all pixels, ``B x L x H*W``, in double precision, on the CPU."""
    parameter = next(model.parameters())
    at_once = max(1, _FORWARD_PIXELS // images[0, 0].numel())
    return torch.cat(
        [model(part.to(parameter), schedule.masks).cpu().double() for part in images.split(at_once)]
    ).flatten(2)


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


class _PixelEncodings:
    """What ``code_pixels`` codes for P pixels of each image, computed for all of them at once.

    Args:
        likelihood: what the logits mean.
        logits: ``B x L x P x 1``, double precision.
        symbols: ``B x C x P``, pixel values from 0 to V - 1.
        values: ``B x C x P x 1``, the same as the network sees them.
    """

    def __init__(
        self, likelihood: Likelihood, logits: Tensor, symbols: np.ndarray, values: Tensor
    ) -> None:
        self._symbols = symbols
        below, is_up, is_close = _rounding(logits)
        self._is_up, self._is_close = is_up, is_close
        rounded = (below + is_up) * LOGIT_STEP
        self._rows: list[np.ndarray] = []
        self._doubtful: list[np.ndarray] = []
        for channel in range(likelihood.num_channels):
            probabilities = likelihood.probabilities(rounded, values[:, :channel], is_checked=True)
            rows = probabilities.permute(0, 2, 3, 1).squeeze(2).contiguous().numpy()  # B x P x V
            own = symbols[:, channel]
            flat = rows.reshape(own.size, -1)
            doubtful = is_doubtful(own.ravel(), flat, likelihood.rounding_error)
            flat[doubtful] = 1
            doubtful = doubtful.reshape(own.shape)
            self._rows.append(rows)
            self._doubtful.append(doubtful)

    def write(self, part: slice, coder: EntropyCoder) -> None:
        """Encode some of the pixels, as ``code_pixels`` does."""
        is_close, is_up = self._is_close[:, :, part].flatten(), self._is_up[:, :, part].flatten()
        positions = _code_positions(is_close.numpy(), coder)
        code_indices(is_up.numpy()[positions], 2, coder)
        for channel, rows in enumerate(self._rows):
            _code_positions(self._doubtful[channel][:, part].ravel(), coder)
            own = rows[:, part]
            coder.code(self._symbols[:, channel, part].ravel(), own.reshape(-1, own.shape[2]))


def code_pixels(
    likelihood: Likelihood,
    logits: Tensor,
    coded: np.ndarray,
    pixels: np.ndarray,
    coder: EntropyCoder,
) -> Tensor:
    """Decode P pixels of each image into ``coded``, ``B x C x H*W``.

    Returns:
        The pixels' values as the network sees them, ``B x C x P x 1``.
    """
    below, is_up, is_close = _rounding(logits)
    ups = is_up.flatten()  # a copy, unless the logits lie in this order in memory
    positions = _code_positions(is_close.flatten().numpy(), coder)
    ups.numpy()[positions] = code_indices(ups.numpy()[positions], 2, coder)
    logits = (below + ups.view_as(below)) * LOGIT_STEP
    values = logits.new_zeros(len(logits), 0, *logits.shape[2:])
    for channel in range(likelihood.num_channels):
        probabilities = likelihood.probabilities(logits, values, is_checked=True)
        probabilities = probabilities.contiguous()  # B x V x P x 1
        # For a single image this is a transposed view, by which FirstVersionDecoder finds tables
        # that the first version misread.
        rows = probabilities.permute(0, 2, 3, 1).flatten(0, 2).numpy()
        doubtful = np.zeros(len(rows), dtype=bool)
        # Doubtful symbols are coded without the network's help.
        rows[_code_positions(doubtful, coder)] = 1
        symbols = coder.code(np.zeros(len(rows), dtype=np.int32), rows)
        coded[:, channel, pixels] = symbols.reshape(len(coded), -1)
        levels = torch.from_numpy(coded[:, channel, pixels])[:, None, :, None]
        values = torch.cat([values, from_levels(levels, likelihood.num_values)], dim=1)
    return values


def _rounding(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The multiples of ``LOGIT_STEP`` below logits, whether to round up, and where it is close."""
    scaled = logits / LOGIT_STEP
    below = scaled.floor()
    rest = scaled - below
    return below, rest >= 0.5, (rest - 0.5).abs() < LOGIT_MARGIN / LOGIT_STEP


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
