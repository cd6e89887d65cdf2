"""The grid of pixel values, in one place: levels 0 to V - 1, floats in [-1, 1], and stored pixels.

Level v of V is the float ``2 v / (V - 1) - 1``. It is stored as ``round(255 v / (V - 1))``, or, if
it has more than 8 bits, as ``round(65535 v / (V - 1))``.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmconv.random_numbers import uniform_numbers

__all__ = [
    "MOST_BITS",
    "MOST_CHANNELS",
    "ImageShape",
    "PixelType",
    "Preparation",
    "check_grid",
    "from_levels",
    "pixel_type",
    "sizes_in_words",
    "to_grid",
    "to_levels",
    "to_pixels",
    "warn_of_levels",
]

ImageShape = tuple[int, int, int]  # C, H, W
PixelType = type[np.uint8] | type[np.uint16]
MOST_BITS = 16
MOST_CHANNELS = 8

# How far a float may be from the grid, in steps of the grid; float32 is exact to 1e-5 steps.
_TOLERANCE = 1e-2


def pixel_type(num_values: int) -> PixelType:
    """The type of levels of V values, and of the pixels that they are stored as."""
    return np.uint8 if num_values <= 256 else np.uint16


@dataclass(frozen=True)
class Preparation:
    """How images of 8 or 16 bits become a model's images.

    Attributes:
        binarize: draw each pixel from {-1, +1} with its intensity as the probability of +1.
        n_bits: bits per channel; pixels are rounded down to this grid. Binarization ignores this
            and uses all their bits.
    """

    binarize: bool = False
    n_bits: int = 8

    @property
    def num_values(self) -> int:
        """V, the number of values that a channel of a pixel can have."""
        return 2 if self.binarize else 2**self.n_bits

    @property
    def pixel_type(self) -> PixelType:
        """The type that files are read as: uint16 only if the model's images need it."""
        return pixel_type(self.num_values)

    def apply(self, pixels: np.ndarray, indices: np.ndarray, key: np.uint64) -> Tensor:
        """Convert images of 8 or 16 bits to a model's images.

        Args:
            pixels: uint8 or uint16, ``B x C x H x W``.
            indices: index of each image, B; with the key, it decides how the image is binarized.
            key: key of the random numbers.

        Returns:
            ``B x C x H x W``, float32, on the grid in [-1, 1].

        Raises:
            ValueError: the pixels have another type, or fewer bits than the model's images.
        """
        if pixels.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels must be uint8 or uint16, got {pixels.dtype}")
        stored_bits = 8 * pixels.dtype.itemsize
        largest = self.num_values - 1
        grid = 2 * np.arange(largest + 1, dtype=np.float32) / largest - 1
        if not self.binarize:
            if stored_bits < self.n_bits:
                raise ValueError(
                    f"pixels for this model have {self.n_bits} bits, got uint8: pass uint16 pixels "
                    "of 0 to 65535"
                )
            return torch.from_numpy(grid[pixels >> (stored_bits - self.n_bits)])
        numbers = uniform_numbers(key, indices, math.prod(pixels.shape[1:]))
        is_white = numbers.reshape(pixels.shape) < pixels / (2**stored_bits - 1)
        return torch.from_numpy(grid[is_white.astype(np.uint8)])


def sizes_in_words(image_shapes: Sequence[ImageShape]) -> str:
    """Image sizes for people to read: the first, and how many others there are."""
    first, others = "x".join(map(str, image_shapes[0])), len(image_shapes) - 1
    return first if not others else f"{first} and {others} other size{'s' * (others > 1)}"


def check_grid(images: Tensor, num_values: int, is_rounded: bool = False) -> None:
    """Raise ValueError, with a remedy, if float images are not on the grid of V values.

    Args:
        images: images of any shape.
        num_values: V.
        is_rounded: whether half precision may have rounded the images.
    """
    steps = (num_values - 1) / 2
    tolerance = _TOLERANCE
    if is_rounded:
        tolerance = max(tolerance, torch.finfo(images.dtype).eps * steps)
    levels = (images.detach().double() + 1) * steps
    is_wrong = (levels - levels.round()).abs() > tolerance
    is_wrong |= (levels < -tolerance) | (levels > num_values - 1 + tolerance)
    is_wrong |= ~images.isfinite()
    if bool(is_wrong.any()):
        example = images[is_wrong][0].item()
        values = "-1 and 1" if num_values == 2 else f"{num_values} values in [-1, 1]"
        kind = pixel_type(num_values)
        stored = f"{kind.__name__} images of 0 to {np.iinfo(kind).max}"
        raise ValueError(
            f"pixels for this model must be one of {values}, got {example:.6g}: pass {stored}, "
            "which are converted, or scale yours to the grid 2 * v / (V - 1) - 1"
        )


def warn_of_levels(pixels: np.ndarray, num_values: int) -> None:
    """Warn if stored pixels look like levels from 0 to V - 1, not like 0 to 255 or to 65535.

    They may be images that are almost black, so this is no error.
    """
    white, largest = np.iinfo(pixels.dtype).max, int(pixels.max(initial=0))
    if 0 < largest < num_values <= white:
        warnings.warn(
            f"{pixels.dtype} pixels are taken as 0 (black) to {white} (white), but the largest "
            f"here is {largest}: if they are levels of 0 to {num_values - 1}, scale them to 0 to "
            f"{white}",
            stacklevel=3,
        )


def to_levels(images: Tensor, num_values: int) -> Tensor:
    """Round images in [-1, 1] to the nearest of the levels 0 to ``num_values - 1``, as floats."""
    return ((images.clamp(-1, 1) + 1) * ((num_values - 1) / 2)).round().float()


def from_levels(levels: Tensor, num_values: int) -> Tensor:
    """The pixel values ``2 v / (num_values - 1) - 1`` of levels v, exactly as in data, float32."""
    levels = levels.float()
    # Division by a tensor: for a Python number, a GPU multiplies by its reciprocal, an ulp off.
    return 2 * levels / torch.full_like(levels, num_values - 1) - 1


def to_grid(values: Tensor, n_bits: int) -> Tensor:
    """Round to the nearest of the 2**n_bits pixel values ``2 v / (2**n_bits - 1) - 1``.

    The result has the float32 values of the data, in the dtype of ``values`` (float32 or better).
    """
    return from_levels(to_levels(values, 2**n_bits), 2**n_bits).to(values.dtype)


def to_pixels(levels: np.ndarray, num_values: int) -> np.ndarray:
    """Convert levels from 0 to V - 1 to stored pixels, which have the same levels again."""
    kind = pixel_type(num_values)
    return np.rint(levels * (np.iinfo(kind).max / (num_values - 1))).astype(kind)
