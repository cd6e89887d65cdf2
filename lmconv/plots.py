"""Pictures: generation orders, masks, grids of images and completions.

No file is ever half-written: each is made under another name and then put in place.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision import utils as torchvision_utils
from torchvision.transforms.functional import to_pil_image

from utils import write_atomically

__all__ = [
    "completion_tiles",
    "plot_likelihood_maps",
    "plot_masks",
    "plot_orders",
    "save_animation",
    "save_completions",
    "save_figure",
    "save_image",
    "save_image_grid",
]

_DPI = 100


def plot_orders(
    orders: Sequence[np.ndarray], image_shape: tuple[int, int, int], path: Path
) -> None:
    """Draw each order in a panel: pixels from first (dark) to last (light), steps to neighbours.

    Args:
        orders: each ``(H*W) x 2``, (row, column).
        image_shape: (C, H, W).
        path: of the picture; the suffix gives the format.

    Raises:
        ValueError: there are no orders.
    """
    if not orders:
        raise ValueError("there are no orders to draw: choose at least one")
    _, height, width = image_shape
    columns = min(4, len(orders))
    rows = -(-len(orders) // columns)
    panel_height = 4 * float(np.clip(height / width, 0.2, 3))
    figure = Figure(figsize=(4 * columns, (panel_height + 0.4) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for index, order in enumerate(orders):
        _draw_order(axes[index], order, height, width)
        axes[index].set_title(f"order {index}")
    save_figure(figure, path)


def _draw_order(axis: Axes, order: np.ndarray, height: int, width: int) -> None:
    time = np.empty((height, width))
    time[order[:, 0], order[:, 1]] = np.arange(len(order))
    axis.imshow(time, cmap="viridis", interpolation="nearest")
    points = order[:, ::-1]  # x is the column, y the row
    # Separate segments: one line through 65,536 pixels is more than the renderer takes. Jumps are
    # left out: they would hide the colours, which show the order just as well.
    segments = np.stack([points[:-1], points[1:]], axis=1)
    segments = segments[np.abs(np.diff(segments, axis=1)).max(axis=(1, 2)) <= 1]
    line_width = float(np.clip(60 / max(height, width), 0.3, 2))
    axis.add_collection(LineCollection(list(segments), colors="white", linewidths=line_width))
    axis.plot(*points[0], "o", color="tab:red", markersize=max(3.0, 3 * line_width))


def plot_masks(
    masks: Tensor, image_shape: tuple[int, int, int], path: Path, title: str | None = None
) -> None:
    """Draw the kernel mask of every pixel at the pixel's place, white where a tap is on.

    Args:
        masks: ``1 x k*k x (H*W)``, as the layer takes them, or ``(H*W) x k x k``.
        image_shape: (C, H, W).
        path: of the picture; the suffix gives the format.
        title: above the picture.

    Raises:
        ValueError: the masks are not those of one order of such an image.
    """
    picture = _tile_masks(masks, image_shape)
    scale = max(1, 800 // max(picture.shape))  # every tap gets equally many dots
    height, width = (scale * side for side in picture.shape)
    strip = 40 if title else 0
    figure = Figure(figsize=(width / _DPI, (height + strip) / _DPI))
    axis = figure.add_axes((0, 0, 1, height / (height + strip)))
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="none", aspect="auto")
    axis.axis("off")
    if title:
        figure.text(0.5, 1 - strip / 2 / (height + strip), title, ha="center", va="center")
    save_figure(figure, path)


def _tile_masks(masks: Tensor, image_shape: tuple[int, int, int]) -> np.ndarray:
    """The k x k masks side by side, framed by grey lines of one tap's width."""
    _, height, width = image_shape
    k = math.isqrt(masks.numel() // (height * width))
    if masks.shape == (1, k * k, height * width):
        masks = masks[0].t()
    elif masks.shape != (height * width, k, k):
        raise ValueError(
            f"masks of a {height}x{width} image are 1 x k*k x {height * width} or "
            f"{height * width} x k x k, got {tuple(masks.shape)}"
        )
    spaced = np.full((height, k + 1, width, k + 1), 0.5, dtype=np.float32)
    spaced[:, 1:, :, 1:] = masks.reshape(height, width, k, k).transpose(1, 2).float().cpu()
    picture = spaced.reshape(height * (k + 1), width * (k + 1))
    return np.pad(picture, ((0, 1), (0, 1)), constant_values=0.5)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; the suffix of the path gives the format."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=_DPI))


def save_image_grid(images: Tensor, path: Path, nrow: int = 4, padding: int = 2) -> None:
    """Write images as one picture, row by row.

    Args:
        images: ``B x C x H x W`` in [-1, 1], 1 or 3 channels; a single one gets no frame.
        path: of the picture; the suffix gives the format.
        nrow: images in a row.
        padding: black pixels around each image.
    """
    pixels = (images.float() + 1) / 2
    write_atomically(
        path,
        lambda temporary: torchvision_utils.save_image(
            pixels, temporary, nrow=nrow, padding=padding
        ),
    )


def save_image(image: Tensor, path: Path) -> None:
    """Write one image as it is: ``C x H x W`` in [-1, 1], grey or RGB."""
    picture = _to_picture((image.float() + 1) / 2)
    write_atomically(path, lambda temporary: picture.save(temporary))


def save_animation(
    images: Tensor,
    hidden: Tensor,
    order: np.ndarray,
    path: Path,
    nrow: int = 4,
    padding: int = 2,
    num_frames: int = 80,
) -> None:
    """Write a GIF of how a grid of images came about, pixel by pixel along the order.

    Args:
        images: ``B x C x H x W`` in [-1, 1], finished.
        hidden: ``H x W``, bool, the pixels that were generated; grey before they are.
        order: ``(H*W) x 2``.
        path: of the GIF.
        nrow, padding: as in ``save_image_grid``.
        num_frames: at most, besides the first; the last is shown for longer.
    """
    generated = [(row, col) for row, col in order.tolist() if hidden[row, col]]
    rank = torch.full(hidden.shape, -1)
    for number, pixel in enumerate(generated):
        rank[pixel] = number
    num_frames = min(num_frames, len(generated))

    def picture(frame: int) -> Image.Image:
        is_known = rank < len(generated) * frame // max(1, num_frames)
        pixels = torch.where(is_known, (images.float() + 1) / 2, 0.5)
        grid = torchvision_utils.make_grid(pixels, nrow=nrow, padding=padding)
        scale = max(1, 400 // max(grid.shape[1:]))  # small images are hard to watch
        small = _to_picture(grid)
        size = (small.width * scale, small.height * scale)
        return small.resize(size, Image.Resampling.NEAREST)

    def write(temporary: Path) -> None:
        picture(0).save(
            temporary,
            save_all=True,
            append_images=(picture(frame) for frame in range(1, num_frames + 1)),
            duration=[50] * num_frames + [2000],  # milliseconds
            loop=0,
        )

    write_atomically(path, write)


def plot_likelihood_maps(images: Tensor, bits: Tensor, names: Sequence[str], path: Path) -> None:
    """Draw each image and, beside it, the bits that each of its pixels takes, on one scale.

    Args:
        images: ``B x C x H x W`` in [-1, 1].
        bits: ``B x H x W``, NaN where a pixel was not scored.
        names: of the images.
        path: of the picture.
    """
    columns = min(3, len(images))
    rows = -(-len(images) // columns)
    _, _, height, width = images.shape
    panel = 2.2 * float(np.clip(height / width, 0.2, 3)) + 0.4
    figure = Figure(figsize=(4.8 * columns, panel * rows), layout="constrained")
    axes = figure.subplots(rows, 2 * columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    largest = float(np.nanmax(bits.numpy(), initial=1e-9))
    for index, (image, name) in enumerate(zip(_to_rgb(images), names, strict=True)):
        axes[2 * index].imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes[2 * index].set_title(Path(name).name, fontsize=8, parse_math=False)
        shown = axes[2 * index + 1].imshow(
            bits[index].numpy(), cmap="inferno", vmin=0, vmax=largest, interpolation="nearest"
        )
        axes[2 * index + 1].set_title(f"{float(bits[index].nansum()):.1f} bits", fontsize=8)
    figure.colorbar(shown, ax=list(axes), label="bits per pixel", shrink=0.8)
    save_figure(figure, path)


def _to_picture(pixels: Tensor) -> Image.Image:
    """``C x H x W`` in [0, 1], rounded to 8 bits."""
    return to_pil_image((pixels.clamp(0, 1) * 255).round().to(torch.uint8))


def save_completions(
    hidden: Tensor,
    originals: Tensor,
    completions: Tensor,
    nats: Tensor,
    names: Sequence[str],
    path: Path,
) -> None:
    """Write a row for each image: its context, its completions with their nats, and as it was.

    Args:
        hidden: ``H x W``, bool, the pixels that were completed; blue in the context.
        originals: ``B x C x H x W`` in [-1, 1].
        completions: ``B x N x C x H x W`` in [-1, 1].
        nats: ``B x N``.
        names: of the images.
        path: of the picture.
    """
    colour = torch.tensor(_HOLE_COLOUR).view(3, 1, 1)
    rows = []
    for number, original in enumerate(_to_rgb(originals)):
        rows.append([(torch.where(hidden, colour, original), Path(names[number]).name)])
        for image, value in zip(_to_rgb(completions[number]), nats[number].tolist(), strict=True):
            rows[-1].append((image, f"{value:.1f} nats"))
        rows[-1].append((original, "as it was"))
    _save_captioned(rows, path)


_HOLE_COLOUR = (0.36, 0.51, 0.71)
_SMALLEST_TILE, _GAP, _CAPTION = 96, 6, 18  # dots


def _to_rgb(images: Tensor) -> Tensor:
    """``B x C x H x W`` in [-1, 1] as ``B x 3 x H x W`` in [0, 1]."""
    return ((images.float() + 1) / 2).expand(-1, 3, -1, -1)


def _save_captioned(rows: Sequence[Sequence[tuple[Tensor, str]]], path: Path) -> None:
    """Write tiles, each ``3 x H x W`` in [0, 1], in rows, each with a line of text below it."""
    _, height, width = rows[0][0][0].shape
    scale = max(1, -(-_SMALLEST_TILE // min(height, width)))
    cell_height, cell_width = height * scale + _CAPTION + _GAP, width * scale + _GAP
    size = (len(rows) * cell_height + _GAP, max(map(len, rows)) * cell_width + _GAP)
    picture = np.full((*size, 3), 255, dtype=np.uint8)
    figure = Figure(figsize=(size[1] / _DPI, size[0] / _DPI))
    characters = max(4, cell_width // 6)
    for i, row in enumerate(rows):
        for j, (tile, caption) in enumerate(row):
            top, left = _GAP + i * cell_height, _GAP + j * cell_width
            pixels = (tile * 255).round().byte().permute(1, 2, 0).numpy()
            pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
            picture[top : top + height * scale, left : left + width * scale] = pixels
            figure.text(
                (left + width * scale / 2) / size[1],
                1 - (top + height * scale + _CAPTION / 2) / size[0],
                caption if len(caption) <= characters else caption[: characters - 1] + "…",
                ha="center",
                va="center",
                fontsize=7,
                parse_math=False,
            )
    axis = figure.add_axes((0, 0, 1, 1), zorder=-1)
    axis.imshow(picture, interpolation="none", aspect="auto")
    axis.axis("off")
    save_figure(figure, path)


def completion_tiles(hidden: Tensor, originals: Tensor, completions: Tensor) -> Tensor:
    """Four tiles for each image: its context, the completion, the original, their difference.

    Args:
        hidden: ``H x W``, bool, the pixels that were completed; grey in the context.
        originals, completions: ``B x C x H x W`` in [-1, 1].

    Returns:
        ``4B x C x H x W`` in [-1, 1]; the difference is black where the two agree and white where
        one is black and the other white.
    """
    context = torch.where(hidden, torch.zeros_like(originals), originals)
    difference = (completions - originals).abs() - 1
    return torch.stack([context, completions, originals, difference], dim=1).flatten(0, 1)
