"""Models of images: likelihoods that add up, images as they are converted, samples, files."""

import itertools

import numpy as np
import pytest
import torch
from helpers.models import ALL_VARIANTS, tiny_model
from helpers.paths import REFERENCE
from scipy.stats import chisquare

import lmconv
from lmconv import image_model
from lmconv.checkpoints import load_checkpoint, published_state_dict
from lmconv.completion import Completer
from lmconv.data.pipeline import TestData
from lmconv.data.sources import MemorySource
from lmconv.image_model import ensemble
from lmconv.pixel_values import check_grid, from_levels, to_levels

RASTER = lmconv.OrderConfig(("raster_scan",))
GOLDENS = sorted((REFERENCE / "models").glob("*.pth"))
# Models that differ in all that decides how images are converted and scored.
KINDS = {
    "binary": {"binarize": True},
    "five_bits": {"n_bits": 5},
    "grey": {"num_mixtures": 2},
    "colour": {"image_shape": (3, 8, 8), "num_mixtures": 2},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def random_images(model, number=4, size=None, seed=0):
    """Images on the grid of a model."""
    channels, height, width = model.image_shape
    shape = (number, channels, *(size or (height, width)))
    num_values = model.likelihood.num_values
    levels = np.random.default_rng(seed).integers(0, num_values, shape)
    return from_levels(torch.from_numpy(levels), num_values)


def every_image(model):
    """All images that a model can have."""
    num_values = model.likelihood.num_values
    number = int(np.prod(model.image_shape))
    levels = torch.tensor(list(itertools.product(range(num_values), repeat=number)))
    return from_levels(levels, num_values).view(-1, *model.image_shape)


# Likelihoods


@pytest.mark.parametrize(
    "model",
    [
        {"image_shape": (1, 2, 3), "binarize": True},
        {"image_shape": (1, 2, 2), "n_bits": 2},
        {"image_shape": (3, 1, 2), "n_bits": 1},
    ],
    ids=["binary", "two_bits", "colour"],
)
def test_probabilities_of_all_images_add_up_to_one_in_every_order_and_all_together(model):
    model = tiny_model(**model)
    every = every_image(model)
    for order in (*range(8), None):
        total = model.log_prob(every, order=order, batch_size=100).exp().sum().item()
        assert total == pytest.approx(1, abs=1e-5), order


def test_probabilities_add_up_in_orders_of_ones_own_and_of_other_families():
    own = ((5, 0, 4, 1, 3, 2), (2, 3, 1, 4, 0, 5))
    orders = lmconv.OrderConfig(("random", "spiral_in", "gilbert2d"), seed=3, own=own)
    model = tiny_model((1, 2, 3), binarize=True, orders=orders)
    assert len(model.orders()) == orders.number == 5
    for order in (*range(5), None):
        total = model.log_prob(every_image(model), order=order).exp().sum().item()
        assert total == pytest.approx(1, abs=1e-5), order


@kinds
def test_pixels_add_up_to_regions_and_regions_to_images(kind):
    model = tiny_model(**KINDS[kind])
    images = random_images(model)
    region = torch.rand(8, 8) < 0.3
    for order in (0, 5):
        whole = model.log_prob(images, order=order)
        maps = model.log_prob_per_pixel(images, order=order)
        assert maps.shape == (4, 8, 8) and maps.dtype == torch.float32
        torch.testing.assert_close(maps.double().sum(dim=(1, 2)), whole, rtol=1e-6, atol=1e-4)
        part = model.log_prob(images, order=order, pixels=region)
        rest = model.log_prob(images, order=order, pixels=(~region).numpy())
        torch.testing.assert_close(part + rest, whole, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(maps[:, region].double().sum(dim=1), part, rtol=1e-6, atol=1e-4)


def test_several_orders_average_probabilities_not_their_logarithms():
    model = tiny_model(binarize=True)
    images = random_images(model)
    region = torch.rand(8, 8) < 0.5
    each = torch.stack([model.log_prob(images, order=k, pixels=region) for k in range(8)])
    torch.testing.assert_close(model.log_prob(images, pixels=region), ensemble(each))
    torch.testing.assert_close(
        model.log_prob(images, order=[6, 1], pixels=region),
        ((each[6].exp() + each[1].exp()) / 2).log(),
    )


def test_an_order_is_an_index_or_itself():
    model = tiny_model(binarize=True)
    images = random_images(model)
    expected = model.log_prob(images, order=3)
    for order in (np.int64(3), model.orders()[3], [3], (model.orders()[3],)):
        assert torch.equal(model.log_prob(images, order=order), expected)
    maps = model.log_prob_per_pixel(images, order=3)
    assert torch.equal(model.log_prob_per_pixel(images, order=model.orders()[3]), maps)
    with pytest.raises(ValueError, match="a single one here, not 2"):
        model.log_prob_per_pixel(images, order=[0, 1])
    assert not torch.allclose(model.log_prob(images, order=2), expected, atol=1e-3)


def test_likelihoods_do_not_depend_on_the_batch_size():
    model = tiny_model(n_bits=5)
    images = random_images(model, 5)
    for order in (None, 2):
        at_once = model.log_prob(images, order=order)
        torch.testing.assert_close(model.log_prob(images, order=order, batch_size=2), at_once)
    assert model.log_prob(images[:0]).shape == (0,)
    assert model.log_prob_per_pixel(images[:0]).shape == (0, 8, 8)


def test_images_of_any_size_are_scored():
    model = tiny_model(n_bits=5)
    images = random_images(model, size=(3, 11))
    assert model.log_prob(images).isfinite().all()
    assert model.log_prob_per_pixel(images).shape == (4, 3, 11)


def test_an_order_of_ones_own_needs_no_order_of_the_model_at_that_size():
    model = tiny_model(binarize=True, orders=lmconv.OrderConfig(("hilbert",)))
    images = random_images(model, size=(3, 5))
    order = tiny_model((1, 3, 5)).orders()[0]
    assert model.log_prob(images, order=order).isfinite().all()
    assert model.sample(1, shape=(1, 3, 5), order=order).shape == (1, 1, 3, 5)
    with pytest.raises(ValueError, match=r"hilbert.*3x5"):
        model.log_prob(images)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (8, "0 to 7"),
        (-1, "0 to 7"),
        ([0, 8], "0 to 7"),
        ([], "order.*empty"),
        ("s_curve", "order.*got"),
        (1.0, "order.*got"),
        (np.zeros((64, 2), dtype=np.int64), "order.*got"),
        (lmconv.Order(tiny_model((1, 4, 4)).orders()[0].pixels, 3, 2), "4x4.*8x8"),
        (lmconv.Order(tiny_model((1, 8, 8)).orders()[0].pixels, 5, 2), "25"),
    ],
)
def test_orders_that_do_not_fit_are_refused(order, message):
    model = tiny_model(binarize=True)
    with pytest.raises(ValueError, match=message):
        model.log_prob(random_images(model), order=order)


