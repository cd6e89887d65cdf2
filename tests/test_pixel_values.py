"""The grid of pixel values: levels, floats and bytes agree, and nothing else is on it."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lmconv.pixel_values import (
    Preparation,
    check_grid,
    from_levels,
    to_grid,
    to_levels,
    to_pixels,
)
from lmconv.random_numbers import random_key

BITS = range(1, 9)
PREPARATIONS = [Preparation(binarize=True), *(Preparation(n_bits=bits) for bits in BITS)]
preparations = pytest.mark.parametrize(
    "preparation", PREPARATIONS, ids=["binary", *(f"{bits}_bits" for bits in BITS)]
)


def levels_of(preparation):
    return torch.arange(preparation.num_values)


def applied(preparation, pixels, seed=1, first=0):
    """Pixels, uint8 and N, as a batch of N images of one pixel."""
    indices = np.arange(first, first + len(pixels))
    return preparation.apply(pixels.reshape(-1, 1, 1, 1), indices, random_key(seed, 4)).flatten()


@preparations
def test_levels_are_evenly_spaced_from_minus_one_to_one(preparation):
    values = from_levels(levels_of(preparation), preparation.num_values)
    assert values.dtype == torch.float32
    assert values[0] == -1 and values[-1] == 1
    expected = np.linspace(-1, 1, preparation.num_values)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-7)


@preparations
def test_levels_floats_and_bytes_are_the_same_values(preparation):
    levels, num_values = levels_of(preparation), preparation.num_values
    values = from_levels(levels, num_values)
    assert torch.equal(to_levels(values, num_values), levels.float())
    assert torch.equal(to_levels(values.double(), num_values), levels.float())
    pixels = to_pixels(levels.numpy(), num_values)
    assert pixels.dtype == np.uint8
    assert pixels[0] == 0 and pixels[-1] == 255 and (np.diff(pixels.astype(int)) > 0).all()
    assert torch.equal(applied(preparation, pixels), values)
    if num_values == 256:
        assert np.array_equal(pixels, np.arange(256))


@pytest.mark.parametrize("bits", BITS)
def test_bytes_are_floored_to_fewer_bits(bits):
    pixels = np.arange(256, dtype=np.uint8)
    levels = to_levels(applied(Preparation(n_bits=bits), pixels), 2**bits)
    assert np.array_equal(levels, pixels // 2 ** (8 - bits))


@given(value=st.floats(-1.5, 1.5), bits=st.sampled_from(BITS))
def test_the_nearest_value_of_the_grid_is_found_and_stays(value, bits):
    values = torch.tensor([value], dtype=torch.float64)
    near = to_grid(values, bits)
    assert near.dtype == torch.float64
    grid = from_levels(torch.arange(2**bits), 2**bits)
    distance = (grid.double() - values.clamp(-1, 1)).abs().min()
    assert (near - values.clamp(-1, 1)).abs() <= distance + 1e-7
    assert near.float() in grid
    assert torch.equal(to_grid(near, bits), near)


def test_pixels_are_binarized_as_often_as_they_are_bright():
    preparation, number = Preparation(binarize=True), 4000
    for pixel in (0, 51, 128, 255):
        values = applied(preparation, np.full(number, pixel, dtype=np.uint8))
        assert set(values.tolist()) <= {-1.0, 1.0}
        share = (values > 0).double().mean().item()
        error = 4 * np.sqrt(pixel * (255 - pixel) / 255**2 / number)
        assert abs(share - pixel / 255) <= error, pixel


def test_how_an_image_is_binarized_depends_on_the_seed_and_its_number_alone():
    preparation = Preparation(binarize=True)
    pixels = np.random.default_rng(0).integers(0, 256, 200, dtype=np.uint8)
    whole = applied(preparation, pixels)
    assert torch.equal(applied(preparation, pixels[120:], first=120), whole[120:])
    assert not torch.equal(applied(preparation, pixels, seed=2), whole)


@preparations
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_value_of_the_grid_is_accepted(preparation, dtype):
    levels, num_values = levels_of(preparation), preparation.num_values
    check_grid(from_levels(levels, num_values).to(dtype), preparation.num_values)
    check_grid((2 * levels.to(dtype) / (num_values - 1)) - 1, preparation.num_values)
    check_grid(torch.empty(0, dtype=dtype), preparation.num_values)


@preparations
@pytest.mark.parametrize("shift", [-1, -0.5, -0.02, 0.02, 0.5, 1])
def test_a_single_value_beside_the_grid_is_refused(preparation, shift):
    num_values = preparation.num_values
    level = 0 if shift < 0 else num_values - 1
    values = from_levels(torch.full((3, 4), level), num_values)
    values[1, 2] = 2 * (level + shift) / (num_values - 1) - 1
    with pytest.raises(ValueError, match="uint8"):
        check_grid(values, preparation.num_values)


@given(st.floats(width=32, allow_nan=True, allow_infinity=True), st.sampled_from(PREPARATIONS))
@example(float("nan"), PREPARATIONS[0])
@example(float("inf"), PREPARATIONS[-1])
@example(0.0, PREPARATIONS[0])
@example(3.4e38, PREPARATIONS[3])
def test_any_float_is_accepted_only_where_it_is_on_the_grid(value, preparation):
    grid = np.linspace(-1, 1, preparation.num_values)
    step = grid[1] - grid[0]
    distance = np.abs(grid - value).min() / step
    if abs(distance - 0.01) < 1e-6:
        return  # at the limit, rounding decides
    if distance < 0.01:
        check_grid(torch.tensor([value]), preparation.num_values)
        return
    with pytest.raises(ValueError) as error:
        check_grid(torch.tensor([value]), preparation.num_values)
    assert f"{torch.tensor(value).item():.6g}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("dtype", "most_bits"), [(torch.bfloat16, 3), (torch.float16, 6)])
def test_half_precision_is_accepted_where_it_tells_the_values_apart_well(dtype, most_bits):
    """Rounding is a hundredth of a step there; images of more bits are to be passed as uint8."""
    for preparation in PREPARATIONS:
        values = from_levels(levels_of(preparation), preparation.num_values).to(dtype)
        if preparation.num_values <= 2**most_bits:
            check_grid(values, preparation.num_values)
        else:
            with pytest.raises(ValueError, match="uint8"):
                check_grid(values, preparation.num_values)


@pytest.mark.parametrize(
    ("preparation", "values"),
    [(Preparation(binarize=True), "-1 and 1"), (Preparation(n_bits=5), "32 values")],
)
def test_the_refusal_says_which_values_a_model_has(preparation, values):
    with pytest.raises(ValueError) as error:
        check_grid(torch.full((1, 1, 2, 2), 128.0), preparation.num_values)
    assert values in str(error.value) and "got 128" in str(error.value)


def test_images_that_were_rounded_to_half_precision_are_still_told_from_others():
    for dtype in (torch.bfloat16, torch.float16):
        for preparation in PREPARATIONS:
            values = from_levels(levels_of(preparation), preparation.num_values)
            check_grid(values.to(dtype), preparation.num_values, is_rounded=True)
            for wrong in (
                values * 255,
                values + 0.5 + 1 / preparation.num_values,
                values * torch.nan,
            ):
                with pytest.raises(ValueError, match="uint8"):
                    check_grid(wrong.to(dtype), preparation.num_values, is_rounded=True)


def test_only_bytes_are_converted():
    for dtype in (np.float32, np.int64, bool):
        with pytest.raises(ValueError, match="must be uint8"):
            applied(Preparation(binarize=True), np.zeros(3, dtype=dtype))


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_levels_of_more_bits_are_stored_in_sixteen(bits):
    levels = np.arange(2**bits)
    pixels = to_pixels(levels, 2**bits)
    assert pixels.dtype == np.uint16 and pixels[0] == 0 and pixels[-1] == 65535
    preparation = Preparation(n_bits=bits)
    assert torch.equal(applied(preparation, pixels), from_levels(levels_of(preparation), 2**bits))
    images = from_levels(levels_of(preparation), 2**bits)
    assert np.array_equal(to_levels(images, 2**bits), levels)
    check_grid(images, 2**bits)
    with pytest.raises(ValueError, match="uint16 images of 0 to 65535"):
        check_grid(images + 0.3 / 2**bits, 2**bits)


def test_sixteen_bits_are_floored_to_fewer():
    pixels = np.arange(2**16, dtype=np.uint16)
    for bits in (1, 8, 9, 16):
        levels = to_levels(applied(Preparation(n_bits=bits), pixels), 2**bits)
        assert np.array_equal(levels, pixels >> (16 - bits))
    with pytest.raises(ValueError, match="9 bits, got uint8: pass uint16"):
        applied(Preparation(n_bits=9), np.zeros(3, np.uint8))


def test_deep_pixels_are_binarized_as_often_as_they_are_bright():
    pixels = np.full(4000, 13107, np.uint16)  # a fifth of white
    assert (applied(Preparation(binarize=True), pixels) > 0).float().mean() == pytest.approx(
        0.2, abs=0.03
    )
