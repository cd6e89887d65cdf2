"""Pictures on their way between browsers and models: bytes of pixels, in Base64.

A picture is ``{"height", "width", "channels", "data"}``, whose data are bytes, channel by channel
and row by row. A model's image and its bytes become each other again, so nothing is lost.
"""

import base64
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lmconv.data.image_files import ImageFileError, count_pixels, fit, read_image
from lmconv.image_model import ImageModel
from lmconv.pixel_values import ImageShape, to_levels, to_pixels

__all__ = ["as_model_sees", "encoded", "picture_of", "read_upload"]

_MOST_PIXELS = 2**25  # of an uploaded picture: those of most cameras


def encoded(array: np.ndarray) -> str:
    """The bytes of an array in Base64."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def picture_of(model: ImageModel, image: Tensor) -> dict[str, Any]:
    """A model's image, ``C x H x W`` in [-1, 1], as a picture."""
    num_values = model.likelihood.num_values
    pixels = to_pixels(to_levels(image.cpu(), num_values).numpy(), num_values)
    channels, height, width = pixels.shape
    return {"channels": channels, "height": height, "width": width, "data": encoded(pixels)}


def as_model_sees(model: ImageModel, pixels: np.ndarray) -> list[dict[str, Any]]:
    """Pictures of uint8 images, ``B x C x H x W``, after they are prepared for the model."""
    return [picture_of(model, image) for image in model.prepare(pixels)]


def read_upload(content: bytes, image_shape: ImageShape) -> np.ndarray:
    """Decode an uploaded file and bring it to a size: ``C x H x W``, uint8.

    Raises:
        ValueError: the file is not a picture, or has too many pixels.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"  # its name is not that of the upload
        path.write_bytes(content)
        if count_pixels(path) > _MOST_PIXELS:
            raise ValueError(
                f"The picture has more than {_MOST_PIXELS:,} pixels: use a smaller one."
            )
        try:
            return fit(read_image(path, image_shape[0]), *image_shape[1:])
        except ImageFileError as error:
            reason = str(error).replace(str(path), "The file")
            raise ValueError(f"{reason}: use a PNG, JPEG, WebP, TIFF or BMP file.") from error