@pytest.mark.parametrize(
    "pixels",
    [np.ones((8, 8)), np.ones((4, 4), dtype=bool), np.ones((1, 8, 8), dtype=bool)],
    ids=["floats", "size", "channels"],
)
def test_regions_that_do_not_fit_are_refused(pixels):
    model = tiny_model(binarize=True)
    with pytest.raises(ValueError, match=r"pixels.*bool.*8x8"):
        model.log_prob(random_images(model), pixels=pixels)


@pytest.mark.parametrize("precision", ["half", "fp16", "BF16", "", None, 32])
def test_an_unknown_precision_is_refused(precision):
    model = tiny_model()
    with pytest.raises(ValueError, match=f"must be fp32 or bf16, got {precision!r}"):
        model.precision = precision
    assert model.precision == "fp32"


def test_half_precision_is_close_and_stays_exact_in_its_sums():
    model = tiny_model(num_mixtures=2, nr_filters=8)
    images = random_images(model)
    exact = model.log_prob(images)
    model.precision = "bf16"
    close = model.log_prob(images)
    assert close.dtype == torch.float64
    assert not torch.equal(close, exact)
    torch.testing.assert_close(close, exact, rtol=0.02, atol=0)


# Conversion of images


@kinds
@pytest.mark.parametrize("seed", [1, 7])
def test_bytes_are_converted_as_by_the_data_pipeline(kind, seed):
    model = tiny_model(**KINDS[kind])
    shape = model.image_shape
    pixels = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    preparation = model.description.preparation
    data = TestData(MemorySource(pixels), shape[0], preparation, batch_size=2, seed=seed)
    expected = torch.cat(list(data.batches(shape)))
    assert torch.equal(model.prepare(pixels, seed), expected)
    assert torch.equal(model.prepare(torch.from_numpy(pixels), seed), expected)
    assert torch.equal(model.prepare(pixels[3:], seed, first=3), expected[3:])
    assert torch.equal(model.prepare(expected), expected)
    assert torch.equal(model.prepare(expected.double().numpy()), expected)
    if seed == 1:
        assert torch.equal(model.log_prob(pixels), model.log_prob(expected))


