"""Completions: what is visible stays and is all that counts, and the likeliest come first."""

import itertools

import numpy as np
import pytest
import torch
from helpers.models import tiny_model
from scipy.stats import chisquare

import lmconv
from lmconv.completion import Completer
from lmconv.orders import best_order
from lmconv.pixel_values import check_grid, from_levels

THREE_ORDERS = lmconv.OrderConfig(all_variants=True, variants=(0, 3, 6))
KINDS = {
    "binary": {"binarize": True},
    "five_bits": {"n_bits": 5},
    "colour": {"image_shape": (3, 5, 6), "num_mixtures": 2},
}


def small_model(**settings):
    return tiny_model(**({"image_shape": (1, 5, 6), "orders": THREE_ORDERS} | settings))


def random_images(model, number=3, size=(5, 6)):
    num_values = model.likelihood.num_values
    levels = np.random.default_rng(1).integers(0, num_values, (number, model.image_shape[0], *size))
    return from_levels(torch.from_numpy(levels), num_values)


def random_hole(size=(5, 6)):
    hidden = torch.rand(size) < 0.4
    hidden[0, 0], hidden[-1, -1] = True, False
    return hidden


@pytest.mark.parametrize("order_choice", ["first", "best", "each"])
@pytest.mark.parametrize("kind", KINDS)
def test_visible_pixels_stay_bit_for_bit_and_hidden_ones_have_no_influence(kind, order_choice):
    model, hidden = small_model(**KINDS[kind]), random_hole()
    images = random_images(model)
    result = lmconv.complete(model, images, hidden, number=2, order_choice=order_choice)
    number = 6 if order_choice == "each" else 2
    assert result.images.shape == (3, number, *images.shape[1:])
    assert result.nats.shape == result.order_indices.shape == (3, number)
    visible = result.images[..., ~hidden]
    assert torch.equal(visible, images[:, None, :, ~hidden].expand_as(visible))
    check_grid(result.images, model.likelihood.num_values)
    others = torch.where(hidden, images.flip(0), images)
    again = lmconv.complete(model, others, hidden, number=2, order_choice=order_choice)
    assert torch.equal(again.images, result.images)
    assert torch.equal(again.nats, result.nats)
    assert not torch.equal(again.original_nats, result.original_nats)


@pytest.mark.parametrize("order_choice", ["first", "best", "each"])
def test_completions_are_ranked_by_their_likelihood_given_what_is_visible(order_choice):
    model, hidden = small_model(n_bits=5), random_hole()
    images = random_images(model)
    result = lmconv.complete(model, images, hidden, number=2, order_choice=order_choice)
    assert (result.nats.diff(dim=1) >= 0).all()
    orders = [order.visible_first(hidden) for order in model.orders()]
    for image, place in itertools.product(range(3), range(result.nats.shape[1])):
        order = orders[result.order_indices[image, place]]
        nats = -model.log_prob(result.images[image, place][None], order, hidden)
        torch.testing.assert_close(nats, result.nats[image, place][None])
    first = 0 if order_choice != "best" else int(result.order_indices[0, 0])
    nats = -model.log_prob(images, orders[first], hidden)
    torch.testing.assert_close(nats, result.original_nats)


def test_orders_are_the_first_the_best_or_each_of_the_models():
    model = tiny_model((1, 5, 6), binarize=True)
    images = random_images(model)
    hidden = torch.zeros(5, 6, dtype=torch.bool)
    hidden[:, :2] = True  # the left side is seen best by orders that come from the right
    best = best_order(model.orders(), hidden)
    assert best in (6, 7)
    for order_choice, expected in (("first", {0}), ("best", {best}), ("each", set(range(8)))):
        result = lmconv.complete(model, images, hidden, 2, order_choice)
        assert set(result.order_indices.flatten().tolist()) == expected


def test_completions_appear_as_often_as_their_likelihood_says():
    model = tiny_model((1, 2, 3), binarize=True)
    hidden = torch.tensor([[True, False, False], [False, True, False]])
    image = random_images(model, 1, (2, 3))
    number = 1000
    result = lmconv.complete(model, image, hidden, number, seed=3)
    every = image.repeat(4, 1, 1, 1)
    every[:, 0, hidden] = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)))
    order = model.orders()[0].visible_first(hidden)
    expected = model.log_prob(every, order, hidden).exp()
    assert expected.sum().item() == pytest.approx(1, abs=1e-5)
    counts = (result.images[0].flatten(1)[:, None] == every.flatten(1)).all(dim=2).sum(dim=0)
    assert counts.sum() == number
    assert chisquare(counts, number * expected / expected.sum()).pvalue > 1e-3


