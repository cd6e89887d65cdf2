"""Image files of any common kind as arrays; the only module that decodes them."""

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from lmconv.data.deep_files import (
    MOST_FILE_CHANNELS,
    decode_deep_png,
    encode_deep_png,
    with_channels,
)
from lmconv.data.sources import DataError
from lmconv.pixel_values import PixelType
from utils import UserError, check_regular

__all__ = [
    "SUFFIXES",
    "EncodedImage",
    "ImageFileError",
    "count_pixels",
    "cover",
    "fit",
    "fit_mask",
    "has_several_frames",
    "image_size",
    "read_image",
    "read_mask",
    "reduced_part",
    "stored_bits",
    "suffix_for",
    "to_picture",
    "unseen",
    "write_pixels",
]

T = TypeVar("T")

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

# Decoders of some formats read the whole file at once.
_MAX_BYTES = 2**30
_PIXELS_PER_STEP = 2**20
_MODES = {1: "L", 3: "RGB"}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_TIFF_BITS, _TIFF_SIGN = 258, 339  # numbers of tags
_DEEP_TIFF = "it is a TIFF file with colours of 16 bits, which is not read: convert it to PNG"
# For each EXIF orientation: whether to exchange H and W, and then the axes of C x H x W to reverse.
_TURNS = {2: (0, 2), 3: (0, 1, 2), 4: (0, 1), 5: (1,), 6: (1, 2), 7: (1, 1, 2), 8: (1, 1)}
_PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
# What PNG files with an orientation contain: the names of chunks, or of texts.
_MAY_TURN = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_SMALL_CHUNK = 2**16  # bytes
_CICP_SRGB = bytes((1, 13))  # primaries and transfer function
# The gamma and the (x, y) of white, red, green and blue that PNG files give for sRGB, in 1/100,000.
_SRGB_GAMMA = np.array([45455], ">u4")
_SRGB_XY = np.array([31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000], ">u4")
_ROUNDING = 2  # 8-bit levels
_LONGEST = 8  # sides of a window
# Large pictures are common, and too large ones are refused with an error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageFileError(DataError):
    """A file cannot be read as an image; the message is one line that names it."""


@dataclass(frozen=True)
class EncodedImage:
    """The contents of an image file that is part of something larger, such as a table.

    Attributes:
        content: the contents.
        name: what people know it by.
    """

    content: bytes
    name: str

    def __str__(self) -> str:
        return self.name


def read_image(path: Path | EncodedImage, channels: int, kind: PixelType = np.uint8) -> np.ndarray:
    """Read an image as it is meant to be seen: ``C x H x W``.

    The image is turned as its EXIF orientation says. Colours of a palette are looked up, and
    colours are turned to grey or grey to colours. Without an alpha channel, transparent pixels are
    laid over white.

    Args:
        path: path of the file, or its contents.
        channels: 1 for grey, 2 for grey and alpha, 3 for RGB, 4 for RGB and alpha.
        kind: type of the pixels. Values of 16 bits are scaled to 8 for uint8, and values of 8 bits
            to 16 for uint16.

    Raises:
        ImageFileError: the file is missing, damaged, or not an image.
    """
    if kind is np.uint16 or channels not in _MODES:
        return _reading(path, lambda: _read_whole(path, channels, kind))
    return _read(path, channels, "white")


def read_mask(path: Path) -> np.ndarray:
    """Read the hidden pixels from a picture in which they are white: ``H x W``, bool.

    Transparent pixels count as visible.

    Raises:
        ImageFileError: the file is missing, damaged, or not an image.
    """
    return _read(path, 1, "black")[0] >= 128


def unseen(path: Path, pixels: np.ndarray) -> list[str]:
    """What a picture file has and these pixels do not show, in words; nothing if they are exact.

    What is not part of a picture does not count: dates, places, comments, thumbnails.

    Args:
        path: path of a file that ``read_image`` can read.
        pixels: ``C x H x W``, uint8 or uint16.
    """
    chunks = _png_chunks(path)
    with Image.open(path, formats=_FORMATS) as image:
        exif = image.getexif()
        is_turned = exif.get(ExifTags.Base.Orientation, 1) in range(2, 9)
        has_other_profile = _has_other_profile(image, exif, chunks)
        is_printed = image.mode == "CMYK"
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    has_alpha, kind = len(pixels) in (2, 4), pixels.dtype.type
    picture = read_image(path, 4 if has_alpha else 3, kind)
    has_size = picture.shape[1:] != pixels.shape[1:]
    has_colours = len(pixels) <= 2 and bool((picture[:3] != picture[0]).any())
    if len(pixels) == 2:
        picture = picture[2:]  # blue and alpha: of grey pictures, all colours are the same
    found = {
        "several frames": has_several_frames(path),
        "another size": has_size,
        "an orientation": is_turned,
        "more than 8 bits": kind is np.uint8 and stored_bits(path) > 8,
        "colours": has_colours or is_printed,
        "finer values": not has_size and not has_colours and bool((picture != pixels).any()),
        "transparency": not has_alpha and alpha is not None and alpha.getextrema() != (255, 255),
        "another colour profile": has_other_profile,
    }
    return [what for what, is_there in found.items() if is_there]


