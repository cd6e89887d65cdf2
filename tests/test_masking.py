"""Orders and masks: goldens, a slow oracle, and the properties that a factorisation needs."""

import os
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import REFERENCE
from hypothesis import assume, given
from hypothesis import strategies as st

from lmconv.generation.schedule import generation_steps, mask_reads
from masking import (
    ORDERS,
    Masks,
    augment_orders,
    diagonal_idx,
    generation_orders,
    get_generation_order_idx,
    get_masks,
    get_unfolded_masks,
    gilbert2d_idx,
    hilbert_idx,
    kernel_masks,
    load_order,
    move_to_end,
    random_idx,
    raster_scan_idx,
    reflect_all,
    reflect_cols,
    reflect_rows,
    s_curve_center_quarter_last_idx,
    s_curve_idx,
    spiral_in_idx,
    spiral_out_idx,
    transpose,
    zipper_idx,
)

GOLDEN_ORDERS = np.load(REFERENCE / "orders.npz")
GOLDEN_MASKS = np.load(REFERENCE / "masks.npz")
ANY_SIZE = tuple(family for family in ORDERS if family != "hilbert")

sides = st.integers(1, 12)


def size_in(name: str) -> tuple[int, int]:
    height, width = name.split("x")
    return int(height), int(width)


def assert_visits_every_pixel_once(order: np.ndarray, rows: int, cols: int) -> None:
    assert order.shape == (rows * cols, 2)
    assert order.dtype == np.int64
    pixels = {(r, c) for r in range(rows) for c in range(cols)}
    assert {tuple(pixel) for pixel in order.tolist()} == pixels


def steps(order: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(order, axis=0))


# Orders


@pytest.mark.parametrize("name", sorted(GOLDEN_ORDERS))
def test_orders_and_their_variants_equal_the_published_ones(name):
    family, size = name.rsplit("_", 1)
    rows, cols = size_in(size)
    variants = augment_orders(get_generation_order_idx(family, rows, cols), (1, rows, cols))
    np.testing.assert_array_equal(np.stack(variants), GOLDEN_ORDERS[name])


@given(st.sampled_from(ANY_SIZE), st.integers(1, 20), st.integers(1, 20))
def test_an_order_visits_every_pixel_once(family, rows, cols):
    assert_visits_every_pixel_once(get_generation_order_idx(family, rows, cols), rows, cols)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 64])
def test_hilbert_visits_every_pixel_once_by_single_steps(size):
    order = hilbert_idx(size, size)
    assert_visits_every_pixel_once(order, size, size)
    assert (steps(order).sum(axis=1) == 1).all()


@pytest.mark.parametrize(("size", "second"), [(8, [1, 0]), (16, [0, 1]), (32, [1, 0])])
def test_hilbert_turns_over_with_each_doubling(size, second):
    assert hilbert_idx(size, size)[:2].tolist() == [[0, 0], second]


@given(st.integers(1, 30), st.integers(1, 30))
def test_s_curve_goes_by_single_steps(rows, cols):
    assert (steps(s_curve_idx(rows, cols)).sum(axis=1) == 1).all()


@given(st.integers(1, 30), st.integers(1, 30))
def test_gilbert_goes_by_single_steps_but_for_one_diagonal_at_odd_sizes(rows, cols):
    order = steps(gilbert2d_idx(rows, cols))
    assert order.max(initial=0) <= 1
    diagonals = (order.sum(axis=1) == 2).sum()
    may_be_diagonal = max(rows, cols) % 2 == 1 and min(rows, cols) % 2 == 0
    assert diagonals <= int(may_be_diagonal)


def test_small_orders_by_hand():
    assert raster_scan_idx(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert s_curve_idx(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 2], [1, 1], [1, 0]]
    assert gilbert2d_idx(1, 3).tolist() == [[0, 0], [0, 1], [0, 2]]
    assert gilbert2d_idx(3, 1).tolist() == [[0, 0], [1, 0], [2, 0]]
    assert gilbert2d_idx(28, 28)[:3].tolist() == [[0, 0], [0, 1], [1, 1]]


