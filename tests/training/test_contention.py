"""A training whose threads wait for other programs says so, once, and only then."""

import pytest

from lmconv.training.contention import ThreadWatch


def notes(watch, steps, seconds, share):
    return [watch.note(seconds, seconds * share) for _ in range(steps)]


def test_steps_in_which_the_main_thread_had_to_wait_are_said_once():
    watch = ThreadWatch(2)
    said = [note for note in notes(watch, 100, 1.0, 0.3) if note]
    assert len(said) == 1
    assert "30% of the time of 20 steps" in said[0] and "--threads 1" in said[0]


@pytest.mark.parametrize(
    ("num_threads", "steps", "seconds", "share"),
    [
        (1, 1000, 1.0, 0.3),  # no thread waits for another
        (2, 1000, 1.0, 0.95),
        (2, 15, 1.0, 0.3),  # too short to tell
        (2, 2, 60.0, 0.3),  # too few
    ],
)
def test_nothing_is_said_without_a_reason(num_threads, steps, seconds, share):
    assert not any(notes(ThreadWatch(num_threads), steps, seconds, share))


def test_a_machine_that_becomes_busy_later_is_noticed():
    watch = ThreadWatch(4)
    assert not any(notes(watch, 1000, 1.0, 1.0))
    assert any(notes(watch, 45, 1.0, 0.5))
