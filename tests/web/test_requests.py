"""Sizes that the page works with, and the flags of the same orders on the command line."""

from types import SimpleNamespace

import pytest
from helpers.models import tiny_model

import lmconv
from lmconv.web.commands import order_flags
from lmconv.web.requests import Request, checked_size, chosen_order

EIGHT = Request({"height": 8, "width": 8})


def test_a_model_has_its_own_sizes_and_squares():
    model = tiny_model((1, 6, 10))
    assert checked_size(Request({"height": 6, "width": 10}), model) == (1, 6, 10)
    assert checked_size(EIGHT, model) == (1, 8, 8)
    for height, width in ((10, 6), (6, 6), (256, 256)):
        with pytest.raises(ValueError, match="cannot be worked with"):
            checked_size(Request({"height": height, "width": width}), model)


@pytest.mark.parametrize(("channels", "num_values"), [(2, 256), (1, 2**16)])
def test_images_that_browsers_cannot_show_are_for_the_command_line(channels, num_values):
    likelihood = SimpleNamespace(num_values=num_values)
    model = SimpleNamespace(image_shape=(channels, 8, 8), likelihood=likelihood)
    with pytest.raises(ValueError, match="use the command line"):
        checked_size(EIGHT, model)


def test_an_index_among_some_variants_is_that_of_the_variant():
    orders = lmconv.OrderConfig(all_variants=True, variants=(3, 5))
    model = tiny_model(orders=orders)
    assert order_flags(Request({"index": 1}), model) == ["--order_variants", "5"]
    with pytest.raises(ValueError, match="0 to 1"):
        chosen_order(Request({"index": 2}), model, (1, 8, 8))


def test_a_model_whose_flags_turn_all_orders_has_only_its_own_on_the_page():
    model = tiny_model(orders=lmconv.OrderConfig(base_transpose=True))
    assert order_flags(Request({"index": 0}), model) == ["--order_variants", "0"]
    with pytest.raises(ValueError, match="use one of its own"):
        order_flags(Request({"family": "hilbert", "variant": 0}), model)
