"""Pictures: generation orders, masks, grids of images and completions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import save_image

from utils import write_atomically

__all__ = ["completion_tiles", "plot_masks", "plot_orders", "save_image_grid"]


def plot_orders(
    orders: Sequence[np.ndarray], image_shape: tuple[int, int, int], path: Path
) -> None:
    """Draw each order as a line from its first pixel (dark) to its last (light).

    Args:
        orders: each ``(H*W) x 2``, (row, column).
        image_shape: (C, H, W).
        path: of the picture; the suffix gives the format.
    """
    _, height, width = image_shape
    columns = min(4, len(orders))
    rows = -(-len(orders) // columns)
    figure = Figure(figsize=(3 * columns, 3.2 * rows * max(0.4, min(height / width, 3))))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for index, axis in enumerate(axes):
        axis.axis("off")
        if index < len(orders):
            _draw_order(axis, orders[index], height, width)
            axis.set_title(f"order {index}")
    figure.tight_layout()
    _save_figure(figure, path)


def _draw_order(axis, order: np.ndarray, height: int, width: int) -> None:  # type: ignore[no-untyped-def]
    points = order[:, ::-1]  # x is the column, y the row
    segments = np.stack([points[:-1], points[1:]], axis=1)
    line_width = float(np.clip(60 / max(height, width), 0.3, 3))
    lines = LineCollection(
        list(segments), array=np.arange(len(segments)), cmap="viridis", linewidths=line_width
    )
    axis.add_collection(lines)
    axis.plot(*points[0], "o", color="tab:red", markersize=max(2.0, 2 * line_width))
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
    axis.set_aspect("equal")


def plot_masks(
    masks: Tensor, image_shape: tuple[int, int, int], path: Path, title: str | None = None
) -> None:
    """Draw the kernel mask of every pixel at the pixel's place, white where a tap is on.

    Args:
        masks: ``1 x k*k x (H*W)``, as the layer takes them.
        image_shape: (C, H, W).
        path: of the picture; the suffix gives the format.
        title: above the picture.
    """
    _, height, width = image_shape
    k = round(masks.shape[1] ** 0.5)
    tiles = masks[0].view(k, k, height, width).permute(2, 0, 3, 1)  # H x k x W x k
    # A grey line before each tile keeps neighbouring masks apart.
    spaced = torch.full((height, k + 1, width, k + 1), 0.5)
    spaced[:, 1:, :, 1:] = tiles.float()
    picture = spaced.reshape(height * (k + 1), width * (k + 1))
    figure = Figure(figsize=(8, 8 * height / width + 0.4))
    axis = figure.subplots()
    axis.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.axis("off")
    if title:
        axis.set_title(title)
    figure.tight_layout()
    _save_figure(figure, path)


def _save_figure(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=100))


def save_image_grid(images: Tensor, path: Path, nrow: int = 4, padding: int = 2) -> None:
    """Write images in [-1, 1], ``B x C x H x W``, as one PNG with ``nrow`` tiles in a row."""
    pixels = (images.float() + 1) / 2
    write_atomically(
        path, lambda temporary: save_image(pixels, temporary, nrow=nrow, padding=padding)
    )


def completion_tiles(hidden: Tensor, originals: Tensor, completions: Tensor) -> Tensor:
    """Four tiles for each image: its context, the completion, the original, their difference.

    Args:
        hidden: ``H x W``, bool, the pixels that were completed; grey in the context.
        originals, completions: ``B x C x H x W`` in [-1, 1].

    Returns:
        ``4B x C x H x W`` in [-1, 1]; black where completion and original agree.
    """
    context = torch.where(hidden, torch.zeros_like(originals), originals)
    difference = (completions - originals).abs() - 1
    return torch.stack([context, completions, originals, difference], dim=1).flatten(0, 1)
