"""Generation orders of an image's pixels, and the masks that make a convolution respect one.

An order is an integer array ``(H*W) x 2`` of (row, column), in the order of generation.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "ORDERS",
    "Masks",
    "augment_orders",
    "diagonal_idx",
    "generation_orders",
    "get_generation_order_idx",
    "get_masks",
    "get_unfolded_masks",
    "gilbert2d_idx",
    "hilbert_idx",
    "kernel_masks",
    "load_order",
    "move_to_end",
    "random_idx",
    "raster_scan_idx",
    "reflect_all",
    "reflect_cols",
    "reflect_rows",
    "s_curve_center_quarter_last_idx",
    "s_curve_idx",
    "spiral_in_idx",
    "spiral_out_idx",
    "transpose",
    "zipper_idx",
]


def raster_scan_idx(rows: int, cols: int) -> np.ndarray:
    """Row by row, each from left to right: ``(rows*cols) x 2``, int64, as for all families.

    Raises:
        ValueError: the image has no pixels.
    """
    _check_size(rows, cols)
    return np.stack(np.divmod(np.arange(rows * cols), cols), axis=1)


def s_curve_idx(rows: int, cols: int) -> np.ndarray:
    """Row by row, even rows from left to right, odd rows from right to left (paper, figure 1)."""
    order = raster_scan_idx(rows, cols)
    odd = order[:, 0] % 2 == 1
    order[odd, 1] = cols - 1 - order[odd, 1]
    return order


def hilbert_idx(rows: int, cols: int) -> np.ndarray:
    """The Hilbert curve.

    Raises:
        ValueError: the image is not square, or its size is not a power of two.
    """
    _check_size(rows, cols)
    if rows != cols or rows & (rows - 1):
        raise ValueError(
            f"`order` hilbert needs a square power-of-two image, got {rows}x{cols}: try gilbert2d"
        )
    curve, size = np.zeros((1, 2), dtype=np.int64), 1
    while size < rows:
        # The first and last quadrants are mirrored, so that the four pieces join end to start.
        first, last = curve[:, ::-1], (size - 1) - curve[:, ::-1]
        offsets = np.array([[0, 0], [0, size], [size, size], [size, 0]])
        pieces = (first, curve, curve, last)
        curve = np.concatenate(
            [piece + offset for piece, offset in zip(pieces, offsets, strict=True)]
        )
        size *= 2
    return transpose(curve)  # as published: 8 x 8 starts downwards


def gilbert2d_idx(rows: int, cols: int) -> np.ndarray:
    """The Hilbert curve generalised to any rectangle (Cerveny 2018).

    Successive pixels share an edge, except for one diagonal step if the longer side is odd and the
    shorter side is even.

    Raises:
        ValueError: the image has no pixels.
    """
    _check_size(rows, cols)

    @cache  # blocks of the same size and direction recur
    def curve(along: int, across: int) -> np.ndarray:
        """Fill a block from (0, 0) to the far end of ``along``; positions are (along, across).

        The signs of the two lengths give the directions.
        """
        length, width = abs(along), abs(across)
        step_along, step_across = np.sign(along), np.sign(across)
        if width == 1 or length == 1:
            steps = np.arange(length * width)[:, None]
            return steps * ((step_along, 0) if width == 1 else (0, step_across))
        half_along, half_across = along // 2, across // 2
        if 2 * length > 3 * width:
            if half_along % 2 and length > 2:  # even halves keep the curve free of diagonals
                half_along += step_along
            halves = curve(half_along, across), curve(along - half_along, across)
            return np.concatenate([halves[0], halves[1] + np.array([half_along, 0])])
        if half_across % 2 and width > 2:
            half_across += step_across
        out = curve(half_across, half_along)[:, ::-1]
        over = curve(along, across - half_across) + np.array([0, half_across])
        back = curve(-half_across, half_along - along)[:, ::-1]
        corner = np.array([along - step_along, half_across - step_across])
        return np.concatenate([out, over, back + corner])

    return curve(rows, cols) if rows >= cols else transpose(curve(cols, rows))


def s_curve_center_quarter_last_idx(rows: int, cols: int) -> np.ndarray:
    """The S-curve with the centre block, half as high and half as wide as the image, moved last."""
    block_rows = np.arange(rows // 4, rows - rows // 4)
    block_cols = np.arange(cols // 4, cols - cols // 4)
    block = np.stack(np.meshgrid(block_rows, block_cols, indexing="ij"), axis=-1).reshape(-1, 2)
    return move_to_end(s_curve_idx(rows, cols), block)


def diagonal_idx(rows: int, cols: int) -> np.ndarray:
    """Diagonal by diagonal from top left to bottom right, each from its upper right end."""
    order = raster_scan_idx(rows, cols)
    return order[np.lexsort((order[:, 0], order.sum(axis=1)))]


def spiral_in_idx(rows: int, cols: int) -> np.ndarray:
    """Clockwise along the border from the top left corner, then along each ring inside it."""
    order = raster_scan_idx(rows, cols)
    row, col = order.T
    ring = np.minimum(np.minimum(row, rows - 1 - row), np.minimum(col, cols - 1 - col))
    # The pixel as seen from its ring's top left corner, and from there to the bottom right one.
    down, right, height, width = row - ring, col - ring, rows - 1 - 2 * ring, cols - 1 - 2 * ring
    along = np.select(
        [down == 0, right == width, down == height],
        [right, width + down, 2 * width + height - right],
        2 * (width + height) - down,
    )
    return order[np.lexsort((along, ring))]


def spiral_out_idx(rows: int, cols: int) -> np.ndarray:
    """``spiral_in_idx`` backwards: from the centre to the border."""
    return spiral_in_idx(rows, cols)[::-1].copy()


def zipper_idx(rows: int, cols: int) -> np.ndarray:
    """Pairs of rows from the top and bottom edges inwards; in each, even columns, then odd ones.

    With kernels of size 3, each pair of rows takes two sampling steps: a pixel in an even column
    sees the row before it, and one in an odd column also sees its neighbours on both sides.
    """
    order = raster_scan_idx(rows, cols)
    row, col = order.T
    return order[np.lexsort((col, row, col % 2, np.minimum(row, rows - 1 - row)))]


def random_idx(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """All pixels shuffled; a seed gives the same order on every machine."""
    # NumPy guarantees the same numbers only for this old generator.
    shuffled = np.random.RandomState(seed % 2**32).permutation(rows * cols)
    return raster_scan_idx(rows, cols)[shuffled]


def load_order(path: str | Path, rows: int, cols: int) -> np.ndarray:
    """An order from an ``.npy`` file: ``(H*W) x 2`` of (row, column), or H*W row-major positions.

    Raises:
        ValueError: the file cannot be read, or does not hold an order for this image size.
    """
    remedy = "save one with numpy.save, H*W x 2 or H*W"
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("it is not a regular file")  # a pipe would be waited for
        # Mapped, since an array of another size could be of any size.
        order = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(order, np.ndarray):
            raise ValueError("it holds several arrays")
    except Exception as error:  # the reader may raise almost anything on a damaged file
        reason = " ".join(str(error).split())
        raise ValueError(
            f"`order_file` {path} cannot be read as an array ({reason}): {remedy}"
        ) from error
    try:
        if order.shape == (rows * cols,) and order.dtype.kind in "iu":
            order = np.stack(np.divmod(order.astype(np.int64), cols), axis=1)
        return np.array(_check_order(order, rows, cols))
    except ValueError as error:
        raise ValueError(f"`order_file` {path}: {error}; {remedy}") from error


_FAMILIES: dict[str, Callable[[int, int], np.ndarray]] = {
    "raster_scan": raster_scan_idx,
    "s_curve": s_curve_idx,
    "hilbert": hilbert_idx,
    "gilbert2d": gilbert2d_idx,
    "s_curve_center_quarter_last": s_curve_center_quarter_last_idx,
    "diagonal": diagonal_idx,
    "spiral_in": spiral_in_idx,
    "spiral_out": spiral_out_idx,
    "zipper": zipper_idx,
    "random": random_idx,
}
ORDERS = tuple(_FAMILIES)


def get_generation_order_idx(order: str, rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """The order of a family (one of ``ORDERS``) for an image of rows x cols.

    Args:
        order: the family.
        rows, cols: size of the image.
        seed: seed of the family ``random``.

    Raises:
        ValueError: the family is unknown, or does not exist at this size.
    """
    if order not in _FAMILIES:
        raise ValueError(f"unknown order {order!r}: choose one of {', '.join(ORDERS)}")
    return random_idx(rows, cols, seed) if order == "random" else _FAMILIES[order](rows, cols)


def reflect_rows(order: np.ndarray, obs: tuple[int, int, int]) -> np.ndarray:
    """Turn an order of a (C, H, W) image upside down."""
    return order * np.array([-1, 1]) + np.array([obs[1] - 1, 0])


def reflect_cols(order: np.ndarray, obs: tuple[int, int, int]) -> np.ndarray:
    """Mirror an order of a (C, H, W) image left to right."""
    return order * np.array([1, -1]) + np.array([0, obs[2] - 1])


def reflect_all(order: np.ndarray, obs: tuple[int, int, int]) -> np.ndarray:
    """Turn an order of a (C, H, W) image by 180 degrees."""
    return reflect_cols(reflect_rows(order, obs), obs)


def transpose(order: np.ndarray) -> np.ndarray:
    """Exchange rows and columns: an order of H x W becomes one of W x H."""
    return order[:, ::-1].copy()


def _reflections(order: np.ndarray, obs: tuple[int, int, int]) -> list[np.ndarray]:
    changes = (reflect_rows, reflect_cols, reflect_all)
    return [order, *(change(order, obs) for change in changes)]


def augment_orders(order: np.ndarray, obs: tuple[int, int, int]) -> list[np.ndarray]:
    """The symmetric variants of an order of a (C, H, W) image, by index.

    Variants 0-3: the order itself, rows reflected, columns reflected, both. Variants 4-7: the same
    four of the transposed order. It does not fit an image that is not square, so only variants 0-3
    exist there (``generation_orders`` makes all 8 from the family).
    """
    variants = _reflections(order, obs)
    return variants + _reflections(transpose(order), obs) if obs[1] == obs[2] else variants


def generation_orders(
    families: Sequence[str],
    obs: tuple[int, int, int],
    *,
    all_variants: bool,
    variants: Sequence[int] | None = None,
    base_transpose: bool = False,
    base_reflect_rows: bool = False,
    base_reflect_cols: bool = False,
    own: Sequence[Sequence[int]] = (),
    seed: int = 0,
) -> list[np.ndarray]:
    """The orders that the command line describes, for one image size.

    Args:
        families: names from ``ORDERS``.
        obs: (C, H, W) of the image.
        all_variants: make 8 variants of each family, at index 8 * family + variant, not one order.
        variants: keep only these indices of the list.
        base_transpose, base_reflect_rows, base_reflect_cols: changes to each family's order, in
            this sequence, before its variants are made. Variant 4 of a transposed base is thus
            the family's own order again.
        own: custom orders, which count as further families: the number of each pixel, counted row
            by row, in the order of generation.
        seed: seed of the family ``random``.

    For each transposition, the family's order is made for an image with its sides swapped: on
    H x W, variants 4-7 come from the base of the W x H image, and a transposed base comes from the
    family's order of the transposed image. So all 8 variants exist, and each fills its image, even
    if H != W. On a square image they are ``augment_orders`` of the base.

    Returns:
        Orders, each ``(H*W) x 2``.

    Raises:
        ValueError: a family is unknown or does not exist at this size, a custom order is for
            another size, or an index is out of range.
    """
    _, height, width = obs
    if own and height != width and (all_variants or base_transpose):
        raise ValueError(
            f"`order_file` has no transposed variants of a {height}x{width} image: leave out "
            "`randomize_order` and `base_order_transpose`"
        )
    makers: list[Callable[[int, int], np.ndarray]] = [
        *(partial(get_generation_order_idx, family, seed=seed) for family in families),
        *(partial(_own_order, order) for order in own),
    ]

    def base(make: Callable[[int, int], np.ndarray], transposed: bool) -> np.ndarray:
        """The base order of the image or of the transposed image, each at its own size."""
        rows, cols = (width, height) if transposed else (height, width)
        order = transpose(make(cols, rows)) if base_transpose else make(rows, cols)
        if base_reflect_rows:
            order = reflect_rows(order, (1, rows, cols))
        return reflect_cols(order, (1, rows, cols)) if base_reflect_cols else order

    orders = []
    for make in makers:
        order = base(make, transposed=False)
        if all_variants:
            orders += _reflections(order, obs)
            orders += _reflections(transpose(base(make, transposed=True)), obs)
        else:
            orders.append(order)
    for index in variants or ():
        if not 0 <= index < len(orders):
            raise ValueError(
                f"`order_variants` {index} is out of range: there are {len(orders)} orders, "
                f"0 to {len(orders) - 1}"
            )
    return orders if variants is None else [orders[index] for index in variants]


def _own_order(pixels: Sequence[int], rows: int, cols: int) -> np.ndarray:
    order = np.stack(np.divmod(np.array(pixels, dtype=np.int64), cols), axis=1)
    return _check_order(order, rows, cols)


def move_to_end(order: np.ndarray, coords: np.ndarray) -> np.ndarray:
    """Generate some pixels last; both parts keep their order.

    Args:
        order: ``(H*W) x 2``.
        coords: ``M x 2``, (row, column) of the pixels to move.

    Raises:
        ValueError: one of the pixels is not in the order.
    """
    coords = _check_coords(coords)
    width = max(order[:, 1].max(initial=0), coords[:, 1].max(initial=0)) + 1
    moved = np.isin(order @ [width, 1], coords @ [width, 1])
    missing = ~np.isin(coords @ [width, 1], order @ [width, 1]) | (coords < 0).any(axis=1)
    if missing.any():
        raise ValueError(f"pixel {tuple(coords[missing][0].tolist())} is not in the order")
    return np.concatenate([order[~moved], order[moved]])


def kernel_masks(
    order: np.ndarray,
    nrows: int,
    ncols: int,
    k: int = 3,
    dilation: int = 1,
    mask_type: str = "B",
    set_padding: float = 0,
    observed_idx: np.ndarray | None = None,
) -> Tensor:
    """Which taps of a k x k kernel may be used at each pixel (paper, section 4.1).

    A tap is on where its pixel comes earlier in the order or is observed.

    Args:
        order: ``(H*W) x 2``, a permutation of the image's pixels.
        nrows, ncols: size of the image.
        k: odd size of the kernel.
        dilation: distance between neighbouring taps.
        mask_type: ``A`` hides the centre tap, ``B`` shows it.
        set_padding: value of the taps outside the image.
        observed_idx: ``M x 2``, (row, column) of pixels that all others see from the start. Even
            there the centre tap follows ``mask_type``: a pixel is not given to its own prediction.

    Returns:
        ``(H*W) x k x k``, float32, pixels row-major.

    Raises:
        ValueError: the order is not a permutation, a pixel is outside the image, the kernel size is
            not odd and positive, the dilation is below 1, or the type is unknown.
    """
    if k < 1 or k % 2 == 0:
        raise ValueError(f"the kernel size must be odd, so that it has a centre, got {k}")
    if dilation < 1:
        raise ValueError(f"the dilation must be at least 1, got {dilation}")
    if mask_type not in ("A", "B"):
        raise ValueError(f"mask_type must be A or B, got {mask_type!r}")
    order = _check_order(order, nrows, ncols)
    rank = np.empty((nrows, ncols), dtype=np.int64)
    rank[order[:, 0], order[:, 1]] = np.arange(nrows * ncols)
    neighbour_rank = rank.copy()
    if observed_idx is not None:
        observed = _check_inside(observed_idx, nrows, ncols)
        neighbour_rank[observed[:, 0], observed[:, 1]] = -1
    reach = dilation * (k // 2)
    # One window of the padded image for each pixel, all at once: H x W x k x k.
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(neighbour_rank, reach, constant_values=nrows * ncols),
        (2 * reach + 1, 2 * reach + 1),
    )[:, :, ::dilation, ::dilation]
    masks = (windows < rank[:, :, None, None]).astype(np.float32)
    if set_padding != 0:
        masks[windows == nrows * ncols] = set_padding
    masks[:, :, k // 2, k // 2] = 0 if mask_type == "A" else 1
    return torch.from_numpy(masks.reshape(nrows * ncols, k, k))


def get_unfolded_masks(
    order: np.ndarray,
    nrows: int,
    ncols: int,
    k: int = 3,
    dilation: int = 1,
    mask_type: str = "B",
    set_padding: float = 0,
    observed_idx: np.ndarray | None = None,
) -> Tensor:
    """``kernel_masks`` as the layer takes them: ``1 x k*k x (H*W)``, float32."""
    masks = kernel_masks(order, nrows, ncols, k, dilation, mask_type, set_padding, observed_idx)
    return masks.flatten(1).t().contiguous().unsqueeze(0)


class Masks(NamedTuple):
    """The masks of one order that a network needs, each ``1 x k*k x (H*W)``.

    ``init`` is of type A, for the first layer; ``undilated`` and ``dilated`` are of type B.
    """

    init: Tensor
    undilated: Tensor
    dilated: Tensor

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Masks":
        """The masks on another device or in another dtype."""
        return Masks(*(mask.to(device=device, dtype=dtype) for mask in self))


def get_masks(
    order: np.ndarray,
    nrows: int,
    ncols: int,
    k: int = 3,
    max_dilation: int = 1,
    observed_idx: np.ndarray | None = None,
) -> Masks:
    """All the masks that a network needs to generate in an order; see ``kernel_masks``."""

    def unfolded(dilation: int, mask_type: str) -> Tensor:
        return get_unfolded_masks(
            order, nrows, ncols, k, dilation, mask_type, observed_idx=observed_idx
        )

    return Masks(unfolded(1, "A"), unfolded(1, "B"), unfolded(max_dilation, "B"))


def _check_size(rows: int, cols: int) -> None:
    if rows < 1 or cols < 1:
        raise ValueError(f"an image needs at least one row and one column, got {rows}x{cols}")


def _check_coords(coords: np.ndarray) -> np.ndarray:
    coords = np.asarray(coords)
    if coords.size == 0:
        return np.empty((0, 2), dtype=np.int64)
    if coords.ndim != 2 or coords.shape[1] != 2 or coords.dtype.kind not in "iu":
        raise ValueError(
            "pixels must be an integer array of (row, column), M x 2, got "
            f"{coords.dtype} of shape {coords.shape}"
        )
    return coords.astype(np.int64)


def _check_inside(coords: np.ndarray, rows: int, cols: int) -> np.ndarray:
    coords = _check_coords(coords)
    outside = ((coords < 0) | (coords >= (rows, cols))).any(axis=1)
    if outside.any():
        pixel = tuple(coords[outside][0].tolist())
        raise ValueError(f"pixel {pixel} is outside the {rows}x{cols} image")
    return coords


def _check_order(order: np.ndarray, rows: int, cols: int) -> np.ndarray:
    _check_size(rows, cols)
    if np.shape(order) != (rows * cols, 2):
        raise ValueError(
            f"an order of a {rows}x{cols} image must be {rows * cols} x 2, got {np.shape(order)}"
        )
    order = _check_inside(order, rows, cols)
    if len(np.unique(order @ [cols, 1])) != len(order):
        raise ValueError("an order is a permutation, but this one visits some pixel twice")
    return order
