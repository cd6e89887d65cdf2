"""Decoding in windows of guessed pixels: the same images, in fewer steps."""

import numpy as np
import pytest
import torch
from helpers.problems import Problem
from hypothesis import given, settings
from hypothesis import strategies as st

from lmconv.compression import image_coding
from lmconv.compression.entropy_coding import CodingError, Decoder, Encoder
from lmconv.compression.guessed_decoding import choose_windows, decode_windows
from lmconv.compression.image_coding import WrongImagesError, code_images
from lmconv.generation.guessing import Guessing
from lmconv.generation.schedule import whole_image_schedule
from lmconv.likelihoods import Bernoulli, make_likelihood
from lmconv.pixel_values import pixel_type, to_levels

PATHS = ("s_curve", "gilbert2d")
LIKELIHOODS = {
    "binary": Bernoulli(),
    "grey": make_likelihood(1, 3, n_bits=3),
    "colour": make_likelihood(3, 2, n_bits=2),
    "predicted": make_likelihood(3, 2, n_bits=2, local_prediction=True),
    "nine_bits": make_likelihood(2, 2, n_bits=9),
}


def schedule_of(problem):
    return whole_image_schedule(problem.model, problem.order, problem.masks)


def coded(problem, levels, coder, **options):
    arguments = problem.model, problem.likelihood, schedule_of(problem), levels, coder, 2
    return code_images(*arguments, **options)


def levels_and_bits(problem):
    num_values = problem.likelihood.num_values
    levels = to_levels(problem.images, num_values).numpy().astype(pixel_type(num_values))
    encoder = Encoder()
    coded(problem, levels, encoder)
    return levels, encoder.finish()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(PATHS),
    st.sampled_from(sorted(LIKELIHOODS)),
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_images_come_back_in_windows_of_any_size(family, kind, window, images, seed):
    torch.manual_seed(seed)
    problem = Problem(family, 1, (4, 5), likelihood=LIKELIHOODS[kind], images=images)
    levels, bits = levels_and_bits(problem)
    assert np.array_equal(
        coded(problem, np.zeros_like(levels), Decoder(bits), guess=window), levels
    )


def test_right_guesses_take_fewer_steps():
    problem = Problem("s_curve", size=(8, 8), images=2)
    problem.images[:] = -1.0  # as the first guesses are
    with torch.no_grad():
        problem.model.nin_out.lin_a.bias += torch.tensor([9.0, -9.0])
    levels, bits = levels_and_bits(problem)
    out, steps = np.zeros((2, 1, 64), np.uint8), []
    with torch.inference_mode():
        arguments = problem.model, problem.likelihood, schedule_of(problem), out, Decoder(bits)
        assert decode_windows(*arguments, Guessing(8), steps.append)
    assert steps == [16] * 8
    assert np.array_equal(out.reshape(levels.shape), levels)


def test_too_few_right_guesses_end_the_trial_and_nothing_is_lost(monkeypatch):
    problem = Problem("s_curve", images=3, likelihood=make_likelihood(1, 2))
    levels, bits = levels_and_bits(problem)
    choice = Guessing(4, trial_steps=2, least_kept=4.0)
    monkeypatch.setattr(image_coding, "choose_windows", lambda *arguments: choice)
    done = []
    result = coded(problem, np.zeros_like(levels), Decoder(bits), on_step=done.append)
    assert np.array_equal(result, levels)
    assert min(done) < 0 and sum(done) == levels.size


def test_windows_are_for_few_images_along_a_path():
    def window(family, images):
        problem = Problem(family, size=(28, 28), filters=16)
        return choose_windows(problem.model, schedule_of(problem), images).window

    assert window("s_curve", 1) >= 8
    assert window("s_curve", 1) > window("s_curve", 16) > window("s_curve", 500) == 0
    assert window("raster_scan", 1) == 0
    problem = Problem("raster_scan")
    levels, bits = levels_and_bits(problem)
    assert np.array_equal(coded(problem, np.zeros_like(levels), Decoder(bits), guess=4), levels)


def test_damaged_bits_are_errors():
    problem = Problem("s_curve", size=(6, 6), images=2, likelihood=make_likelihood(1, 2))
    levels, bits = levels_and_bits(problem)
    random = np.random.default_rng(0)
    for _ in range(20):
        damaged = bytearray(bits)
        damaged[random.integers(len(bits))] ^= 1 << int(random.integers(8))
        with pytest.raises((WrongImagesError, CodingError)):
            coded(problem, np.zeros_like(levels), Decoder(bytes(damaged)), guess=5)