def test_small_spirals_and_diagonals_by_hand():
    ring = [[0, 0], [0, 1], [0, 2], [1, 2], [2, 2], [2, 1], [2, 0], [1, 0], [1, 1]]
    assert spiral_in_idx(3, 3).tolist() == ring
    assert spiral_out_idx(3, 3).tolist() == ring[::-1]
    assert spiral_in_idx(1, 3).tolist() == [[0, 0], [0, 1], [0, 2]]
    assert spiral_in_idx(3, 1).tolist() == [[0, 0], [1, 0], [2, 0]]
    assert diagonal_idx(2, 3).tolist() == [[0, 0], [0, 1], [1, 0], [0, 2], [1, 1], [1, 2]]


@given(st.integers(1, 30), st.integers(1, 30))
def test_spirals_go_by_single_steps_and_each_ring_before_the_next(rows, cols):
    order = spiral_in_idx(rows, cols)
    assert (steps(order).sum(axis=1) == 1).all()
    to_border = np.minimum(order, [rows - 1, cols - 1] - order).min(axis=1)
    assert (np.diff(to_border) >= 0).all()


def test_a_zipper_closes_from_both_edges_two_steps_a_pair_of_rows():
    assert zipper_idx(4, 3)[:6].tolist() == [[0, 0], [0, 2], [3, 0], [3, 2], [0, 1], [3, 1]]
    masks, order = get_masks(zipper_idx(12, 9), 12, 9, 3, 2), zipper_idx(12, 9)
    reads = mask_reads(masks, 12, 9, 2)
    steps_taken = generation_steps(order, reads, np.ones((12, 9), bool), True)
    assert len(steps_taken) == 14  # two more where the halves meet


def test_random_orders_follow_their_seed():
    assert not np.array_equal(random_idx(6, 7, seed=1), random_idx(6, 7, seed=2))
    np.testing.assert_array_equal(random_idx(6, 7), get_generation_order_idx("random", 6, 7))
    of_seed = generation_orders(["random"], (1, 6, 7), all_variants=False, seed=2)
    np.testing.assert_array_equal(of_seed[0], random_idx(6, 7, seed=2))
    assert random_idx(2, 3).tolist() == [[1, 2], [0, 2], [0, 1], [1, 0], [0, 0], [1, 1]]


# Orders from files


@given(st.integers(1, 8), st.integers(1, 8), st.booleans(), st.sampled_from(["<i8", "<i4", "<u2"]))
def test_an_order_comes_back_from_its_file_as_pixels_or_numbers(rows, cols, flat, dtype):
    order = random_idx(rows, cols, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "order.npy"
        np.save(path, (order @ [cols, 1] if flat else order).astype(dtype))
        np.testing.assert_array_equal(load_order(path, rows, cols), order)


def test_orders_of_ones_own_follow_the_families_and_have_variants_on_square_images():
    own = [random_idx(4, 4, seed=3) @ [4, 1]]
    orders = generation_orders(["s_curve"], (1, 4, 4), all_variants=True, own=own)
    assert len(orders) == 16
    expected = augment_orders(random_idx(4, 4, seed=3), (1, 4, 4))
    np.testing.assert_array_equal(orders[8:], expected)
    own = [random_idx(2, 3) @ [3, 1]]
    assert len(generation_orders([], (1, 2, 3), all_variants=False, own=own)) == 1
    with pytest.raises(ValueError, match="leave out `randomize_order`"):
        generation_orders([], (1, 2, 3), all_variants=True, own=own)


def test_a_pipe_or_a_huge_array_is_no_order_and_is_not_read(tmp_path):
    path = tmp_path / "order.npy"
    os.mkfifo(path)
    with pytest.raises(ValueError, match="it is not a regular file"):
        load_order(path, 3, 3)
    path.unlink()
    np.save(path, np.arange(9))
    content = path.read_bytes().replace(b"(9,), }       ", b"(%d,), }" % 2**37)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as an array"):
        load_order(path, 3, 3)
    os.truncate(path, 2**40 + 128)  # as large as it says
    with pytest.raises(ValueError, match="must be 9 x 2, got"):
        load_order(path, 3, 3)


def test_an_order_does_not_depend_on_its_file_once_it_is_read(tmp_path):
    path = tmp_path / "order.npy"
    np.save(path, random_idx(3, 3))
    order = load_order(path, 3, 3)
    os.truncate(path, 0)
    np.testing.assert_array_equal(order, random_idx(3, 3))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (np.zeros((9, 2), int), "visits some pixel twice"),
        (np.arange(8), "9 x 2, got"),
        (np.arange(9) + 1, "outside"),
        (np.linspace(0, 1, 9), "9 x 2, got"),
        (np.zeros((9, 2)), "integer array"),
        (np.array([None] * 9), "cannot be read as an array"),
        (b"no array", "cannot be read as an array"),
        (b"PK no archive", "cannot be read as an array"),
        ({"order": np.arange(9)}, "several arrays"),
        (None, "cannot be read as an array.*No such file"),
    ],
)
def test_a_file_that_is_no_order_is_named(tmp_path, content, expected):
    path = tmp_path / "order.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        with path.open("wb") as file:
            np.savez(file, **content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"`order_file` .*order\.npy.*{expected}") as error:
        load_order(path, 3, 3)
    assert "\n" not in str(error.value)


