"""Views of an image: mirrored, upside down, with its channels in another order.

All views show the same image, but a model may find one of them likelier than the others.
"""

import itertools

import numpy as np

__all__ = ["num_views", "originals_of", "view_of", "views_of"]

_REFLECTIONS, _MOST_PERMUTATIONS = 4, 6


def num_views(num_channels: int) -> int:
    """How many views there are of an image: 4, or 24 of three channels or more."""
    return _REFLECTIONS * len(_permutations(num_channels))


def view_of(levels: np.ndarray, view: int) -> np.ndarray:
    """A view of an image, or the same view of several.

    Args:
        levels: ``C x H x W``, or with more dimensions before.
        view: number of the view: 1 for mirrored from left to right, plus 2 for upside down, plus 4
            times the number of the order of channels, in lexicographic order. 0 is the original.
    """
    permutation, reflections = divmod(view, _REFLECTIONS)
    channels = _permutations(levels.shape[-3])[permutation]
    return _reflected(levels.take(channels, axis=-3), reflections)


def views_of(levels: np.ndarray, views: np.ndarray) -> np.ndarray:
    """A view of each of N images, ``N x C x H x W``, with N numbers of views."""
    if not views.any():
        return levels
    return np.stack([view_of(*pair) for pair in zip(levels, views.tolist(), strict=True)])


def originals_of(levels: np.ndarray, views: np.ndarray) -> np.ndarray:
    """The images of which ``views_of`` has made these."""
    if not views.any():
        return levels
    return np.stack([_original_of(*pair) for pair in zip(levels, views.tolist(), strict=True)])


def _original_of(levels: np.ndarray, view: int) -> np.ndarray:
    permutation, reflections = divmod(view, _REFLECTIONS)
    channels = np.argsort(_permutations(levels.shape[-3])[permutation])
    return _reflected(levels, reflections).take(channels, axis=-3)


def _reflected(levels: np.ndarray, reflections: int) -> np.ndarray:
    upside_down, mirrored = divmod(reflections, 2)
    return levels[..., :: -1 if upside_down else 1, :: -1 if mirrored else 1]


def _permutations(num_channels: int) -> list[tuple[int, ...]]:
    orders = itertools.permutations(range(num_channels))
    return list(itertools.islice(orders, _MOST_PERMUTATIONS))