WRONG_SCALES = {
    "0 to 1": lambda levels, v: levels / (v - 1),
    "0 to 255": lambda levels, v: levels * (255 // (v - 1)),
    "levels": lambda levels, v: levels,
    "other bits": lambda levels, v: 2 * (levels + 0.5) / (v - 1) - 1,
    "not a number": lambda levels, v: levels * torch.nan,
}


@kinds
@pytest.mark.parametrize("scale", WRONG_SCALES)
def test_every_function_refuses_pixels_that_are_not_on_the_grid(kind, scale):
    model = tiny_model(**KINDS[kind])
    num_values, shape = model.likelihood.num_values, model.image_shape
    levels = torch.arange(2 * int(np.prod(shape))).view(2, *shape) % num_values
    images = WRONG_SCALES[scale](levels.float(), num_values)
    order, hidden = model.orders()[0], torch.zeros(8, 8, dtype=torch.bool)
    hidden[0, 0] = True
    logits = torch.zeros(2, model.likelihood.num_output_channels, 8, 8)
    noise = model.likelihood.draw_noise(2, 8, 8)
    for use in (
        model.prepare,
        model.log_prob,
        model.log_prob_per_pixel,
        lambda images: model.log_likelihoods(images, [order]),
        lambda images: list(model.maps(images, [order])),
        lambda images: model.draw(images, hidden, order, noise, model.sampling),
        lambda images: lmconv.complete(model, images, hidden),
        lambda images: Completer(model, hidden).complete(images),
        lambda images: lmconv.compress(model, images),
        lambda images: model.likelihood.log_prob(logits, images),
        lambda images: model.likelihood.log_prob_per_pixel(logits, images.double()),
    ):
        with pytest.raises(ValueError, match="pixels for this model must be one of"):
            use(images)
        use(from_levels(levels, num_values))


def test_hidden_pixels_may_hold_anything_when_they_are_drawn():
    model = tiny_model()
    hidden = torch.eye(8, dtype=torch.bool)
    images = torch.where(hidden, torch.nan, -1.0).expand(1, 1, 8, 8)
    noise = model.likelihood.draw_noise(1, 8, 8)
    drawn = model.draw(images, hidden, model.orders()[0], noise, model.sampling)
    check_grid(drawn, 256)


@pytest.mark.parametrize(("kind", "largest"), [("binary", 1), ("five_bits", 31)])
def test_bytes_that_look_like_levels_are_named(kind, largest):
    model = tiny_model(**KINDS[kind])
    pixels = np.full((1, 1, 8, 8), largest, dtype=np.uint8)
    with pytest.warns(UserWarning, match=f"the largest here is {largest}: if they are levels"):
        model.log_prob(pixels)


def test_stored_pixels_of_16_bits_are_taken_with_their_upper_bits():
    deep, shallow = tiny_model(n_bits=12), tiny_model()
    pixels = np.random.default_rng(0).integers(0, 2**16, (2, 1, 8, 8), dtype=np.uint16)
    assert np.array_equal(to_levels(deep.prepare(pixels), 2**12).numpy(), pixels >> 4)
    assert torch.equal(shallow.prepare(pixels), shallow.prepare((pixels >> 8).astype(np.uint8)))
    assert torch.equal(deep.prepare(torch.from_numpy(pixels)), deep.prepare(pixels))
    with pytest.warns(
        UserWarning, match="uint16 pixels .* 65535 .*: if they are levels of 0 to 4095"
    ):
        deep.prepare(np.full((1, 1, 8, 8), 4095, dtype=np.uint16))
    with pytest.raises(ValueError, match="12 bits, got uint8: pass uint16"):
        deep.log_prob(np.zeros((1, 1, 8, 8), dtype=np.uint8))


def test_bytes_that_can_only_be_pixels_are_not(recwarn):
    for kind, values in (("binary", (0, 2, 255)), ("five_bits", (0, 32)), ("grey", (0, 1, 9))):
        model = tiny_model(**KINDS[kind])
        for value in values:
            model.prepare(np.full((1, 1, 8, 8), value, dtype=np.uint8))
    assert not recwarn.list


def test_networks_in_half_precision_score_what_they_are_given():
    model = tiny_model()
    model.network.bfloat16()
    pixels = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8) * 4
    images = model.prepare(pixels).bfloat16()
    assert model.log_likelihoods(images, model.orders()[:1]).isfinite().all()


