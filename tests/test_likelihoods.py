"""Likelihoods against goldens, and as what they claim to be: distributions that one can draw."""

import math

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.paths import REFERENCE
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, logistic

from lmconv.likelihoods import (
    Bernoulli,
    DiscretizedMixtureLogistics,
    _reproducible_tanh,
    make_likelihood,
)
from lmconv.pixel_values import from_levels, to_grid, to_levels

GOLDEN = np.load(REFERENCE / "losses.npz")
CASES = sorted({key.split("__")[0] for key in GOLDEN.files})
ALL_BITS = range(1, 9)

# Where an inner bin holds 1e-5 or less, its mass is replaced by the density at its centre times its
# width. The tails are convex, so that is too little, and by no more than the mass itself. Only the
# first such bin on either side of a component counts: where the next ones are not far smaller, bins
# are narrow and the approximation good. So the sum misses 2e-5 per channel at most.
TAIL = 2.1e-5
# With scales of two bins or more the approximation is off by 1 % of such a bin: 1e-6 in all.
TAIL_OF_WIDE_COMPONENTS = 1e-6


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


def ensemble(log_probs):
    """Negative log of the mean of joint likelihoods, K x B to B."""
    return math.log(len(log_probs)) - log_probs.logsumexp(0)


def every_value(n_bits):
    """Exact to float64; the float32 values of the data leave gaps of 1e-7 between bins."""
    return 2 * torch.arange(2**n_bits).double() / (2**n_bits - 1) - 1


def every_pixel(n_bits, channels):
    """All values that a pixel can take, V x C x 1 x 1."""
    return torch.cartesian_prod(*[every_value(n_bits)] * channels).view(-1, channels, 1, 1)


def random_logits(likelihood, height=1, width=1, batch=1, dtype=torch.float32):
    return torch.randn(batch, likelihood.num_output_channels, height, width, dtype=dtype)


def parts(likelihood, logits):
    """Views: mixture logits B x M x ..., and B x C x (means, log-scales[, coefficients]) x M."""
    mixtures, channels = likelihood.num_mixtures, likelihood.num_channels
    rest = logits[:, mixtures : -channels if likelihood.is_relative else None]
    return logits[:, :mixtures], rest.unflatten(1, (channels, -1, mixtures))


def total_probability(likelihood, logits, pixels):
    repeated = logits.expand(len(pixels), -1, -1, -1)
    return likelihood.log_prob(repeated, pixels.to(logits.dtype)).exp().sum().item()


# Goldens


@pytest.mark.parametrize("case", CASES)
def test_float32_losses_match_goldens(case):
    arrays, likelihood, prefix = golden(case)
    scores = torch.stack([likelihood.log_prob(logits, arrays["x"]) for logits in arrays["logits"]])
    losses = {"loss": -scores[0], "averaged_loss": ensemble(scores)}
    for name, per_image in losses.items():
        close = {"rtol": 1e-5, "atol": 1e-4}
        torch.testing.assert_close(per_image.sum(), arrays[prefix + name], **close)
        if not prefix:
            torch.testing.assert_close(per_image, arrays[name + "_per_image"], **close)


