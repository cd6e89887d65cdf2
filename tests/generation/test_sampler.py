"""Generation: visible pixels stay, draws follow the likelihood, noise belongs to images."""

import gc
import itertools
import weakref

import pytest
import torch
from helpers.problems import FAMILIES, Problem
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from lmconv.generation import feature_cache
from lmconv.generation import sampler as generation
from lmconv.generation.recording import Recording
from lmconv.generation.sampler import (
    generate,
    pixel_noise,
    sample_cached,
    sample_naive,
    whole_image_schedule,
)
from lmconv.generation.step_plan import StepPlan
from lmconv.likelihoods import Bernoulli, make_likelihood
from lmconv.modes.regions import Region
from lmconv.scoring import log_likelihoods
from masking import generation_orders, get_masks
from model import ModelConfig, build_model


def network(channels, outputs):
    config = ModelConfig("lmconv", channels, outputs, 1, 8, 0.0, 3, normalization="pono")
    return build_model(config).eval()


@pytest.mark.parametrize("draw", [sample_naive, sample_cached])
@pytest.mark.parametrize("family", ["raster_scan", "s_curve", "gilbert2d"])
def test_whole_images_appear_as_often_as_their_likelihood_says(family, draw):
    size = (2, 3)
    model = network(1, 2)
    with torch.no_grad():
        model.nin_out.lin_a.bias.copy_(torch.tensor([0.3, -0.3]))
    order = generation_orders([family], (1, *size), all_variants=True)[1]
    masks = get_masks(order, *size, 3, 2)
    likelihood = Bernoulli()
    number = 6000
    images = draw(
        model,
        likelihood,
        order,
        masks,
        torch.zeros(number, 1, *size),
        torch.ones(size, dtype=torch.bool),
        pixel_noise(likelihood, number, *size, seed=5),
    )
    every = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6))).view(-1, 1, *size)
    joint = log_likelihoods(model, likelihood, every, [masks], Region(0, 2, 0, 3))[0].exp()
    counts = (images.view(-1, 1, 6) == every.view(1, -1, 6)).all(-1).sum(0)
    assert counts.sum() == number
    assert chisquare(counts, (joint / joint.sum() * number).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("channels", "n_bits"), [(1, 8), (3, 8), (3, 5)])
def test_visible_pixels_are_untouched_and_hidden_ones_lie_on_the_grid(channels, n_bits):
    likelihood = make_likelihood(channels, 2, n_bits)
    model = network(channels, likelihood.num_output_channels)
    order = generation_orders(["s_curve"], (channels, 6, 5), all_variants=True)[5]
    images = torch.rand(2, channels, 6, 5) * 2 - 1  # off the grid on purpose
    hidden = torch.zeros(6, 5, dtype=torch.bool)
    hidden[1:4, 2:] = True
    noise = pixel_noise(likelihood, 2, 6, 5, seed=0)
    masks = get_masks(order, 6, 5, 3, 2)
    result = sample_naive(model, likelihood, order, masks, images, hidden, noise)
    assert torch.equal(result[..., ~hidden], images[..., ~hidden])
    levels = (result[..., hidden] + 1) / 2 * (2**n_bits - 1)
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)


def test_what_hidden_pixels_held_before_does_not_matter():
    likelihood = Bernoulli()
    model = network(1, 2)
    order = generation_orders(["s_curve"], (1, 4, 4), all_variants=False)[0]
    hidden = torch.zeros(4, 4, dtype=torch.bool)
    hidden[2:] = True
    noise = pixel_noise(likelihood, 3, 4, 4, seed=0)
    images = torch.randint(0, 2, (3, 1, 4, 4)) * 2.0 - 1
    spoilt = torch.where(hidden, torch.full_like(images, 7.0), images)
    masks = get_masks(order, 4, 4, 3, 2)
    assert torch.equal(
        sample_naive(model, likelihood, order, masks, images, hidden, noise),
        sample_naive(model, likelihood, order, masks, spoilt, hidden, noise),
    )


def test_noise_of_an_image_depends_on_the_seed_and_its_index_alone():
    likelihood = make_likelihood(3, 5)
    few, many = (pixel_noise(likelihood, n, 4, 5, seed=7) for n in (2, 6))
    assert torch.equal(few, many[:2])
    assert not torch.equal(many[0], many[1])
    assert not torch.equal(few, pixel_noise(likelihood, 2, 4, 5, seed=8))


