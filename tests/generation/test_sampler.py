"""Generation: visible pixels stay, draws follow the likelihood, noise belongs to images."""

import gc
import itertools
from functools import partial

import pytest
import torch
from helpers.problems import FAMILIES, VARIETY, Problem
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from lmconv.generation import sampler, schedule
from lmconv.generation.feature_cache import FeatureCache
from lmconv.generation.sampler import generate, pixel_noise, sample_cached, sample_naive
from lmconv.generation.schedule import whole_image_schedule
from lmconv.likelihoods import Bernoulli, make_likelihood
from masking import generation_orders, get_masks
from model import ModelConfig, build_model


def make_network(channels, outputs):
    config = ModelConfig("lmconv", channels, outputs, 1, 8, 0.0, 3, normalization="pono")
    return build_model(config).eval()


@pytest.mark.parametrize("draw", [sample_naive, sample_cached])
@pytest.mark.parametrize("family", ["raster_scan", "s_curve", "gilbert2d"])
def test_whole_images_appear_as_often_as_their_likelihood_says(family, draw):
    size = (2, 3)
    network = make_network(1, 2)
    with torch.no_grad():
        network.nin_out.lin_a.bias.copy_(torch.tensor([0.3, -0.3]))
    order = generation_orders([family], (1, *size), all_variants=True)[1]
    masks = get_masks(order, *size, 3, 2)
    likelihood = Bernoulli()
    number = 6000
    images = draw(
        network,
        likelihood,
        order,
        masks,
        torch.zeros(number, 1, *size),
        torch.ones(size, dtype=torch.bool),
        pixel_noise(likelihood, number, *size, seed=5),
    )
    every = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6))).view(-1, 1, *size)
    with torch.no_grad():
        joint = likelihood.log_prob(network(every, masks), every).double().exp()
    counts = (images.view(-1, 1, 6) == every.view(1, -1, 6)).all(-1).sum(0)
    assert counts.sum() == number
    assert chisquare(counts, (joint / joint.sum() * number).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("channels", "n_bits"), [(1, 8), (3, 8), (3, 5)])
def test_visible_pixels_are_untouched_and_hidden_ones_lie_on_the_grid(channels, n_bits):
    likelihood = make_likelihood(channels, 2, n_bits)
    network = make_network(channels, likelihood.num_output_channels)
    order = generation_orders(["s_curve"], (channels, 6, 5), all_variants=True)[5]
    images = torch.rand(2, channels, 6, 5) * 2 - 1  # off the grid on purpose
    hidden = torch.zeros(6, 5, dtype=torch.bool)
    hidden[1:4, 2:] = True
    noise = pixel_noise(likelihood, 2, 6, 5, seed=0)
    masks = get_masks(order, 6, 5, 3, 2)
    result = sample_naive(network, likelihood, order, masks, images, hidden, noise)
    assert torch.equal(result[..., ~hidden], images[..., ~hidden])
    levels = (result[..., hidden] + 1) / 2 * (2**n_bits - 1)
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)


def test_what_hidden_pixels_held_before_does_not_matter():
    likelihood = Bernoulli()
    network = make_network(1, 2)
    order = generation_orders(["s_curve"], (1, 4, 4), all_variants=False)[0]
    hidden = torch.zeros(4, 4, dtype=torch.bool)
    hidden[2:] = True
    noise = pixel_noise(likelihood, 3, 4, 4, seed=0)
    images = torch.randint(0, 2, (3, 1, 4, 4)) * 2.0 - 1
    spoilt = torch.where(hidden, torch.full_like(images, 7.0), images)
    masks = get_masks(order, 4, 4, 3, 2)
    assert torch.equal(
        sample_naive(network, likelihood, order, masks, images, hidden, noise),
        sample_naive(network, likelihood, order, masks, spoilt, hidden, noise),
    )


def test_noise_of_an_image_depends_on_the_seed_and_its_index_alone():
    likelihood = make_likelihood(3, 5)
    few, many = (pixel_noise(likelihood, n, 4, 5, seed=7) for n in (2, 6))
    assert torch.equal(few, many[:2])
    assert not torch.equal(many[0], many[1])
    assert not torch.equal(few, pixel_noise(likelihood, 2, 4, 5, seed=8))


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


