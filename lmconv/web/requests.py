"""What browsers ask for, read from JSON and checked: nothing else reaches a model."""

import base64
import binascii
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmconv.image_model import ImageModel
from lmconv.orders import Order, OrderConfig
from lmconv.pixel_values import ImageShape
from masking import ORDERS

__all__ = ["MOST_PIXELS", "SIDES", "Request", "checked_size", "chosen_order"]

# Sides of the square images that can be drawn beside those of a model's own size.
SIDES = (8, 16, 28, 32, 48, 64, 96, 128)
MOST_PIXELS = max(SIDES) ** 2


class Request:
    """A JSON object from a browser, whose values are checked when they are asked for.

    Every method raises a ValueError with a sentence if the value is missing or impossible.

    Args:
        values: the object, or its JSON.
        file: an uploaded file.
    """

    def __init__(self, values: bytes | dict[str, Any], file: bytes = b"") -> None:
        try:
            read = json.loads(values) if isinstance(values, bytes) else values
        except (ValueError, RecursionError):
            read = None
        if not isinstance(read, dict):
            raise ValueError("The request is not a JSON object.")
        self._values, self.file = read, file

    def whole(self, name: str, least: int, most: int) -> int:
        """A whole number."""
        value = self._values.get(name)
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{name} must be a whole number from {least:,} to {most:,}.")
        return value

    def number(self, name: str, least: float, most: float) -> float:
        """A number."""
        value: Any = self._values.get(name)
        if not (type(value) in (int, float) and least <= value <= most):
            raise ValueError(f"{name} must be a number from {least:g} to {most:g}.")
        return float(value)

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of some words."""
        value = self._values.get(name)
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}.")
        return str(value)

    def has(self, name: str) -> bool:
        """Whether a value is there."""
        return self._values.get(name) is not None

    def part(self, name: str) -> "Request":
        """An object inside."""
        value = self._values.get(name)
        if not isinstance(value, dict):
            raise ValueError(f"{name} is missing.")
        return Request(value)

    def parts(self, name: str, most: int) -> list["Request"]:
        """A list of objects inside, with at least one."""
        values = self._values.get(name)
        if not isinstance(values, list) or not 1 <= len(values) <= most:
            raise ValueError(f"{name} must be a list of 1 to {most}.")
        return [Request({name: value}).part(name) for value in values]

    def wholes(self, name: str, number: int) -> tuple[int, ...]:
        """A list of whole numbers of a given length."""
        values = self._values.get(name)
        if not isinstance(values, list) or len(values) != number:
            raise ValueError(f"{name} must be a list of {number:,} numbers.")
        return tuple(Request({name: value}).whole(name, 0, number - 1) for value in values)

    def bytes(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Bytes in Base64, as an array of this shape, uint8."""
        value = self._values.get(name)
        try:
            content = base64.b64decode(value if isinstance(value, str) else "", validate=True)
        except (binascii.Error, ValueError):
            content = b""
        if len(content) != math.prod(shape):
            raise ValueError(f"{name} must be {' x '.join(map(str, shape))} bytes in Base64.")
        return np.frombuffer(content, np.uint8).reshape(shape)

    def picture(self) -> np.ndarray:
        """The pixels of this object, which is a picture: ``C x H x W``, uint8."""
        channels = self.whole("channels", 1, 3)
        height, width = (self.whole(side, 1, MOST_PIXELS) for side in ("height", "width"))
        if height * width > MOST_PIXELS:
            raise ValueError(f"A picture can have at most {MOST_PIXELS:,} pixels here.")
        return self.bytes("data", (channels, height, width))

    def hidden(self, size: tuple[int, int]) -> np.ndarray:
        """The pixels to hide, ``H x W``, bool."""
        hidden = self.bytes("hidden", size) > 0
        if not hidden.any():
            raise ValueError("Nothing is hidden: brush over the pixels to complete.")
        if hidden.all():
            raise ValueError("Everything is hidden: leave some pixels to complete the rest from.")
        return hidden


def checked_size(request: Request, model: ImageModel) -> ImageShape:
    """(C, H, W) of the images that a request is about: of the model's own size, or square.

    Raises:
        ValueError: the size is another one, or browsers cannot show such images.
    """
    channels, num_values = model.image_shape[0], model.likelihood.num_values
    if channels not in (1, 3) or num_values > 256:
        raise ValueError(
            f"The page shows pictures of 1 or 3 channels with 256 values, but this model's have "
            f"{channels} with {num_values:,}: use the command line."
        )
    sizes = {shape[1:] for shape in model.description.image_shapes} | {(s, s) for s in SIDES}
    size = request.whole("height", 1, 4096), request.whole("width", 1, 4096)
    if size not in sizes or size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"Images of {size[0]} x {size[1]} pixels cannot be worked with here.")
    return channels, *size


def chosen_order(request: Request, model: ImageModel, image_shape: ImageShape) -> Order:
    """The order that a request describes: one of the model's, of a family, or one's own.

    Raises:
        ValueError: there is no such order at this size, or the model has only its own.
    """
    if request.has("index"):
        orders = model.orders(image_shape)
        return orders[request.whole("index", 0, len(orders) - 1)]
    if model.description.network.architecture == "pixelcnnpp":
        raise ValueError("This model has only one order, its own.")
    if request.has("family"):
        config = OrderConfig(
            (request.choice("family", ORDERS),),
            all_variants=True,
            variants=(request.whole("variant", 0, 7),),
            seed=model.description.orders.seed,
        )
    else:
        _, height, width = image_shape
        config = OrderConfig((), own=(request.wholes("own", height * width),))
    return model.order(config.pixels(image_shape)[0])
