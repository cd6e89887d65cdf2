"""From probabilities to bits and back: integer tables for constriction's range coder.

Encoders and decoders share one method, ``code``, so that the same program encodes when it is given
an encoder and decodes when it is given a decoder.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from utils import UserError

__all__ = [
    "TABLE_TOTAL",
    "CodingError",
    "Decoder",
    "Encoder",
    "EntropyCoder",
    "FirstVersionDecoder",
    "Recorder",
    "integer_tables",
    "is_doubtful",
]

# The sum of the entries of a table: constriction's coders work with 24 bits.
TABLE_TOTAL = 2**24
# Probabilities that something rare does not happen, and that it does.
_RARE = np.array([[1 - 2.0**-16, 2.0**-16]])
# An encoder collects symbols until their tables have so many entries.
_MOST_WAITING = 2**20


class CodingError(UserError):
    """Bits that no encoder writes with these probabilities, or invalid probabilities."""


def integer_tables(probabilities: np.ndarray) -> np.ndarray:
    """Turn probabilities into whole numbers, each at least 1, that add up to ``TABLE_TOTAL``.

    The result is the same on every machine: numbers are only added, divided, multiplied and
    rounded, one by one.

    Args:
        probabilities: ``N x V``, float64, for the V values of each of N symbols.

    Returns:
        ``N x V``, int64.

    Raises:
        CodingError: a probability is negative or not finite, or all those of a symbol are 0.
    """
    # Each value gets one unit; the remaining ones are shared out by probability.
    bounds = np.floor(_bounds(probabilities) + 0.5).astype(np.int64)
    return np.diff(bounds, axis=1, prepend=0) + 1


def is_doubtful(
    symbols: np.ndarray, probabilities: np.ndarray, rounding_error: float | np.ndarray
) -> np.ndarray:
    """Whether rounding errors in the probabilities may change a symbol's part of its table.

    Args:
        symbols: N whole numbers from 0.
        probabilities: ``N x V``, float64, for the values of each symbol.
        rounding_error: largest error of sums of probabilities, of all symbols or of each, N.

    Returns:
        For each symbol, whether an error could turn the rounding of one of its bounds: N, bool.
    """
    bounds = np.pad(_bounds(probabilities), ((0, 0), (1, 0)))
    symbols, rows = symbols.astype(np.int64), np.arange(len(symbols))
    own = np.stack([bounds[rows, symbols], bounds[rows, symbols + 1]])
    return (np.abs(own - np.floor(own) - 0.5) < rounding_error * TABLE_TOTAL).any(axis=0)


def _bounds(probabilities: np.ndarray) -> np.ndarray:
    """Where the part of each value ends, in the units to share out, before rounding."""
    below = np.cumsum(probabilities, axis=1, dtype=np.float64)
    total = below[:, -1:]
    if not (np.isfinite(total).all() and (total > 0).all() and (probabilities >= 0).all()):
        raise CodingError("the network's output yields no valid probabilities")
    return below / total * (TABLE_TOTAL - probabilities.shape[1])


class EntropyCoder(ABC):
    """What codes the symbols of images: an encoder or a decoder.

    Attributes:
        knows_symbols: whether it is given the symbols: it is an encoder.
    """

    knows_symbols = False

    @abstractmethod
    def code(self, symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Encode symbols, or decode the same number of symbols.

        Args:
            symbols: N whole numbers from 0; a decoder ignores their values.
            probabilities: ``N x V``, float64, for the values of each symbol.

        Returns:
            The N symbols, int32.
        """

    def code_rare(self, happens: bool) -> bool:
        """Code whether something happens whose probability is 2^-16."""
        return bool(self.code(np.array([happens]), _RARE)[0])