VARIETY = {
    "binary": {},
    "grey": {"likelihood": make_likelihood(1, 2), "normalization": "weight_norm"},
    "colour": {"likelihood": make_likelihood(3, 2), "normalization": "pono"},
    "five_bits": {"likelihood": make_likelihood(3, 1, n_bits=5), "normalization": "none"},
    "mask_weight": {"mask_weight": True, "normalization": "none"},
    "mask_weight_normalised": {"mask_weight": True, "normalization": "weight_norm"},
    "order_rescale": {"normalization": "order_rescale", "mask_weight": True},
    "kernel_5": {"kernel_size": 5, "normalization": "pono"},
    "kernel_1": {"kernel_size": 1},
    "no_dilation": {"max_dilation": 1, "normalization": "pono"},
    "dilation_3_no_bias": {"max_dilation": 3, "bias": False, "normalization": "order_rescale"},
    "many_rows": {"images": 60, "normalization": "pono"},
    "rematerialized": {"rematerialize": True, "normalization": "weight_norm"},
    "odd_filters": {"filters": 7, "normalization": "pono"},
}


@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("kind", VARIETY)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_sampler_draws_the_same_images(family, kind, share):
    problem = Problem(family, variant=6, hidden_share=share, **VARIETY[kind])
    expected = problem.naive()
    for options in ({}, {"parallel": False}, {"uniform": True}):
        images = problem.cached(**options)
        assert torch.equal(images, expected)
        assert torch.equal(images[..., ~problem.hidden], problem.images[..., ~problem.hidden])
    assert not torch.equal(expected, problem.images)


@pytest.mark.parametrize("kind", VARIETY)
@pytest.mark.parametrize("variant", range(8))
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["f64", "f32"]
)
def test_logits_of_steps_are_those_of_the_full_forward_pass(kind, variant, dtype, tolerance):
    family = FAMILIES[variant % 5]
    share = 0.5 if variant % 2 else 1.0
    problem = Problem(family, variant, hidden_share=share, dtype=dtype, **VARIETY[kind])
    with torch.inference_mode():
        expected = problem.model(problem.images, problem.masks).flatten(2)
    for options in ({}, {"parallel": False}, {"uniform": True}):
        logits, pixels = problem.logits_of_steps(problem.images, **options)
        difference = (logits - expected)[:, :, pixels].abs().max()
        assert difference <= tolerance * max(1.0, expected.abs().max())


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    family=st.sampled_from(FAMILIES[:3]),
    variant=st.integers(0, 7),
    share=st.floats(0, 1),
    images=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_any_hole_in_any_image(height, width, family, variant, share, images, seed):
    torch.manual_seed(seed)
    problem = Problem(
        family,
        variant,
        (height, width),
        hidden_share=share,
        images=images,
        normalization="pono",
    )
    assert torch.equal(problem.cached(), problem.naive())


