"""Likelihoods against goldens, and as what they claim to be: distributions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from likelihoods import Bernoulli, DiscretizedMixtureLogistics, make_likelihood

GOLDEN = np.load(Path(__file__).parent / "reference" / "losses.npz")
CASES = sorted({key.split("__")[0] for key in GOLDEN.files})


def golden(case):
    """The arrays of a case, its likelihood, and the prefix of the values that we must match."""
    arrays = {
        key.split("__")[1]: torch.from_numpy(np.asarray(GOLDEN[key]))
        for key in GOLDEN.files
        if key.split("__")[0] == case
    }
    channels, outputs = arrays["x"].shape[1], arrays["logits"].shape[2]
    n_bits = 5 if case.startswith("color5") else 8
    mixtures = outputs // (10 if channels == 3 else 3)
    likelihood = make_likelihood(channels, mixtures, n_bits, case.startswith("binary"))
    # Values for fewer than 8 bits carry the published constant for 8; "matched" ones do not.
    return arrays, likelihood, "matched_" if n_bits < 8 else ""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_goldens(case, dtype):
    arrays, likelihood, prefix = golden(case)
    suffix, rtol = ("_float64", 1e-9) if dtype == torch.float64 else ("", 1e-5)
    x = arrays["x"].to(dtype)
    scores = torch.stack([likelihood.log_prob(logits.to(dtype), x) for logits in arrays["logits"]])
    losses = {"loss": -scores[0].sum()}
    losses["averaged_loss"] = -(scores.logsumexp(0) - math.log(len(scores))).sum()
    for name, value in losses.items():
        expected = arrays.get(f"{prefix}{name}{suffix}")
        if expected is not None:
            assert value.item() == pytest.approx(expected.item(), rel=rtol)
    if not prefix and not suffix:
        torch.testing.assert_close(-scores[0], arrays["loss_per_image"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("color5")])
def test_golden_gradients(case):
    arrays, likelihood, _ = golden(case)
    logits = arrays["logits"][0].double().requires_grad_()
    loss = -likelihood.log_prob(logits, arrays["x"].double()).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, arrays["grad_float64"], rtol=1e-6, atol=1e-8)


def every_value(n_bits):
    return 2 * torch.arange(2**n_bits).double() / (2**n_bits - 1) - 1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(0, 10**6), st.floats(0.5, 8))
def test_probabilities_of_all_grey_values_sum_to_one(n_bits, seed, spread):
    likelihood = DiscretizedMixtureLogistics(1, 3, n_bits)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 9, 1, 1, generator=generator, dtype=torch.float64) * spread
    values = every_value(n_bits).view(-1, 1, 1, 1)
    total = likelihood.log_prob(logits.expand(len(values), -1, -1, -1), values).exp().sum()
    # Bins below a mass of 1e-5 are approximated by their density.
    assert total.item() == pytest.approx(1, abs=2e-5 * len(values))


@pytest.mark.parametrize("n_bits", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_probabilities_of_all_colours_sum_to_one(n_bits, seed):
    likelihood = DiscretizedMixtureLogistics(3, 2, n_bits)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 20, 1, 1, generator=generator, dtype=torch.float64)
    levels = every_value(n_bits)
    colours = torch.cartesian_prod(levels, levels, levels).view(-1, 3, 1, 1)
    total = likelihood.log_prob(logits.expand(len(colours), -1, -1, -1), colours).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("likelihood", "levels"),
    [
        (Bernoulli(), 2),
        (DiscretizedMixtureLogistics(1, 2, 3), 8),
        (DiscretizedMixtureLogistics(3, 2, 2), 4),
    ],
)
def test_draws_follow_log_prob(likelihood, levels):
    number, channels = 20000, likelihood.num_channels
    logits = torch.randn(1, likelihood.num_output_channels, 1, 1, dtype=torch.float64)
    grid = 2 * torch.arange(levels).double() / (levels - 1) - 1
    values = torch.cartesian_prod(*[grid] * channels).view(-1, channels, 1, 1)
    probs = likelihood.log_prob(logits.expand(len(values), -1, -1, -1), values).exp()
    draws = likelihood.sample(logits.expand(number, -1, -1, -1), torch.Generator().manual_seed(3))
    indices = ((draws.flatten(1) + 1) / 2 * (levels - 1)).round().long()
    codes = sum(indices[:, c] * levels ** (channels - 1 - c) for c in range(channels))
    counts = torch.bincount(codes, minlength=len(values)).numpy()
    expected = (probs / probs.sum() * number).numpy()
    often = expected > 5
    observed = [*counts[often], counts[~often].sum()]
    wanted = [*expected[often], expected[~often].sum()]
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    assert chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n_bits", range(1, 9))
def test_draws_are_grid_values_bit_for_bit(channels, n_bits):
    likelihood = DiscretizedMixtureLogistics(channels, 2, n_bits)
    draws = likelihood.sample(torch.randn(4, likelihood.num_output_channels, 8, 8))
    top = 2**n_bits - 1
    grid = 2 * torch.arange(top + 1).float() / top - 1
    assert torch.isin(draws, grid).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_temperatures_act_on_mixture_and_scales(channels):
    likelihood = DiscretizedMixtureLogistics(channels, 2, 8)
    logits = torch.zeros(1, likelihood.num_output_channels, 1, 1)
    logits[:, 0] = 0.5  # the first component is a little likelier
    means = logits[:, 2:].unflatten(1, (channels, -1, 2))[:, :, 0]
    means[:, :, 0], means[:, :, 1] = -0.6, 0.6
    draws = likelihood.sample(
        logits.expand(500, -1, -1, -1), mixture_temperature=0.01, logistic_temperature=1e-4
    )
    assert (draws[:, 0] + 0.6).abs().max() < 0.01
    spread = likelihood.sample(logits.expand(500, -1, -1, -1), logistic_temperature=1e-4)
    assert (spread[:, 0] > 0).float().mean() == pytest.approx(0.378, abs=0.08)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n_bits", [1, 2, 5, 8])
@pytest.mark.parametrize("log_scale", [-30.0, -7.0, 0.0, 9.0, 30.0])
def test_gradients_are_finite_at_extremes(dtype, channels, n_bits, log_scale):
    likelihood = DiscretizedMixtureLogistics(channels, 2, n_bits)
    levels = every_value(n_bits)[:: max(1, 2**n_bits // 8)]
    images = torch.cat([levels, torch.tensor([1.0])]).to(dtype)
    images = images.view(-1, 1, 1, 1).expand(-1, channels, -1, -1)
    for mean in (-40.0, 0.0, 40.0):
        logits = torch.randn(len(images), likelihood.num_output_channels, 1, 1, dtype=dtype)
        groups = logits[:, 2:].unflatten(1, (channels, -1, 2))
        groups[:, :, 0], groups[:, :, 1] = mean, log_scale
        logits.requires_grad_()
        scores = likelihood.log_prob(logits, images)
        (gradient,) = torch.autograd.grad(scores.sum(), logits)
        assert torch.isfinite(scores).all()
        assert torch.isfinite(gradient).all()


def test_half_precision_logits_give_float32_scores():
    logits = torch.randn(2, 30, 4, 4).bfloat16()
    images = torch.ones(2, 1, 4, 4)
    scores = DiscretizedMixtureLogistics(1, 10).log_prob_per_pixel(logits, images)
    assert scores.dtype == torch.float32
    assert scores.shape == (2, 4, 4)


def test_draws_are_a_function_of_the_noise_position_by_position():
    likelihood = DiscretizedMixtureLogistics(3, 2)
    logits, noise = torch.randn(1, 20, 3, 3), likelihood.draw_noise(1, 3, 3)
    whole = likelihood.sample(logits, noise=noise)
    part = likelihood.sample(logits[..., 1:2, 2:], noise=noise[..., 1:2, 2:])
    assert torch.equal(part, whole[..., 1:2, 2:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_likelihood(3, binarize=True), "--binarize"),
        (lambda: make_likelihood(2), "1 or 3"),
        (lambda: make_likelihood(1, 0), "at least one"),
        (lambda: make_likelihood(1, 10, 9), "1 to 8"),
        (lambda: Bernoulli().log_prob(torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)), "B x 2"),
        (lambda: Bernoulli().log_prob(torch.zeros(1, 2, 2, 2), torch.zeros(1, 1, 3, 2)), "images"),
        (lambda: Bernoulli().sample(torch.zeros(1, 2, 2, 2), mixture_temperature=0), "above 0"),
    ],
)
def test_impossible_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
