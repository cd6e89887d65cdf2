"""Codes pixels as bits, with exactly the probabilities that a network gives their values.

Encoder and decoder do not compute exactly the same numbers: matrix libraries add in an order that
depends on the shapes, on the number of threads, on the processor, and on where a matrix happens to
be in memory. So logits are computed in double precision and rounded to a grid; where the last
digits decide how a logit is rounded, the encoder writes down how it was rounded.

A value of more than 8 bits is coded as two digits, so that no table has more than 256 entries.
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

# Logits are rounded to multiples of this. Where values have n > 8 bits and lie closer together, it
# is 2^(8 - n) times as much.
LOGIT_STEP = 2.0**-12
# How much logits may differ from the encoder's. Sums in another order differ by 1e-14. Where there
# are more than 8 bits, it is a sixteenth of this, so that still few logits are in doubt.
LOGIT_MARGIN = 2.0**-36
# There, the share of a step from which logits are rounded up is not a half: some logits predict
# pixels, whose float32 values often have just that rest.
_LEAST_FINE_REST = 1 / 3
# Number of symbols whose probabilities are in memory at once.
SYMBOLS_AT_ONCE = 2**13
# Bytes of a position in a list of numbers whose rounding is in doubt.
POSITION_BYTES = 3


class PixelEncodings:
    """What ``decode_pixels`` decodes for P pixels of each image, computed for all of them at once.

    Args:
        likelihood: what the logits mean.
        logits: ``B x L x P x 1``, double precision.
        levels: ``B x C x P``, pixel values from 0 to V - 1.
        values: ``B x C x P x 1``, the same as the network sees them.
    """

    def __init__(
        self, likelihood: Likelihood, logits: Tensor, levels: np.ndarray, values: Tensor
    ) -> None:
        rounding = _Rounding(likelihood, logits)
        self._is_up, self._is_close = rounding.is_up, rounding.is_close
        rounded = rounding.logits(rounding.is_up)
        # For each digit of each channel: its values, B x P; tables, B x P x D; which are doubtful.
        self._digits: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for channel in range(likelihood.num_channels):
            known, upper = values[:, :channel], None
            errors = likelihood.rounding_errors(rounded, known).numpy().ravel()
            for own in _digits(levels[:, channel], likelihood):
                probabilities = likelihood.digit_probabilities(
                    rounded, known, upper, is_checked=True
                )
                rows = probabilities.permute(0, 2, 3, 1).squeeze(2).contiguous().numpy()
                flat, symbols = rows.reshape(own.size, -1), own.ravel()
                doubtful = is_doubtful(symbols, flat, errors)
                # The next digit's probabilities are shares of this one's, and so are their errors.
                own_probabilities = flat[np.arange(len(flat)), symbols]
                errors = errors / own_probabilities.clip(min=np.finfo(float).tiny)
                flat[doubtful] = 1
                self._digits.append((own, rows, doubtful.reshape(own.shape)))
                upper = torch.from_numpy(own)[..., None]

    def write(self, part: slice, coder: EntropyCoder) -> None:
        """Encode some of the pixels, as ``decode_pixels`` decodes them."""
        is_close, is_up = self._is_close[:, :, part].flatten(), self._is_up[:, :, part].flatten()
        positions = _code_positions(is_close.numpy(), coder)
        code_indices(is_up.numpy()[positions], 2, coder)
        for symbols, rows, doubtful in self._digits:
            _code_positions(doubtful[:, part].ravel(), coder)
            own = rows[:, part]
            coder.code(symbols[:, part].ravel(), own.reshape(-1, own.shape[2]))


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
    rounding = _Rounding(likelihood, logits)
    ups = rounding.is_up.flatten()  # a copy, unless the logits lie in this order in memory
    positions = _decode_positions(len(ups), coder)
    ups.numpy()[positions] = code_indices(ups.numpy()[positions], 2, coder)
    logits = rounding.logits(ups.view_as(logits))
    values = logits.new_zeros(len(logits), 0, *logits.shape[2:])
    for channel in range(likelihood.num_channels):
        levels, upper = torch.tensor(0), None
        for size in likelihood.digit_sizes:
            probabilities = likelihood.digit_probabilities(logits, values, upper, is_checked=True)
            probabilities = probabilities.contiguous()  # B x D x P x 1
            # For a single image this is a transposed view, by which FirstVersionDecoder finds
            # tables that the first version misread.
            rows = probabilities.permute(0, 2, 3, 1).flatten(0, 2).numpy()
            # Doubtful symbols are coded without the network's help.
            rows[_decode_positions(len(rows), coder)] = 1
            symbols = coder.code(np.zeros(len(rows), dtype=np.int32), rows)
            upper = torch.from_numpy(symbols).view(len(coded), -1, 1)
            levels = levels * size + upper
        coded[:, channel, pixels] = levels[..., 0]
        own = from_levels(levels, likelihood.num_values)
        values = torch.cat([values, own.unsqueeze(1)], dim=1)
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
        self._rounding = _Rounding(likelihood, logits)
        levels = torch.arange(likelihood.num_values)
        self._values = from_levels(levels, likelihood.num_values).double().numpy()
        rounded = self._rounding.logits(self._rounding.is_up)
        # For each channel and digit: the likeliest, P x B, and weights, P x B x D. Those of a lower
        # digit are given that the upper one is the likeliest.
        self._digits: list[list[tuple[np.ndarray, np.ndarray]]] = []
        likeliest = []
        for channel in range(likelihood.num_channels):
            digits, upper, level = [], None, np.array(0)
            for size in likelihood.digit_sizes:
                rows = self._rows(rounded, guessed[:, :channel], upper)
                digit = rows.argmax(axis=2)
                weights = decoder.weights(rows.reshape(-1, size)).reshape(rows.shape)
                digits.append((digit, weights))
                level = level * size + digit
                upper = torch.from_numpy(digit).T[..., None]  # B x P x 1
            self._digits.append(digits)
            likeliest.append(self._values[level].T)
        self.likeliest = np.stack(likeliest, axis=1)

    def _rows(self, logits: Tensor, values: Tensor, upper: Tensor | None) -> np.ndarray:
        """Probabilities of the values of a digit of the next channel: ``P x B x D``."""
        probabilities = self._likelihood.digit_probabilities(logits, values, upper, is_checked=True)
        return probabilities.permute(2, 0, 3, 1).squeeze(2).contiguous().numpy()

    def decode(self, column: int, symbols: np.ndarray) -> np.ndarray:
        """Decode one pixel of each image into ``symbols``, ``B x C``; return values, ``B x C``."""
        decoder, column_of = self._decoder, slice(column, column + 1)
        is_up = self._rounding.is_up[:, :, column_of]
        ups = is_up.flatten().numpy()
        positions = _decode_positions(len(ups), decoder)
        ups[positions] = code_indices(ups[positions], 2, decoder)
        is_as_guessed = not len(positions)
        values = np.empty(symbols.shape)
        for channel, digits in enumerate(self._digits):
            is_known, upper, level = is_as_guessed, None, np.array(0)
            for likeliest, all_weights in digits:
                doubtful = _decode_positions(len(symbols), decoder)
                weights = all_weights[column]
                if not is_known or len(doubtful):
                    rounded = self._rounding.logits(torch.from_numpy(ups).view_as(is_up), column_of)
                    known = torch.from_numpy(values[:, :channel, None, None])
                    rows = self._rows(rounded, known, upper)[0]
                    rows[doubtful] = 1
                    weights = decoder.weights(rows)
                digit = decoder.decode(weights)
                is_known &= bool((digit == likeliest[column]).all())
                level = level * weights.shape[1] + digit
                upper = torch.from_numpy(digit)[:, None, None]
            symbols[:, channel] = level
            values[:, channel] = self._values[level]
            is_as_guessed &= bool((values[:, channel] == self._guessed[:, channel, column]).all())
        return values


class _Rounding:
    """How logits, ``B x L x P x 1``, are rounded.

    Attributes:
        is_up: whether each is rounded up to a multiple of the step.
        is_close: whether that is in doubt.
    """

    def __init__(self, likelihood: Likelihood, logits: Tensor) -> None:
        self._step, margin, least = LOGIT_STEP, LOGIT_MARGIN, 0.5
        if len(likelihood.digit_sizes) > 1:
            self._step *= 256 / likelihood.num_values
            margin, least = LOGIT_MARGIN / 16, _LEAST_FINE_REST
        scaled = logits / self._step
        self._below = scaled.floor()
        rest = scaled - self._below
        self.is_up, self.is_close = rest >= least, (rest - least).abs() < margin / self._step

    def logits(self, is_up: Tensor, columns: slice = slice(None)) -> Tensor:
        """The rounded logits of some of the P columns, given which of them are rounded up."""
        return (self._below[:, :, columns] + is_up) * self._step


def _digits(levels: np.ndarray, likelihood: Likelihood) -> list[np.ndarray]:
    """The digits that levels are coded in, the upper one first."""
    *upper, size = likelihood.digit_sizes
    return [levels // size, levels % size] if upper else [levels]


def _code_positions(is_there: np.ndarray, coder: EntropyCoder) -> np.ndarray:
    """Code the positions of the few True values among many in ``is_there``, which is flat."""
    return _code_rare_positions(np.flatnonzero(is_there).tolist(), len(is_there), coder)


def _decode_positions(number: int, coder: EntropyCoder) -> np.ndarray:
    """Decode what ``_code_positions`` wrote of so many values."""
    return _code_rare_positions([], number, coder)


def _code_rare_positions(own: list[int], number: int, coder: EntropyCoder) -> np.ndarray:
    """Code positions among a number of values; a decoder has none of its own.

    Raises:
        CodingError: a decoded position is beyond the end.
    """
    positions: list[int] = []
    while coder.code_rare(len(positions) < len(own)):
        position = own[len(positions)] if len(positions) < len(own) else 0
        digits = np.array([position // 256**place % 256 for place in range(POSITION_BYTES)])
        digits = code_indices(digits, 256, coder)
        positions.append(sum(int(digit) * 256**place for place, digit in enumerate(digits)))
        if positions[-1] >= number:
            raise CodingError("the bits do not encode any symbols")
    return np.array(positions, dtype=np.int64)


def code_indices(indices: np.ndarray, number: int, coder: EntropyCoder) -> np.ndarray:
    """Code numbers from 0 to ``number - 1``, all equally probable."""
    if not len(indices):  # as nearly always: a decoder asks for each pixel
        return indices
    return np.concatenate(
        [
            coder.code(part, np.ones((len(part), number)))
            for part in np.split(indices, range(SYMBOLS_AT_ONCE, len(indices), SYMBOLS_AT_ONCE))
        ]
    )