@pytest.mark.parametrize("guess", [0, 3])
def test_equal_images_pass_through_the_network_once(guess):
    problem = Problem("s_curve", images=5)
    problem.hidden[:2] = False
    problem.images[2] = problem.images[1] = problem.images[4]
    problem.images[3][..., problem.hidden] = 1.0  # what is hidden does not count
    problem.images[0] = torch.where(problem.hidden, -1.0, problem.images[3])
    expected, passes = problem.naive(), []
    layer = problem.model.nin_out  # not a layer whose forward pass is replaced
    layer.register_forward_pre_hook(lambda _, arguments: passes.append(arguments[0].shape))
    assert torch.equal(problem.cached(guess=guess), expected)
    assert passes[0] == (2, problem.model.config.nr_filters, *problem.hidden.shape)


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


@pytest.mark.parametrize("min_steps", [1, 10**9])
def test_recorded_steps_and_steps_in_python_draw_the_same_images(monkeypatch, min_steps):
    monkeypatch.setattr(
        sampler, "FeatureCache", partial(FeatureCache, min_steps_to_record=min_steps)
    )
    problem = Problem("raster_scan", likelihood=make_likelihood(3, 2), mask_weight=True)
    expected, columns, steps = problem.naive(), problem.watch_columns(), []
    assert torch.equal(problem.cached(on_step=steps.append), expected)
    assert (len(columns) < len(steps)) == (min_steps == 1)


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
    drawn, drawn_in_batches = [], []
    expected = problem.cached(on_step=drawn.append)
    monkeypatch.setattr(schedule, "MAP_BYTES", 1)
    assert torch.equal(problem.cached(on_step=drawn_in_batches.append), expected)
    assert drawn_in_batches == [number // 5 for number in drawn] * 5
    assert sum(drawn) == 5 * problem.hidden.sum()


def test_visible_pixels_cost_one_forward_pass_and_hidden_ones_a_column_each(monkeypatch):
    in_python = partial(FeatureCache, min_steps_to_record=10**9)
    monkeypatch.setattr(sampler, "FeatureCache", in_python)
    problem = Problem("s_curve", size=(8, 8))
    problem.hidden = torch.zeros(8, 8, dtype=torch.bool)
    problem.hidden[6:] = True
    columns = problem.watch_columns()
    images = problem.cached()
    assert columns == [(8, 8, 64)] + [(1, 1, 1)] * 16
    problem.hidden[:] = True
    columns.clear()
    problem.cached()
    assert columns == [(1, 1, 1)] * 64, "nothing is visible, so nothing is to be filled in"
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
    network = problem.model
    before = network(problem.images, problem.masks)
    keys = set(network.state_dict())

    def stop(pixels):
        raise KeyboardInterrupt

    problem.cached()
    with pytest.raises(KeyboardInterrupt):
        problem.cached(on_step=stop)
    assert all("forward" not in module.__dict__ for module in network.modules())
    after = network(problem.images, problem.masks)
    assert torch.equal(after, before) and set(network.state_dict()) == keys
    after.sum().backward()  # nothing made in inference mode is left
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
    assert torch.equal(problem.cached(), problem.naive()), "weights are kept from an earlier run"


def tensor_bytes():
    """The memory of all tensors that Python knows."""
    kinds = (torch.Tensor, torch.nn.Parameter)
    tensors = [each for each in gc.get_objects() if type(each) in kinds]
    tensors = [each for each in tensors if each.layout is torch.strided and not each.is_nested]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("uniform", [False, True])
def test_maps_are_freed_at_the_end_without_the_garbage_collector(uniform):
    problem = Problem("raster_scan", size=(6, 6), images=50)
    problem.cached(uniform=uniform)
    gc.collect()
    gc.disable()
    try:
        growth = []
        for _ in range(3):  # threads of other tests may make a tensor meanwhile
            before = tensor_bytes()
            problem.cached(uniform=uniform)
            growth.append(tensor_bytes() - before)
        assert min(growth) <= 0
    finally:
        gc.enable()


def test_networks_without_masked_convolutions_are_refused():
    problem = Problem()
    problem.model = torch.nn.Identity()
    with pytest.raises(ValueError, match="masked convolutions"):
        problem.cached()


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
