"""Pictures: generation orders, masks, grids of images and completions.

No file is ever half-written: each is made under another name and then moved into place.

matplotlib takes half a second to import, and most runs only write pictures that do not need it, so
it is imported in the functions that do.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lmconv.classification import Bin
from lmconv.data.image_files import write_pixels
from lmconv.file_names import printable
from lmconv.order_pictures import draw_orders
from lmconv.pixel_values import to_levels, to_pixels
from utils import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "completion_tiles",
    "grid_size",
    "near_square_columns",
    "plot_likelihood_maps",
    "plot_masks",
    "plot_orders",
    "plot_reliability",
    "save_animation",
    "save_completed_boxes",
    "save_completions",
    "save_figure",
    "save_image",
    "save_image_grid",
    "what_is_shown",
]

_DPI = 100


def plot_orders(
    orders: Sequence[np.ndarray], image_shape: tuple[int, int, int], path: Path
) -> None:
    """Draw each order in a panel: pixels from first (dark) to last (light), steps to neighbours.

    Args:
        orders: each ``(H*W) x 2``, (row, column).
        image_shape: (C, H, W).
        path: path of the picture, whose suffix determines the format.

    Raises:
        ValueError: there are no orders, or the format is unknown.
    """
    if not orders:
        raise ValueError("there are no orders to draw: choose at least one")
    picture = draw_orders(orders, *image_shape[1:])
    if path.suffix.lower() == ".png":
        # The default level takes twice as long, for files that are a third smaller.
        write_atomically(path, lambda temporary: picture.save(temporary, compress_level=3))
    else:
        save_figure(_make_figure(np.asarray(picture)), path)


def _make_figure(picture: np.ndarray) -> "Figure":
    """Make a figure that shows a picture, ``H x W x 3``, uint8, dot by dot, as its background."""
    from matplotlib.figure import Figure

    height, width, _ = picture.shape
    figure = Figure(figsize=(width / _DPI, height / _DPI))
    axis = figure.add_axes((0, 0, 1, 1), zorder=-1)
    axis.imshow(picture, interpolation="none", aspect="auto")
    axis.axis("off")
    return figure


def plot_masks(
    masks: Tensor, image_shape: tuple[int, int, int], path: Path, title: str | None = None
) -> None:
    """Draw the kernel mask of every pixel at the pixel's place, white where a tap is on.

    Args:
        masks: ``1 x k*k x (H*W)``, as the layer takes them, or ``(H*W) x k x k``.
        image_shape: (C, H, W).
        path: path of the picture, whose suffix determines the format.
        title: title above the picture.

    Raises:
        ValueError: the masks are not those of one order for such an image.
    """
    from matplotlib.figure import Figure

    picture = _tile_masks(masks, image_shape)
    scale = max(1, 800 // max(picture.shape))  # every tap gets the same number of dots
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
    """Put the k x k masks side by side, framed by grey lines that are one tap wide."""
    _, height, width = image_shape
    k = math.isqrt(masks.numel() // (height * width))
    if masks.shape == (1, k * k, height * width):
        masks = masks[0].t()
    elif masks.shape != (height * width, k, k):
        raise ValueError(
            f"masks of a {height}x{width} image must be 1 x k*k x {height * width} or "
            f"{height * width} x k x k, got {tuple(masks.shape)}"
        )
    spaced = np.full((height, k + 1, width, k + 1), 0.5, dtype=np.float32)
    spaced[:, 1:, :, 1:] = masks.reshape(height, width, k, k).transpose(1, 2).float().cpu()
    picture = spaced.reshape(height * (k + 1), width * (k + 1))
    return np.pad(picture, ((0, 1), (0, 1)), constant_values=0.5)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure, in the format that the path's suffix determines.

    Raises:
        ValueError: the format is unknown.
    """
    suffix = path.suffix.removeprefix(".")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=_DPI, format=suffix))