def test_read_only_and_turned_arrays_are_taken_without_a_warning(recwarn):
    model = tiny_model((1, 4, 6), n_bits=5)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 6, 4), dtype=np.uint8)
    pixels.flags.writeable = False
    turned = pixels.transpose(0, 1, 3, 2)
    assert torch.equal(model.prepare(turned), model.prepare(turned.copy()))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("kind", "images", "words"),
    [
        ("grey", torch.arange(64.0).view(1, 1, 8, 8) / 64, ["256 values", "uint8"]),
        ("grey", torch.arange(64.0).view(1, 1, 8, 8), ["256 values", "uint8"]),
        ("grey", torch.full((1, 1, 8, 8), float("nan")), ["nan", "uint8"]),
        ("grey", torch.full((1, 1, 8, 8), float("-inf")), ["-inf", "uint8"]),
        ("binary", torch.eye(8)[None, None], ["-1 and 1", "uint8"]),
        ("five_bits", torch.full((1, 1, 8, 8), 3 / 255), ["32 values", "uint8"]),
        ("grey", torch.zeros(1, 1, 8, 8, dtype=torch.int64), ["uint8", "int64"]),
        ("grey", torch.zeros(1, 1, 8, 8, dtype=torch.bool), ["uint8", "bool"]),
        ("grey", np.zeros((1, 1, 8, 8), dtype=np.uint32), ["uint16", "uint32"]),
        ("grey", np.zeros((1, 1, 8, 8), dtype=np.longdouble), ["uint8"]),
        ("grey", np.zeros((1, 1, 8, 8), dtype=object), ["uint8", "object"]),
        ("grey", [[[[0]]]], ["tensor", "list"]),
        ("grey", torch.ones(1, 3, 8, 8), ["B x 1 x H x W", "(1, 3, 8, 8)"]),
        ("colour", torch.ones(1, 1, 8, 8), ["B x 3 x H x W", "(1, 1, 8, 8)"]),
        ("grey", torch.ones(1, 8, 8), ["B x 1 x H x W", "(1, 8, 8)"]),
        ("grey", np.ones((1, 8, 8, 1)), ["B x 1 x H x W", "(1, 8, 8, 1)"]),
        ("grey", torch.ones(1, 1, 0, 8), ["B x 1 x H x W", "(1, 1, 0, 8)"]),
    ],
)
def test_images_that_do_not_fit_are_refused_with_what_to_do(kind, images, words):
    model = tiny_model(**KINDS[kind])
    for use in (model.log_prob, model.log_prob_per_pixel, model.prepare):
        with pytest.raises(ValueError) as error:
            use(images)
        for word in words:
            assert word in str(error.value)
        assert "\n" not in str(error.value)


# Samples


@kinds
def test_a_sample_depends_on_the_seed_and_its_number_alone(kind):
    model = tiny_model(**KINDS[kind])
    shape = (model.image_shape[0], 3, 4)
    samples = model.sample(4, seed=2, shape=shape)
    assert samples.shape == (4, *shape) and samples.dtype == torch.float32
    check_grid(samples, model.likelihood.num_values)
    torch.manual_seed(5)
    assert torch.equal(model.sample(3, seed=2, shape=shape, batch_size=2), samples[:3])
    naive = lmconv.SamplingConfig("naive")
    assert torch.equal(model.sample(4, seed=2, shape=shape, config=naive), samples)
    assert not torch.equal(model.sample(4, seed=3, shape=shape), samples)
    assert len(samples.unique(dim=0)) == 4


