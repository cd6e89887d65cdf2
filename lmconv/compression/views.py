"""Views of an image: mirrored, upside down, transposed, with its channels in another order.

All views show the same image, but a model may find one of them likelier than the others.
"""

import itertools

import numpy as np

from lmconv.pixel_values import ImageShape

__all__ = ["num_views", "originals_of", "view_of", "views_of"]

_REFLECTIONS, _MOST_PERMUTATIONS = 4, 6


def num_views(image_shape: ImageShape) -> int:
    """How many views there are of an image of a shape (C, H, W): squares can be transposed, too.

    There are 4 of one channel, 8 of two, and 24 of more; of squares, twice as many.
    """
    channels, height, width = image_shape
    return (2 if height == width else 1) * _upright(channels)


def view_of(levels: np.ndarray, view: int) -> np.ndarray:
    """A view of an image, or the same view of several.

    Args:
        levels: ``C x H x W``, or with more dimensions before.
        view: number of the view: 1 for mirrored from left to right, plus 2 for upside down, plus 4
            times the number of the order of channels, in lexicographic order. The numbers after all
            of these stand for the same views of the transposed image. 0 is the original.
    """
    transposed, channels, reflections = _parts(view, levels.shape[-3])
    turned = levels.swapaxes(-2, -1) if transposed else levels
    return _reflected(turned.take(channels, axis=-3), reflections)


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
    transposed, channels, reflections = _parts(view, levels.shape[-3])
    upright = _reflected(levels, reflections).take(np.argsort(channels), axis=-3)
    return upright.swapaxes(-2, -1) if transposed else upright


def _parts(view: int, num_channels: int) -> tuple[int, tuple[int, ...], int]:
    """Whether a view is transposed, the order of its channels, and how it is reflected."""
    transposed, upright = divmod(view, _upright(num_channels))
    permutation, reflections = divmod(upright, _REFLECTIONS)
    return transposed, _permutations(num_channels)[permutation], reflections


def _reflected(levels: np.ndarray, reflections: int) -> np.ndarray:
    upside_down, mirrored = divmod(reflections, 2)
    return levels[..., :: -1 if upside_down else 1, :: -1 if mirrored else 1]


def _upright(num_channels: int) -> int:
    return _REFLECTIONS * len(_permutations(num_channels))


def _permutations(num_channels: int) -> list[tuple[int, ...]]:
    orders = itertools.permutations(range(num_channels))
    return list(itertools.islice(orders, _MOST_PERMUTATIONS))