def test_what_becomes_of_an_image_does_not_depend_on_batches():
    model, hidden = small_model(n_bits=5), random_hole()
    images = random_images(model)
    whole = Completer(model, hidden, 2, "each", seed=5).complete(images)
    small = Completer(model, hidden, 2, "each", seed=5, batch_size=3)
    pixels = []
    parts = [small.complete(images[:1], 0, pixels.append), small.complete(images[1:], 1)]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    torch.testing.assert_close(torch.cat([part.nats for part in parts]), whole.nats)
    assert sum(pixels) == small.per_image * int(hidden.sum())
    other = Completer(model, hidden, 2, "each", seed=6).complete(images)
    assert not torch.equal(other.images, whole.images)


def test_the_steps_of_completions_are_counted():
    model, steps = small_model(), []
    hidden = random_hole()
    images = random_images(model, 2)
    lmconv.complete(model, images, hidden, number=3, order_choice="each", on_step=steps.append)
    assert sum(steps) == 2 * 3 * len(model.orders((images.shape[1], 5, 6))) * int(hidden.sum())


def test_bytes_and_arrays_of_any_size_are_completed():
    model = tiny_model((1, 5, 6), binarize=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 3, 7), dtype=np.uint8)
    hidden = np.zeros((3, 7), dtype=bool)
    hidden[1] = True
    result = lmconv.complete(model, pixels, hidden, number=2, seed=4)
    prepared = model.prepare(pixels, seed=4)
    visible = result.images[:, :, :, ~torch.from_numpy(hidden)]
    assert torch.equal(visible, prepared[:, None, :, ~torch.from_numpy(hidden)].expand_as(visible))
    again = lmconv.complete(model, prepared.numpy(), torch.from_numpy(hidden), number=2, seed=4)
    assert torch.equal(again.images, result.images)


def test_both_samplers_complete_alike():
    model, hidden = small_model(n_bits=5), random_hole()
    images = random_images(model, 2)
    cached, naive = (
        lmconv.complete(model, images, hidden, config=lmconv.SamplingConfig(sampler))
        for sampler in ("cached", "naive")
    )
    assert torch.equal(cached.images, naive.images)


ROW = torch.zeros(5, 6, dtype=torch.bool)
ROW[2] = True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hidden": torch.zeros(5, 6)}, ["bool", "5x6", "float32"]),
        ({"hidden": ROW.byte()}, ["bool", "5x6", "uint8"]),
        ({"hidden": ROW.t()}, ["bool", "5x6", "(6, 5)"]),
        ({"hidden": ROW[2]}, ["bool", "5x6", "(6,)"]),
        ({"hidden": ROW[None]}, ["bool", "5x6", "(1, 5, 6)"]),
        ({"hidden": torch.zeros_like(ROW)}, ["hidden", "nothing"]),
        ({"hidden": torch.ones_like(ROW)}, ["hidden", "nothing visible"]),
        ({"number": 0}, ["number", "0"]),
        ({"order_choice": "last"}, ["first", "best", "each", "'last'"]),
        ({"images": torch.zeros(0, 1, 5, 6)}, ["no images"]),
        ({"images": torch.zeros(2, 1, 5, 6)}, ["-1 and 1", "uint8"]),
        ({"images": -torch.ones(2, 3, 5, 6)}, ["B x 1 x H x W"]),
        ({"images": -torch.ones(2, 1, 6, 5)}, ["6x5"]),
        ({"config": lmconv.SamplingConfig("cashed")}, ["cashed"]),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    model = tiny_model((1, 5, 6), binarize=True)
    good = {"images": -torch.ones(2, 1, 5, 6), "hidden": ROW}
    with pytest.raises(ValueError) as error:
        lmconv.complete(model, **(good | arguments))
    for word in words:
        assert word in str(error.value)


def test_the_baseline_completes_nothing():
    orders = lmconv.OrderConfig(("raster_scan",))
    model = tiny_model((1, 4, 4), binarize=True, architecture="pixelcnnpp", orders=orders)
    with pytest.raises(ValueError, match="use lmconv"):
        lmconv.complete(model, -torch.ones(1, 1, 4, 4), torch.eye(4, dtype=torch.bool))
