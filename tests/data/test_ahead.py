"""Batches made in advance by a thread."""

import time

import pytest

from lmconv.data.pipeline import ahead


def test_items_made_ahead_are_the_same_and_so_are_errors():
    assert list(ahead(range(50), 3)) == list(range(50))

    def fails():
        yield 1
        raise ValueError("in the thread")

    items = ahead(fails(), 2)
    assert next(items) == 1
    with pytest.raises(ValueError, match="in the thread"):
        next(items)


def test_no_more_is_made_ahead_than_asked_for_and_nothing_after_the_end():
    made = []
    items = ahead((made.append(i) for i in range(100)), 3)
    next(items)
    time.sleep(0.2)
    assert len(made) <= 5
    items.close()
    number = len(made)
    time.sleep(0.2)
    assert len(made) == number