@pytest.mark.parametrize("case", CASES)
def test_float64_losses_match_goldens(case):
    arrays, likelihood, prefix = golden(case)
    x = arrays["x"].double()
    scores = torch.stack([likelihood.log_prob(logits.double(), x) for logits in arrays["logits"]])
    loss = arrays[f"{prefix}loss_float64"].item()
    assert -scores[0].sum().item() == pytest.approx(loss, rel=1e-9)
    if not prefix:
        averaged = arrays["averaged_loss_float64"].item()
        assert ensemble(scores).sum().item() == pytest.approx(averaged, rel=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_gradients_match_goldens(case):
    arrays, likelihood, prefix = golden(case)
    logits = arrays["logits"].double().requires_grad_()
    scores = torch.stack([likelihood.log_prob(one, arrays["x"].double()) for one in logits])
    (gradient,) = torch.autograd.grad(-scores[0].sum(), logits, retain_graph=True)
    (averaged,) = torch.autograd.grad(ensemble(scores).sum(), logits)
    # Float32 goldens carry the cancellation of a difference of sigmoids, up to 1e-2 of 14 to 45.
    coarse = {"rtol": 0, "atol": 2e-2}
    torch.testing.assert_close(gradient[0].float(), arrays[prefix + "grad"], **coarse)
    torch.testing.assert_close(averaged.float(), arrays[prefix + "averaged_grad"], **coarse)
    if not prefix:
        torch.testing.assert_close(gradient[0], arrays["grad_float64"], rtol=1e-9, atol=1e-9)


# A distribution


@pytest.mark.parametrize("n_bits", ALL_BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grey_probabilities_sum_to_one(n_bits, dtype):
    likelihood = DiscretizedMixtureLogistics(1, 5, n_bits)
    for spread in (0.5, 3, 10):
        logits = random_logits(likelihood, dtype=dtype) * spread
        total = total_probability(likelihood, logits, every_pixel(n_bits, 1))
        # Float32 adds the rounding of a bin's edges, 6e-8, over the least scale, 1e-3.
        slack = 0 if dtype == torch.float64 else 1e-4
        assert total == pytest.approx(1, abs=TAIL + slack)


@pytest.mark.parametrize("n_bits", ALL_BITS)
def test_grey_probabilities_sum_to_one_more_closely_at_moderate_scales(n_bits):
    likelihood = DiscretizedMixtureLogistics(1, 5, n_bits)
    logits = random_logits(likelihood, dtype=torch.float64)
    log_scales = parts(likelihood, logits)[1][:, :, 1]
    log_scales.copy_(math.log(4 / (2**n_bits - 1)) + log_scales.abs())  # a bin is 2 / (2**n - 1)
    total = total_probability(likelihood, logits, every_pixel(n_bits, 1))
    assert total == pytest.approx(1, abs=TAIL_OF_WIDE_COMPONENTS)


components = st.tuples(st.floats(-40, 40), st.floats(-40, 40), st.floats(-30, 30))


@settings(max_examples=100, deadline=None)
@given(n_bits=st.integers(1, 8), mixture=st.lists(components, min_size=1, max_size=3))
def test_any_grey_mixture_sums_to_one(n_bits, mixture):
    likelihood = DiscretizedMixtureLogistics(1, len(mixture), n_bits)
    # components x (logit, mean, log-scale) to 3 M output channels
    logits = torch.tensor(mixture, dtype=torch.float64).T.reshape(1, -1, 1, 1)
    total = total_probability(likelihood, logits, every_pixel(n_bits, 1))
    assert total == pytest.approx(1, abs=TAIL)


@pytest.mark.parametrize("n_bits", [1, 2])
@pytest.mark.parametrize("spread", [0.5, 3, 10])
def test_colour_probabilities_sum_to_one(n_bits, spread):
    likelihood = DiscretizedMixtureLogistics(3, 4, n_bits)
    logits = random_logits(likelihood, dtype=torch.float64) * spread
    total = total_probability(likelihood, logits, every_pixel(n_bits, 3))
    assert total == pytest.approx(1, abs=3 * TAIL)


@settings(max_examples=60, deadline=None)
@given(n_bits=st.integers(1, 2), values=st.lists(st.floats(-20, 20), min_size=10, max_size=10))
def test_any_colour_component_sums_to_one(n_bits, values):
    likelihood = DiscretizedMixtureLogistics(3, 1, n_bits)
    logits = torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
    total = total_probability(likelihood, logits, every_pixel(n_bits, 3))
    assert total == pytest.approx(1, abs=3 * TAIL)


@settings(max_examples=60, deadline=None)
@given(st.floats(-80, 80), st.floats(-80, 80))
def test_bernoulli_probabilities_sum_to_one(negative, positive):
    logits = torch.tensor([negative, positive], dtype=torch.float64).view(1, 2, 1, 1)
    assert total_probability(Bernoulli(), logits, every_pixel(1, 1)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("n_bits", ALL_BITS)
def test_a_bin_holds_the_mass_of_its_logistic_between_midpoints(n_bits):
    likelihood = DiscretizedMixtureLogistics(1, 1, n_bits)
    mean, scale, values = 0.2, 0.3, every_value(n_bits)
    logits = torch.tensor([0, mean, math.log(scale)], dtype=torch.float64).view(1, 3, 1, 1)
    scores = likelihood.log_prob(logits.expand(len(values), -1, -1, -1), values.view(-1, 1, 1, 1))
    midpoints = (values[1:] + values[:-1]).numpy() / 2
    edges = np.concatenate([[0.0], logistic.cdf(midpoints, mean, scale), [1.0]])
    np.testing.assert_allclose(scores.exp().numpy(), np.diff(edges), rtol=1e-9)


def test_pixels_sum_to_images():
    for likelihood in (Bernoulli(), make_likelihood(1, 3), make_likelihood(3, 3)):
        logits = random_logits(likelihood, 4, 5, batch=2)
        images = likelihood.sample(logits)
        pixels = likelihood.log_prob_per_pixel(logits, images)
        assert pixels.shape == (2, 4, 5)
        torch.testing.assert_close(pixels.sum(dim=(1, 2)), likelihood.log_prob(logits, images))


# Gradients and precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_bits", ALL_BITS)
@pytest.mark.parametrize("channels", [1, 3])
def test_scores_and_gradients_are_finite_at_extremes(channels, n_bits, dtype):
    """Every mean with every scale at every value (colours: edges, their neighbours, the middle)."""
    values = every_value(n_bits)
    if channels == 3:
        values = values[
            sorted(
                {0, 1, 2 ** (n_bits - 1), len(values) - 2, len(values) - 1}
                & set(range(len(values)))
            )
        ]
    means = torch.tensor([-40, -1, -0.01, 0, 1, 40.0])
    log_scales = torch.tensor([-30, -7, -6.9, -4, 0, 9, 30.0])
    mean, log_scale, value = torch.meshgrid(means, log_scales, values.float(), indexing="ij")
    likelihood = DiscretizedMixtureLogistics(channels, 2, n_bits)
    logits = random_logits(likelihood, mean.numel(), dtype=dtype) * 20
    groups = parts(likelihood, logits)[1]
    groups[:, :, 0] = mean.reshape(-1, 1).to(dtype)
    groups[:, :, 1, 0] = log_scale.reshape(-1, 1).to(dtype)  # the second component stays random
    images = value.reshape(1, 1, -1, 1).expand(-1, channels, -1, -1).to(dtype)
    logits.requires_grad_()
    scores = likelihood.log_prob_per_pixel(logits, images)
    (gradient,) = torch.autograd.grad(scores.sum(), logits)
    assert torch.isfinite(scores).all()
    assert (scores < 1e-5).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("likelihood", [Bernoulli(), make_likelihood(1, 2), make_likelihood(3, 2)])
def test_gradients_are_the_derivatives_of_the_scores(likelihood):
    logits = random_logits(likelihood, 3, 2, dtype=torch.float64)
    images = likelihood.sample(logits)
    images[..., 0, 0], images[..., 0, 1] = -1, 1
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda values: likelihood.log_prob(values, images), logits)


def test_the_least_log_scale_bounds_the_rest():
    likelihood = make_likelihood(1, 1)
    logits = torch.tensor([0, 0.1, -7]).view(1, 3, 1, 1)
    sharper = torch.tensor([0, 0.1, -12]).view(1, 3, 1, 1)
    image = to_grid(torch.full((1, 1, 1, 1), 0.1), 8)
    assert torch.equal(likelihood.log_prob(logits, image), likelihood.log_prob(sharper, image))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("likelihood", [Bernoulli(), make_likelihood(1, 2), make_likelihood(3, 2)])
def test_half_precision_logits_are_scored_and_drawn_in_float32(likelihood, dtype):
    logits = random_logits(likelihood, 4, 4, batch=2).to(dtype)
    noise = likelihood.draw_noise(2, 4, 4)
    images = likelihood.sample(logits, noise=noise)
    scores = likelihood.log_prob(logits, images)
    assert images.dtype == scores.dtype == torch.float32
    assert torch.equal(images, likelihood.sample(logits.float(), noise=noise))
    assert torch.equal(scores, likelihood.log_prob(logits.float(), images))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_relative_mixture_is_the_usual_one_of_differences_from_its_prediction(channels):
    usual = make_likelihood(channels, 3)
    relative = make_likelihood(channels, 3, local_prediction=True)
    logits = random_logits(usual, 4, 5, batch=2, dtype=torch.float64)
    parts(usual, logits)[1][:, :, 1] = -2 + torch.rand(2, channels, 3, 4, 5)
    prediction = 2 * torch.randint(-20, 21, (2, channels, 4, 5)) / 255
    # Far enough from the open bins at both ends for their difference to stay inside.
    differences = 2 * torch.randint(-20, 20, (2, channels, 4, 5)).double() / 255 + 1 / 255
    given = torch.cat([logits, prediction.double()], dim=1)
    scores = relative.log_prob_per_pixel(given, differences + prediction)
    torch.testing.assert_close(scores, usual.log_prob_per_pixel(logits, differences))
    at_zero = torch.cat([logits, torch.zeros_like(prediction).double()], dim=1)
    scores = relative.log_prob_per_pixel(at_zero, differences)
    assert torch.equal(scores, usual.log_prob_per_pixel(logits, differences))
    noise = usual.draw_noise(2, 4, 5, dtype=torch.float64)
    assert torch.equal(relative.sample(at_zero, noise=noise), usual.sample(logits, noise=noise))


@pytest.mark.parametrize("bound", [1, 3])
def test_channels_shift_later_ones_up_to_the_bound(bound):
    likelihood = make_likelihood(3, 1, coefficient_bound=bound)
    logits = torch.zeros(1, 10, 1, 1, dtype=torch.float64)
    groups = parts(likelihood, logits)[1]
    groups[:, :, 1] = -6  # sharp
    red = from_levels(torch.full((1, 1, 1, 1), 150), 256)
    for output, coefficient in ((0.01, 0.01), (100.0, bound), (-100.0, -bound)):
        groups[:, 0, 2] = output
        green = likelihood.probabilities(logits, red).argmax(dim=1, keepdim=True)
        expected = coefficient * red.double()
        torch.testing.assert_close(from_levels(green, 256).double(), expected, rtol=0, atol=1 / 255)


def test_float64_logits_are_scored_in_float64():
    likelihood = make_likelihood(3, 2)
    logits = random_logits(likelihood, dtype=torch.float64)
    assert likelihood.log_prob(logits, torch.ones(1, 3, 1, 1)).dtype == torch.float64


# Draws


@pytest.mark.parametrize(
    ("likelihood", "n_bits"),
    [
        (Bernoulli(), 1),
        (make_likelihood(1, 2, 1), 1),
        (make_likelihood(1, 3, 5), 5),
        (make_likelihood(3, 2, 1), 1),
        (make_likelihood(3, 2, 2), 2),
        (make_likelihood(1, 2, 5, local_prediction=True), 5),
        (make_likelihood(3, 2, 2, local_prediction=True), 2),
        (make_likelihood(3, 2, 2, local_prediction=True, coefficient_bound=4), 2),
        (make_likelihood(2, 2, 3), 3),
        (make_likelihood(5, 2, 1, local_prediction=True), 1),
        (make_likelihood(1, 2, 10), 10),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_draws_follow_log_prob(likelihood, n_bits, seed):
    number, channels = 20000, likelihood.num_channels
    torch.manual_seed(seed)
    logits = random_logits(likelihood, dtype=torch.float64)
    pixels = every_pixel(n_bits, channels)
    probs = likelihood.log_prob(logits.expand(len(pixels), -1, -1, -1), pixels).exp()
    draws = likelihood.sample(logits.expand(number, -1, -1, -1)).flatten(1)
    levels = ((draws + 1) / 2 * (2**n_bits - 1)).round().long()
    place = 2 ** (n_bits * torch.arange(channels - 1, -1, -1))
    observed = torch.bincount((levels * place).sum(1), minlength=len(pixels)).double()
    expected = probs / probs.sum() * number
    # Values expected fewer than 5 times are pooled, and join the commonest to be safely many.
    rare = expected < 5
    rare[expected.argmax()] = True
    pooled = [
        torch.cat([counts[~rare], counts[rare].sum()[None]]) for counts in (observed, expected)
    ]
    assert chisquare(*pooled).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n_bits", ALL_BITS)
def test_draws_are_grid_values_bit_for_bit(channels, n_bits, dtype):
    likelihood = DiscretizedMixtureLogistics(channels, 2, n_bits)
    draws = likelihood.sample(random_logits(likelihood, 24, 24, batch=4).to(dtype))
    top = 2**n_bits - 1
    data = 2 * np.arange(top + 1, dtype=np.float32) / np.float32(top) - 1
    found = np.unique(draws.numpy())
    assert np.isin(found, data.astype(found.dtype)).all()
    assert len(found) > top / 2  # so that most of the grid was put to the test


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("n_bits", ALL_BITS)
def test_a_gpu_rounds_to_the_same_values(n_bits):
    values = torch.linspace(-1.1, 1.1, 5000)
    assert torch.equal(to_grid(values.cuda(), n_bits).cpu(), to_grid(values, n_bits))


@given(st.integers(1, 8), st.floats(-3, 3))
def test_rounding_takes_the_nearest_value_and_keeps_it(n_bits, value):
    rounded = to_grid(torch.tensor(value, dtype=torch.float64), n_bits)
    nearest = (every_value(n_bits) - min(max(value, -1), 1)).abs().min()
    assert abs(rounded.item() - min(max(value, -1), 1)) == pytest.approx(nearest.item(), abs=1e-6)
    assert torch.equal(to_grid(rounded, n_bits), rounded)


def test_later_colours_follow_the_rounded_values_of_earlier_ones():
    """At 2 bits (-1, -1/3, 1/3, 1) red 0.55 becomes 1/3, which moves green and blue elsewhere."""
    likelihood = DiscretizedMixtureLogistics(3, 1, 2)
    logits = torch.zeros(1, 10, 1, 1)
    _, groups = parts(likelihood, logits)
    groups[:, :, 1] = -7
    groups[0, :, 0, 0, 0, 0] = torch.tensor([0.55, 0.2, -1.0])
    groups[0, 0, 2] = groups[0, 1, 2] = groups[0, 2, 2] = 20  # coefficients of 1
    draw = likelihood.sample(logits, noise=torch.full((1, 4, 1, 1), 0.5)).flatten()
    # green: 0.2 + 1/3 -> 1/3 (unrounded red: 0.75 -> 1); blue: -1 + 1/3 + 1/3 = -1/3
    torch.testing.assert_close(draw, torch.tensor([1 / 3, 1 / 3, -1 / 3]))


def test_draws_carry_no_gradient():
    likelihood = make_likelihood(3, 2)
    assert not likelihood.sample(random_logits(likelihood).requires_grad_()).requires_grad


# Temperatures


@pytest.mark.parametrize("likelihood", [make_likelihood(1, 4), make_likelihood(3, 4)])
@pytest.mark.parametrize("temperature", [0.25, 0.7, 3.0])
def test_temperatures_equal_adjusted_parameters(likelihood, temperature):
    logits = random_logits(likelihood, 12, 12, dtype=torch.float64)
    noise = likelihood.draw_noise(1, 12, 12)
    plain = likelihood.sample(logits, noise=noise)

    cooler = logits.clone()
    mixture_logits, _ = parts(likelihood, cooler)
    mixture_logits /= temperature
    drawn = likelihood.sample(logits, noise=noise, mixture_temperature=temperature)
    assert torch.equal(drawn, likelihood.sample(cooler, noise=noise))
    assert not torch.equal(drawn, plain)

    narrower = logits.clone()
    parts(likelihood, narrower)[1][:, :, 1] += math.log(temperature)
    drawn = likelihood.sample(logits, noise=noise, logistic_temperature=temperature)
    assert torch.equal(drawn, likelihood.sample(narrower, noise=noise))
    assert not torch.equal(drawn, plain)


def test_bernoulli_takes_the_mixture_temperature_alone():
    likelihood = Bernoulli()
    logits, noise = random_logits(likelihood, 20, 20), likelihood.draw_noise(1, 20, 20)
    halved = likelihood.sample(logits, noise=noise, mixture_temperature=2)
    assert torch.equal(halved, likelihood.sample(logits / 2, noise=noise))
    plain = likelihood.sample(logits, noise=noise)
    assert torch.equal(plain, likelihood.sample(logits, noise=noise, logistic_temperature=9))
    coldest = likelihood.sample(logits, noise=noise, mixture_temperature=1e-5)
    assert torch.equal(coldest, torch.where(logits[:, 1:] > logits[:, :1], 1.0, -1.0))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_cold_mixture_keeps_its_likeliest_component(channels):
    likelihood = DiscretizedMixtureLogistics(channels, 2, 8)
    logits = torch.zeros(1, likelihood.num_output_channels, 50, 50)
    mixture_logits, groups = parts(likelihood, logits)
    mixture_logits[:, 0] = 0.5  # the first component is a little likelier
    groups[:, :, 0, 0], groups[:, :, 0, 1], groups[:, :, 1] = -0.6, 0.6, -7
    warm = (likelihood.sample(logits) > 0).float().mean().item()
    cold = likelihood.sample(logits, mixture_temperature=0.01)
    assert warm == pytest.approx(1 / (1 + math.exp(0.5)), abs=0.05)
    assert (cold < 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_cold_logistics_collapse_to_the_mean(channels):
    likelihood = DiscretizedMixtureLogistics(channels, 1, 8)
    logits = torch.zeros(1, likelihood.num_output_channels, 8, 8)
    means = torch.rand(1, channels, 8, 8) * 1.8 - 0.9
    groups = parts(likelihood, logits)[1]
    groups[:, :, 0, 0], groups[:, :, 1] = means, 1
    draws = likelihood.sample(logits, logistic_temperature=1e-6)
    assert torch.equal(draws, to_grid(means, 8))


# Noise


@pytest.mark.parametrize("likelihood", [Bernoulli(), make_likelihood(1, 2), make_likelihood(3, 2)])
def test_draws_are_a_function_of_the_noise_position_by_position(likelihood):
    logits, noise = random_logits(likelihood, 4, 5, batch=3), likelihood.draw_noise(3, 4, 5)
    state = torch.get_rng_state()
    whole = likelihood.sample(logits, noise=noise)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(likelihood.sample(logits, noise=noise), whole)
    for at in [(slice(1, 2), ..., slice(2, 3), slice(3, 4)), (slice(2, 3), ..., slice(1, 4))]:
        assert torch.equal(likelihood.sample(logits[at], noise=noise[at]), whole[at])


@pytest.mark.parametrize("likelihood", [Bernoulli(), make_likelihood(1, 2), make_likelihood(3, 2)])
def test_a_generator_stands_for_the_noise_it_draws(likelihood):
    logits = random_logits(likelihood, 6, 6, batch=2)
    noise = likelihood.draw_noise(2, 6, 6, torch.Generator().manual_seed(1))
    drawn = likelihood.sample(logits, torch.Generator().manual_seed(1))
    other = likelihood.sample(logits, torch.Generator().manual_seed(2))
    assert torch.equal(drawn, likelihood.sample(logits, noise=noise))
    assert not torch.equal(drawn, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_noise_is_uniform_and_never_zero_or_one(dtype):
    """bfloat16 has so few numbers that a plain uniform draw hits 0 once in 256."""
    likelihood = make_likelihood(3, 7)
    noise = likelihood.draw_noise(4, 40, 40, dtype=dtype)
    assert noise.shape == (4, likelihood.num_noise_channels, 40, 40)
    assert noise.dtype == dtype
    assert ((noise > 0) & (noise < 1)).all()
    assert noise.double().mean().item() == pytest.approx(0.5, abs=0.01)
    assert noise.double().var().item() == pytest.approx(1 / 12, abs=0.005)


@pytest.mark.parametrize("noise", [0.0, 1e-300, 1 - 1e-12, 1.0])
def test_noise_that_rounds_to_zero_or_one_still_draws_a_pixel(noise):
    impossible = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1)
    at_edge = torch.full((1, 1, 1, 1), noise, dtype=torch.float64)
    assert Bernoulli().sample(impossible, noise=at_edge).item() == -1
    assert Bernoulli().sample(-impossible, noise=at_edge).item() == 1
    likelihood = make_likelihood(3, 2)
    at_edge = at_edge.expand(-1, likelihood.num_noise_channels, -1, -1)
    draw = likelihood.sample(random_logits(likelihood), noise=at_edge)
    assert torch.equal(draw, to_grid(draw, 8))


# Construction and errors


# Probabilities of each value


@pytest.mark.parametrize("is_relative", [False, True])
@pytest.mark.parametrize(("n_bits", "bound"), [(2, 1), (3, 1), (3, 2.5)])
def test_channel_by_channel_probabilities_multiply_to_the_likelihood(n_bits, bound, is_relative):
    """Red, green given red, blue given both: at moderate scales, where no bin is approximated."""
    likelihood = make_likelihood(
        3, 4, n_bits, local_prediction=is_relative, coefficient_bound=bound
    )
    logits = random_logits(likelihood, dtype=torch.float64)
    parts(likelihood, logits)[1][:, :, 1] = 0.5 + 0.3 * torch.randn(1, 3, 4, 1, 1)
    pixels = every_pixel(n_bits, 3)
    levels = to_levels(pixels, likelihood.num_values).long()
    logits = logits.expand(len(pixels), -1, -1, -1)
    log_prob = 0.0
    for channel in range(3):
        each = likelihood.probabilities(logits, pixels[:, :channel])
        torch.testing.assert_close(each.sum(1), torch.ones(len(pixels), 1, 1).double())
        log_prob = log_prob + each.gather(1, levels[:, channel : channel + 1]).log()
    expected = likelihood.log_prob(logits, pixels)
    torch.testing.assert_close(log_prob.flatten(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n_bits", [1, 4, 8])
def test_grey_probabilities_are_those_of_log_prob(n_bits):
    likelihood = make_likelihood(1, 5, n_bits)
    logits = random_logits(likelihood, 2, 3, batch=2, dtype=torch.float64)
    each = likelihood.probabilities(logits, torch.empty(2, 0, 2, 3))
    assert each.shape == (2, likelihood.num_values, 2, 3)
    for level, value in enumerate(every_value(n_bits)):
        expected = likelihood.log_prob_per_pixel(logits, torch.full((2, 1, 2, 3), value).double())
        torch.testing.assert_close(each[:, level], expected.exp(), rtol=1e-6, atol=1e-8)


def test_binary_probabilities_are_those_of_log_prob():
    logits = random_logits(Bernoulli(), 2, 3, batch=2, dtype=torch.float64)
    each = Bernoulli().probabilities(logits, torch.empty(2, 0, 2, 3))
    for level, value in enumerate((-1.0, 1.0)):
        expected = Bernoulli().log_prob_per_pixel(logits, torch.full((2, 1, 2, 3), value))
        torch.testing.assert_close(each[:, level], expected.exp())


@pytest.mark.parametrize("spread", [1.0, 30.0, 1e4])
def test_probabilities_are_never_negative_and_add_up(spread):
    likelihood = make_likelihood(3, 3)
    logits = spread * random_logits(likelihood, 4, 4, dtype=torch.float64)
    known = to_grid(torch.rand(1, 2, 4, 4) * 2 - 1, 8)
    for channel in range(3):
        each = likelihood.probabilities(logits, known[:, :channel])
        assert each.min() >= 0
        torch.testing.assert_close(each.sum(1), torch.ones(1, 4, 4).double())


@given(n_bits=st.integers(1, 8))
def test_levels_and_values_are_the_same_in_other_words(n_bits):
    levels = torch.arange(2**n_bits)
    values = from_levels(levels, 2**n_bits)
    assert torch.equal(to_levels(values, 2**n_bits), levels.float())
    assert torch.equal(to_grid(values, n_bits), values)
    assert (values[0], values[-1]) == (-1, 1)


# Requests


def test_output_channels_of_each_likelihood():
    binary, grey, colour = make_likelihood(1, binarize=True), make_likelihood(1), make_likelihood(3)
    assert (type(binary), binary.num_channels, binary.num_output_channels) == (Bernoulli, 1, 2)
    assert (grey.num_channels, grey.num_output_channels) == (1, 30)
    assert (colour.num_channels, colour.num_output_channels) == (3, 100)


def score(logits, images):
    return lambda: Bernoulli().log_prob(torch.zeros(logits), torch.zeros(images))


def next_channel(known, channels=3):
    likelihood = make_likelihood(channels, 1)
    logits = torch.zeros(1, likelihood.num_output_channels, 2, 2)
    return lambda: likelihood.probabilities(logits, torch.zeros(known))


def draw(**arguments):
    return lambda: Bernoulli().sample(torch.zeros(1, 2, 2, 2), **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_likelihood(3, binarize=True), "`binarize` needs a one-channel data set.* 3"),
        (lambda: make_likelihood(9), "1 to 8 channels, got 9"),
        (
            lambda: make_likelihood(1, binarize=True, local_prediction=True),
            "`local_prediction` has no meaning for binarized images",
        ),
        (lambda: make_likelihood(1, 0), "at least one component, got 0"),
        (lambda: make_likelihood(1, 10, 17), "1 to 16, got 17"),
        (lambda: make_likelihood(1, 10, 0), "1 to 16, got 0"),
        (lambda: make_likelihood(3, coefficient_bound=0.5), "1 to 16, got 0.5"),
        (lambda: make_likelihood(3, coefficient_bound=math.nan), "1 to 16, got nan"),
        (lambda: make_likelihood(1, coefficient_bound=2), "no meaning for images of one channel"),
        (score((1, 3, 2, 2), (1, 1, 2, 2)), r"B x 2 x H x W, got \(1, 3, 2, 2\)"),
        (score((2, 2, 2), (1, 1, 2, 2)), r"B x 2 x H x W, got \(2, 2, 2\)"),
        (score((1, 2, 2, 2), (1, 1, 3, 2)), r"images must be \(1, 1, 2, 2\).*got \(1, 1, 3, 2\)"),
        (score((1, 2, 2, 2), (1, 3, 2, 2)), r"images must be \(1, 1, 2, 2\).*got \(1, 3, 2, 2\)"),
        (score((1, 2, 2, 2), (4, 1, 2, 2)), r"images must be \(1, 1, 2, 2\).*got \(4, 1, 2, 2\)"),
        (next_channel((1, 3, 2, 2)), r"known channels must be \(1, 2, 2, 2\).*got \(1, 3, 2, 2\)"),
        (next_channel((1, 1, 2, 2), channels=1), r"must be \(1, 0, 2, 2\).*got \(1, 1, 2, 2\)"),
        (next_channel((1, 1, 2, 3)), r"must be \(1, 1, 2, 2\).*got \(1, 1, 2, 3\)"),
        (draw(noise=torch.rand(1, 2, 2, 2)), r"noise must be \(1, 1, 2, 2\).*got \(1, 2, 2, 2\)"),
        (draw(mixture_temperature=0), "mixture temperature must be above 0.*got 0"),
        (draw(logistic_temperature=-1.0), "logistic temperature must be above 0.*got -1.0"),
        (draw(mixture_temperature=math.nan), "mixture temperature .*got nan"),
        (draw(logistic_temperature=math.inf), "logistic temperature .*got inf"),
    ],
)
def test_impossible_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_known_channels_must_be_on_the_grid():
    likelihood = make_likelihood(3, 2)
    logits = torch.zeros(1, likelihood.num_output_channels, 2, 2)
    for wrong in (0.0, 128.0, math.nan):
        with pytest.raises(ValueError, match="one of 256 values"):
            likelihood.probabilities(logits, torch.full((1, 1, 2, 2), wrong))


# Other depths and numbers of channels


@pytest.mark.parametrize("is_relative", [False, True])
@pytest.mark.parametrize("channels", range(1, 9))
def test_probabilities_of_any_number_of_channels_sum_to_one(channels, is_relative):
    n_bits = {1: 9, 2: 5, 3: 3}.get(channels, 1)
    likelihood = DiscretizedMixtureLogistics(channels, 3, n_bits, is_relative)
    for spread in (0.5, 3, 10):
        logits = random_logits(likelihood, dtype=torch.float64) * spread
        total = total_probability(likelihood, logits, every_pixel(n_bits, channels))
        published = TAIL * 3 if channels in (1, 3) and n_bits <= 8 else 1e-9
        assert total == pytest.approx(1, abs=published)


@pytest.mark.parametrize("n_bits", [9, 12, 16])
def test_fine_probabilities_sum_to_one_from_float32_logits(n_bits):
    likelihood = DiscretizedMixtureLogistics(1, 5, n_bits)
    values = every_pixel(n_bits, 1).reshape(1, 1, -1, 1)
    for log_scale in (-20, -12, -8, -3, 2):
        logits = random_logits(likelihood).clone()
        parts(likelihood, logits)[1][:, :, 1] = log_scale
        scores = likelihood.log_prob_per_pixel(logits.expand(-1, -1, values.shape[2], -1), values)
        assert scores.dtype == torch.float64
        assert scores.exp().sum().item() == pytest.approx(1, abs=1e-9)


def exact_log_probability(weights, means, log_scales, level, top):
    """Of a level of a grey pixel, in 60 digits; the arguments are exact."""
    with mpmath.workdps(60):

        def below(bound, mean, log_scale):
            if bound in (0, top + 1):
                return mpmath.mpf(bound > 0)
            edge = (2 * mpmath.mpf(bound) - 1) / top - 1
            return 1 / (1 + mpmath.exp((mean - edge) * mpmath.exp(-log_scale)))

        terms = [
            mpmath.exp(weight) * (below(level + 1, mean, scale) - below(level, mean, scale))
            for weight, mean, scale in zip(weights, means, log_scales, strict=True)
        ]
        return mpmath.log(sum(terms) / sum(map(mpmath.exp, weights)))


near = st.floats(-1.25, 1.25, width=32)
components = st.lists(
    st.tuples(st.floats(-5, 5, width=32), near, st.floats(-12.5, 3, width=32)),
    min_size=2,
    max_size=2,
)


@settings(max_examples=150, deadline=None)
@given(components, st.sampled_from([0, 1, 65534, 65535]) | st.integers(0, 65535))
@example([(0.0, -1.0, -12.5), (0.0, 1.0, -12.5)], 32768)  # nothing but tails
@example([(0.0, 1.0, -12.5), (0.0, 1.0, -12.5)], 65535)
@example([(0.0, 0.25, -12.5), (0.0, 0.25, -12.5)], 40959)
def test_sixteen_bits_are_those_of_exact_arithmetic(mixture, level):
    """Where bins are so far out that differences of the distribution function vanish, too."""
    likelihood = DiscretizedMixtureLogistics(1, 2, 16)
    weights, means, log_scales = zip(*mixture, strict=True)
    logits = torch.tensor([*weights, *means, *log_scales], dtype=torch.float32).view(1, 6, 1, 1)
    pixel = from_levels(torch.tensor([[[[level]]]]), 65536)
    found = likelihood.log_prob(logits, pixel).item()
    # The probability may be e^-400000; sixty digits of a difference end long before.
    with mpmath.workdps(20):
        distance = min(abs(2 * level / 65535 - 1 - mean) / math.exp(s) for _, mean, s in mixture)
    if distance < 100:
        expected = float(exact_log_probability(weights, means, log_scales, level, 65535))
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-10)
    else:
        assert -distance - 40 < found < 0


@pytest.mark.parametrize(("channels", "n_bits"), [(1, 16), (2, 12), (4, 9), (8, 16)])
@pytest.mark.parametrize("is_relative", [False, True])
def test_digits_multiply_to_the_likelihood(channels, n_bits, is_relative):
    likelihood = DiscretizedMixtureLogistics(channels, 3, n_bits, is_relative)
    logits = random_logits(likelihood, 2, 3, batch=2, dtype=torch.float64) * 2
    images = likelihood.sample(logits)
    levels = to_levels(images, 2**n_bits).long()
    total = torch.zeros(2, 2, 3, dtype=torch.float64)
    for channel in range(channels):
        known, own = images[:, :channel], levels[:, channel]
        upper = likelihood.digit_probabilities(logits, known)
        lower = likelihood.digit_probabilities(logits, known, own // 256)
        assert [table.shape[1] for table in (upper, lower)] == list(likelihood.digit_sizes)
        for table, digit in ((upper, own // 256), (lower, own % 256)):
            torch.testing.assert_close(table.sum(1), torch.ones(2, 2, 3, dtype=torch.float64))
            total += table.gather(1, digit.unsqueeze(1)).squeeze(1).log()
    torch.testing.assert_close(total, likelihood.log_prob_per_pixel(logits, images))


def test_short_values_are_one_digit():
    likelihood = make_likelihood(3, 2)
    logits = random_logits(likelihood, 2, 2, dtype=torch.float64)
    assert likelihood.digit_sizes == (256,)
    known = torch.ones(1, 1, 2, 2)
    tables = likelihood.digit_probabilities(logits, known)
    assert torch.equal(tables, likelihood.probabilities(logits, known))


@pytest.mark.parametrize("channels", range(1, 9))
def test_each_coefficient_ties_one_channel_to_one_before_it(channels):
    """Where the coefficients are in the output, from the words of the class."""
    likelihood = DiscretizedMixtureLogistics(channels, 1, 8)
    pairs = [(later, earlier) for later in range(channels) for earlier in range(later)]
    sizes = [
        2 + len(pairs[i : channels * ((channels - 1) // 2) : channels]) for i in range(channels)
    ]
    starts = 1 + np.cumsum([0, *sizes])
    dealt = channels * ((channels - 1) // 2)
    assert likelihood.num_output_channels == 1 + 2 * channels + len(pairs)
    logits = torch.zeros(1, likelihood.num_output_channels, 1, 1)
    noise = torch.full((1, likelihood.num_noise_channels, 1, 1), 0.5)
    for i in range(channels):
        logits[0, starts[i] + 1] = -7
        logits[0, starts[i]] = 0.5 if i == 0 else 0.0
    plain = likelihood.sample(logits, noise=noise)
    for number, (later, earlier) in enumerate(pairs):
        place = starts[number % channels] + 2 + number // channels
        if number >= dealt:
            place = starts[-1] + number - dealt
        tied = logits.clone()
        tied[0, place] = 10
        if earlier:  # only the first channel is not about 0
            tied[0, starts[earlier]] = 0.5
            plain_here = likelihood.sample(
                tied * (torch.arange(len(tied[0])) != place)[:, None, None], noise=noise
            )
        else:
            plain_here = plain
        changed = (likelihood.sample(tied, noise=noise) - plain_here).abs().flatten() > 0.2
        assert changed.nonzero().flatten().tolist() == [later]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("channels", "n_bits"), [(1, 16), (4, 16), (8, 9), (2, 8)])
def test_scores_and_gradients_are_finite_at_extremes_of_other_depths(channels, n_bits, dtype):
    top = 2**n_bits - 1
    levels = torch.tensor([0, 1, top // 2, top - 1, top])
    means = torch.tensor([-40, -1, 0, 1e-4, 1, 40.0])
    log_scales = torch.tensor([-60, -12.6, -12, -7, 0, 30.0])
    mean, log_scale, level = torch.meshgrid(means, log_scales, levels.float(), indexing="ij")
    likelihood = DiscretizedMixtureLogistics(channels, 2, n_bits)
    logits = random_logits(likelihood, mean.numel(), dtype=dtype) * 20
    first = logits[:, 2:].unflatten(1, (-1, 2))  # of the first channel: means, then log-scales
    first[:, 0], first[:, 1, 0] = mean.reshape(-1, 1).to(dtype), log_scale.reshape(-1, 1).to(dtype)
    images = from_levels(level, 2**n_bits).reshape(1, 1, -1, 1).expand(-1, channels, -1, -1)
    logits.requires_grad_()
    scores = likelihood.log_prob_per_pixel(logits, images.to(dtype))
    (gradient,) = torch.autograd.grad(scores.sum(), logits)
    assert torch.isfinite(scores).all() and (scores < 1e-5).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_fine_draws_are_grid_values_bit_for_bit(channels):
    likelihood = DiscretizedMixtureLogistics(channels, 2, 16)
    draws = likelihood.sample(random_logits(likelihood, 8, 8))
    assert torch.equal(draws, from_levels(to_levels(draws, 65536), 65536).to(draws.dtype))


@pytest.mark.parametrize("log_scale", [-12.5, -8.0, -3.0])
def test_last_digits_of_functions_stay_within_the_rounding_errors(log_scale, monkeypatch):
    """Also where a channel is surprising, so that the weights of components are inexact."""
    likelihood = make_likelihood(3, 10, 16)
    torch.manual_seed(1)
    logits = (torch.randn(20, 100, 1, 8, dtype=torch.float64) * 2**20).round() / 2**20
    groups = parts(likelihood, logits)[1]
    groups[:, :, 1] = log_scale
    groups[:, :, 0] *= 0.5
    images = to_grid(torch.rand(20, 3, 1, 8, dtype=torch.float64) * 2 - 1, 16)

    def bounds():
        known = (images[:, :channel] for channel in range(3))
        return [likelihood.digit_probabilities(logits, each).cumsum(1) for each in known]

    exact = bounds()
    allowed = [likelihood.rounding_errors(logits, images[:, :channel]) for channel in range(3)]
    names = ("exp", "log", "expm1", "tanh", "sigmoid", "softmax")
    functions = [(torch, name) for name in names]
    for module, name in [*functions, (F, "logsigmoid"), (F, "log_softmax")]:
        function = getattr(module, name)

        def other_digits(*arguments, function=function, **named):
            values = function(*arguments, **named)
            return values * (1 + 2.0**-52 * torch.randint_like(values, -1, 2))

        monkeypatch.setattr(module, name, other_digits)
    for _ in range(5):
        for found, expected, most in zip(bounds(), exact, allowed, strict=True):
            assert ((found - expected).abs().amax(1) < most / 2).all()


def test_the_reproducible_tanh_is_tanh():
    values = torch.cat([torch.linspace(-30, 30, 20001), torch.randn(1000) * 1e-6]).double()
    error = (_reproducible_tanh(values) - torch.tanh(values)).abs().max()
    assert error < 1e-15
