"""Coding of images: nothing is lost, and the bits are those of the likelihood."""

import math

import numpy as np
import pytest
import torch
from helpers.problems import FAMILIES, Problem

from lmconv.compression import guessed_decoding, image_coding, pixel_coding
from lmconv.compression.entropy_coding import (
    TABLE_TOTAL,
    CodingError,
    Decoder,
    Encoder,
    EntropyCoder,
    integer_tables,
)
from lmconv.compression.image_coding import (
    CHECK_BITS,
    WrongImagesError,
    code_images,
)
from lmconv.compression.pixel_coding import _code_positions, code_indices, decode_pixels
from lmconv.generation.schedule import whole_image_schedule
from lmconv.likelihoods import Bernoulli, make_likelihood
from lmconv.pixel_values import from_levels, pixel_type, to_grid, to_levels

LIKELIHOODS = {
    "binary": Bernoulli(),
    "grey": make_likelihood(1, 3),
    "colour": make_likelihood(3, 2),
    "five_bits": make_likelihood(3, 1, n_bits=5),
    "predicted": make_likelihood(3, 2, local_prediction=True),
    "colourful": make_likelihood(3, 2, local_prediction=True, coefficient_bound=3),
    "sixteen_bits": make_likelihood(1, 3, n_bits=16),
    "four_channels": make_likelihood(4, 2, n_bits=12, local_prediction=True),
}


class Recorder(EntropyCoder):
    """Hands symbols through and keeps the integer tables."""

    def __init__(self):
        self.tables = []

    def code(self, symbols, probabilities):
        self.tables.append(integer_tables(probabilities))
        return symbols


def levels_of(problem):
    num_values = problem.likelihood.num_values
    return to_levels(problem.images, num_values).numpy().astype(pixel_type(num_values))


def coded(problem, levels, coder, images_per_check=2, model=None, guess=0):
    return code_images(
        model or problem.model,
        problem.likelihood,
        whole_image_schedule(problem.model, problem.order, problem.masks),
        levels,
        coder,
        images_per_check,
        guess=guess,
    )


def encoded(problem, images_per_check=2):
    encoder = Encoder()
    result = coded(problem, levels_of(problem), encoder, images_per_check)
    assert np.array_equal(result, levels_of(problem))
    return encoder.finish()


def decoded(problem, bits, images_per_check=2, model=None, guess=0):
    levels = np.zeros_like(levels_of(problem))
    return coded(problem, levels, Decoder(bits), images_per_check, model, guess)


