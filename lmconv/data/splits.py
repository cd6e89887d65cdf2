"""Which items of a set are for training and which for testing, where nothing else says it."""

import numpy as np

__all__ = ["drawn", "in_words", "split"]

# Tells the numbers that draw some of a part's items from those that split a set.
_LIMIT = 1


def split(number: int, part: str, seed: int) -> np.ndarray:
    """The indices of the items for ``train`` or for ``test``, a tenth, in their own order.

    Args:
        number: the number of all items.
        part: ``train``, ``test``, or ``all`` for all of them.
        seed: seed of the draw.
    """
    if part == "all":
        return np.arange(number)
    # A seed makes the same split on every machine: NumPy guarantees this generator's numbers.
    shuffled = np.random.RandomState(seed % 2**32).permutation(number)
    num_test = max(1, number // 10)
    return np.sort(shuffled[num_test:] if part == "train" else shuffled[:num_test])


def drawn(number: int, limit: int | None, seed: int) -> np.ndarray:
    """The indices of some items of a part, as the first ones could all be of one kind.

    Args:
        number: the number of the part's items.
        limit: how many to draw at most; None for all.
        seed: seed of the draw.
    """
    if limit is None or limit >= number:
        return np.arange(number)
    shuffled = np.random.RandomState([seed % 2**32, _LIMIT]).permutation(number)
    return np.sort(shuffled[:limit])


def in_words(number: int, total: int, what: str, part: str, seed: int) -> str:
    """What is used of a set, for people to read: ``27 images of X for training, drawn from ...``.

    Args:
        number: the number of images that are used.
        total: the number of those that they are drawn from.
        what: the images' place.
        part: ``train``, ``test`` or ``all``.
        seed: seed of the draw.
    """
    purpose = {"train": "for training", "test": "for testing", "all": "as a whole"}[part]
    text = f"{number} image{'s' * (number != 1)} of {what} {purpose}"
    return text + f", drawn from {total} with seed {seed}" * (number < total)