@given(sides, sides)
def test_centre_block_comes_last_in_s_curve_order(rows, cols):
    order = s_curve_center_quarter_last_idx(rows, cols).tolist()

    def in_block(pixel: list[int]) -> bool:
        r, c = pixel
        return rows // 4 <= r < rows - rows // 4 and cols // 4 <= c < cols - cols // 4

    s_curve = s_curve_idx(rows, cols).tolist()
    block = [pixel for pixel in s_curve if in_block(pixel)]
    assert order == [pixel for pixel in s_curve if not in_block(pixel)] + block


@pytest.mark.parametrize("family", ANY_SIZE)
@pytest.mark.parametrize(("rows", "cols"), [(0, 3), (3, 0), (-1, 3), (-4, -4)])
def test_an_image_without_pixels_is_refused(family, rows, cols):
    with pytest.raises(ValueError, match=f"at least one row and one column, got {rows}x{cols}"):
        get_generation_order_idx(family, rows, cols)


@pytest.mark.parametrize(("rows", "cols"), [(28, 28), (8, 16), (6, 6), (4, 5), (0, 0)])
def test_hilbert_needs_a_square_power_of_two(rows, cols):
    message = "at least one row" if rows == 0 else f"got {rows}x{cols}: try gilbert2d$"
    with pytest.raises(ValueError, match=message):
        hilbert_idx(rows, cols)


def test_an_unknown_order_is_named_with_the_choices():
    with pytest.raises(ValueError, match="unknown order 'spiral': choose one of raster_scan, s_c"):
        get_generation_order_idx("spiral", 4, 4)


# Variants


@given(sides, sides, st.randoms(use_true_random=False))
def test_reflections_and_transposition_undo_themselves(rows, cols, random):
    order = np.array(random.sample(raster_scan_idx(rows, cols).tolist(), rows * cols))
    obs = (3, rows, cols)
    for change in (reflect_rows, reflect_cols, reflect_all):
        assert_visits_every_pixel_once(change(order, obs), rows, cols)
        np.testing.assert_array_equal(change(change(order, obs), obs), order)
    assert_visits_every_pixel_once(transpose(order), cols, rows)
    np.testing.assert_array_equal(transpose(transpose(order)), order)


def test_each_symmetry_moves_a_pixel_as_its_name_says():
    pixel, obs = np.array([[0, 1]]), (1, 4, 6)
    assert reflect_rows(pixel, obs).tolist() == [[3, 1]]
    assert reflect_cols(pixel, obs).tolist() == [[0, 4]]
    assert reflect_all(pixel, obs).tolist() == [[3, 4]]
    assert transpose(pixel).tolist() == [[1, 0]]


@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize("family", ORDERS)
def test_generation_orders_of_a_square_image_are_the_augmented_orders(family, size):
    if family == "hilbert":
        size = 8
    obs = (3, size, size)
    listed = generation_orders([family], obs, all_variants=True)
    expected = augment_orders(get_generation_order_idx(family, size, size), obs)
    assert len(listed) == len(expected) == 8
    np.testing.assert_array_equal(np.stack(listed), np.stack(expected))


def test_the_eight_variants_of_a_square_image_all_differ():
    for family in ORDERS:
        orders = generation_orders([family], (1, 8, 8), all_variants=True)
        assert len({order.tobytes() for order in orders}) == 8, family


def test_an_order_that_is_not_square_has_only_the_variants_that_fill_its_image():
    variants = augment_orders(s_curve_idx(4, 6), (1, 4, 6))
    assert len(variants) == 4
    for order in variants:
        assert_visits_every_pixel_once(order, 4, 6)


