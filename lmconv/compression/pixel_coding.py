"""Codes pixels as bits, with exactly the probabilities that a network gives their values.

Encoder and decoder do not compute exactly the same numbers: matrix libraries add in an order that
depends on the shapes, on the number of threads, on the processor, and on where a matrix happens to
be in memory. So logits are computed in double precision and rounded to a grid; where the last
digits decide how a logit is rounded, the encoder writes down how it was rounded.
"""

import numpy as np
import torch
from torch import Tensor

from lmconv.compression.entropy_coding import CodingError, Decoder, EntropyCoder, is_doubtful
from lmconv.likelihoods import Likelihood
from lmconv.pixel_values import from_levels

__all__ = [
    "LOGIT_MARGIN",
    "LOGIT_STEP",
    "POSITION_BYTES",
    "SYMBOLS_AT_ONCE",
    "PixelDecoding",
    "PixelEncodings",
    "code_indices",
    "decode_pixels",
]

# Logits are rounded to multiples of this.
LOGIT_STEP = 2.0**-12
# How much logits may differ from the encoder's. Sums in another order differ by 1e-14.
LOGIT_MARGIN = 2.0**-36
# Number of symbols whose probabilities are in memory at once.
SYMBOLS_AT_ONCE = 2**13
# Bytes of a position in a list of numbers whose rounding is in doubt.
POSITION_BYTES = 3


class PixelEncodings:
    """What ``decode_pixels`` decodes for P pixels of each image, computed for all of them at once.

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
        """Encode some of the pixels, as ``decode_pixels`` decodes them."""
        is_close, is_up = self._is_close[:, :, part].flatten(), self._is_up[:, :, part].flatten()
        positions = _code_positions(is_close.numpy(), coder)
        code_indices(is_up.numpy()[positions], 2, coder)
        for channel, rows in enumerate(self._rows):
            _code_positions(self._doubtful[channel][:, part].ravel(), coder)
            own = rows[:, part]
            coder.code(self._symbols[:, channel, part].ravel(), own.reshape(-1, own.shape[2]))


def decode_pixels(
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
    below, is_up, _ = _rounding(logits)
    ups = is_up.flatten()  # a copy, unless the logits lie in this order in memory
    positions = _decode_positions(len(ups), coder)
    ups.numpy()[positions] = code_indices(ups.numpy()[positions], 2, coder)
    logits = (below + ups.view_as(below)) * LOGIT_STEP
    values = logits.new_zeros(len(logits), 0, *logits.shape[2:])
    for channel in range(likelihood.num_channels):
        probabilities = likelihood.probabilities(logits, values, is_checked=True)
        probabilities = probabilities.contiguous()  # B x V x P x 1
        # For a single image this is a transposed view, by which FirstVersionDecoder finds tables
        # that the first version misread.
        rows = probabilities.permute(0, 2, 3, 1).flatten(0, 2).numpy()
        # Doubtful symbols are coded without the network's help.
        rows[_decode_positions(len(rows), coder)] = 1
        symbols = coder.code(np.zeros(len(rows), dtype=np.int32), rows)
        coded[:, channel, pixels] = symbols.reshape(len(coded), -1)
        levels = torch.from_numpy(coded[:, channel, pixels])[:, None, :, None]
        values = torch.cat([values, from_levels(levels, likelihood.num_values)], dim=1)
    return values


class PixelDecoding:
    """What ``decode_pixels`` decodes for P pixels of each image, one pixel after another.

    The probabilities of all of them are computed at once, under a guess of their values. They are
    computed again for a pixel whose earlier channels, or whose rounded logits, turn out otherwise.

    Args:
        likelihood: what the logits mean.
        logits: ``B x L x P x 1``, double precision.
        guessed: ``B x C x P x 1``, double precision, on the data grid.
        decoder: where the bits come from.

    Attributes:
        likeliest: the likeliest values, ``B x C x P``.
    """

    def __init__(
        self, likelihood: Likelihood, logits: Tensor, guessed: Tensor, decoder: Decoder
    ) -> None:
        self._likelihood, self._decoder = likelihood, decoder
        self._guessed = guessed[..., 0].numpy()
        self._below, self._is_up, _ = _rounding(logits)
        levels = torch.arange(likelihood.num_values)
        self._values = from_levels(levels, likelihood.num_values).double().numpy()
        rounded = (self._below + self._is_up) * LOGIT_STEP
        self._weights, likeliest = [], []
        for channel in range(likelihood.num_channels):
            rows = self._rows(rounded, guessed[:, :channel])
            likeliest.append(self._values[rows.argmax(axis=2)].T)
            weights = decoder.weights(rows.reshape(-1, rows.shape[2]))
            self._weights.append(weights.reshape(rows.shape))
        self.likeliest = np.stack(likeliest, axis=1)

    def _rows(self, logits: Tensor, values: Tensor) -> np.ndarray:
        """Probabilities of the values of the next channel: ``P x B x V``."""
        probabilities = self._likelihood.probabilities(logits, values, is_checked=True)
        return probabilities.permute(2, 0, 3, 1).squeeze(2).contiguous().numpy()

    def decode(self, column: int, symbols: np.ndarray) -> np.ndarray:
        """Decode one pixel of each image into ``symbols``, ``B x C``; return values, ``B x C``."""
        decoder, column_of = self._decoder, slice(column, column + 1)
        is_up = self._is_up[:, :, column_of]
        ups = is_up.flatten().numpy()
        positions = _decode_positions(len(ups), decoder)
        ups[positions] = code_indices(ups[positions], 2, decoder)
        is_as_guessed = not len(positions)
        values = np.empty(symbols.shape)
        for channel in range(self._likelihood.num_channels):
            doubtful = _decode_positions(len(symbols), decoder)
            weights = self._weights[channel][column]
            if not is_as_guessed or len(doubtful):
                rounded = self._below[:, :, column_of] + torch.from_numpy(ups).view_as(is_up)
                known = torch.from_numpy(values[:, :channel, None, None])
                rows = self._rows(rounded * LOGIT_STEP, known)[0]
                rows[doubtful] = 1
                weights = decoder.weights(rows)
            symbols[:, channel] = decoder.decode(weights)
            values[:, channel] = self._values[symbols[:, channel]]
            is_as_guessed &= bool((values[:, channel] == self._guessed[:, channel, column]).all())
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
    while coder.code_rare(len(positions) < len(own)):
        position = own[len(positions)] if len(positions) < len(own) else 0
        digits = np.array([position // 256**place % 256 for place in range(POSITION_BYTES)])
        digits = code_indices(digits, 256, coder)
        positions.append(sum(int(digit) * 256**place for place, digit in enumerate(digits)))
        if positions[-1] >= len(is_there):
            raise CodingError("the bits do not encode any symbols")
    return np.array(positions, dtype=np.int64)


def _decode_positions(number: int, coder: EntropyCoder) -> np.ndarray:
    """Decode what ``_code_positions`` wrote of so many values."""
    return _code_positions(np.zeros(number, dtype=bool), coder)


def code_indices(indices: np.ndarray, number: int, coder: EntropyCoder) -> np.ndarray:
    """Code numbers from 0 to ``number - 1``, all equally probable."""
    return np.concatenate(
        [
            coder.code(part, np.ones((len(part), number)))
            for part in np.split(indices, range(SYMBOLS_AT_ONCE, len(indices), SYMBOLS_AT_ONCE))
        ]
    )
