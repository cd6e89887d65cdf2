"""Schedules of steps: nothing is read before it is known, and nothing waits without need."""

import itertools
from functools import cache
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers.problems import Problem
from hypothesis import given, settings
from hypothesis import strategies as st

from lmconv.generation import schedule
from lmconv.generation.schedule import (
    generation_steps,
    make_schedule,
    map_rows,
    mask_reads,
    tap_pixels,
    whole_image_schedule,
)
from masking import (
    generation_orders,
    get_generation_order_idx,
    get_masks,
    move_to_end,
    raster_scan_idx,
)


def reads_of(order, height, width, kernel_size=3, dilation=2):
    return mask_reads(
        get_masks(order, height, width, kernel_size, dilation), height, width, dilation
    )


def number_of_steps(order, height, width, hidden=None, **kernel):
    hidden = np.ones((height, width), bool) if hidden is None else hidden
    return len(generation_steps(order, reads_of(order, height, width, **kernel), hidden))


@st.composite
def problems(draw):
    """An order, what its masks read, and hidden pixels."""
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    seed = draw(st.integers(0, 999))
    random = np.random.default_rng(seed)
    order = random.permutation(raster_scan_idx(height, width))
    if draw(st.booleans()):
        order = draw(
            st.sampled_from(
                generation_orders(["s_curve", "gilbert2d"], (1, height, width), all_variants=True)
            )
        )
    reads = reads_of(
        order, height, width, draw(st.sampled_from([1, 3, 5])), draw(st.integers(1, 3))
    )
    hidden = random.random((height, width)) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    return order, reads, hidden


def readers(reads, pixel):
    """Pixels whose values and whose features a pixel reads, itself left out."""
    values = set(reads.init[pixel].tolist()) - {-1, pixel}
    features = {*reads.undilated[pixel].tolist(), *reads.dilated[pixel].tolist()} - {-1, pixel}
    return values, features