@given(st.sampled_from(ANY_SIZE), sides, sides, st.booleans(), st.booleans(), st.booleans())
def test_eight_variants_of_any_image_and_base_visit_every_pixel_once(
    family, rows, cols, base_transpose, base_rows, base_cols
):
    orders = generation_orders(
        [family],
        (1, rows, cols),
        all_variants=True,
        base_transpose=base_transpose,
        base_reflect_rows=base_rows,
        base_reflect_cols=base_cols,
    )
    assert len(orders) == 8
    for order in orders:
        assert_visits_every_pixel_once(order, rows, cols)


def test_transposed_variants_come_from_the_family_at_the_transposed_size():
    orders = generation_orders(["s_curve"], (1, 4, 6), all_variants=True)
    np.testing.assert_array_equal(orders[4], transpose(s_curve_idx(6, 4)))
    np.testing.assert_array_equal(orders[5], reflect_rows(orders[4], (1, 4, 6)))
    np.testing.assert_array_equal(orders[6], reflect_cols(orders[4], (1, 4, 6)))
    np.testing.assert_array_equal(orders[7], reflect_all(orders[4], (1, 4, 6)))


@pytest.mark.parametrize(("rows", "cols"), [(8, 8), (4, 6), (7, 3)])
def test_a_transposed_base_exchanges_the_two_halves_of_the_variants(rows, cols):
    plain = generation_orders(["s_curve"], (1, rows, cols), all_variants=True)
    based = generation_orders(["s_curve"], (1, rows, cols), all_variants=True, base_transpose=True)
    np.testing.assert_array_equal(np.stack(based), np.stack(plain[4:] + plain[:4]))


@given(st.booleans(), st.booleans(), st.booleans(), st.sampled_from([f for f in ORDERS]))
def test_base_options_transpose_then_reflect_rows_then_columns(swap, rows, cols, family):
    obs = (1, 8, 8)
    base = get_generation_order_idx(family, 8, 8)
    base = transpose(base) if swap else base
    base = reflect_rows(base, obs) if rows else base
    base = reflect_cols(base, obs) if cols else base
    options = dict(base_transpose=swap, base_reflect_rows=rows, base_reflect_cols=cols)
    (single,) = generation_orders([family], obs, all_variants=False, **options)
    np.testing.assert_array_equal(single, base)
    listed = generation_orders([family], obs, all_variants=True, **options)
    np.testing.assert_array_equal(np.stack(listed), np.stack(augment_orders(base, obs)))


