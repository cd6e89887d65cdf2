"""Integer tables, and that the coder's bits are those that they promise."""

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmconv.compression.entropy_coding import (
    TABLE_TOTAL,
    CodingError,
    Decoder,
    Encoder,
    FirstVersionDecoder,
    Recorder,
    integer_tables,
    is_doubtful,
)


def random_probabilities(number, num_values, seed=0, concentration=0.1):
    random = np.random.default_rng(seed)
    return random.dirichlet(np.full(num_values, concentration), size=number)


@given(
    number=st.integers(1, 5),
    num_values=st.sampled_from([2, 3, 32, 256]),
    exponents=st.lists(st.floats(-320, 3), min_size=256, max_size=256),
    seed=st.integers(0, 1000),
)
@settings(deadline=None)
def test_every_value_has_a_part_of_a_fixed_total(number, num_values, exponents, seed):
    random = np.random.default_rng(seed)
    weights = 10.0 ** np.array(exponents)[:num_values] * random.integers(0, 2, (number, num_values))
    weights[:, random.integers(num_values)] = 1e-3
    tables = integer_tables(weights)
    assert tables.min() >= 1
    assert (tables.sum(axis=1) == TABLE_TOTAL).all()
    shares = weights / weights.sum(axis=1, keepdims=True)
    assert np.abs(tables / TABLE_TOTAL - shares).max() < (num_values + 2) / TABLE_TOTAL


@pytest.mark.parametrize("bad", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [-0.1, 1.1]])
def test_what_is_no_distribution_is_refused(bad):
    with pytest.raises(CodingError, match="no valid probabilities"):
        integer_tables(np.array([[0.5, 0.5], bad]))


@pytest.mark.parametrize("num_values", [2, 7, 256])
def test_the_coder_works_with_exactly_these_tables(num_values):
    """The interval that is left after one symbol is the part of the table that it has."""
    probabilities = random_probabilities(40, num_values)
    tables = integer_tables(probabilities)
    for row, table in zip(probabilities, tables, strict=True):
        for symbol in {0, num_values - 1, int(row.argmin()), int(row.argmax())}:
            encoder = Encoder()
            encoder.code(np.array([symbol]), row[None])
            encoder.finish()
            _, (_, interval) = encoder._coder.pos()
            expected = (2**64 - 1) // TABLE_TOTAL * int(table[symbol])
            while expected < 2**32:  # a word is written, and the interval widens
                expected <<= 32
            assert interval == expected


@pytest.mark.parametrize("num_values", [2, 32, 256])
@pytest.mark.parametrize("concentration", [0.02, 1.0])
def test_symbols_come_back_in_the_bits_that_were_promised(num_values, concentration):
    probabilities = random_probabilities(3000, num_values, concentration=concentration)
    random = np.random.default_rng(1)
    symbols = np.array([random.choice(num_values, p=row) for row in probabilities])
    encoder = Encoder()
    assert (encoder.code(symbols, probabilities) == symbols).all()
    bits = encoder.finish()
    parts = integer_tables(probabilities)[np.arange(3000), symbols] / TABLE_TOTAL
    assert 0 <= 8 * len(bits) + np.log2(parts).sum() < 64
    decoder = Decoder(bits)
    decoded = [decoder.code(np.zeros(len(part)), part) for part in np.array_split(probabilities, 7)]
    assert (np.concatenate(decoded) == symbols).all()


def test_how_tables_lie_in_memory_does_not_matter():
    probabilities = random_probabilities(40, 5)
    symbols = np.arange(40) % 5
    wide = np.repeat(probabilities, 2, axis=1)[:, ::2]
    expected = None
    for laid_out in (probabilities, np.asfortranarray(probabilities), wide):
        encoder = Encoder()
        encoder.code(symbols, laid_out)
        bits = encoder.finish()
        expected = expected or bits
        assert bits == expected
        assert (Decoder(bits).code(symbols, laid_out) == symbols).all()


