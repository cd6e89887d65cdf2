"""Which pixels of an image are hidden, and which are scored: boxes, and masks of any shape."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lmconv.data.image_files import ImageFileError, fit_mask, read_image, read_mask
from lmconv.modes import UsageError
from lmconv.pixel_values import ImageShape

__all__ = [
    "Box",
    "box_pixels",
    "hidden_region",
    "hole_name",
    "scored_box",
    "scored_pixels",
]


Box = tuple[int, int, int, int]  # first row, end row, first column, end column


def hidden_region(args: argparse.Namespace, image_shape: ImageShape) -> Tensor:
    """The pixels that ``--hole_mask`` or ``--sample_region`` hides: ``H x W``, bool.

    A box starts at (H//2 + offset1, W//2 + offset2) and has sample_size_h x sample_size_w pixels.

    Raises:
        UsageError: the box is not inside the image, or the mask does not fit it.
    """
    _, height, width = image_shape
    if args.hole_mask is not None:
        return _hole(args, height, width)
    if args.sample_region == "full":
        return torch.ones(height, width, dtype=torch.bool)
    rows, cols = args.sample_size_h, args.sample_size_w
    row_offset, col_offset = {
        "custom": (args.sample_offset1, args.sample_offset2),
        "top": (-(height // 2), -(width // 2)),
        "center": (-rows // 2, -cols // 2),
        "random_near_center": (-rows // 2, -cols // 2),
    }[args.sample_region]
    top, left = height // 2 + row_offset, width // 2 + col_offset
    if top < 0 or left < 0 or top + rows > height or left + cols > width:
        raise UsageError(
            f"--sample_region {args.sample_region}: rows {top}:{top + rows} and columns "
            f"{left}:{left + cols} are not inside the {height}x{width} image: change "
            "--sample_size_h/_w or --sample_offset1/2"
        )
    if args.sample_region == "random_near_center":
        random = np.random.default_rng(args.seed)
        top = _near(top, height // 8, height - rows, random)
        left = _near(left, width // 8, width - cols, random)
    return box_pixels((top, top + rows, left, left + cols), image_shape)


def _near(start: int, distance: int, last: int, random: np.random.Generator) -> int:
    """Draw a start at most ``distance`` away that keeps the box inside the image."""
    return int(np.clip(start + random.integers(-distance, distance + 1), 0, last))


def _hole(args: argparse.Namespace, height: int, width: int) -> Tensor:
    path = Path(args.hole_mask)
    try:
        mask = read_mask(path)
        if args.resize_images and mask.shape != (height, width):
            _check_same_size(path, mask, args.images or ())
            mask = fit_mask(mask, height, width)
    except ImageFileError as error:
        raise UsageError(f"--hole_mask: {error}") from error
    if mask.shape != (height, width):
        raise UsageError(
            f"--hole_mask {path} is {mask.shape[0]}x{mask.shape[1]}, but the images are "
            f"{height}x{width}: give a mask of their size, or use --resize_images"
        )
    if mask.all() or not mask.any():
        what = "leaves nothing visible" if mask.all() else "hides nothing"
        raise UsageError(f"--hole_mask {path} {what}: white pixels are hidden, all others visible")
    return torch.from_numpy(mask)


def _check_same_size(path: Path, mask: np.ndarray, images: Sequence[str]) -> None:
    """Check that a mask fits its images: it is cut as they are, so that the hole stays in place."""
    for name in images:
        size = read_image(Path(name), 1).shape[1:]
        if size != mask.shape:
            raise UsageError(
                f"--hole_mask {path} is {mask.shape[0]}x{mask.shape[1]}, but {name} is "
                f"{size[0]}x{size[1]}: give a mask of the image's size"
            )


def hole_name(args: argparse.Namespace) -> str:
    """What the names of files call the hidden pixels: the mask's name, or the box."""
    if args.hole_mask is not None:
        return f"_{Path(args.hole_mask).stem}"
    name = f"_{args.sample_region}_{args.sample_size_h}x{args.sample_size_w}"
    if args.sample_region == "custom":
        name += f"_o1{args.sample_offset1}_o2{args.sample_offset2}"
    return name


def scored_box(args: argparse.Namespace, image_shape: ImageShape) -> Box:
    """The box of ``--test_region`` at one image size: first row, end row, first and end column.

    Raises:
        UsageError: the box is empty or not inside the image.
    """
    _, height, width = image_shape
    if args.test_region == "full":
        return 0, height, 0, width
    top, left = args.test_minh or 0, args.test_minw or 0
    bottom = min(32, height) if args.test_maxh is None else args.test_maxh
    right = min(32, width) if args.test_maxw is None else args.test_maxw
    if not (top < bottom <= height and left < right <= width):
        raise UsageError(
            f"--test_region custom: rows {top}:{bottom} and columns {left}:{right} are not a box "
            f"inside the {height}x{width} image: change --test_minh/maxh or --test_minw/maxw"
        )
    return top, bottom, left, right


def box_pixels(box: Box, image_shape: ImageShape) -> Tensor:
    """The pixels of a box: ``H x W``, bool."""
    top, bottom, left, right = box
    pixels = torch.zeros(image_shape[1:], dtype=torch.bool)
    pixels[top:bottom, left:right] = True
    return pixels


def scored_pixels(args: argparse.Namespace, image_shape: ImageShape) -> Tensor:
    """The pixels that ``--mode score`` sums over: ``H x W``, bool.

    Raises:
        UsageError: as ``hidden_region`` and ``scored_box``.
    """
    if args.hole_mask is not None or args.sample_region != "full":
        return hidden_region(args, image_shape)
    return box_pixels(scored_box(args, image_shape), image_shape)
