"""Networks on windows of images: the numbers are those of the whole image."""

import pytest
import torch
from helpers.models import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from lmconv import completion, windows
from lmconv.completion import Completer
from lmconv.pixel_values import from_levels
from lmconv.windows import Window, map_in_windows, receptive_radius, window_around

NETWORKS = {
    "plain": {"normalization": "none", "max_dilation": 1},
    "weight_norm": {"normalization": "weight_norm"},
    "order_rescale": {"normalization": "order_rescale", "mask_weight": True},
    "positions": {"input_positions": True},
    "prediction": {"local_prediction": True, "n_bits": 5},
}


def double_model(name, channels=1, seed=0):
    torch.manual_seed(seed)
    model = tiny_model((channels, 8, 8), **NETWORKS[name])
    for parameter in model.network.parameters():  # position embeddings begin with zeros
        torch.nn.init.normal_(parameter, std=0.3)
    model.network.double()
    return model


def random_images(model, height, width, number=2):
    values = model.likelihood.num_values
    levels = torch.randint(values, (number, model.image_shape[0], height, width))
    return from_levels(levels, values).double()


def use_small_windows(monkeypatch):
    monkeypatch.setattr(windows, "_ACTIVATIONS", 1)


def watch_sizes(network, monkeypatch):
    """A list that the heights and widths of all images that a network is given are put in."""
    sizes, forward = [], type(network).forward

    def watched(self, x, masks, label=None):
        sizes.append(tuple(x.shape[2:]))
        return forward(self, x, masks, label)

    monkeypatch.setattr(type(network), "forward", watched)
    return sizes


@pytest.mark.parametrize("name", NETWORKS)
def test_the_output_is_that_of_the_whole_image(name, monkeypatch):
    model = double_model(name, channels=3 if name == "prediction" else 1)
    images = random_images(model, 97, 113)
    orders = [model.orders((model.image_shape[0], 97, 113))[index] for index in (0, 5)]
    with torch.inference_mode():
        expected = [model.network(images, order.masks) for order in orders]
        use_small_windows(monkeypatch)
        sizes = watch_sizes(model.network, monkeypatch)
        found = [map_in_windows(model.network, images, order.masks) for order in orders]
    assert len(sizes) >= 8 and len(set(sizes)) > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_likelihoods_of_large_images_take_windows_and_are_the_same(monkeypatch):
    model = double_model("positions")
    images = random_images(model, 90, 120)
    expected = model.log_prob(images, order=2), model.log_prob_per_pixel(images, order=2)
    use_small_windows(monkeypatch)
    sizes = watch_sizes(model.network, monkeypatch)
    torch.testing.assert_close(model.log_prob(images, order=2), expected[0])
    torch.testing.assert_close(model.log_prob_per_pixel(images, order=2), expected[1])
    side = 4 * receptive_radius(model.network)
    assert max(max(size) for size in sizes) <= side
    assert len(sizes) > 2


def test_as_many_images_pass_at_once_as_a_window_has_room_for(monkeypatch):
    model = double_model("plain")
    images = random_images(model, 30, 30, number=13)
    expected = model.log_prob(images, order=0)
    use_small_windows(monkeypatch)
    sizes = watch_sizes(model.network, monkeypatch)
    torch.testing.assert_close(model.log_prob(images, order=0), expected)
    assert len(sizes) == -(-13 // ((4 * receptive_radius(model.network)) ** 2 // 900))


def test_the_receptive_radius_is_how_far_gradients_reach():
    model = double_model("plain")
    size = 2 * receptive_radius(model.network) + 5
    images = random_images(model, size, size, number=1).requires_grad_()
    masks = model.orders((1, size, size))[3].masks  # most of the pixels above come before
    middle = size // 2
    model.network(images, masks)[..., middle, middle].sum().backward()
    rows, cols = images.grad[0, 0].nonzero().t()
    reach = max((rows - middle).abs().max(), (cols - middle).abs().max())
    assert reach == receptive_radius(model.network)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_windows_cut_orders_and_masks_as_images(data):
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom = data.draw(st.integers(top + 1, height))
    right = data.draw(st.integers(left + 1, width))
    window = Window(top, bottom, left, right)
    model = tiny_model((1, height, width))
    order = model.orders((1, height, width))[0]
    own = order.within(window)
    assert own.size == window.size
    places = {tuple(pixel): place for place, pixel in enumerate(order.pixels.tolist())}
    in_whole = [places[row + top, col + left] for row, col in own.pixels.tolist()]
    assert in_whole == sorted(in_whole)
    inner = Window(1, max(1, window.size[0] - 1), 1, max(1, window.size[1] - 1))
    cut = window.masks(order.masks, (height, width))
    for mask, own_mask in zip(cut[:2], own.masks[:2], strict=True):  # where no tap is cut off
        mask, own_mask = (inner.of(each.unflatten(2, window.size)) for each in (mask, own_mask))
        assert torch.equal(mask, own_mask)


def test_a_hole_in_a_large_image_is_completed_in_its_window(monkeypatch):
    model = double_model("positions")
    images = random_images(model, 80, 100)
    hidden = torch.zeros(80, 100, dtype=torch.bool)
    hidden[10:13, 30:34] = True
    window = window_around(hidden, model.network)
    assert window.size[0] < 80 and window.size[1] < 100
    sizes = watch_sizes(model.network, monkeypatch)
    small = Completer(model, hidden, 2, "each", seed=3).complete(images)
    assert window.size in sizes and (80, 100) not in sizes
    monkeypatch.setattr(completion, "window_around", lambda *_: Window(0, 80, 0, 100))
    whole = Completer(model, hidden, 2, "each", seed=3).complete(images)
    assert torch.equal(small.images, whole.images)
    assert torch.equal(small.order_indices, whole.order_indices)
    torch.testing.assert_close(small.nats, whole.nats)
    torch.testing.assert_close(small.original_nats, whole.original_nats)
    visible = ~hidden
    expected = images[:, None, :, visible].expand_as(small.images[..., visible])
    assert torch.equal(small.images[..., visible], expected)