@pytest.mark.parametrize("kind", LIKELIHOODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_images_come_back(family, kind):
    problem = Problem(family, likelihood=LIKELIHOODS[kind], images=5)
    assert np.array_equal(decoded(problem, encoded(problem)), levels_of(problem))


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_the_bits_are_those_of_the_likelihood(kind):
    problem = Problem(likelihood=LIKELIHOODS[kind], images=12)
    num_bits = 8 * len(encoded(problem, images_per_check=12)) - CHECK_BITS
    with torch.inference_mode():
        logits = problem.model(problem.images, problem.masks)
        nats = -problem.likelihood.log_prob(logits, problem.images).sum().item()
    # A word is the least that a coder ends with. What a value takes at most is 24 bits.
    assert num_bits <= nats / math.log(2) * 1.005 + 64
    assert num_bits >= 0.9 * nats / math.log(2)


@pytest.mark.parametrize("images", [1, 2, 3, 9])
@pytest.mark.parametrize("family", ["raster_scan", "random", "s_curve"])
@pytest.mark.parametrize(
    "likelihood",
    [
        Bernoulli(),
        *(make_likelihood(1, 3, n_bits) for n_bits in (1, 2, 4, 8)),
        *(make_likelihood(3, 2, n_bits) for n_bits in (1, 3, 5, 8)),
        make_likelihood(2, 2, 9),
        make_likelihood(2, 2, 16),
    ],
    ids=lambda likelihood: (
        f"{type(likelihood).__name__[0]}{likelihood.num_channels}x{likelihood.num_values}"
    ),
)
def test_every_shape_of_a_step_takes_the_bits_of_its_probabilities(likelihood, family, images):
    """Tables that are misread by both ends give the images back, in far more bits."""

    class Counter(Encoder):
        bits = 0.0

        def code(self, symbols, probabilities):
            parts = integer_tables(probabilities) / TABLE_TOTAL
            own = np.take_along_axis(parts, symbols.astype(np.int64)[:, None], axis=1)
            self.bits -= np.log2(own).sum()
            return super().code(symbols, probabilities)

    problem = Problem(family, likelihood=likelihood, images=images)
    encoder = Counter()
    coded(problem, levels_of(problem), encoder, images)
    bits = encoder.finish()
    assert encoder.bits <= 8 * len(bits) <= encoder.bits * 1.001 + 64
    assert np.array_equal(decoded(problem, bits, images), levels_of(problem))


def test_steps_of_many_pixels_are_coded_in_parts(monkeypatch):
    problem = Problem("random", size=(9, 9), likelihood=LIKELIHOODS["colour"])
    bits = encoded(problem)
    monkeypatch.setattr(image_coding, "SYMBOLS_AT_ONCE", 6)
    in_parts = encoded(problem)
    assert abs(len(in_parts) - len(bits)) <= 4
    assert np.array_equal(decoded(problem, in_parts), levels_of(problem))


@pytest.mark.slow
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_rounding_makes_tables_independent_of_batches_and_threads(kind):
    problem = Problem(
        "gilbert2d", likelihood=LIKELIHOODS[kind], images=40, filters=40, normalization="pono"
    )
    levels, tables = levels_of(problem), []
    threads = torch.get_num_threads()
    try:
        for number, part in ((1, levels), (2, levels), (2, levels[:1])):
            torch.set_num_threads(number)
            recorder = Recorder()
            coded(problem, part, recorder)
            tables.append(recorder.tables)
        torch.set_num_threads(2)
        bits = encoded(problem)
        torch.set_num_threads(1)
        assert np.array_equal(decoded(problem, bits), levels)
    finally:
        torch.set_num_threads(threads)
    steps = len(tables[2]) - 2  # without the checks
    for one, two, alone in zip(*(each[:steps] for each in tables), strict=True):
        assert np.array_equal(one, two)
        assert np.array_equal(one[: len(alone)], alone)


@pytest.mark.parametrize("guess", [0, 4])
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_what_is_computed_a_little_otherwise_does_not_matter(kind, guess, monkeypatch):
    """The margins are so wide here that many numbers are within them."""
    problem, corrections = Problem(likelihood=LIKELIHOODS[kind], images=8), []
    is_fine = len(problem.likelihood.digit_sizes) > 1
    margin = 2.0**-18 if is_fine else 2.0**-12
    monkeypatch.setattr(pixel_coding, "LOGIT_STEP", 2.0**-6)
    monkeypatch.setattr(pixel_coding, "LOGIT_MARGIN", margin * (16 if is_fine else 1))
    monkeypatch.setattr(problem.likelihood, "rounding_error", 2.0**-29)
    code_positions = pixel_coding._code_positions

    def counted(is_there, coder):
        positions = code_positions(is_there, coder)
        corrections.append(len(positions))
        return positions

    monkeypatch.setattr(pixel_coding, "_code_positions", counted)
    bits = encoded(problem)
    assert sum(corrections[::2]) > 5 and sum(corrections[1::2]) > 5, "nothing is corrected"

    decode_pixels, probabilities = (
        image_coding.decode_pixels,
        type(problem.likelihood).digit_probabilities,
    )

    def noise_like(values):
        return 2 * torch.rand_like(values) - 1

    def with_other_logits(likelihood, logits, *arguments):
        logits = logits + 0.9 * margin * noise_like(logits)
        return decode_pixels(likelihood, logits, *arguments)

    def other_probabilities(self, *arguments, **named):
        values = probabilities(self, *arguments, **named)
        return values * (1 + 2.0**-30 * noise_like(values))

    class WithOtherLogits(pixel_coding.PixelDecoding):
        def __init__(self, likelihood, logits, *arguments):
            super().__init__(likelihood, logits + 0.9 * margin * noise_like(logits), *arguments)

    monkeypatch.setattr(image_coding, "decode_pixels", with_other_logits)
    monkeypatch.setattr(guessed_decoding, "PixelDecoding", WithOtherLogits)
    monkeypatch.setattr(type(problem.likelihood), "digit_probabilities", other_probabilities)
    assert np.array_equal(decoded(problem, bits, guess=guess), levels_of(problem))
    monkeypatch.setattr(pixel_coding, "LOGIT_MARGIN", 0.0)
    with pytest.raises((WrongImagesError, CodingError)):
        decoded(problem, encoded(problem), guess=guess)


@pytest.mark.parametrize("log_scale", [-7.0, -2.0])
def test_last_digits_of_functions_stay_within_the_margin(log_scale, monkeypatch):
    """Where errors are magnified most: at the least scales, given a surprising channel."""
    likelihood = make_likelihood(3, 10)
    torch.manual_seed(1)
    logits = torch.randn(20, 100, 1, 8, dtype=torch.float64)
    groups = logits[:, 10:].unflatten(1, (3, 3, 10))
    groups[:, :, 1] = log_scale
    groups[:, :, 0] *= 0.5
    known = to_grid(torch.rand(20, 2, 1, 8, dtype=torch.float64) * 2 - 1, 8)

    def bounds():
        return torch.stack(
            [likelihood.probabilities(logits, known[:, :channel]) for channel in range(3)]
        ).cumsum(2)

    exact = bounds()
    for module, name in ((torch, "exp"), (torch, "tanh"), (torch, "sigmoid"), (torch, "softmax")):
        function = getattr(module, name)

        def other_digits(*arguments, function=function, **named):
            values = function(*arguments, **named)
            return values * (1 + 2.0**-52 * torch.randint_like(values, -1, 2))

        monkeypatch.setattr(module, name, other_digits)
    largest = max((bounds() - exact).abs().max().item() for _ in range(10))
    assert 0 < largest < likelihood.rounding_error


@pytest.mark.parametrize("is_transposed", [False, True])
def test_logits_are_rounded_as_encoded_however_they_lie_in_memory(is_transposed, monkeypatch):
    """All lie where rounding is in doubt, and the decoder's are a little below the encoder's."""
    likelihood, seen = make_likelihood(1, 2, n_bits=2), []
    number = likelihood.num_output_channels
    halves = torch.randint(-900, 900, (3, number, 7, 1)).double() + 0.5
    logits = halves * pixel_coding.LOGIT_STEP
    symbols = np.random.default_rng(0).integers(0, 4, (3, 1, 7)).astype(np.uint8)
    values = from_levels(torch.from_numpy(symbols), 4)[..., None].double()
    encoder = Encoder()
    pixel_coding.PixelEncodings(likelihood, logits, symbols, values).write(slice(7), encoder)

    def watched(logits, values, *upper, **options):
        seen.append(logits)
        return probabilities(logits, values, *upper, **options)

    probabilities = likelihood.digit_probabilities
    monkeypatch.setattr(likelihood, "digit_probabilities", watched)
    below = logits - 1e-13
    if is_transposed:  # as a step of several positions has them
        below = below.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    coded = np.zeros_like(symbols)
    decode_pixels(likelihood, below, coded, np.arange(7), Decoder(encoder.finish()))
    assert torch.equal(seen[0], (halves + 0.5) * pixel_coding.LOGIT_STEP)
    assert np.array_equal(coded, symbols)


def test_positions_cost_next_to_nothing_where_there_are_none():
    encoder = Encoder()
    for _ in range(10_000):
        assert len(_code_positions(np.zeros(50, dtype=bool), encoder)) == 0
    assert len(encoder.finish()) <= 8
    is_there = np.zeros(2**18, dtype=bool)
    is_there[[0, 77, 2**17 + 5]] = True
    encoder = Encoder()
    _code_positions(is_there, encoder)
    bits = encoder.finish()
    nothing = np.zeros(2**18, dtype=bool)
    assert _code_positions(nothing, Decoder(bits)).tolist() == [0, 77, 2**17 + 5]
    with pytest.raises(CodingError):
        _code_positions(nothing[:100], Decoder(bits))


def test_another_network_is_noticed():
    problem = Problem(images=6)
    bits = encoded(problem)
    with torch.no_grad():
        next(problem.model.parameters()).add_(0.05)
    with pytest.raises((WrongImagesError, CodingError)):
        decoded(problem, bits)


def test_a_failing_check_names_its_images():
    """Images are changed behind the encoder's back: only the second pair of three is wrong."""

    class Liar(Encoder):
        checks = 0

        def code(self, symbols, probabilities):
            self.checks += probabilities.shape == (2, 256)
            if self.checks == 2 and probabilities.shape == (2, 256):
                symbols = symbols ^ 1
            super().code(symbols, probabilities)
            return symbols

    problem, liar = Problem(images=5), Liar()
    with pytest.raises(WrongImagesError) as raised:
        coded(problem, levels_of(problem), liar)
    assert list(raised.value.indices) == [2, 3]


def test_indices_cost_the_logarithm_of_their_number():
    encoder, indices = Encoder(), np.random.default_rng(0).integers(8, size=1000)
    code_indices(indices, 8, encoder)
    bits = encoder.finish()
    assert abs(8 * len(bits) - 3 * 1000) <= 64
    assert np.array_equal(code_indices(np.zeros(1000), 8, Decoder(bits)), indices)


def test_progress_counts_every_pixel():
    problem, done = Problem(images=3), []
    code_images(
        problem.model,
        problem.likelihood,
        whole_image_schedule(problem.model, problem.order, problem.masks),
        levels_of(problem),
        Encoder(),
        1,
        done.append,
    )
    assert sum(done) == 3 * 30
