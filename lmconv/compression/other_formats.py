"""How many bytes the same pictures take in other lossless formats."""

import importlib.util
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from lmconv.data.deep_files import MOST_FILE_CHANNELS, encode_deep_png
from lmconv.data.image_files import to_picture
from utils import progress

__all__ = ["other_formats"]

# The longest side that WebP can store, and the most pixels that do not take too long.
_LONGEST_SIDE = 16383
_LARGEST_SHEET = 2**24


def other_formats(pictures: Sequence[np.ndarray]) -> dict[str, dict[str, int | None]]:
    """The bytes that pictures take in other formats, each with its best settings.

    PNG files store pictures of only black and white with one bit for each pixel.

    Args:
        pictures: each ``C x H x W``, uint8 or uint16. WebP and JPEG XL take only grey and RGB of 8
            bits here, and no format takes more than 4 channels.

    Returns:
        For each format, the bytes of ``"files"``, one for each picture, and of a ``"sheet"`` of all
        pictures side by side, or None if they would be too large, or have different sizes. JPEG XL
        is left out if its Pillow plugin is not installed.
    """
    longest = max(max(picture.shape) for picture in pictures)
    has_one_size = len({picture.shape for picture in pictures}) == 1
    sheet = _sheet(np.stack(pictures)) if has_one_size else None
    sizes: dict[str, dict[str, int | None]] = {}
    channels, is_deep = len(pictures[0]), pictures[0].dtype != np.uint8
    for name, options in _formats().items():
        if channels > MOST_FILE_CHANNELS or (name != "PNG" and (is_deep or channels not in (1, 3))):
            continue
        sizes[name] = {"files": None, "sheet": None}
        if longest <= _LONGEST_SIDE:
            sizes[name]["files"] = sum(_size(each, options) for each in progress(pictures, name))
        if sheet is None:
            continue
        if max(sheet.shape) <= _LONGEST_SIDE and sheet.size <= _LARGEST_SHEET:
            sizes[name]["sheet"] = _size(sheet, options)
    return sizes


def _formats() -> dict[str, dict[str, Any]]:
    formats: dict[str, dict[str, Any]] = {
        "PNG": {"format": "PNG", "optimize": True},
        "WebP": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6},
    }
    if importlib.util.find_spec("pillow_jxl"):
        importlib.import_module("pillow_jxl")  # makes the format known to Pillow
        formats["JPEG XL"] = {"format": "JXL", "lossless": True, "effort": 9}
    return formats


def _size(pixels: np.ndarray, options: dict[str, Any]) -> int:
    if pixels.dtype == np.uint16:
        return len(encode_deep_png(pixels))
    picture: Image.Image = to_picture(pixels)
    if options["format"] == "PNG" and len(pixels) == 1 and np.isin(pixels, (0, 255)).all():
        picture = picture.convert("1")
    file = io.BytesIO()
    picture.save(file, **options)
    return file.tell()


def _sheet(pixels: np.ndarray) -> np.ndarray:
    """Put all pictures into one, nearly square and filled up with black: ``C x H x W``."""
    number, channels, height, width = pixels.shape
    columns = math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    places = np.zeros((rows * columns, channels, height, width), dtype=pixels.dtype)
    places[:number] = pixels
    grid = places.reshape(rows, columns, channels, height, width)
    return grid.transpose(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)
