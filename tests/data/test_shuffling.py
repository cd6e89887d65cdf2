"""Orders of an epoch: every item once, in windows of blocks, and each block for one process."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmconv.data.shuffling import draw_epoch, owners
from lmconv.distributed import Processes


@given(number=st.integers(0, 40), batch=st.integers(1, 9), processes=st.integers(1, 4))
def test_the_owners_of_places_are_those_that_batches_are_shared_out_to(number, batch, processes):
    ranks = [Processes(rank, processes) for rank in range(processes)]
    found = owners(ranks[0], number, batch).tolist()
    batches = [range(number)[start : start + batch] for start in range(0, number, batch)]
    expected = [
        each.rank for places in batches for each in ranks for _ in places[each.share(len(places))]
    ]
    assert found == expected


blocks = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 50)), min_size=1, max_size=9)


@given(
    blocks=blocks,
    window=st.integers(1, 120),
    batch=st.integers(1, 9),
    processes=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_each_process_has_blocks_of_its_own_but_for_one_at_each_end(
    blocks, window, batch, processes, seed
):
    counts, sizes = np.array(blocks).T
    number = int(counts.sum())
    block_of = np.repeat(np.arange(len(counts)), counts)
    owner_of = owners(Processes(0, processes), number, batch)
    items = 100 + np.arange(number)
    arguments = (items, counts, sizes, window, owner_of)
    order, windows = draw_epoch(np.random.default_rng(seed), *arguments)
    again, _ = draw_epoch(np.random.default_rng(seed), *arguments)
    assert order.tolist() == again.tolist() and sorted(order.tolist()) == items.tolist()
    last = 0
    for rank in range(processes):
        own, own_windows = order[owner_of == rank] - 100, windows[owner_of == rank]
        assert (np.diff(own_windows) >= 0).all()
        used = sorted(set(block_of[own].tolist()))
        assert used == list(range(used[0], used[-1] + 1)) if used else True
        assert sorted(own.tolist()) == list(range(last, last + len(own)))
        last += len(own)
        for each in np.unique(own_windows):
            together = np.unique(block_of[own[own_windows == each]])
            assert sizes[together[:-1]].sum() < window  # the last one begins before it is reached


@given(blocks=blocks, window=st.integers(1, 120), seed=st.integers(0, 9))
def test_one_process_shuffles_windows_of_blocks(blocks, window, seed):
    counts, sizes = np.array(blocks).T
    items = np.arange(counts.sum())
    parts = np.split(items, counts.cumsum()[:-1])
    random, expected = np.random.default_rng(seed), []
    window_of = ((sizes.cumsum() - sizes) // window).tolist()
    for each in sorted(set(window_of)):
        chosen = [part for part, own in zip(parts, window_of, strict=True) if own == each]
        expected += random.permutation(np.concatenate(chosen)).tolist()
    owner_of = owners(Processes(), len(items), 7)
    order, _ = draw_epoch(np.random.default_rng(seed), items, counts, sizes, window, owner_of)
    assert order.tolist() == expected
