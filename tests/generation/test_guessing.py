"""Sampling in windows: the same images as one by one, in fewer steps, for one or many at a time."""

import numpy as np
import pytest
import torch
from helpers.problems import FAMILIES, VARIETY, Problem

from lmconv.generation import window_plan
from lmconv.generation.guessing import Guessing, choose_guessing, draw_by_guessing
from lmconv.generation.schedule import MAP_BYTES, make_schedule
from lmconv.generation.window_plan import window_rows
from model import ModelConfig, build_model


def schedule_of(problem, images_at_once=None, window=1):
    hidden = problem.hidden.numpy()
    schedule = make_schedule(problem.model, problem.order, problem.masks, hidden)
    if images_at_once is not None:
        rows = window_rows(schedule, window, len(problem.images))
        schedule.bytes_per_row = 1
        one_image = MAP_BYTES // schedule.images_at_once_with(rows)
        schedule.bytes_per_row = MAP_BYTES // (one_image * images_at_once)
        assert schedule.images_at_once_with(rows) == images_at_once
    return schedule


def drawn(problem, window, images_at_once=None, seen=None, **trial):
    """Images drawn in windows, and the number of steps."""
    images = torch.where(problem.hidden, 0, problem.images).contiguous()
    report = (lambda pixels: None) if seen is None else seen.append
    with torch.inference_mode():
        steps = draw_by_guessing(
            problem.model,
            problem.likelihood.sample,
            schedule_of(problem, images_at_once, window),
            images,
            problem.hidden,
            problem.noise,
            Guessing(window, **trial),
            report,
            problem.label,
        )
    return images, steps


@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", VARIETY)
def test_images_are_those_drawn_one_by_one(kind, family, share):
    problem = Problem(family, variant=3, hidden_share=share, **VARIETY[kind])
    expected = problem.cached()
    for window in (1, 5):
        assert torch.equal(problem.cached(guess=window), expected)
    assert torch.equal(problem.cached(guess=None), expected)


@pytest.mark.parametrize("window", [2, 3, 8, 29, 30, 99])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_window_draws_the_same_images_also_where_rows_are_reused(family, window, monkeypatch):
    problem = Problem(family, normalization="pono")
    expected = problem.naive()
    assert torch.equal(problem.cached(guess=window), expected)
    monkeypatch.setattr(window_plan, "_FEW_PIXELS", 0)
    rows = window_rows(schedule_of(problem), window, 3)
    if window == 2 and family == "s_curve":
        assert rows.max() < 29  # some are reused
    assert torch.equal(problem.cached(guess=window), expected)


@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_finished_image_makes_room_for_the_next_one(number, share):
    problem = Problem("gilbert2d", images=9, hidden_share=share, normalization="pono")
    images, steps = drawn(problem, 4, images_at_once=number)
    assert torch.equal(images, problem.cached())
    _, all_at_once = drawn(problem, 4)
    assert all_at_once <= steps < 9 * all_at_once


def test_steps_are_fewer_than_pixels_and_reported_as_they_are_drawn():
    problem = Problem("s_curve", hidden_share=0.7, normalization="pono")
    seen = []
    _, steps = drawn(problem, 8, seen=seen)
    assert len(seen) == steps < problem.hidden.sum()
    assert sum(seen) == problem.hidden.sum() * len(problem.images)
    assert min(seen) >= 0


def test_right_guesses_are_kept_and_wrong_ones_are_not():
    """With one temperature pixels are noise, so guesses are poor; at the other they are certain."""
    problem = Problem("s_curve", images=1)

    def steps_with(values):
        draw = lambda logits, noise: values(noise[:, :1])  # noqa: E731
        images = torch.zeros_like(problem.images)
        with torch.inference_mode():
            return draw_by_guessing(
                problem.model,
                draw,
                schedule_of(problem),
                images,
                problem.hidden,
                problem.noise,
                Guessing(5),
            )

    # The guess is -1 where nothing is known, or the value of a pixel that is.
    assert steps_with(lambda noise: -torch.ones_like(noise)) == 6
    # What comes out depends on nothing. So a step over new positions keeps one, and the next step
    # keeps the four that have come out before, and one more.
    assert steps_with(lambda noise: noise) == 30 / (1 + 5) * 2


def test_poor_guesses_are_given_up():
    problem = Problem("s_curve", normalization="pono")
    seen = []
    images, steps = drawn(problem, 4, seen=seen, trial_steps=3, least_kept=4.5)
    assert steps is None and sum(seen) == 0
    assert torch.equal(images, torch.where(problem.hidden, 0, problem.images))
    _, steps = drawn(problem, 4, trial_steps=3, least_kept=1.0)
    assert steps is not None


def test_guessing_that_is_given_up_ends_in_the_same_images(monkeypatch):
    problem = Problem("s_curve", normalization="pono")
    expected, seen = problem.cached(), []
    hopeless = Guessing(4, trial_steps=2, least_kept=9.0)
    module = "lmconv.generation.sampler.choose_guessing"
    monkeypatch.setattr(module, lambda *_: hopeless)
    assert torch.equal(problem.cached(guess=None, on_step=seen.append), expected)
    assert sum(seen) == problem.hidden.sum() * len(problem.images)


def chosen(filters, batch, family="s_curve", size=(16, 16)):
    problem = Problem(family, size=size, filters=filters)
    return choose_guessing(problem.model, schedule_of(problem), batch)


def test_windows_are_wide_where_a_step_costs_more_than_its_positions():
    windows = [chosen(8, batch).window for batch in (1, 16, 256)]
    assert windows[0] > windows[1] > windows[2] or windows[0] == windows[1] == 64
    assert windows == sorted(windows, reverse=True)
    assert chosen(200, 64).window == 0  # all time goes into products
    assert chosen(8, 1, size=(2, 2)).window == 0  # nothing to gain


def test_a_trial_is_a_small_part_of_the_time():
    problem = Problem(size=(16, 16))
    schedule = schedule_of(problem)
    for batch in (1, 8, 64):
        guessing = choose_guessing(problem.model, schedule, batch)
        if guessing.window:
            assert 4 <= guessing.trial_steps <= 0.05 * len(schedule.steps) * guessing.least_kept


def test_a_network_of_many_layers_is_chosen_for_by_its_size():
    config = ModelConfig("lmconv", 1, 2, nr_resnet=5, nr_filters=160)
    with torch.device("meta"):
        network = build_model(config)
    problem = Problem(size=(28, 28))
    assert choose_guessing(network, schedule_of(problem), 16).window == 0


def test_rows_belong_to_the_pixels_that_are_used():
    problem = Problem("s_curve", hidden_share=0.5)
    schedule = schedule_of(problem)
    rows = window_rows(schedule, 3, 1)
    used = rows[rows >= 0]
    assert np.array_equal(np.sort(used), np.arange(len(used)))
    assert (rows[np.concatenate(schedule.steps)] >= 0).all()
