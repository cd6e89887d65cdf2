"""Random orders for an epoch of images that are read in blocks: row groups, or whole pictures.

Blocks that are in memory together are used together, and each is read by one process.
"""

from dataclasses import replace

import numpy as np

from lmconv.distributed import Processes

__all__ = ["draw_epoch", "owners"]


def owners(processes: Processes, number: int, batch_size: int) -> np.ndarray:
    """The rank of the process that has the image at each place of an epoch, int32.

    Args:
        processes: the processes that share each batch.
        number: number of images.
        batch_size: images per batch in all processes together.
    """

    def of_batch(length: int) -> np.ndarray:
        shares = [replace(processes, rank=rank).share(length) for rank in range(processes.number)]
        ranks = np.arange(processes.number, dtype=np.int32)
        return np.repeat(ranks, [each.stop - each.start for each in shares])

    full, rest = divmod(number, batch_size)
    return np.concatenate([np.tile(of_batch(batch_size), full), of_batch(rest)])


def draw_epoch(
    random: np.random.Generator,
    items: np.ndarray,
    counts: np.ndarray,
    sizes: np.ndarray,
    window: int,
    owner_of: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw an order of items, in which those of few blocks are near each other.

    Each process has a run of consecutive items, as many as its places, so at most one block is
    shared by a process and the next one. In a run, the items of a window of blocks are shuffled
    among each other.

    Args:
        random: what draws.
        items: the items, block by block; blocks are best in random order.
        counts: number of items of each block, at least 1.
        sizes: what each block takes in memory.
        window: what the blocks of a window take, except that one begins before that is reached.
        owner_of: the process that has each place, as ``owners`` returns it.

    Returns:
        The item at each place, and the number of its window. A process meets its windows one after
        the other, from the smallest number on.
    """
    ends = counts.cumsum()
    order, windows = np.empty_like(items), np.empty(len(items), np.int32)
    start = number = 0
    for rank in np.unique(owner_of):
        places = np.flatnonzero(owner_of == rank)
        first, last = np.searchsorted(ends, (start, start + len(places) - 1), side="right")
        before = sizes[first : last + 1].cumsum() - sizes[first : last + 1]
        begins_window = np.diff(before // window) > 0
        for each in np.split(places, ends[first:last][begins_window] - start):
            order[each] = random.permutation(items[start : start + len(each)])
            windows[each] = number
            start, number = start + len(each), number + 1
    return order, windows
