"""Random holes of the kinds that people hide: boxes, halves, brush strokes, scattered pixels."""

from collections.abc import Callable

import numpy as np

__all__ = ["HOLES", "draw_hole"]

_MOST_STROKES = 3


def draw_hole(
    height: int, width: int, random: np.random.Generator, kind: str | None = None
) -> np.ndarray:
    """Draw the hidden pixels of an image: ``H x W``, bool, at least one of them.

    Example:
        >>> import numpy as np
        >>> draw_hole(2, 6, np.random.default_rng(0), "half").sum(axis=1)
        array([3, 3])

    Args:
        height, width: size of the image.
        random: what draws it.
        kind: one of ``HOLES``; None to draw one of them.

    Raises:
        ValueError: there is no such kind.
    """
    if kind is None:
        kind = str(random.choice(sorted(HOLES)))
    if kind not in HOLES:
        raise ValueError(f"unknown kind of hole {kind!r}: choose one of {', '.join(HOLES)}")
    hole = HOLES[kind](height, width, random)
    hole[random.integers(height), random.integers(width)] |= not hole.any()
    return hole


def _box(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """A rectangle whose sides are a quarter to three quarters of the image's."""
    hole = np.zeros((height, width), bool)
    spans = []
    for side in (height, width):
        length = random.integers(max(1, side // 4), max(1, side * 3 // 4) + 1)
        start = random.integers(side - length + 1)
        spans.append(slice(start, start + length))
    hole[tuple(spans)] = True
    return hole


def _half(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """All on one side of the middle: above, below, left or right."""
    rows, cols = np.indices((height, width))
    edge = random.integers(4)
    return (rows < height // 2, rows >= height // 2, cols < width // 2, cols >= width // 2)[edge]


def _strokes(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """What a round brush covers on one to three paths that bend at random."""
    hole = np.zeros((height, width), bool)
    rows, cols = np.indices((height, width))
    side = min(height, width)
    for _ in range(random.integers(1, _MOST_STROKES + 1)):
        radius = random.uniform(0.04, 0.1) * side
        place, angle = random.random(2) * (height, width), random.uniform(0, 2 * np.pi)
        for _ in range(int(random.uniform(0.5, 2) * side / max(radius, 0.5))):
            hole |= (rows - place[0]) ** 2 + (cols - place[1]) ** 2 <= radius**2
            angle += random.normal(0, 0.5)
            step = max(radius, 0.5) * np.array([np.sin(angle), np.cos(angle)])
            place = (place + step) % (height, width)
    return hole


def _pixels(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """Pixels on their own, a tenth to nine tenths of all."""
    return random.random((height, width)) < random.uniform(0.1, 0.9)


# Holes by their kind.
HOLES: dict[str, Callable[[int, int, np.random.Generator], np.ndarray]] = {
    "box": _box,
    "half": _half,
    "strokes": _strokes,
    "pixels": _pixels,
}
