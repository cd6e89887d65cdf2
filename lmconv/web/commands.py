"""Command lines that do the same as the page, for people to copy."""

import shlex
from collections.abc import Sequence

from lmconv.image_model import ImageModel
from lmconv.pixel_values import ImageShape
from lmconv.web.models import ModelFile
from lmconv.web.requests import Request
from masking import ORDERS

__all__ = ["command_line", "order_flags", "temperature_flags"]


def command_line(
    mode: str, file: ModelFile, model: ImageModel, image_shape: ImageShape, flags: Sequence[str]
) -> str:
    """The command line of a mode with a model, for images of a size, with further flags."""
    size: list[str] = []
    _, height, width = image_shape
    if model.description.image_shapes != (image_shape,):
        if model.description.dataset in ("folder", "parquet", "array"):
            size = ["--image_size", f"{height}x{width}"]
        else:
            size = ["--resize_sizes", str(height)]  # the page has no other sizes than squares
    words = ["--mode", mode, "--load_params", str(file.path), *flags, *size]
    return shlex.join(["python", "main.py", *words, "--run_dir", "runs/page"])


def temperature_flags(temperature: float) -> list[str]:
    """The flags of a temperature; none for that of the model itself."""
    if temperature == 1:
        return []
    names = ("--sample_mixture_temperature", "--sample_logistic_temperature")
    return [word for name in names for word in (name, f"{temperature:g}")]


def order_flags(request: Request, model: ImageModel) -> list[str]:
    """The flags with which the command line uses the order that a request describes.

    An order of one's own is in a file.

    Raises:
        ValueError: there are none, since the model's flags change the order.
    """
    own = model.description.orders
    if request.has("index"):
        index = request.whole("index", 0, own.number - 1)
        return ["--order_variants", str(own.variants[index] if own.variants else index)]
    if own.base_transpose or own.base_reflect_rows or own.base_reflect_cols:
        raise ValueError("This model's own flags turn or mirror every order: use one of its own.")
    if request.has("family"):
        family, variant = request.choice("family", ORDERS), request.whole("variant", 0, 7)
        return ["--order", family, "--randomize_order", "--order_variants", str(variant)]
    return ["--order_file", "order.npy", "--order_variants", "0"]