class Encoder(EntropyCoder):
    """Turns symbols into bits; the first symbols in are the first out.

    Symbols of as many values are collected and encoded together: one by one, calls take longer than
    the encoding.
    """

    knows_symbols = True

    def __init__(self) -> None:
        import constriction

        self._coder = constriction.stream.queue.RangeEncoder()
        self._family = constriction.stream.model.Categorical(perfect=False)
        self._symbols: list[np.ndarray] = []
        self._tables: list[np.ndarray] = []
        self._waiting = 0

    def code(self, symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        symbols = np.ascontiguousarray(symbols, dtype=np.int32)
        if self._tables and self._tables[0].shape[1] != probabilities.shape[1]:
            self._encode_waiting()
        self._symbols.append(symbols)
        self._tables.append(probabilities)
        self._waiting += probabilities.size
        if self._waiting > _MOST_WAITING:
            self._encode_waiting()
        return symbols

    def _encode_waiting(self) -> None:
        if self._tables:
            tables = _weights(np.concatenate(self._tables))
            self._coder.encode(np.concatenate(self._symbols), self._family, tables)
        self._symbols, self._tables, self._waiting = [], [], 0

    def replay(self, intervals: np.ndarray) -> None:
        """Encode what a ``Recorder`` has noted, as if its symbols were encoded here."""
        self._encode_waiting()
        below, own = intervals.astype(np.int64)
        rest = TABLE_TOTAL - own
        # A table of three values that has the same part: its neighbours share the rest.
        is_first, is_last = below == 0, below == rest
        tables = np.stack([below, own, rest - below], axis=1)
        tables[is_first] = np.stack([own, own * 0 + 1, rest - 1], axis=1)[is_first]
        tables[is_last] = np.stack([rest - 1, own * 0 + 1, own], axis=1)[is_last]
        symbols = (1 - is_first + is_last).astype(np.int32)
        has_two = rest == 1  # the rest is too small for two neighbours
        ends = np.flatnonzero(np.diff(has_two, append=~has_two[-1:])) + 1
        first = 0
        for end in ends.tolist():
            part = slice(first, end)
            if has_two[first]:
                columns = np.where(is_first[part, None], [TABLE_TOTAL - 1, 1], [1, TABLE_TOTAL - 1])
                self._encode(symbols[part] // 2, columns)
            else:
                self._encode(symbols[part], tables[part])
            first = end

    def _encode(self, symbols: np.ndarray, tables: np.ndarray) -> None:
        weights = np.ascontiguousarray(tables - 1, dtype=np.float64)
        self._coder.encode(np.ascontiguousarray(symbols), self._family, weights)

    def finish(self) -> bytes:
        """The bits so far, in whole words of 32 bits."""
        self._encode_waiting()
        return self._coder.get_compressed().astype("<u4").tobytes()


class Recorder(Encoder):
    """Notes which part of a table stands for each symbol, so that another encoder can encode it."""

    def __init__(self) -> None:
        super().__init__()
        self._intervals: list[np.ndarray] = []

    def _encode_waiting(self) -> None:
        if self._tables:
            symbols, rows = np.concatenate(self._symbols), np.concatenate(self._tables)
            tables = integer_tables(rows)
            own = np.take_along_axis(tables, symbols[:, None].astype(np.int64), axis=1)[:, 0]
            up_to = np.take_along_axis(
                tables.cumsum(axis=1), symbols[:, None].astype(np.int64), axis=1
            )[:, 0]
            self._intervals.append(np.stack([up_to - own, own]).astype(np.int32))
        self._symbols, self._tables, self._waiting = [], [], 0

    def intervals(self) -> np.ndarray:
        """Where the parts begin, and their sizes, out of ``TABLE_TOTAL``: ``2 x N``, int32."""
        self._encode_waiting()
        return np.concatenate([np.zeros((2, 0), dtype=np.int32), *self._intervals], axis=1)


class Decoder(EntropyCoder):
    """Turns bits into symbols.

    Args:
        bits: the bits of an encoder.

    Raises:
        CodingError: the bits are not whole words, or later, they do not encode any symbols.
    """

    def __init__(self, bits: bytes) -> None:
        import constriction

        if len(bits) % 4:
            raise CodingError("the bits are not whole words")
        words = np.frombuffer(bits, dtype="<u4").astype(np.uint32)
        self._coder: Any = constriction.stream.queue.RangeDecoder(words)
        self._family = constriction.stream.model.Categorical(perfect=False)

    def code(self, symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        return self.decode(self.weights(probabilities))

    def code_rare(self, happens: bool) -> bool:
        return bool(self.decode(_RARE_WEIGHTS)[0])

    def decode(self, weights: np.ndarray) -> np.ndarray:
        """Decode a symbol for each row of what ``weights`` returns, or of a part of it."""
        try:
            return self._coder.decode(self._family, weights)
        except (AssertionError, ValueError) as error:
            raise CodingError("the bits do not encode any symbols") from error

    def weights(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities in the form that ``decode`` takes: ``N x V``, contiguous."""
        return _weights(probabilities)

    def mark(self) -> object:
        """Where the decoder stands, for ``go_back``."""
        return self._coder.clone()

    def go_back(self, mark: object) -> None:
        """Decode again from where the decoder stood; a mark can be used once."""
        self._coder = mark


class FirstVersionDecoder(Decoder):
    """Decodes files of version 1 of the format, whose encoder misread some of its tables.

    constriction reads arrays in the order of memory. In steps with several pixels of a single
    image, the tables were in memory column by column but were read row by row. Such files still
    contain the pixels, in more bits than promised, for a decoder that makes the same mistake.
    """

    def weights(self, probabilities: np.ndarray) -> np.ndarray:
        weights = _weights(probabilities)
        is_transposed = probabilities.flags.f_contiguous and not probabilities.flags.c_contiguous
        if is_transposed:
            weights = np.ascontiguousarray(weights.T).reshape(weights.shape)
        return weights


def _weights(probabilities: np.ndarray) -> np.ndarray:
    """Weights from which constriction makes exactly ``integer_tables``: it adds 1 to each value.

    It reads memory row by row, whatever the strides of an array are.
    """
    return np.ascontiguousarray(integer_tables(probabilities) - 1, dtype=np.float64)


_RARE_WEIGHTS = _weights(_RARE)