@pytest.mark.parametrize(("rows", "cols"), [(8, 8), (4, 6), (6, 4), (8, 2)])
@pytest.mark.parametrize(
    ("hidden", "variants"),
    [("bottom", (0, 2)), ("top", (1, 3)), ("right", (4, 5)), ("left", (6, 7))],
)
def test_s_curve_variants_that_see_everything_else_before_the_hidden_half(
    hidden, variants, rows, cols
):
    in_half = {
        "bottom": lambda order: order[:, 0] >= rows // 2,
        "top": lambda order: order[:, 0] < rows // 2,
        "right": lambda order: order[:, 1] >= cols // 2,
        "left": lambda order: order[:, 1] < cols // 2,
    }[hidden]
    orders = generation_orders(["s_curve"], (1, rows, cols), all_variants=True)
    last = [index for index, order in enumerate(orders) if in_half(order)[rows * cols // 2 :].all()]
    assert tuple(last) == variants


def test_families_are_concatenated_and_variants_pick_from_the_whole_list():
    families, obs = ["s_curve", "gilbert2d"], (1, 6, 10)
    every = generation_orders(families, obs, all_variants=True)
    assert len(every) == 16
    np.testing.assert_array_equal(every[8], gilbert2d_idx(6, 10))
    picked = generation_orders(families, obs, all_variants=True, variants=[9, 0, 9])
    np.testing.assert_array_equal(np.stack(picked), np.stack([every[9], every[0], every[9]]))
    plain = generation_orders(families, obs, all_variants=False)
    np.testing.assert_array_equal(np.stack(plain), np.stack([every[0], every[8]]))


@pytest.mark.parametrize("index", [-1, 2, 8])
def test_a_variant_out_of_range_is_refused_with_the_range(index):
    with pytest.raises(ValueError, match=f"`order_variants` {index} is out of range.*0 to 1$"):
        generation_orders(
            ["s_curve", "raster_scan"], (1, 4, 4), all_variants=False, variants=[0, index]
        )


# Reordering


@given(st.data(), sides, sides)
def test_move_to_end_keeps_both_parts_in_order(data, rows, cols):
    order = np.array(data.draw(st.permutations(raster_scan_idx(rows, cols).tolist())))
    coords = data.draw(st.lists(st.sampled_from(order.tolist()), max_size=10))
    moved = move_to_end(order, np.array(coords))
    stays = [pixel for pixel in order.tolist() if pixel not in coords]
    assert moved.tolist() == stays + [pixel for pixel in order.tolist() if pixel in coords]


@pytest.mark.parametrize("pixel", [(4, 0), (0, 5), (-1, 0), (0, -1), (-1, 6), (100, 100)])
def test_pixels_outside_the_image_cannot_be_moved_or_observed(pixel):
    order = s_curve_idx(4, 5)
    name = rf"pixel \({pixel[0]}, {pixel[1]}\)"
    with pytest.raises(ValueError, match=f"{name} is not in the order"):
        move_to_end(order, np.array([(0, 0), pixel]))
    with pytest.raises(ValueError, match=f"{name} is outside the 4x5 image"):
        kernel_masks(order, 4, 5, observed_idx=np.array([(0, 0), pixel]))


@pytest.mark.parametrize("coords", [[0, 1], [[0, 1, 2], [0, 1, 2]], [[0.0, 1.5]], [[True, False]]])
def test_pixels_that_are_not_pairs_of_integers_are_refused(coords):
    for use in (
        lambda: move_to_end(s_curve_idx(4, 4), np.array(coords)),
        lambda: kernel_masks(s_curve_idx(4, 4), 4, 4, observed_idx=np.array(coords)),
    ):
        with pytest.raises(ValueError, match=r"integer array of \(row, column\), M x 2"):
            use()


# Masks


def slow_masks(order, nrows, ncols, k, dilation, mask_type, set_padding, observed):
    """The rule, pixel by pixel and tap by tap."""
    rank = {tuple(pixel): time for time, pixel in enumerate(order.tolist())}
    masks = np.zeros((nrows * ncols, k, k), dtype=np.float32)
    for row in range(nrows):
        for col in range(ncols):
            for i in range(k):
                for j in range(k):
                    tap = row + dilation * (i - k // 2), col + dilation * (j - k // 2)
                    if tap == (row, col):
                        value = 1 if mask_type == "B" else 0
                    elif tap not in rank:
                        value = set_padding
                    else:
                        value = int(rank[tap] < rank[row, col] or tap in observed)
                    masks[row * ncols + col, i, j] = value
    return masks


@pytest.mark.parametrize("name", [n for n in sorted(GOLDEN_MASKS) if not n.endswith("_idx")])
def test_masks_equal_the_published_ones(name):
    settings, _, _ = name.partition("_obs-")
    family_and_size, variant, k, dilation, mask_type = settings.rsplit("_", 4)
    family, size = family_and_size.rsplit("_", 1)
    rows, cols = size_in(size)
    order = GOLDEN_ORDERS[f"{family}_{size}"][int(variant[1:])]
    observed = GOLDEN_MASKS[f"{name}__observed_idx"] if "_obs-" in name else None
    options = dict(
        k=int(k[1:]), dilation=int(dilation[1:]), mask_type=mask_type, observed_idx=observed
    )
    masks = kernel_masks(order, rows, cols, **options)
    np.testing.assert_array_equal(masks.numpy(), GOLDEN_MASKS[name])
    unfolded = get_unfolded_masks(order, rows, cols, **options)
    assert unfolded.shape == (1, options["k"] ** 2, rows * cols)
    np.testing.assert_array_equal(
        unfolded[0].numpy(), GOLDEN_MASKS[name].reshape(rows * cols, -1).T
    )


@given(
    st.data(),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 3),
    st.sampled_from("AB"),
    st.sampled_from([0, 1, 0.5]),
)
def test_masks_equal_the_rule_applied_tap_by_tap(
    data, rows, cols, k, dilation, mask_type, set_padding
):
    pixels = raster_scan_idx(rows, cols).tolist()
    order = np.array(data.draw(st.permutations(pixels)))
    observed = data.draw(st.none() | st.lists(st.sampled_from(pixels), max_size=6))
    masks = kernel_masks(
        order,
        rows,
        cols,
        k,
        dilation,
        mask_type,
        set_padding,
        observed_idx=None if observed is None else np.array(observed),
    )
    known = {tuple(pixel) for pixel in observed or ()}
    expected = slow_masks(order, rows, cols, k, dilation, mask_type, set_padding, known)
    assert masks.dtype == torch.float32
    np.testing.assert_array_equal(masks.numpy(), expected)


@given(st.data(), st.integers(2, 6), st.integers(2, 6), st.integers(1, 2))
def test_of_two_neighbours_exactly_the_later_sees_the_other(data, rows, cols, dilation):
    order = np.array(data.draw(st.permutations(raster_scan_idx(rows, cols).tolist())))
    masks = kernel_masks(order, rows, cols, 3, dilation, "A").reshape(rows, cols, 3, 3)
    assume(rows > dilation)
    below = masks[:-dilation, :, 2, 1]  # what a pixel sees of the one below it
    above = masks[dilation:, :, 0, 1]
    assert torch.equal(below + above, torch.ones_like(below))


def test_the_first_pixel_sees_nothing_and_the_last_its_whole_neighbourhood():
    order = move_to_end(s_curve_idx(5, 5), np.array([[2, 2]]))
    masks = kernel_masks(order, 5, 5, 5, mask_type="A").reshape(5, 5, 5, 5)
    assert masks[0, 0].sum() == 0
    assert masks[2, 2].sum() == 24


def test_an_observed_pixel_stays_hidden_from_its_own_prediction():
    every_pixel = raster_scan_idx(3, 3)
    masks = kernel_masks(every_pixel, 3, 3, mask_type="A", observed_idx=every_pixel)
    assert Counter(masks[:, 1, 1].tolist()) == {0.0: 9}
    assert masks[4].sum() == 8


def test_masks_of_a_network_differ_by_type_and_dilation():
    order, observed = gilbert2d_idx(5, 7), np.array([[4, 6], [0, 3]])
    masks = get_masks(order, 5, 7, k=5, max_dilation=2, observed_idx=observed)
    assert isinstance(masks, Masks)
    for mask, dilation, mask_type in zip(masks, (1, 1, 2), "ABB", strict=True):
        expected = get_unfolded_masks(order, 5, 7, 5, dilation, mask_type, observed_idx=observed)
        assert torch.equal(mask, expected)
        assert mask.shape == (1, 25, 35)
        assert mask.dtype == torch.float32
        assert mask.is_contiguous()


def test_masks_move_to_another_dtype_and_device_together():
    masks = get_masks(s_curve_idx(3, 4), 3, 4)
    moved = masks.to("meta", torch.bfloat16)
    assert isinstance(moved, Masks)
    assert {(mask.device.type, mask.dtype) for mask in moved} == {("meta", torch.bfloat16)}
    halved = masks.to(dtype=torch.float16)
    for mask, half in zip(masks, halved, strict=True):
        assert half.dtype == torch.float16
        assert torch.equal(half.float(), mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 2}, "kernel size must be odd.*got 2"),
        ({"k": 0}, "kernel size must be odd.*got 0"),
        ({"k": -3}, "kernel size must be odd.*got -3"),
        ({"dilation": 0}, "dilation must be at least 1, got 0"),
        ({"dilation": -1}, "dilation must be at least 1, got -1"),
        ({"mask_type": "C"}, "mask_type must be A or B, got 'C'"),
    ],
)
def test_impossible_kernels_are_refused(options, message):
    for make in (kernel_masks, get_unfolded_masks):
        with pytest.raises(ValueError, match=message):
            make(s_curve_idx(4, 4), 4, 4, **options)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (s_curve_idx(3, 4)[:-1], r"must be 12 x 2, got \(11, 2\)"),
        (s_curve_idx(4, 4), r"must be 12 x 2, got \(16, 2\)"),
        (np.arange(24), r"must be 12 x 2, got \(24,\)"),
        (s_curve_idx(4, 3), r"pixel \(3, 2\) is outside the 3x4 image"),
        (s_curve_idx(3, 4) - 1, r"pixel \(-1, -1\) is outside"),
        (np.zeros((12, 2), dtype=int), "visits some pixel twice"),
        (s_curve_idx(3, 4) + 0.5, "integer array"),
    ],
)
def test_an_order_that_is_no_permutation_of_the_image_is_refused(order, message):
    with pytest.raises(ValueError, match=message):
        kernel_masks(order, 3, 4)


@pytest.mark.parametrize(("rows", "cols"), [(0, 4), (4, -1)])
def test_masks_of_an_image_without_pixels_are_refused(rows, cols):
    with pytest.raises(ValueError, match="at least one row and one column"):
        kernel_masks(np.zeros((0, 2), dtype=int), rows, cols)