def test_samples_are_drawn_in_parts_and_can_be_stopped():
    model, steps = tiny_model(), []
    whole = model.sample(5, seed=3)
    parts = [
        model.sample(number, seed=3, first=first, on_step=steps.append)
        for first, number in ((0, 2), (2, 3))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert sum(steps) == 5 * 64

    def stop(pixels):
        raise KeyError("stop")

    with pytest.raises(KeyError):
        model.sample(5, on_step=stop)
    assert torch.equal(model.sample(5, seed=3), whole)  # nothing is left of the cache


def test_the_steps_of_an_order_are_those_of_its_dependencies():
    model = tiny_model(orders=lmconv.OrderConfig(("raster_scan", "diagonal", "zipper")))
    for index, order in enumerate(model.orders()):
        steps = model.steps(index)
        assert steps.levels.shape == (8, 8) and steps.number == steps.levels.max() + 1
        in_order = steps.levels[order.pixels[:, 0], order.pixels[:, 1]]
        counts = []
        model.sample(1, order=index, config=lmconv.SamplingConfig(guess=0), on_step=counts.append)
        assert np.bincount(in_order).tolist() == counts
    own = model.order(np.array([(row, col) for col in range(4) for row in range(6)]))
    assert model.steps(own).levels.shape == (6, 4)
    assert model.steps(0).window == 0 or model.steps(0).window >= 2


def test_samples_have_the_models_size_unless_another_is_asked_for():
    model = tiny_model((1, 3, 5), binarize=True)
    assert model.sample(2).shape == (2, 1, 3, 5)
    assert model.sample(1, shape=(1, 7, 2)).shape == (1, 1, 7, 2)
    assert model.sample(0).shape == (0, 1, 3, 5)


def test_temperatures_change_samples():
    model = tiny_model((1, 4, 4), num_mixtures=2)
    drawn = [
        model.sample(2, config=lmconv.SamplingConfig(mixture_temperature=m, logistic_temperature=s))
        for m, s in ((1.0, 1.0), (1.0, 1e-6), (0.01, 1e-6))
    ]
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


@pytest.mark.parametrize("order", [2, 5])
@pytest.mark.parametrize("kind", [{"binarize": True}, {"n_bits": 1}], ids=["binary", "mixture"])
def test_images_are_sampled_as_often_as_their_likelihood_says(kind, order):
    model = tiny_model((1, 2, 2), **kind)
    number = 2000
    samples = model.sample(number, seed=4, order=order, batch_size=number)
    every = every_image(model)
    counts = (samples.flatten(1)[:, None] == every.flatten(1)).all(dim=2).sum(dim=0)
    assert counts.sum() == number
    expected = model.log_prob(every, order=order).exp()
    assert chisquare(counts, number * expected / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"number": -1}, "number"),
        ({"shape": (3, 8, 8)}, "1 x H x W"),
        ({"shape": (8, 8)}, "1 x H x W"),
        ({"shape": (1, 0, 8)}, "1 x H x W"),
        ({"order": 8}, "0 to 7"),
        ({"config": lmconv.SamplingConfig("cashed")}, "cached.*naive.*cashed"),
        ({"config": lmconv.SamplingConfig(mixture_temperature=0)}, "mixture.*0"),
        ({"config": lmconv.SamplingConfig(logistic_temperature=-1)}, "logistic.*-1"),
    ],
)
def test_samples_that_cannot_be_drawn_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(n_bits=5).sample(**{"number": 1, **arguments})


# Files


