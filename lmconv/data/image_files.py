"""Image files of any common kind as arrays; the only module that decodes them."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

__all__ = [
    "SUFFIXES",
    "ImageFileError",
    "fit",
    "fit_mask",
    "holds_exactly",
    "read_image",
    "read_mask",
    "to_picture",
]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_PNG_BIT_DEPTH = 24  # position in a file


class ImageFileError(Exception):
    """A file cannot be read as an image; the message is one line that names it."""


def read_image(path: Path, channels: int) -> np.ndarray:
    """Read an image as it is meant to be seen: ``C x H x W``, uint8.

    The image is turned as its EXIF orientation says. Colours of a palette are looked up,
    transparent pixels are laid over white, 16 bits are scaled to 8, and colours are turned to grey
    or grey to colours.

    Args:
        path: path of the file.
        channels: 1 for grey, 3 for RGB.

    Raises:
        ImageFileError: the file is missing, damaged, or not an image.
    """
    return _read(path, channels, "white")


def read_mask(path: Path) -> np.ndarray:
    """Read the hidden pixels from a picture in which they are white: ``H x W``, bool.

    Transparent pixels count as visible.

    Raises:
        ImageFileError: the file is missing, damaged, or not an image.
    """
    return _read(path, 1, "black")[0] >= 128


def holds_exactly(path: Path, pixels: np.ndarray) -> bool:
    """Whether an image file has exactly these pixels: no other size, finer values or transparency.

    Args:
        path: path of a file that ``read_image`` can read.
        pixels: ``C x H x W``, uint8.
    """
    picture = to_picture(pixels)
    with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
        if image.format == "PNG":
            file.seek(_PNG_BIT_DEPTH)
            if file.read(1)[0] > 8:
                return False  # Pillow drops the lower bits of colours
    with Image.open(path, formats=_FORMATS) as image:
        image = ImageOps.exif_transpose(image)
        if image.size != picture.size:
            return False
        return image.convert("RGBA").tobytes() == picture.convert("RGBA").tobytes()


def _read(path: Path, channels: int, background: str) -> np.ndarray:
    try:
        with Image.open(path, formats=_FORMATS) as image:
            picture = _flatten(ImageOps.exif_transpose(image), background)
            pixels = np.array(picture.convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # on damaged files, decoders can raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageFileError(f"{path} cannot be read as an image ({reason})") from error
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1))


def _flatten(image: Image.Image, background: str) -> Image.Image:
    """Convert an image to opaque 8-bit grey or RGB."""
    if image.mode.startswith("I"):  # 16 bits of grey, even if Pillow stores them in 32
        values = np.asarray(image).astype(np.float64).clip(0, 65535)
        return Image.fromarray(np.rint(values * 255 / 65535).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image if image.mode == "L" else image.convert("L" if image.mode == "1" else "RGB")


def to_picture(pixels: np.ndarray) -> Image.Image:
    """Convert ``C x H x W``, uint8, grey or RGB, to a picture that Pillow can write."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def fit(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bring an image to a size without stretching it: ``C x H x W``, uint8, in and out.

    The largest central part with the wanted proportions is cut out, and each new pixel becomes the
    mean of the area that it covers, or the nearest pixel if the image is enlarged.
    """
    if pixels.shape[1:] == (height, width):
        return pixels
    fitted = np.array(
        ImageOps.fit(to_picture(pixels), (width, height), method=Image.Resampling.BOX)
    )
    return np.ascontiguousarray(fitted.reshape(height, width, len(pixels)).transpose(2, 0, 1))


def fit_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """``fit`` for a mask, ``H x W``, bool: a pixel is hidden if at least half of its area is."""
    return fit(mask[None].astype(np.uint8) * 255, height, width)[0] >= 128
