"""Pictures of generation orders, drawn with only NumPy and Pillow.

Every run draws its orders when it starts, and importing matplotlib would take longer than that.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_orders"]

_PANELS_IN_A_ROW = 4
_PANEL = 300  # approximate length of a panel's longer side, in dots
_GAP, _TITLE, _FONT = 12, 26, 17  # gap between panels, height of a title, font size, in dots
_FEWEST_DOTS_FOR_LINES = 3
_DOT_COLOUR = (214, 39, 40)

# Eleven colours of viridis, which is perceptually uniform, at their places from 0 to 255. Linear
# interpolation between them stays within 2 of 255 levels of all the others.
_PLACES = (0, 23, 50, 90, 139, 156, 174, 199, 237, 246, 255)
_COLOURS = (
    (68, 1, 84),
    (72, 33, 115),
    (65, 66, 135),
    (46, 109, 142),
    (30, 155, 138),
    (37, 171, 130),
    (59, 187, 117),
    (110, 206, 88),
    (208, 225, 28),
    (231, 228, 25),
    (253, 231, 37),
)


def draw_orders(orders: Sequence[np.ndarray], height: int, width: int) -> Image.Image:
    """Draw a titled panel for each order: pixels from first (dark) to last (light), steps, start.

    Images that are too large for three dots per pixel are drawn without steps.

    Args:
        orders: at least one order, each ``(H*W) x 2``, (row, column).
        height, width: size of the image.
    """
    scale = max(1, round(_PANEL / max(height, width)))  # every pixel gets the same number of dots
    font = _load_font()
    titles = [f"order {index}" for index in range(len(orders))]
    lengths = [int(np.ceil(font.getlength(title))) for title in titles]
    cell_width = max(width * scale, *lengths) + _GAP
    cell_height = _TITLE + height * scale + _GAP
    columns = min(_PANELS_IN_A_ROW, len(orders))
    rows = -(-len(orders) // columns)
    picture = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    draw = ImageDraw.Draw(picture)
    for index, order in enumerate(orders):
        top, left = index // columns * cell_height, index % columns * cell_width
        text = (left + (cell_width - lengths[index]) // 2, top + _GAP // 2)
        draw.text(text, titles[index], fill="black", font=font)
        panel = _draw_order(order, height, width, scale)
        picture.paste(panel, (left + (cell_width - panel.width) // 2, top + _TITLE + _GAP // 2))
    return picture


def _load_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size=_FONT)
    except ImportError:  # without FreeType, Pillow has only one small font
        return ImageFont.load_default()


def _draw_order(order: np.ndarray, height: int, width: int, scale: int) -> Image.Image:
    """Draw one order, with each pixel as a square whose side has ``scale`` dots."""
    colours = np.empty((height, width, 3), dtype=np.uint8)
    colours[order[:, 0], order[:, 1]] = _colour_scale(len(order))
    size = (width * scale, height * scale)
    panel = Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)
    radius = float(np.clip(scale / 9, 0.5, 1.5))
    if scale >= _FEWEST_DOTS_FOR_LINES:  # otherwise they would cover the colours
        panel.paste("white", mask=_draw_steps(order, height, width, scale, radius))
    _draw_dot(panel, order[0], scale, max(2.5, 3.5 * radius))
    return panel


def _colour_scale(number: int) -> np.ndarray:
    """Colours from dark to light: ``number x 3``, uint8."""
    places = np.linspace(0, 255, number)
    channels = [np.interp(places, _PLACES, levels) for levels in zip(*_COLOURS, strict=True)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def _draw_steps(
    order: np.ndarray, height: int, width: int, scale: int, radius: float
) -> Image.Image:
    """Draw lines between successive pixels that touch, in grey levels: ``H*scale x W*scale``.

    Jumps are left out: they would hide the colours, which show the order just as well.
    """
    squares = np.zeros((height, width, scale, scale), dtype=np.uint8)
    steps = np.diff(order, axis=0)
    for direction in ((0, 1), (1, 0), (1, 1), (1, -1)):
        forwards, backwards = (steps == direction).all(axis=1), (-steps == direction).all(axis=1)
        starts = np.concatenate([order[:-1][forwards], order[1:][backwards]])
        if not len(starts):
            continue
        # All lines in a direction look the same. A diagonal one passes through a corner that four
        # squares share.
        for square in {(i, j) for i in (0, direction[0]) for j in (0, direction[1])}:
            stamp = _cover(_distances(scale, square, direction), radius)
            rows, cols = (starts + square).T
            squares[rows, cols] = np.maximum(squares[rows, cols], stamp)
    return Image.fromarray(squares.swapaxes(1, 2).reshape(height * scale, width * scale))


def _draw_dot(panel: Image.Image, pixel: np.ndarray, scale: int, radius: float) -> None:
    # The dot is exactly centred in the pixel if the sides of both squares are even or both odd.
    side = 2 * int(np.ceil(radius)) + scale % 2
    mask = Image.fromarray(_cover(_distances(side, (0, 0), (0, 0)), radius))
    row, col = (pixel * scale + (scale - side) // 2).tolist()
    panel.paste(_DOT_COLOUR, (col, row), mask=mask)


def _distances(side: int, square: tuple[int, int], end: tuple[int, int]) -> np.ndarray:
    """The distance of each dot of a square from the line that joins the middles of two squares.

    Args:
        side: side of a square, in dots.
        square: the square whose dots are meant, as (row, column) counted from the square where the
            line starts.
        end: the square where the line ends, counted likewise.

    Returns:
        ``side x side``, in dots.
    """
    middle = np.arange(side) - (side - 1) / 2
    y, x = middle[:, None] + side * square[0], middle + side * square[1]
    down, across = side * end[0], side * end[1]
    along = np.clip((y * down + x * across) / max(1, down**2 + across**2), 0, 1)
    return np.hypot(y - along * down, x - along * across)


def _cover(distances: np.ndarray, radius: float) -> np.ndarray:
    """How much a line or dot of this radius covers dots at these distances: uint8, smooth edges."""
    return (255 * np.clip(radius + 0.5 - distances, 0, 1)).round().astype(np.uint8)