@pytest.mark.parametrize(
    "settings",
    [
        {"binarize": True},
        {"n_bits": 5, "num_mixtures": 3, "kernel_size": 5, "max_dilation": 1},
        {
            "image_shape": (3, 4, 6),
            "num_mixtures": 2,
            "normalization": "weight_norm",
            "bias": False,
            "mask_weight": True,
        },
        {
            "image_shape": (1, 2, 3),
            "normalization": "order_rescale",
            "orders": lmconv.OrderConfig(
                ("random", "spiral_out"), variants=(3, 0), seed=8, own=((5, 0, 4, 1, 3, 2),) * 2
            ),
        },
        {
            "image_shape": (1, 4, 4),
            "orders": lmconv.OrderConfig(
                base_transpose=True, base_reflect_rows=True, base_reflect_cols=True
            ),
        },
        {"image_shape": (1, 4, 4), "architecture": "pixelcnnpp", "orders": RASTER},
    ],
    ids=["binary", "five_bits", "weight_norm", "orders", "base", "baseline"],
)
def test_a_saved_model_is_the_same_when_it_is_loaded(settings, tmp_path):
    model = tiny_model(**settings)
    model.save(tmp_path / "model.pth")
    loaded = lmconv.load(tmp_path / "model.pth", device="cpu")
    assert loaded.description == model.description
    assert repr(loaded) == repr(model)
    for own, other in zip(model.orders(), loaded.orders(), strict=True):
        assert np.array_equal(own.pixels, other.pixels)
    images = random_images(model, 2)
    assert torch.equal(loaded.log_prob(images), model.log_prob(images))
    assert torch.equal(loaded.sample(1, seed=3), model.sample(1, seed=3))


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_published_checkpoints_are_loaded_without_flags_and_give_the_golden_logits(path):
    model = lmconv.load(path, device="cpu")
    golden = np.load(path.with_suffix(".npz"))
    x = torch.from_numpy(golden["x"])
    shape = (x.shape[1], x.shape[2], x.shape[3])
    own = [order.pixels for order in model.orders(shape)]
    # Published likelihoods of fewer than 8 bits use the constant for 8; "matched" is right.
    prefix = "matched_" if model.description.preparation.n_bits < 8 else ""
    orders = []
    numbers = [j for j in range(8) if f"logits{j}" in golden]
    assert numbers
    for j in numbers:
        pixels = golden.get(f"order{j}", own[0])  # the baseline has one order
        # Without all variants, the second golden order is of none that the checkpoint names.
        if j == 0 or len(own) == 8:
            assert any(np.array_equal(pixels, each) for each in own)
        orders.append(model.order(pixels))
        with torch.no_grad():
            logits = model.network(x, orders[j].masks)
        expected = torch.from_numpy(golden[f"logits{j}"])
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
        expected = golden[f"{prefix}log_likelihood{j}"]
        np.testing.assert_allclose(model.log_prob(x, order=orders[j]), expected, rtol=1e-5)
    expected = golden[f"{prefix}log_likelihood_ensemble"]
    np.testing.assert_allclose(model.log_prob(x, order=orders), expected, rtol=1e-5)


def test_a_model_is_shown_even_where_its_orders_do_not_exist_at_its_own_size():
    model = lmconv.load(REFERENCE / "models" / "none_gray_mask_weight.pth", device="cpu")
    assert "1 x 8 filters, images 1x28x28, discretized_mixture_logistics, 8 orders" in repr(model)
    with pytest.raises(ValueError, match=r"hilbert.*28x28"):
        model.orders()
    assert model.sample(1, shape=(1, 4, 4)).shape == (1, 1, 4, 4)


def test_a_file_of_weights_alone_says_what_to_do_and_that_works(tmp_path):
    model = tiny_model((1, 4, 4), binarize=True)
    path = tmp_path / "weights.pth"
    torch.save({"model_state_dict": published_state_dict(model.network)}, path)
    with pytest.raises(lmconv.CheckpointError) as error:
        lmconv.load(path)
    for word in ("weights.pth", "ImageModel", "ModelDescription", "load_weights"):
        assert word in str(error.value)
    other = lmconv.ImageModel(model.description, device="cpu")
    images = random_images(model)
    assert not torch.equal(other.log_prob(images), model.log_prob(images))
    other.load_weights(path)
    assert torch.equal(other.log_prob(images), model.log_prob(images))


def test_the_running_average_is_loaded_from_files_whose_average_is_right(tmp_path):
    model, average = tiny_model((1, 4, 4)), tiny_model((1, 4, 4))
    checkpoint = {
        "model": model.description.as_plain_data(),
        "model_state_dict": published_state_dict(model.network),
        "ema_state_dict": published_state_dict(average.network),
    }
    images = random_images(model)
    for version, expected in (({"format_version": 1}, average), ({}, model)):
        torch.save({**version, **checkpoint}, tmp_path / "model.pth")
        loaded = lmconv.load(tmp_path / "model.pth", device="cpu")
        assert torch.equal(loaded.log_prob(images), expected.log_prob(images))


