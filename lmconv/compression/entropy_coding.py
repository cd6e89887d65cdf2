"""From probabilities to bits and back: integer tables for constriction's range coder.

An encoder and a decoder have one method, ``code``, and one meaning: code that calls it decodes with
the one what it has encoded with the other.
"""

from abc import ABC, abstractmethod

import numpy as np

__all__ = [
    "TABLE_TOTAL",
    "CodingError",
    "Decoder",
    "Encoder",
    "EntropyCoder",
    "FirstVersionDecoder",
    "integer_tables",
    "is_doubtful",
]

# What the entries of a table add up to: constriction's coders work with 24 bits.
TABLE_TOTAL = 2**24


class CodingError(Exception):
    """Bits that no encoder writes with these probabilities, or numbers that are none."""


def integer_tables(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities as whole numbers of which each is at least 1 and all add up to ``TABLE_TOTAL``.

    The function is the same everywhere: it adds, divides, multiplies and rounds, number by number.

    Args:
        probabilities: ``N x V``, float64, of the V values of each of N symbols.

    Returns:
        ``N x V``, int64.

    Raises:
        CodingError: a number is negative or not finite, or all of a symbol are 0.
    """
    # Each value has one of the units for itself; the others are shared out.
    bounds = np.floor(_bounds(probabilities) + 0.5).astype(np.int64)
    return np.diff(bounds, axis=1, prepend=0) + 1


def is_doubtful(
    symbols: np.ndarray, probabilities: np.ndarray, rounding_error: float
) -> np.ndarray:
    """Whether the last digits of the probabilities decide which part of its table a symbol has.

    Args:
        symbols: N whole numbers from 0.
        probabilities: ``N x V``, float64, of the values of each.
        rounding_error: of their sums, at most.

    Returns:
        N, bool: whether one of its bounds is so close to where it is rounded up or down.
    """
    bounds = np.pad(_bounds(probabilities), ((0, 0), (1, 0)))
    symbols, rows = symbols.astype(np.int64), np.arange(len(symbols))
    own = np.stack([bounds[rows, symbols], bounds[rows, symbols + 1]])
    return (np.abs(own - np.floor(own) - 0.5) < rounding_error * TABLE_TOTAL).any(axis=0)


def _bounds(probabilities: np.ndarray) -> np.ndarray:
    """Where the part of each value ends, in units that are shared out, before rounding."""
    below = np.cumsum(probabilities, axis=1, dtype=np.float64)
    total = below[:, -1:]
    if not (np.isfinite(total).all() and (total > 0).all() and (probabilities >= 0).all()):
        raise CodingError("the network's output gives no probabilities")
    return below / total * (TABLE_TOTAL - probabilities.shape[1])


class EntropyCoder(ABC):
    """What the symbols of images go through."""

    @abstractmethod
    def code(self, symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Encode symbols, or decode as many.

        Args:
            symbols: N whole numbers from 0; a decoder does not look at their values.
            probabilities: ``N x V``, float64, of the values of each.

        Returns:
            The N symbols, int32.
        """


class Encoder(EntropyCoder):
    """Symbols to bits: the first in are the first out."""

    def __init__(self) -> None:
        import constriction

        self._coder = constriction.stream.queue.RangeEncoder()
        self._family = constriction.stream.model.Categorical(perfect=False)

    def code(self, symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        symbols = np.ascontiguousarray(symbols, dtype=np.int32)
        self._coder.encode(symbols, self._family, _weights(probabilities))
        return symbols

    def finish(self) -> bytes:
        """The bits so far, in whole words of 32."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class Decoder(EntropyCoder):
    """Bits to symbols.

    Args:
        bits: of an encoder.

    Raises:
        CodingError: the bits are no whole words; later, that no symbols are coded so.
    """

    def __init__(self, bits: bytes) -> None:
        import constriction

        if len(bits) % 4:
            raise CodingError("the bits are no whole words")
        words = np.frombuffer(bits, dtype="<u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)
        self._family = constriction.stream.model.Categorical(perfect=False)

    def code(self, symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        try:
            return self._coder.decode(self._family, self._weights(probabilities))
        except (AssertionError, ValueError) as error:
            raise CodingError("the bits are of no symbols") from error

    def _weights(self, probabilities: np.ndarray) -> np.ndarray:
        return _weights(probabilities)


class FirstVersionDecoder(Decoder):
    """Decodes files of version 1 of the format, whose encoder misread some of its tables.

    constriction takes numbers as they lie in memory. In a step of several pixels of a single image
    the tables lay there column by column, and were still read row by row. Such files hold the
    pixels all the same, in more bits than promised, for a decoder that makes the same mistake.
    """

    def _weights(self, probabilities: np.ndarray) -> np.ndarray:
        weights = _weights(probabilities)
        is_transposed = probabilities.flags.f_contiguous and not probabilities.flags.c_contiguous
        if is_transposed:
            weights = np.ascontiguousarray(weights.T).reshape(weights.shape)
        return weights


def _weights(probabilities: np.ndarray) -> np.ndarray:
    """What constriction makes exactly ``integer_tables`` of: it adds 1 to each value by itself.

    It reads memory row by row, whatever the strides of an array are.
    """
    return np.ascontiguousarray(integer_tables(probabilities) - 1, dtype=np.float64)