def save_image_grid(images: Tensor, path: Path, nrow: int | None = None, padding: int = 2) -> int:
    """Write images as one picture, row by row; small ones are enlarged.

    Args:
        images: ``B x C x H x W`` in [-1, 1]; a single image gets no frame.
        path: path of the picture, whose suffix determines the format.
        nrow: number of images in a row; by default, the picture is nearly square.
        padding: number of black dots around each image.

    Returns:
        The number of dots along the side of a pixel.
    """
    number, _, height, width = images.shape
    columns = nrow or near_square_columns(number)
    scale = _enlargement(height, width, min(columns, number), -(-number // columns))
    # Halves are rounded up.
    levels = _brightness(images).mul_(255).add_(0.5).clamp_(0, 255).to("cpu", torch.uint8)
    picture = _from_levels(_tile_images(_enlarge(levels, scale), columns, padding))
    write_atomically(path, lambda temporary: picture.save(temporary))
    return scale


def near_square_columns(number: int, images_wide: int = 1) -> int:
    """The number of columns of a grid that is nearly square, with no row of a single image.

    Args:
        number: number of images.
        images_wide: the width of an image in heights.
    """
    columns = max(1, math.isqrt(number // images_wide))
    while columns * images_wide < -(-number // columns) or (columns > 1 and number % columns == 1):
        columns += 1
    return columns


def _enlargement(height: int, width: int, columns: int, rows: int) -> int:
    """The number of dots along the side of a pixel: small images are hard to see."""
    wanted = -(-_SMALLEST_TILE // min(height, width))
    return max(1, min(wanted, _LARGEST_GRID // max(columns * width, rows * height)))


def _enlarge(images: Tensor, scale: int) -> Tensor:
    """Repeat each pixel of ``... x H x W`` in both directions."""
    return images.repeat_interleave(scale, dim=-2).repeat_interleave(scale, dim=-1)


def grid_size(
    number: int, height: int, width: int, nrow: int | None, padding: int
) -> tuple[int, int]:
    """Height and width of the picture of ``number`` images in ``save_image_grid``, not enlarged."""
    if number == 1:
        return height, width
    columns = min(nrow or near_square_columns(number), number)
    rows = -(-number // columns)
    return rows * (height + padding) + padding, columns * (width + padding) + padding


def _tile_images(images: Tensor, nrow: int, padding: int) -> Tensor:
    """Tile images row by row between black lines: ``3 x H' x W'``; a single one gets no frame."""
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    number, channels, height, width = images.shape
    if number == 1:
        return images[0]
    columns = min(nrow, number)
    grid = images.new_zeros(channels, *grid_size(number, height, width, nrow, padding))
    height, width = height + padding, width + padding
    for index, image in enumerate(images):
        top, left = index // columns * height + padding, index % columns * width + padding
        grid[:, top : top + height - padding, left : left + width - padding] = image
    return grid


def save_image(image: Tensor, path: Path, num_values: int = 256) -> None:
    """Write one image without a frame, so that its values can be read from the file.

    Args:
        image: ``C x H x W`` in [-1, 1].
        path: path of the file, with the suffix that ``suffix_for`` returns for C.
        num_values: V, the number of values of a channel.
    """
    if num_values <= 256:
        pixels = ((image.float() + 1) / 2).clamp(0, 1).mul(255).round().byte().cpu().numpy()
    else:
        pixels = to_pixels(to_levels(image, num_values).cpu().numpy(), num_values)
    write_atomically(path, lambda temporary: write_pixels(pixels, temporary))


def save_animation(
    images: Tensor,
    hidden: Tensor,
    order: np.ndarray,
    path: Path,
    nrow: int | None = None,
    padding: int = 2,
    num_frames: int = 80,
) -> None:
    """Write a GIF that shows how a grid of images was generated, pixel by pixel along the order.

    Args:
        images: the finished images, ``B x C x H x W`` in [-1, 1].
        hidden: the pixels that were generated, ``H x W``, bool; grey until then.
        order: the order, ``(H*W) x 2``, (row, column).
        path: path of the GIF.
        nrow, padding: as in ``save_image_grid``.
        num_frames: maximum number of frames after the first; the last is shown for longer.
    """
    generated = [(row, col) for row, col in order.tolist() if hidden[row, col]]
    rank = torch.full(hidden.shape, -1)
    for number, pixel in enumerate(generated):
        rank[pixel] = number
    num_frames = min(num_frames, len(generated))
    number, _, height, width = images.shape
    columns, shown = nrow or near_square_columns(number), _brightness(images)
    scale = _enlargement(height, width, min(columns, number), -(-number // columns))

    def picture(frame: int) -> Image.Image:
        is_known = rank < len(generated) * frame // max(1, num_frames)
        pixels = torch.where(is_known, shown, 0.5)
        return _to_picture(_tile_images(_enlarge(pixels, scale), columns, padding))

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
        names: names of the images.
        path: path of the picture.
    """
    from matplotlib.figure import Figure

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
        axes[2 * index].set_title(printable(Path(name).name), fontsize=8, parse_math=False)
        shown = axes[2 * index + 1].imshow(
            bits[index].numpy(), cmap="inferno", vmin=0, vmax=largest, interpolation="nearest"
        )
        axes[2 * index + 1].set_title(f"{float(bits[index].nansum()):.1f} bits", fontsize=8)
    figure.colorbar(shown, ax=list(axes), label="bits per pixel", shrink=0.8)
    save_figure(figure, path)


def plot_reliability(curves: Mapping[str, Sequence[Bin]], path: Path) -> None:
    """Draw how often the likeliest class is the right one, by its probability.

    Args:
        curves: what ``calibration_bins`` returns, by name.
        path: path of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5.6), layout="constrained")
    above, below = figure.subplots(2, height_ratios=(3, 1), sharex=True)
    above.plot([0, 1], [0, 1], color="grey", linestyle=":", label="calibrated")
    for name, bins in curves.items():
        filled = [each for each in bins if each.num_images]
        confidences = [each.confidence for each in filled]
        above.plot(confidences, [each.accuracy for each in filled], marker="o", label=name)
        below.plot(confidences, [each.num_images for each in filled], marker="o", markersize=3)
    above.set_ylabel("share of images whose likeliest class is right")
    above.legend(fontsize=8)
    below.set_yscale("log")
    below.set_ylabel("images")
    below.set_xlabel("probability of the likeliest class")
    above.set_xlim(0, 1.02)
    above.set_ylim(0, 1.02)
    save_figure(figure, path)


def _to_picture(pixels: Tensor) -> Image.Image:
    """Make a picture of ``C x H x W`` in [0, 1], rounded to 8 bits, halves to even levels."""
    return _from_levels((pixels.clamp(0, 1) * 255).round().to("cpu", torch.uint8))


def _from_levels(levels: Tensor) -> Image.Image:
    """Make a picture of ``C x H x W``, uint8, grey or RGB."""
    picture = levels.permute(1, 2, 0).numpy()
    return Image.fromarray(picture[:, :, 0] if len(levels) == 1 else picture)


def save_completions(
    hidden: Tensor,
    originals: Tensor,
    completions: Tensor,
    nats: Tensor,
    names: Sequence[str],
    path: Path,
    classes: Sequence[Sequence[str]] = (),
) -> None:
    """Write a row for each image: its context, its completions with their nats, and the original.

    Args:
        hidden: the pixels that were completed, ``H x W``, bool; blue in the context.
        originals: ``B x C x H x W`` in [-1, 1].
        completions: ``B x N x C x H x W`` in [-1, 1].
        nats: ``B x N``.
        names: names of the images.
        path: path of the picture.
        classes: of the completions of each image, if they have any.
    """
    colour = torch.tensor(_HOLE_COLOUR).view(3, 1, 1)
    rows = []
    for number, original in enumerate(_to_rgb(originals)):
        name = printable(Path(names[number]).name)
        rows.append([(torch.where(hidden, colour, original), name)])
        captions = [f"{value:.1f} nats" for value in nats[number].tolist()]
        own = classes[number] if classes else ()
        for rank, class_name in enumerate(own[: len(captions)]):
            captions[rank] = f"{printable(class_name)}: {captions[rank]}"
        rows[-1] += zip(_to_rgb(completions[number]), captions, strict=True)
        rows[-1].append((original, "original"))
    _save_captioned(rows, path)


def save_completed_boxes(
    hidden: Tensor,
    originals: Tensor,
    completions: Tensor,
    path: Path,
    first: int = 0,
    nrow: int | None = None,
    padding: int = 2,
) -> int:
    """Write four tiles for each image: context, completion, original, and their difference.

    Args:
        hidden: the pixels that were completed, ``H x W``, bool.
        originals, completions: ``B x C x H x W`` in [-1, 1].
        path: path of the picture.
        first: number of the first image, for the captions.
        nrow: number of tiles in a row; by default, the picture is nearly square.
        padding: number of dots between the tiles.

    Returns:
        The number of dots along the side of a pixel.
    """
    tiles = _to_rgb(completion_tiles(hidden, originals, completions))
    captions = [
        caption
        for number in range(first, first + len(originals))
        for caption in (f"image {number}", "completion", "original", "difference")
    ]
    columns = nrow or 4 * near_square_columns(len(originals), images_wide=4)
    cells = list(zip(tiles, captions, strict=True))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    return _save_captioned(rows, path, padding)


_HOLE_COLOUR = (0.36, 0.51, 0.71)
_SMALLEST_TILE, _GAP, _CAPTION = 96, 6, 18  # dots
_LARGEST_GRID = 4000  # dots; larger only where a pixel has one dot


def what_is_shown(channels: int, num_values: int) -> str | None:
    """What pictures show of images that have more than they can show, in words; None for all."""
    parts = []
    if num_values > 256:
        parts.append("each value rounded to 8 bits")
    if channels not in (1, 3):
        first = "the first channel" if channels == 2 else "the first three channels, as colours,"
        parts.append(f"only {first} of {channels}")
    return " and ".join(parts) or None


def _brightness(images: Tensor) -> Tensor:
    """Convert ``B x C x H x W`` in [-1, 1] to ``B x 1 or 3 x H x W`` in [0, 1]; a new tensor.

    The first channel or the first three are shown.
    """
    shown = images[:, : 3 if images.shape[1] > 2 else 1]
    return (shown.float() + 1) / 2


def _to_rgb(images: Tensor) -> Tensor:
    """Convert ``B x C x H x W`` in [-1, 1] to ``B x 3 x H x W`` in [0, 1]."""
    return _brightness(images).expand(-1, 3, -1, -1)


def _save_captioned(
    rows: Sequence[Sequence[tuple[Tensor, str]]], path: Path, gap: int = _GAP
) -> int:
    """Write rows of tiles, each ``3 x H x W`` in [0, 1], with a line of text below it.

    There are ``gap`` dots between the tiles.

    Returns:
        The number of dots along the side of a pixel.
    """
    _, height, width = rows[0][0][0].shape
    scale = _enlargement(height, width, max(map(len, rows)), len(rows))
    cell_height, cell_width = height * scale + _CAPTION + gap, width * scale + gap
    size = (len(rows) * cell_height + gap, max(map(len, rows)) * cell_width + gap)
    picture = np.full((*size, 3), 255, dtype=np.uint8)
    captions = []
    for i, row in enumerate(rows):
        for j, (tile, caption) in enumerate(row):
            top, left = gap + i * cell_height, gap + j * cell_width
            pixels = (tile * 255).round().byte().permute(1, 2, 0).numpy()
            pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
            picture[top : top + height * scale, left : left + width * scale] = pixels
            captions.append(
                (left + width * scale / 2, top + height * scale + _CAPTION / 2, caption)
            )
    figure = _make_figure(picture)
    characters = max(4, cell_width // 6)
    for x, y, caption in captions:
        figure.text(
            x / size[1],
            1 - y / size[0],
            caption if len(caption) <= characters else caption[: characters - 1] + "…",
            ha="center",
            va="center",
            fontsize=7,
            parse_math=False,
        )
    save_figure(figure, path)
    return scale


def completion_tiles(hidden: Tensor, originals: Tensor, completions: Tensor) -> Tensor:
    """Make four tiles for each image: context, completion, original, and their difference.

    Args:
        hidden: the pixels that were completed, ``H x W``, bool; grey in the context.
        originals, completions: ``B x C x H x W`` in [-1, 1].

    Returns:
        ``4B x C x H x W`` in [-1, 1]; the difference between completion and original is black
        where they agree, and white where one is black and the other white.
    """
    context = torch.where(hidden, torch.zeros_like(originals), originals)
    difference = (completions - originals).abs() - 1
    return torch.stack([context, completions, originals, difference], dim=1).flatten(0, 1)