def test_the_first_version_misreads_tables_that_lie_transposed():
    """As its encoder did; constriction takes any memory of the right size for rows."""
    probabilities = random_probabilities(6, 4, concentration=1.0)
    misread = (
        np.ascontiguousarray((integer_tables(probabilities) - 1).T).reshape(6, 4) / TABLE_TOTAL
    )
    symbols = np.array([0, 3, 1, 2, 2, 0])
    encoder = constriction.stream.queue.RangeEncoder()
    family = constriction.stream.model.Categorical(perfect=False)
    encoder.encode(symbols.astype(np.int32), family, misread * TABLE_TOTAL)
    bits = encoder.get_compressed().astype("<u4").tobytes()
    decoded = FirstVersionDecoder(bits).code(symbols, np.asfortranarray(probabilities))
    assert (decoded == symbols).all()


def test_the_most_improbable_symbol_costs_24_bits():
    probabilities = np.tile([1.0, 0.0], (64, 1))
    encoder = Encoder()
    encoder.code(np.ones(64, dtype=np.int64), probabilities)
    assert abs(len(encoder.finish()) - 64 * 24 / 8) <= 8


@pytest.mark.parametrize("num_values", [2, 3, 16])
def test_a_recording_is_encoded_as_if_its_symbols_were_encoded_directly(num_values):
    random = np.random.default_rng(num_values)
    probabilities = random_probabilities(600, num_values)
    probabilities[::3] = 0  # parts of 1 and of all but the least, at both ends and between
    probabilities[::3, random.integers(num_values)] = 1
    symbols = random.integers(num_values, size=600)
    symbols[::6] = probabilities[::6].argmax(axis=1)
    expected, encoder, recorder = Encoder(), Encoder(), Recorder()
    for coder in (expected, recorder):
        coder.code(symbols[:200], probabilities[:200])
        coder.code_rare(True)
        coder.code_rare(False)
        coder.code(symbols[200:], probabilities[200:])
    encoder.replay(recorder.intervals()[:, :100])
    encoder.replay(recorder.intervals()[:, 100:])
    encoder.replay(Recorder().intervals())
    assert encoder.finish() == expected.finish()


def test_any_bits_give_symbols_or_are_refused():
    random = np.random.default_rng(0)
    probabilities = random_probabilities(500, 16)
    for number in (0, 4, 40, 400):
        for _ in range(50):
            try:
                symbols = Decoder(random.bytes(number)).code(np.zeros(500), probabilities)
            except CodingError:
                continue
            assert symbols.min() >= 0 and symbols.max() < 16
    with pytest.raises(CodingError, match="whole words"):
        Decoder(b"12345")


def test_what_is_certain_is_not_doubtful():
    certain = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1e-17, 1e-12]])
    for symbol in range(3):
        assert not is_doubtful(np.full(4, symbol, dtype=np.uint8), certain, 2.0**-44).any()


def test_a_table_changes_by_the_last_digits_only_where_it_is_doubtful():
    """Of two values, whose bound is half a unit above a whole number, or nearly."""
    units = np.array([1000.5, 1000.5 + 1e-8, 1000.5 - 1e-8, 1000.5 + 1e-5, 1000.4, 1000.0])
    part = units / (TABLE_TOTAL - 2)
    probabilities = np.stack([part, 1 - part], axis=1)
    for symbol in (0, 1):
        doubtful = is_doubtful(np.full(6, symbol), probabilities, 2.0**-44)
        assert doubtful.tolist() == [True, True, True, False, False, False]
    changed = (
        integer_tables(probabilities * [1 + 1e-11, 1])
        != integer_tables(probabilities * [1 - 1e-11, 1])
    ).any(axis=1)
    assert (
        changed <= is_doubtful(np.zeros(6, dtype=int), probabilities, 2.0**-44)
    ).all() and changed.any()
