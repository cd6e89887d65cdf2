"""Which order a hole is filled in: visible pixels first, and the published variants for halves."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmconv.orders import Order, OrderConfig, best_order, visible_influence
from masking import augment_orders, get_generation_order_idx, get_masks, s_curve_idx


def half(name: str, size: int) -> torch.Tensor:
    hidden = torch.zeros(size, size, dtype=torch.bool)
    rows, cols = {
        "bottom": (slice(size // 2, None), slice(None)),
        "top": (slice(0, size // 2), slice(None)),
        "right": (slice(None), slice(size // 2, None)),
        "left": (slice(None), slice(0, size // 2)),
    }[name]
    hidden[rows, cols] = True
    return hidden


@pytest.mark.parametrize(
    ("name", "variants"),
    [("bottom", (0, 2)), ("top", (1, 3)), ("right", (4, 5)), ("left", (6, 7))],
)
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("size", [8, 11, 28])
def test_of_half_images_the_variants_that_visit_them_last_are_best(
    name, variants, kernel_size, size
):
    hidden, pixels = half(name, size), augment_orders(s_curve_idx(size, size), (1, size, size))
    orders = [Order(each, kernel_size, max_dilation=1) for each in pixels]
    assert best_order(orders, hidden) in variants
    others = [index for index in range(8) if index not in variants]
    influence = [order.visible_influence(hidden) for order in orders]
    assert min(influence[i] for i in variants) > max(influence[i] for i in others)


@given(st.integers(2, 7), st.integers(2, 7), st.integers(0, 99))
def test_every_hidden_pixel_comes_after_all_visible_ones_and_sees_them(rows, cols, seed):
    hidden = torch.from_numpy(np.random.default_rng(seed).random((rows, cols)) < 0.5)
    order = Order(get_generation_order_idx("random", rows, cols), 3, 1)
    order = order.visible_first(hidden).pixels
    flags = hidden.numpy()[order[:, 0], order[:, 1]]
    assert (np.diff(flags.astype(int)) >= 0).all()
    mask = get_masks(order, rows, cols, 3).init.reshape(3, 3, rows, cols)
    for row, col in hidden.nonzero().tolist():
        for i, j in np.ndindex(3, 3):
            r, c = row + i - 1, col + j - 1
            if 0 <= r < rows and 0 <= c < cols and not hidden[r, c]:
                assert mask[i, j, row, col] == 1


def test_influence_by_hand():
    hidden = torch.tensor([[False, True, True]])
    towards = np.array([[0, 0], [0, 1], [0, 2]])
    away = np.array([[0, 0], [0, 2], [0, 1]])
    first, second = 1 / 9, 1 / 81  # one path to each pixel, of one tap and of two
    assert visible_influence(towards, hidden, 3) == pytest.approx((first + second) / 2)
    assert visible_influence(away, hidden, 3) == pytest.approx(first / 2)


def test_masks_are_made_once_for_an_order():
    order = Order(s_curve_idx(4, 5), 3, 2)
    assert order.size == (4, 5)
    assert order.masks is order.masks
    for got, expected in zip(order.masks, get_masks(order.pixels, 4, 5, 3, 2), strict=True):
        assert torch.equal(got, expected)


def test_masks_that_are_first_needed_for_a_score_can_be_trained_with():
    order = Order(s_curve_idx(3, 3), 3, 1)
    with torch.inference_mode():
        masks = order.masks
    assert not masks.init.is_inference()


def test_a_list_of_orders_exists_for_every_size():
    config = OrderConfig(("s_curve", "random"), all_variants=True, variants=(9, 2), seed=4)
    for shape in ((1, 4, 4), (3, 2, 7)):
        orders = config.pixels(shape)
        assert len(orders) == 2
        for order in orders:
            assert len(np.unique(order @ [shape[2], 1])) == shape[1] * shape[2]


def test_orders_of_ones_own_follow_the_families_and_fit_one_size():
    own = tuple(np.random.default_rng(0).permutation(12).tolist())
    config = OrderConfig(own=(own,))
    families, mine = config.pixels((1, 3, 4))
    np.testing.assert_array_equal(families, s_curve_idx(3, 4))
    np.testing.assert_array_equal(mine @ [4, 1], own)
    with pytest.raises(ValueError, match="4x4"):
        config.pixels((1, 4, 4))


@pytest.mark.parametrize(
    "hidden", [torch.eye(8) * 255, torch.eye(8, dtype=torch.uint8), torch.eye(8, 9).bool()]
)
def test_holes_that_are_no_masks_of_the_images_are_refused(hidden):
    order = Order(s_curve_idx(8, 8), 3, 2)
    for use in (order.visible_first, lambda hidden: best_order([order], hidden)):
        with pytest.raises(ValueError, match="bool tensor of size 8x8"):
            use(hidden)
