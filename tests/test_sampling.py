"""Generation: visible pixels stay, draws follow the likelihood, noise belongs to images."""

import itertools

import pytest
import torch
from scipy.stats import chisquare

from evaluation import Region, log_likelihoods
from experiment import set_up
from likelihoods import Bernoulli, make_likelihood
from masking import generation_orders, get_masks
from model import ModelConfig, build_model
from options import parse
from sampling import hidden_region, pixel_noise, sample_naive
from utils import UsageError, setup_logging


def network(channels, outputs):
    config = ModelConfig("lmconv", channels, outputs, 1, 8, 0.0, 3, normalization="pono")
    return build_model(config).eval()


@pytest.mark.parametrize("family", ["raster_scan", "s_curve", "gilbert2d"])
def test_whole_images_appear_as_often_as_their_likelihood_says(family):
    size = (2, 3)
    model = network(1, 2)
    with torch.no_grad():
        model.nin_out.lin_a.bias.copy_(torch.tensor([0.3, -0.3]))
    order = generation_orders([family], (1, *size), all_variants=True)[1]
    masks = get_masks(order, *size, 3, 2)
    likelihood = Bernoulli()
    number = 6000
    images = sample_naive(
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


def arguments(flags):
    return parse(["-d", "mnist", "--mode", "sample", *flags.split()])


@pytest.mark.parametrize(
    ("flags", "rows", "cols"),
    [
        ("--sample_region center --sample_size_h 5 --sample_size_w 4", (11, 16), (12, 16)),
        ("--sample_region top --sample_size_h 14 --sample_size_w 28", (0, 14), (0, 28)),
        (
            "--sample_region custom --sample_offset1 -14 --sample_offset2 2 "
            "--sample_size_h 3 --sample_size_w 12",
            (0, 3),
            (16, 28),
        ),
    ],
)
def test_hidden_boxes_start_where_the_published_ones_do(flags, rows, cols):
    hidden = hidden_region(arguments(flags), (1, 28, 28))
    expected = torch.zeros(28, 28, dtype=torch.bool)
    expected[slice(*rows), slice(*cols)] = True
    assert torch.equal(hidden, expected)


def test_the_full_region_hides_everything():
    assert hidden_region(arguments("--sample_region full"), (1, 28, 28)).all()


@pytest.mark.parametrize("seed", range(20))
def test_random_boxes_stay_inside_the_image(seed):
    flags = f"--sample_region random_near_center --sample_size_h 27 --sample_size_w 9 -s {seed}"
    assert hidden_region(arguments(flags), (1, 28, 28)).sum() == 27 * 9


@pytest.mark.parametrize(
    "flags",
    [
        "--sample_region center --sample_size_h 29",
        "--sample_region custom --sample_offset1 12 --sample_offset2 0",
        "--sample_region custom --sample_offset1 0 --sample_offset2 -15",
    ],
)
def test_boxes_outside_the_image_are_refused(flags):
    with pytest.raises(UsageError, match="28x28"):
        hidden_region(arguments(flags), (1, 28, 28))


def test_experiments_sample_in_the_order_of_their_masks():
    experiment = set_up(parse(["--order", "s_curve", "hilbert"]), setup_logging(None))
    orders, masks = experiment.orders((1, 8, 8)), experiment.masks((1, 8, 8))
    assert len(orders) == len(masks) == 16
    for order, order_masks in zip(orders, masks, strict=True):
        expected = get_masks(order, 8, 8, 3, 2)
        assert torch.equal(order_masks.dilated, expected.dilated)
