"""Which pixels of an image are hidden, and which are scored: boxes, and masks of any shape."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmconv.data.image_files import ImageFileError, fit_mask, read_image, read_mask
from sources import ImageShape
from utils import UsageError

__all__ = ["Region", "box_name", "hidden_region", "hole_name", "scored_pixels", "scored_region"]


class Region(NamedTuple):
    """A box of pixels: rows ``min_row`` up to ``max_row`` (excluded), columns likewise."""

    min_row: int
    max_row: int
    min_col: int
    max_col: int

    def sum(self, per_pixel: Tensor) -> Tensor:
        """Sum ``B x H x W`` over the box: B, in float64."""
        box = per_pixel[:, self.min_row : self.max_row, self.min_col : self.max_col]
        return box.double().sum(dim=(1, 2))

    def num_pixels(self) -> int:
        """Number of pixels in the box."""
        return (self.max_row - self.min_row) * (self.max_col - self.min_col)


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
    hidden = torch.zeros(height, width, dtype=torch.bool)
    hidden[top : top + rows, left : left + cols] = True
    return hidden


def _near(start: int, distance: int, last: int, random: np.random.Generator) -> int:
    """A start at most ``distance`` away that keeps the box inside the image."""
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
            f"--hole_mask {path} is {mask.shape[0]}x{mask.shape[1]} and the images are "
            f"{height}x{width}: give a mask of their size, or --resize_images"
        )
    if mask.all() or not mask.any():
        what = "leaves nothing visible" if mask.all() else "hides nothing"
        raise UsageError(f"--hole_mask {path} {what}: white pixels are hidden, others visible")
    return torch.from_numpy(mask)


def _check_same_size(path: Path, mask: np.ndarray, images: Sequence[str]) -> None:
    """A mask is cut as its images are, so that the hole stays where it was."""
    for name in images:
        size = read_image(Path(name), 1).shape[1:]
        if size != mask.shape:
            raise UsageError(
                f"--hole_mask {path} is {mask.shape[0]}x{mask.shape[1]} and {name} is "
                f"{size[0]}x{size[1]}: give a mask of the image's size"
            )


def hole_name(args: argparse.Namespace) -> str:
    """The hidden pixels in the names of files: the mask's name, or the box."""
    if args.hole_mask is not None:
        return f"_{Path(args.hole_mask).stem}"
    return f"_{args.sample_region}{box_name(args)}"


def box_name(args: argparse.Namespace) -> str:
    """The box of ``--sample_region`` in the names of files, as published."""
    box = ""
    if args.sample_region != "full":
        box = f"_{args.sample_size_h}x{args.sample_size_w}"
    if args.sample_region == "custom":
        box += f"_o1{args.sample_offset1}_o2{args.sample_offset2}"
    return box


def scored_region(args: argparse.Namespace, image_shape: ImageShape) -> Region:
    """The box of ``--test_region`` in one image size.

    Raises:
        UsageError: the box is empty or not inside the image.
    """
    _, height, width = image_shape
    if args.test_region == "full":
        return Region(0, height, 0, width)
    region = Region(
        args.test_minh or 0,
        min(32, height) if args.test_maxh is None else args.test_maxh,
        args.test_minw or 0,
        min(32, width) if args.test_maxw is None else args.test_maxw,
    )
    inside = region.max_row <= height and region.max_col <= width
    if not inside or region.min_row >= region.max_row or region.min_col >= region.max_col:
        raise UsageError(
            f"--test_region custom: rows {region.min_row}:{region.max_row} and columns "
            f"{region.min_col}:{region.max_col} are no box inside the {height}x{width} image"
        )
    return region


def scored_pixels(args: argparse.Namespace, image_shape: ImageShape) -> Tensor:
    """The pixels that ``--mode score`` sums over: ``H x W``, bool.

    Raises:
        UsageError: as ``hidden_region`` and ``scored_region``.
    """
    _, height, width = image_shape
    if args.hole_mask is not None or args.sample_region != "full":
        return hidden_region(args, image_shape)
    box = scored_region(args, image_shape)
    pixels = torch.zeros(height, width, dtype=torch.bool)
    pixels[box.min_row : box.max_row, box.min_col : box.max_col] = True
    return pixels
