"""Random holes: of the kinds that they say, never empty, and decided by their seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmconv.training.holes import HOLES, draw_hole


def hole_of(seed, kind=None, height=28, width=28):
    return draw_hole(height, width, np.random.default_rng(seed), kind)


@given(
    st.integers(0, 1000), st.integers(1, 20), st.integers(1, 20), st.sampled_from([None, *HOLES])
)
def test_a_hole_hides_something_and_depends_on_the_seed_alone(seed, height, width, kind):
    hole = hole_of(seed, kind, height, width)
    assert hole.shape == (height, width) and hole.dtype == bool
    assert hole.any()
    assert (hole == hole_of(seed, kind, height, width)).all()


@pytest.mark.parametrize("kind", HOLES)
def test_holes_of_a_kind_differ_and_leave_something_visible(kind):
    holes = [hole_of(seed, kind) for seed in range(60)]
    assert all(not hole.all() for hole in holes)
    assert len({hole.tobytes() for hole in holes}) >= 4


def test_boxes_are_filled_rectangles_of_a_quarter_to_three_quarters_of_a_side():
    for seed in range(60):
        hole = hole_of(seed, "box", 20, 40)
        rows, cols = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].all()
        assert hole.sum() == len(rows) * len(cols)
        assert 5 <= len(rows) <= 15 and 10 <= len(cols) <= 30


def test_halves_are_those_on_the_four_sides():
    halves = {hole_of(seed, "half", 4, 6).tobytes() for seed in range(60)}
    rows, cols = np.indices((4, 6))
    assert halves == {each.tobytes() for each in (rows < 2, rows >= 2, cols < 3, cols >= 3)}


def test_strokes_are_thick():
    for seed in range(30):
        hole = hole_of(seed, "strokes", 40, 40)
        around = [np.roll(hole, shift, axis) for shift in (-1, 1) for axis in (0, 1)]
        assert (np.sum(around, axis=0)[hole] > 0).all()  # no pixel is alone
        assert 0.02 < hole.mean() < 0.9


def test_pixels_are_scattered_in_any_share():
    shares = [hole_of(seed, "pixels", 50, 50).mean() for seed in range(60)]
    assert 0.05 < min(shares) < 0.25 and 0.75 < max(shares) < 0.95


def test_all_kinds_are_drawn_equally_often(monkeypatch):
    drawn = []
    for kind in HOLES:

        def record(height, width, random, kind=kind):
            drawn.append(kind)
            return np.ones((height, width), bool)

        monkeypatch.setitem(HOLES, kind, record)
    random = np.random.default_rng(0)
    for _ in range(400):
        draw_hole(2, 2, random)
    assert all(70 < drawn.count(kind) < 130 for kind in HOLES)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind of hole 'star': choose one of box, half"):
        hole_of(0, "star")