@pytest.mark.parametrize("worth", [1, 10**9])
def test_recorded_steps_and_steps_in_python_are_the_same(monkeypatch, worth):
    monkeypatch.setattr(feature_cache, "_WORTH_RECORDING", worth)
    problem = Problem("raster_scan", likelihood=make_likelihood(3, 2), mask_weight=True)
    replays = []
    monkeypatch.setattr(
        Recording, "replay", lambda self, replay=Recording.replay: replays.append(replay(self))
    )
    assert torch.equal(problem.cached(), problem.naive())
    assert bool(replays) == (worth == 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_does_not_matter(threads):
    problem = Problem("gilbert2d", normalization="pono")
    expected = problem.naive()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(problem.cached(), expected)
    finally:
        torch.set_num_threads(before)


def test_batches_that_fit_into_memory_do_not_change_the_images(monkeypatch):
    problem = Problem("s_curve", images=5, hidden_share=0.5)
    expected, drawn = problem.cached(), []
    monkeypatch.setattr(generation, "MAP_BYTES", 1)
    batches = []
    plan = StepPlan.__init__
    monkeypatch.setattr(
        StepPlan, "__init__", lambda self, *a: (batches.append(a[4]), plan(self, *a))[1]
    )
    assert torch.equal(problem.cached(on_step=drawn.append), expected)
    assert batches == [1] * 5
    assert sum(drawn) == 5 * problem.hidden.sum()


def test_visible_pixels_cost_one_forward_pass_and_hidden_ones_a_column_each(monkeypatch):
    problem = Problem("s_curve", size=(8, 8))
    problem.hidden = torch.zeros(8, 8, dtype=torch.bool)
    problem.hidden[6:] = True
    shapes = []
    forward = type(problem.model).forward

    def watched(self, x, masks):
        shapes.append((*x.shape[2:], masks.init.shape[2]))
        return forward(self, x, masks)

    monkeypatch.setattr(feature_cache, "_WORTH_RECORDING", 10**9)
    monkeypatch.setattr(type(problem.model), "forward", watched)
    images = problem.cached()
    assert shapes == [(8, 8, 64)] + [(1, 1, 1)] * 16
    problem.hidden[:] = True
    shapes.clear()
    problem.cached()
    assert shapes == [(1, 1, 1)] * 64, "nothing is visible, so nothing is to be filled in"
    assert torch.equal(images[:, :, :6], problem.images[:, :, :6])


def test_images_in_any_memory_layout_are_filled_in():
    problem = Problem(likelihood=make_likelihood(3, 2), hidden_share=0.5)
    expected = problem.cached()
    problem.images = problem.images.to(memory_format=torch.channels_last)
    assert torch.equal(problem.cached(), expected)


def test_nothing_hidden_and_no_images_are_returned_as_they_are():
    problem = Problem(hidden_share=0.0)
    assert torch.equal(problem.cached(), problem.images)
    problem = Problem(images=3)
    problem.images, problem.noise = problem.images[:0], problem.noise[:0]
    assert problem.cached().shape == problem.images.shape


def test_the_network_is_as_before_afterwards_also_after_an_error():
    problem = Problem(normalization="weight_norm")
    model = problem.model
    before = model(problem.images, problem.masks)
    keys = set(model.state_dict())

    def stop(pixels):
        raise KeyboardInterrupt

    problem.cached()
    with pytest.raises(KeyboardInterrupt):
        problem.cached(on_step=stop)
    assert all("forward" not in module.__dict__ for module in model.modules())
    after = model(problem.images, problem.masks)
    assert torch.equal(after, before) and set(model.state_dict()) == keys
    after.sum().backward()  # nothing made in inference mode is left
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert torch.equal(problem.cached(), problem.naive()), "weights are kept from an earlier run"


def test_maps_are_freed_at_the_end():
    problem = Problem("raster_scan", size=(6, 6), images=50)
    maps = []
    make = feature_cache._CachedConvolution.__init__

    def watched(self, layer, cache):
        make(self, layer, cache)
        maps.append(weakref.ref(self._map))

    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(feature_cache._CachedConvolution, "__init__", watched)
            problem.cached()
        assert maps and all(reference() is None for reference in maps)
    finally:
        gc.enable()


def test_half_precision_is_that_of_the_network_in_autocast():
    problem = Problem("gilbert2d", dtype=torch.float32, normalization="pono")
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            expected = problem.model(problem.images, problem.masks).float().flatten(2)
        logits, pixels = problem.logits_of_steps(problem.images)
    assert (logits - expected)[:, :, pixels].abs().max() < 0.1 * expected.abs().max()


def test_networks_without_masked_convolutions_are_refused():
    problem = Problem()
    problem.model = torch.nn.Identity()
    with pytest.raises(ValueError, match="masked convolutions"):
        problem.cached()


def test_layers_under_other_masks_are_refused():
    problem = Problem()
    first = problem.model.up_layers[0].u_stream[0].conv_input
    first.dilation = 2
    with pytest.raises(ValueError, match="dilation 2 was given the mask of dilation 1"):
        problem.cached()
    first.dilation = 1
    forward = first.forward
    problem.cached()
    block = problem.model.up_layers[0].u_stream[0]
    run = type(block).forward

    def with_a_copy(self, x, mask, skip=None):
        return run(self, x, mask * 1, skip=skip)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(type(block), "forward", with_a_copy)
        with pytest.raises(ValueError, match="another mask"):
            problem.cached()
    assert first.forward == forward


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cuda_graph_draws_the_same_images(family):
    problem = Problem(family, likelihood=make_likelihood(3, 2), normalization="pono")
    expected = problem.naive()
    for name in ("model", "masks", "images", "hidden", "noise"):
        setattr(problem, name, getattr(problem, name).to("cuda"))
    assert torch.equal(problem.cached().cpu(), expected)


# Generation by any choice


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["colour", "many_rows"])
def test_a_choice_sees_the_logits_of_what_was_chosen_before(family, kind):
    problem = Problem(family, **VARIETY[kind])
    height, width = problem.hidden.shape
    flat, seen, steps = problem.images.flatten(2), {}, []

    def choose(logits, pixels):
        assert logits.shape[2:] == (len(pixels), 1)
        steps.append(len(pixels))
        seen.update(zip(pixels.tolist(), logits[..., 0].clone().unbind(2), strict=True))
        return flat[:, :, pixels, None]

    images = torch.zeros_like(problem.images)
    schedule = whole_image_schedule(problem.model, problem.order, problem.masks)
    generate(problem.model, schedule, images, choose)
    assert torch.equal(images, problem.images)
    assert sorted(seen) == list(range(height * width)) and sum(steps) == height * width
    with torch.inference_mode():
        expected = problem.model(problem.images, problem.masks).flatten(2)
    result = torch.stack([seen[pixel] for pixel in range(height * width)], dim=2)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def test_images_at_once_are_what_fits_into_memory(monkeypatch):
    problem = Problem()
    arguments = problem.model, problem.order, problem.masks
    many = whole_image_schedule(*arguments).images_at_once
    monkeypatch.setattr(generation, "MAP_BYTES", generation.MAP_BYTES // 4)
    assert whole_image_schedule(*arguments).images_at_once in (many // 4, many // 4 + 1)
    monkeypatch.setattr(generation, "MAP_BYTES", 1)
    assert whole_image_schedule(*arguments).images_at_once == 1