def _png_chunks(path: Path) -> dict[bytes, bytes]:
    """The small chunks before the pixels of a PNG file, by name; nothing for other files."""
    chunks: dict[bytes, bytes] = {}
    with path.open("rb") as file:
        if file.read(len(_PNG_BEGIN)) != _PNG_BEGIN:
            return chunks
        while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
            size = int.from_bytes(head[:4], "big")
            if size <= _SMALL_CHUNK:
                chunks[head[4:]] = file.read(size)
                size = 0
            file.seek(size + 4, os.SEEK_CUR)  # a checksum of four bytes follows
    return chunks


def _has_other_profile(image: Image.Image, exif: Image.Exif, chunks: dict[bytes, bytes]) -> bool:
    """Whether the colours of a file are meant in another way than those of sRGB."""
    if b"cICP" in chunks:  # each of these wins over the next
        return chunks[b"cICP"][:2] != _CICP_SRGB
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes):  # a text of that name would be there as well
        return not _is_srgb(profile)
    if b"sRGB" in chunks:
        return False
    for name, expected in ((b"gAMA", _SRGB_GAMMA), (b"cHRM", _SRGB_XY)):
        data = chunks.get(name, expected.tobytes())
        given = np.frombuffer(data[: len(data) // 4 * 4], ">u4")
        if given.shape != expected.shape or np.abs(given / 1e5 - expected / 1e5).max() > 0.002:
            return True
    return exif.get_ifd(ExifTags.IFD.Interop).get(1) == "R03"  # Adobe RGB, as cameras say it


def _is_srgb(profile: bytes) -> bool:
    """Whether a colour profile shows all colours as sRGB does, up to rounding."""
    from PIL import ImageCms

    try:
        opened = ImageCms.ImageCmsProfile(BytesIO(profile))
        levels = np.arange(0, 256, 17, dtype=np.uint8)
        if opened.profile.xcolor_space.strip() == "GRAY":
            colours = Image.fromarray(levels[None])
        else:
            cube = np.stack(np.meshgrid(levels, levels, levels), -1)
            colours = Image.fromarray(cube.reshape(len(levels), -1, 3))
        shown = ImageCms.profileToProfile(
            colours, opened, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # damaged, or of another kind
        return False
    difference = np.asarray(shown).astype(int) - np.asarray(colours.convert("RGB"))
    return bool(np.abs(difference).max() <= _ROUNDING)


def has_several_frames(path: Path) -> bool:
    """Whether a file that ``read_image`` can read is an animation, of which it reads one frame."""
    with Image.open(path, formats=_FORMATS) as image:
        return getattr(image, "n_frames", 1) > 1


def count_pixels(path: Path | EncodedImage) -> int:
    """The number of pixels in an image file, without decoding it; 0 if it cannot be read."""
    try:
        with Image.open(_file_of(path), formats=_FORMATS) as image:
            return image.width * image.height
    except Exception:  # on damaged files, decoders can raise almost anything
        return 0


def image_size(path: Path | EncodedImage) -> tuple[int, int]:
    """Height and width of the image that ``read_image`` reads.

    Only TIFF files, and PNG files that may have an orientation, are decoded for that.

    Raises:
        ImageFileError: the file is missing, damaged, or not an image.
    """

    def read() -> tuple[int, int]:
        with Image.open(_file_of(path), formats=_FORMATS) as image:
            # Pillow decodes PNG files to look for an orientation behind the pixels.
            if image.format == "PNG" and not any(map(_contents(path).__contains__, _MAY_TURN)):
                return image.height, image.width
            if image.format == "TIFF":
                image.load()  # some versions of Pillow turn it then
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            size = image.height, image.width
        is_exchanged = _TURNS.get(orientation, (0,))[0]
        return size[::-1] if is_exchanged else size

    return _reading(path, read)


def stored_bits(path: Path) -> int:
    """The bits of each value in an image file, 8 or 16; 8 if it cannot be read."""
    try:
        with Image.open(_file_of(path), formats=_FORMATS) as image:
            return 16 if image.mode.startswith("I") or _has_deep_colours(path, image) else 8
    except Exception:  # on damaged files, decoders can raise almost anything
        return 8


def _has_deep_colours(path: Path | EncodedImage, image: Image.Image) -> bool:
    """Whether a file has 16 bits of which Pillow reads only 8."""
    if image.mode.startswith("I"):
        return False
    if image.format == "TIFF":
        return max(_tag(image, _TIFF_BITS, 8)) > 8
    return image.format == "PNG" and _contents(path, 25)[24] > 8  # in its header


def _tag(image: Image.Image, number: int, default: int) -> tuple[int, ...]:
    """The numbers of a tag of a TIFF file."""
    value = image.tag_v2.get(number, default)  # type: ignore[attr-defined]
    return value if isinstance(value, tuple) else (value,)


def _contents(path: Path | EncodedImage, most: int = -1) -> bytes:
    """The first bytes of an image file, or all of them."""
    file = _file_of(path)
    if isinstance(file, BytesIO):
        return file.read(most)
    with file.open("rb") as opened:
        return opened.read(most)


def _file_of(path: Path | EncodedImage) -> Path | BytesIO:
    """What Pillow opens, once it is known to be a file of a size that is read.

    Raises:
        UserError: it is not a regular file.
        ValueError: it is too large.
    """
    if isinstance(path, Path):
        check_regular(path)
    size = path.stat().st_size if isinstance(path, Path) else len(path.content)
    if size > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES} bytes, the most that are read")
    return path if isinstance(path, Path) else BytesIO(path.content)


def _reading(path: Path | EncodedImage, read: Callable[[], T]) -> T:
    """What ``read`` returns.

    Raises:
        ImageFileError: ``read`` fails.
    """
    try:
        return read()
    except UserError as error:
        raise ImageFileError(str(error)) from error
    except Exception as error:  # on damaged files, decoders can raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageFileError(f"{path} cannot be read as an image ({reason})") from error


def _read(path: Path | EncodedImage, channels: int, background: str) -> np.ndarray:
    """Read an image as 8-bit grey or RGB over a background."""
    return _reading(path, lambda: _read_flat(path, channels, background))


def _read_flat(path: Path | EncodedImage, channels: int, background: str) -> np.ndarray:
    with Image.open(_file_of(path), formats=_FORMATS) as image:
        _check_values(image)
        ImageOps.exif_transpose(image, in_place=True)
        pixels = np.empty((channels, image.height, image.width), np.uint8)
        # Some rows at a time: copies of all of them would take several times the memory.
        step = max(1, _PIXELS_PER_STEP // image.width)
        for top in range(0, image.height, step):
            rows = image.crop((0, top, image.width, min(top + step, image.height)))
            flat = np.asarray(_flatten(rows, background).convert(_MODES[channels]))
            pixels[:, top : top + step] = np.atleast_3d(flat).transpose(2, 0, 1)
    return pixels


def _read_whole(path: Path | EncodedImage, channels: int, kind: PixelType) -> np.ndarray:
    """Read an image with its alpha channel, or with values of 16 bits."""
    with Image.open(_file_of(path), formats=_FORMATS) as image:
        _check_values(image)
        image.load()  # some versions of Pillow turn TIFF files then
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        if kind is np.uint16 and _has_deep_colours(path, image):
            if image.format == "TIFF":
                raise ValueError(_DEEP_TIFF)
            stored = decode_deep_png(_contents(path))
        elif image.mode.startswith("I"):
            stored = np.asarray(image).astype(np.int64).clip(0, 65535).astype(np.uint16)[None]
        else:
            has_alpha = image.has_transparency_data
            if has_alpha and image.mode not in ("LA", "RGBA"):
                stored = np.asarray(image.convert("RGBA"))  # also of a colour that is transparent
            elif image.mode not in ("L", "LA", "RGB", "RGBA"):
                stored = np.asarray(image.convert("L" if image.mode == "1" else "RGB"))
            else:
                stored = np.asarray(image)
            stored = np.atleast_3d(stored).transpose(2, 0, 1)
    if turn is not None:
        is_exchanged, *axes = turn
        stored = stored.transpose(0, 2, 1) if is_exchanged else stored
        stored = np.flip(stored, tuple(axes))
    if kind is np.uint16 and stored.dtype == np.uint8:
        stored = stored.astype(np.uint16) * 257
    elif kind is np.uint8 and stored.dtype == np.uint16:
        stored = np.rint(stored / 257).astype(np.uint8)
    return np.ascontiguousarray(with_channels(stored, channels))


def _check_values(image: Image.Image) -> None:
    """Raise ValueError if a file's values are not whole numbers from 0 to 255 or 65535."""
    if image.format != "TIFF":
        return
    bits, signs = _tag(image, _TIFF_BITS, 1), _tag(image, _TIFF_SIGN, 1)
    if not set(bits) <= {1, 2, 4, 8, 16} or set(signs) != {1}:
        raise ValueError(
            "its values are not whole numbers from 0 of 8 or 16 bits: convert it, or use arrays"
        )


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
    """Convert ``C x H x W``, uint8, 1 to 4 channels, to a picture that Pillow can write."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def suffix_for(channels: int) -> str:
    """The suffix of files that ``write_pixels`` writes: pictures, or else arrays."""
    return ".png" if channels <= MOST_FILE_CHANNELS else ".npy"


def write_pixels(pixels: np.ndarray, path: Path) -> None:
    """Write an image with exactly its values, as ``read_image`` reads it with its channels.

    Args:
        pixels: ``C x H x W``, uint8 or uint16.
        path: path of the file, with the suffix that ``suffix_for`` returns. A PNG file has 8 or 16
            bits; an array is ``C x H x W``.
    """
    if len(pixels) > MOST_FILE_CHANNELS:
        with path.open("wb") as file:
            np.save(file, pixels)
    elif pixels.dtype == np.uint16:
        path.write_bytes(encode_deep_png(pixels))
    else:
        to_picture(pixels).save(path, format="PNG")


def fit(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bring an image to a size without stretching it: ``C x H x W``, in and out, of one type.

    The largest central part with the wanted proportions is cut out, and each new pixel becomes the
    mean of the area that it covers, or the nearest pixel if the image is enlarged.
    """
    if pixels.shape[1:] == (height, width):
        return pixels
    size, method = (width, height), Image.Resampling.BOX
    return _resampled(pixels, lambda picture: ImageOps.fit(picture, size, method=method))


def reduced_part(
    pixels: np.ndarray, top: float, left: float, factor: float, height: int, width: int
) -> np.ndarray:
    """A part of an image, reduced: each of its pixels is the mean of an area of the image.

    Args:
        pixels: ``C x H x W``.
        top: where the part begins, in rows of the image, of which parts are counted.
        left: where it begins, in columns.
        factor: rows and columns of the image that a pixel covers, at least 1.
        height: rows of the result; it must not need more of the image than there is.
        width: its columns.

    Returns:
        ``C x height x width``, of the type of the pixels.
    """
    first_row, first_column = int(top), int(left)
    part = pixels[
        :,
        first_row : math.ceil(top + factor * height),
        first_column : math.ceil(left + factor * width),
    ]
    top, left = top - first_row, left - first_column
    _, rows, columns = part.shape
    box = (left, top, min(left + factor * width, columns), min(top + factor * height, rows))
    size, method = (width, height), Image.Resampling.BOX
    return _resampled(part, lambda picture: picture.resize(size, method, box))


def _resampled(pixels: np.ndarray, resample: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """What an operation on pictures makes of an image, rounded to values of its own type."""
    if pixels.dtype == np.uint8 and len(pixels) in _MODES:
        pictures = [to_picture(pixels)]
    else:  # Pillow would weight colours by their alpha channel, and round values of 16 bits
        pictures = [Image.fromarray(channel.astype(np.float32)) for channel in pixels]
    made = np.dstack([np.asarray(resample(picture)) for picture in pictures])
    return np.ascontiguousarray(np.rint(made).astype(pixels.dtype).transpose(2, 0, 1))


def cover(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bring an image to the smallest size that a window can be moved in: ``C x H x W``.

    One side becomes that of the window, and the other is as long or longer, in proportion. Only of
    very long images the ends are cut off.
    """
    _, rows, columns = pixels.shape
    scale = max(height / rows, width / columns)
    sides = ((height, rows), (width, columns))
    return fit(
        pixels, *(min(max(side, round(old * scale)), _LONGEST * side) for side, old in sides)
    )


def fit_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """``fit`` for a mask, ``H x W``, bool: a pixel is hidden if at least half of its area is."""
    return fit(mask[None].astype(np.uint8) * 255, height, width)[0] >= 128