def test_weights_of_another_network_are_refused_and_change_nothing(tmp_path):
    model, other = tiny_model((1, 4, 4)), tiny_model((1, 4, 4), nr_filters=6)
    other.save(tmp_path / "other.pth")
    images = random_images(model)
    before = model.log_prob(images)
    with pytest.raises(lmconv.CheckpointError, match=r"other\.pth"):
        model.load_weights(tmp_path / "other.pth")
    with pytest.raises(lmconv.CheckpointError):
        model.load_weights(load_checkpoint(tmp_path / "other.pth"), "it")
    assert torch.equal(model.log_prob(images), before)


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    (tmp_path / "text.pth").write_text("no checkpoint")
    torch.save([1], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    for name in ("text.pth", "list.pth", "empty.pth", "missing.pth"):
        with pytest.raises(lmconv.CheckpointError) as error:
            lmconv.load(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_a_model_cannot_be_saved_where_there_is_a_file_in_the_way(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(lmconv.CheckpointError, match="folder"):
        tiny_model((1, 4, 4)).save(tmp_path / "folder")


# One model with several networks, and the baseline


def test_another_network_shares_the_orders_and_leaves_the_model_as_it_is():
    model, other = tiny_model(binarize=True), tiny_model(binarize=True)
    model.precision = "bf16"
    orders, images = model.orders(), random_images(model)
    before = model.log_prob(images)
    changed = model.with_network(other.network)
    assert changed.orders() is orders and changed.precision == "bf16"
    assert changed.network is other.network and changed.description is model.description
    assert torch.equal(model.log_prob(images), before)
    changed.precision = "fp32"
    assert torch.equal(changed.log_prob(images), other.log_prob(images))
    assert model.precision == "bf16"


def test_a_network_stays_where_it_is_when_a_model_is_made_of_it(monkeypatch):
    model = tiny_model(binarize=True)
    orders = lmconv.OrderConfig(("raster_scan",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    other = lmconv.ImageModel(model.description.with_orders(orders), model.network)
    assert other.network is model.network and other.device == torch.device("cpu")
    images = random_images(model)
    assert len(other.orders()) == 1 and other.log_prob(images).isfinite().all()


def test_orders_are_made_once_for_each_size():
    model = tiny_model(orders=ALL_VARIANTS)
    assert model.orders() is model.orders((1, 8, 8))
    assert model.orders((1, 4, 4)) is model.orders((1, 4, 4))
    assert model.orders()[2].masks is model.orders()[2].masks


def test_orders_are_kept_for_the_sizes_that_were_used_last(monkeypatch):
    monkeypatch.setattr(image_model, "_KEPT_PIXELS", 8 * 2 * 64)
    model = tiny_model(orders=ALL_VARIANTS)
    first, second = model.orders((1, 8, 8)), model.orders((1, 8, 7))
    assert model.orders((1, 8, 8)) is first
    model.orders((1, 7, 7))
    assert model.orders((1, 8, 8)) is first
    assert model.orders((1, 8, 7)) is not second
    large = model.orders((1, 20, 20))
    assert model.orders((1, 20, 20)) is large


def test_the_baseline_scores_and_samples_and_does_nothing_else():
    model = lmconv.load(REFERENCE / "models" / "pixelcnnpp_gray_q2.pth", device="cpu")
    images = random_images(model, size=(8, 8))
    assert len(model.orders()) == 1
    assert model.log_prob(images).isfinite().all()
    samples = model.sample(2, seed=1, shape=(1, 4, 4))
    assert torch.equal(model.sample(1, seed=1, shape=(1, 4, 4)), samples[:1])
    check_grid(samples, model.likelihood.num_values)
    with pytest.raises(ValueError, match="convolutions"):
        model.sample(1, shape=(1, 4, 4), config=lmconv.SamplingConfig("cached"))
    with pytest.raises(ValueError, match="divisible by 4"):
        model.log_prob(images[:, :, :6])
    hidden = torch.zeros(8, 8, dtype=torch.bool)
    hidden[4:] = True
    with pytest.raises(ValueError, match="use lmconv"):
        lmconv.complete(model, images, hidden)
    with pytest.raises(ValueError, match="use lmconv"):
        lmconv.compress(model, images)
