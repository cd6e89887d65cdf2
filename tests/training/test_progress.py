"""Where a run stands: what checkpoints hold of it, and which test was the best."""

import math

import pytest

from lmconv.training.progress import Progress, Totals


def test_a_position_comes_back_from_its_state():
    position = Progress(epoch=3, batches_done=5, is_closed=False, best_bpd=1.5)
    position.count(Totals(nats=2.0, images=3.0, dimensions=12.0, seconds=1.0))
    position.test_losses["test_loss_1x8x8"] = 1.75
    assert Progress.of(position.state(batch_size=8), batch_size=8) == position


def test_batches_of_another_size_are_counted_by_their_images():
    state = Progress(batches_done=6).state(batch_size=8)
    assert Progress.of(state, batch_size=16).batches_done == 3


def test_published_checkpoints_hold_the_epoch_alone():
    assert Progress.of({"epoch": 4}, batch_size=8) == Progress(epoch=4)


def test_the_next_better_test_counts_after_one_that_is_not_a_number():
    position = Progress()
    assert [position.is_best(bpd) for bpd in (2.0, math.nan, 3.0, 1.0)] == [
        True,
        False,
        False,
        True,
    ]
    assert position.best_bpd == 1.0


def test_numbers_that_are_not_finite_are_left_out_of_means():
    totals = Totals(nats=8 * math.log(2), images=1, dimensions=8)
    bad = Totals(nats=math.nan, images=1, dimensions=8).if_finite()
    assert totals.plus(bad).bpd == pytest.approx(1)
