"""Picture files of 16 bits, as far as Pillow does not read or write them, and their channels."""

import struct
import zlib

import numpy as np

__all__ = ["MOST_FILE_CHANNELS", "decode_deep_png", "encode_deep_png", "with_channels"]

MOST_FILE_CHANNELS = 4
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by the number of channels
_GREY_WEIGHTS = (19595, 38470, 7471)  # of red, green and blue, in 1/65536, as Pillow has them
_VALUES_PER_STEP = 2**22


def decode_deep_png(content: bytes) -> np.ndarray:
    """Read a PNG file of 16 bits with all of them: ``C x H x W``, uint16, 1 to 4 channels.

    Raises:
        ValueError: torchvision is missing.
        RuntimeError: the file is damaged.
    """
    import torch

    try:
        from torchvision.io import ImageReadMode, decode_image
    except ImportError:
        raise ValueError(
            "its colours of 16 bits need torchvision: pip install torchvision"
        ) from None
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return decode_image(data, ImageReadMode.UNCHANGED).numpy()


def encode_deep_png(pixels: np.ndarray) -> bytes:
    """A PNG file of 16 bits.

    Each row is stored as differences from what is left of or above it, in the one of the five ways
    whose differences are smallest, as is usual.

    Args:
        pixels: ``C x H x W``, uint16, 1 to 4 channels: grey, grey and alpha, RGB, RGB and alpha.
    """
    channels, height, width = pixels.shape
    packer, parts = zlib.compressobj(9, strategy=zlib.Z_FILTERED), []
    above = np.zeros(2 * channels * (width + 1), np.int16)
    for row in pixels.transpose(1, 2, 0):
        here = np.pad(np.frombuffer(row.astype(">u2").tobytes(), np.uint8), (2 * channels, 0))
        parts.append(packer.compress(_filtered(here.astype(np.int16), above, 2 * channels)))
        above = here.astype(np.int16)
    parts.append(packer.flush())
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b"".join(parts)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, *zip(*chunks, strict=True)))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _filtered(here: np.ndarray, above: np.ndarray, step: int) -> bytes:
    """A row of bytes, after ``step`` zeros, by the filter whose result has the smallest bytes."""
    left, upper_left = here[:-step], above[:-step]
    here, above = here[step:], above[step:]
    guess = left + above - upper_left
    distances = np.abs(np.stack([left, above, upper_left]) - guess)
    paeth = np.choose(distances.argmin(axis=0), [left, above, upper_left])
    nothing = np.zeros_like(here)
    rows = (here - np.stack([nothing, left, above, (left + above) // 2, paeth])).astype(np.uint8)
    kind = int(np.abs(rows.view(np.int8).astype(int)).sum(axis=1).argmin())
    return bytes([kind]) + rows[kind].tobytes()


def with_channels(stored: np.ndarray, channels: int) -> np.ndarray:
    """A picture with as many channels as wanted: ``channels x H x W``, in the type that it has.

    Without an alpha channel, transparent pixels are laid over white; with one, those of pictures
    that have none are opaque. Colours become grey, and grey becomes colours.

    Args:
        stored: ``C x H x W``, uint8 or uint16: grey, grey and alpha, RGB, or RGB and alpha.
        channels: number of channels, likewise.
    """
    if len(stored) == channels:
        return stored
    _, height, width = stored.shape
    result = np.empty((channels, height, width), stored.dtype)
    step = max(1, _VALUES_PER_STEP // width)
    for top in range(0, height, step):
        rows = slice(top, top + step)
        result[:, rows] = _with_channels(stored[:, rows].astype(np.uint32), channels, stored.dtype)
    return result


def _with_channels(stored: np.ndarray, channels: int, kind: np.dtype) -> np.ndarray:
    white = np.iinfo(kind).max
    has_alpha = len(stored) in (2, 4)
    colours, alpha = (
        (stored[:-1], stored[-1]) if has_alpha else (stored, np.full_like(stored[0], white))
    )
    if channels in (1, 3) and has_alpha:
        colours = (colours * alpha + white * (white - alpha) + white // 2) // white
    if channels <= 2 and len(colours) == 3:
        weighted = (weight * colour for weight, colour in zip(_GREY_WEIGHTS, colours, strict=True))
        colours = (sum(weighted, np.uint32(2**15)) >> 16)[None]
    elif channels > 2:
        colours = np.broadcast_to(colours, (3, *alpha.shape))
    return np.concatenate([colours, alpha[None]])[:channels] if channels in (2, 4) else colours