@pytest.mark.parametrize("dilation", [1, 2])
def test_taps_read_the_pixels_that_the_definition_says(dilation):
    mask = (torch.rand(1, 9, 4 * 5) < 0.5).float()
    table = tap_pixels(mask, 4, 5, dilation)
    for position in range(20):
        row, col = divmod(position, 5)
        for tap in range(9):
            r, c = row + (tap // 3 - 1) * dilation, col + (tap % 3 - 1) * dilation
            is_on = mask[0, tap, position] == 1 and 0 <= r < 4 and 0 <= c < 5
            assert table[position, tap] == (r * 5 + c if is_on else -1)


@pytest.mark.parametrize(
    ("mask", "message"),
    [(torch.ones(1, 9, 19), "got .1, 9, 19."), (torch.full((1, 9, 20), 0.5), "0 and 1")],
)
def test_masks_that_are_none_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        tap_pixels(mask, 4, 5)


@settings(max_examples=200, deadline=None)
@given(problems(), st.booleans())
def test_everything_is_known_when_it_is_read(problem, parallel):
    order, reads, hidden = problem
    steps = generation_steps(order, reads, hidden, parallel)
    time = {pixel: number for number, step in enumerate(steps) for pixel in step.tolist()}
    assert len(time) == sum(map(len, steps)), "some pixel comes twice"
    assert set(np.flatnonzero(hidden)) <= set(time)
    assert parallel or all(len(step) == 1 for step in steps)

    @cache  # paths through an image are too many to follow each
    def independent_of_hidden(pixel):
        values, features = readers(reads, pixel)
        return not any(hidden.flat[q] for q in values) and all(map(independent_of_hidden, features))

    for pixel, number in time.items():
        values, features = readers(reads, pixel)
        assert all(time[q] < number for q in values if q in time)
        assert all(time[q] <= number for q in features if q in time)
        assert all(not hidden.flat[q] for q in values if q not in time)
        assert all(independent_of_hidden(q) for q in features if q not in time)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_no_step_waits_and_no_visible_pixel_is_stepped_through_without_need(problem):
    order, reads, hidden = problem
    steps = generation_steps(order, reads, hidden)
    for before, step in itertools.pairwise(steps):
        for pixel in step.tolist():
            values, features = readers(reads, pixel)
            waited_for = values & set(before.tolist()) or features & set(step.tolist())
            assert waited_for, "it could have come one step earlier"
    needed = set(np.flatnonzero(hidden).tolist())
    for step in reversed(steps):
        for pixel in sorted(step.tolist(), key=(order @ [hidden.shape[1], 1]).tolist().index)[::-1]:
            assert pixel in needed
            needed |= readers(reads, pixel)[1]


@pytest.mark.parametrize(
    ("family", "size", "steps"),
    [
        ("raster_scan", 28, 82),
        ("raster_scan", 32, 94),
        ("s_curve", 28, 784),
        ("gilbert2d", 28, 784),
        ("hilbert", 32, 1024),
        ("s_curve_center_quarter_last", 28, 490),
    ],
)
def test_steps_of_whole_images(family, size, steps):
    assert number_of_steps(get_generation_order_idx(family, size, size), size, size) == steps


def test_a_random_order_takes_few_steps():
    orders = [np.random.default_rng(i).permutation(raster_scan_idx(28, 28)) for i in range(5)]
    assert all(16 <= number_of_steps(order, 28, 28) <= 23 for order in orders)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_chains_have_the_depths_of_their_pixels_one_by_one(problem):
    order, reads, hidden = problem
    found = []
    for shortest in (0, 10**9):
        with patch.object(schedule, "_LONG_CHAIN", shortest):
            steps = generation_steps(order, reads, hidden)
        found.append([step.tolist() for step in steps])
    assert found[0] == found[1]


def test_separate_holes_advance_side_by_side():
    def steps_of(*corners):
        hidden = np.zeros((20, 20), bool)
        for row, col in corners:
            hidden[row : row + 3, col : col + 3] = True
        order = move_to_end(get_generation_order_idx("s_curve", 20, 20), np.argwhere(hidden))
        steps = generation_steps(order, reads_of(order, 20, 20), hidden)
        assert sum(map(len, steps)) == hidden.sum()
        return len(steps)

    assert steps_of((2, 2), (2, 14), (13, 3)) == steps_of((2, 2)) == 9


def test_what_is_hidden_last_is_all_that_is_stepped_through():
    order = get_generation_order_idx("s_curve", 12, 12)
    hidden = np.zeros((12, 12), bool)
    hidden[6:] = True
    steps = generation_steps(order, reads_of(order, 12, 12), hidden)
    assert sum(map(len, steps)) == hidden.sum()
    hidden = ~hidden  # nothing that comes after is hidden, so nothing after it is needed
    steps = generation_steps(order, reads_of(order, 12, 12), hidden)
    assert sum(map(len, steps)) == hidden.sum()
    assert len(generation_steps(order, reads_of(order, 12, 12), np.zeros((12, 12), bool))) == 0


def test_masks_of_another_order_are_refused():
    order = get_generation_order_idx("s_curve", 5, 5)
    reads = reads_of(order[::-1], 5, 5)
    with pytest.raises(ValueError, match="not come earlier"):
        generation_steps(order, reads, np.ones((5, 5), bool))


@settings(max_examples=200, deadline=None)
@given(problems())
def test_rows_are_shared_by_pixels_at_different_times_alone(problem):
    order, reads, hidden = problem
    steps = generation_steps(order, reads, hidden)
    rows = map_rows(steps, reads) if steps else np.full(hidden.size, -1)
    stepped = {pixel: number for number, step in enumerate(steps) for pixel in step.tolist()}
    holder = {}
    for pixel in np.flatnonzero(rows >= 0).tolist():
        if pixel not in stepped:
            assert rows[pixel] not in holder
            holder[rows[pixel]] = pixel
    held_until = {}  # a value is written one step after the features
    for number, step in enumerate(steps):
        for pixel in step.tolist():
            assert held_until.get(rows[pixel], -1) < number
            held_until[rows[pixel]] = number + 1
            holder[rows[pixel]] = pixel
        for pixel in step.tolist():
            for q in set().union(*readers(reads, pixel)):
                assert holder[rows[q]] == q


def test_a_map_of_a_curve_by_rows_holds_few_of_them():
    order = get_generation_order_idx("s_curve", 28, 28)
    reads = reads_of(order, 28, 28)
    rows = map_rows(generation_steps(order, reads, np.ones((28, 28), bool)), reads)
    assert rows.min() == 0 and rows.max() < 4 * 28


# Schedules of a network


def test_a_schedule_is_made_for_the_dilation_of_the_network():
    problem = Problem("s_curve", max_dilation=3, hidden_share=0.5)
    made = make_schedule(problem.model, problem.order, problem.masks, problem.hidden.numpy())
    reads = reads_of(problem.order, *problem.hidden.shape, dilation=3)
    assert all(map(np.array_equal, made.reads, reads))
    steps = generation_steps(problem.order, reads, problem.hidden.numpy())
    assert [step.tolist() for step in made.steps] == [step.tolist() for step in steps]
    assert np.array_equal(made.rows, map_rows(steps, reads))
    assert made.masks is problem.masks


def test_all_pixels_of_a_whole_image_are_stepped_through():
    problem = Problem("raster_scan", size=(3, 7))
    arguments = problem.model, problem.order, problem.masks
    whole = whole_image_schedule(*arguments)
    assert sorted(np.concatenate(whole.steps).tolist()) == list(range(21))
    one_by_one = make_schedule(*arguments, np.ones((3, 7), bool), parallel=False)
    assert np.concatenate(one_by_one.steps).tolist() == list(range(21))
    assert len(whole.steps) < len(one_by_one.steps) == 21


def test_images_at_once_are_what_fits_into_memory(monkeypatch):
    problem = Problem()
    arguments = problem.model, problem.order, problem.masks
    many = whole_image_schedule(*arguments).images_at_once
    monkeypatch.setattr(schedule, "MAP_BYTES", schedule.MAP_BYTES // 4)
    assert whole_image_schedule(*arguments).images_at_once in (many // 4, many // 4 + 1)
    monkeypatch.setattr(schedule, "MAP_BYTES", 1)
    assert whole_image_schedule(*arguments).images_at_once == 1


def test_networks_without_masked_convolutions_have_no_schedule():
    problem = Problem()
    with pytest.raises(ValueError, match="masked convolutions"):
        whole_image_schedule(torch.nn.Identity(), problem.order, problem.masks)
