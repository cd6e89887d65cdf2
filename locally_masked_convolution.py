"""Locally masked convolution: a kernel whose taps are switched on or off at every position.

**This file depends only on PyTorch: copy it into your project.** (Jain, Abbeel and Pathak,
"Locally Masked Convolution for Autoregressive Models", UAI 2020.)

Use it where you would use ``torch.nn.Conv2d``, with a mask as the second argument::

    layer = LocallyMaskedConv2d(in_channels=64, out_channels=64, kernel_size=3)
    mask = (torch.rand(1, 3 * 3, 28 * 28) < 0.5).float()  # 1 x taps x positions, both row-major
    out = layer(x, mask)  # B x 64 x 28 x 28

The idea. A tap that is off costs nothing if it is never computed, and in an autoregressive model
about half of the taps are off. The usual formula copies every patch and multiplies it by the mask
and by the kernel: all of the arithmetic and k*k times the memory (``patch_matrix_convolution``,
kept as the definition). Here each path computes the active taps, and hardly any other:

1. ``masked_convolution`` (the operator, with its gradients) looks up what is known about the mask.
2. ``_MaskPlan`` holds that, once for each mask, for as long as the mask lives: which taps are on,
   and what the paths below derive from it. The input's gradient is the same operator, with the
   mask seen from the other end of each tap (``_MaskPlan.transposed``) and the kernel flipped.
3. *Regular* masks are the same in every row, in every second row, or in every second column (raster
   and S-curve orders). They become a few ordinary convolutions, with the rows and columns of the
   kernel that are off cut away: ``_convolve_regular``.
4. *Any other* mask (Hilbert curves, completion orders, random or float masks, a mask per image):
   gather the input rows of the active (tap, position) pairs, multiply the rows of each tap by its
   matrix, and sum the products at each position. This runs tile by tile, so that it all stays in
   the cache: ``_convolve_gathered``.
5. In bfloat16 on a CPU, for 0/1 masks that all images share: positions with about the same taps on
   form a group. What they read is gathered, with zeros for a tap that is off, and multiplied by the
   kernel's matrices in one product; likewise for the gradients: ``_convolve_grouped``.
   Each new size of such a product would be compiled, so sizes are rounded up to few.
6. On a GPU of compute capability 8.0 or more, with Triton, in at most 32 bits, for 0/1 masks: one
   kernel reads the mask as bits. It visits positions sorted by their bits, so that a block skips
   the taps that are off at all of its positions: ``_convolve_triton``.

Notes. Images are channels-last inside, and so is the output: a network that stays channels-last
never copies them. Any 0/1 mask works, whatever its dtype. A mask may also have other real values,
which scale their taps (path 4). Masks are constants: no gradient flows to them. A mask that is
changed in place is noticed; a mask that is made anew for each call is analysed anew each time.
Gradients of any order are exact. In half precision, products are computed in half precision, and
summed in float32 over a kernel row, a tap or all taps where the underlying library does so; the
sums of up to 16,384 pairs of positions and taps are rounded before they are added up.
"""

import math
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "LocallyMaskedConv2d",
    "locally_masked_conv2d",
    "masked_convolution",
    "patch_matrix_convolution",
]


class LocallyMaskedConv2d(nn.Module):
    """Convolve with a kernel that is masked at each position (Jain et al., UAI 2020, section 4).

    ``out[b, o, p] = bias[o] + sum_{c,k} weight[o, c, k] mask[k, p] x[b, c, p + offset_k]``, plus
    ``sum_k mask_weight[o, k] mask[k, p]`` when the layer has weights for the mask itself. Stride 1;
    zero padding keeps the size. Taps are cross-correlation taps, as in ``torch.nn.Conv2d``.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: one odd number, or (rows, columns), both odd.
        dilation: distance between neighbouring taps, at least 1.
        bias: learn one additive constant for each output channel.
        mask_weight: learn weights for the mask, as if it were one more input channel.

    Raises:
        ValueError: the kernel size is not odd and positive, or the dilation is below 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = (3, 3),
        dilation: int = 1,
        bias: bool = True,
        mask_weight: bool = False,
    ) -> None:
        super().__init__()
        rows, cols = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if rows < 1 or cols < 1 or rows % 2 == 0 or cols % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that it has a centre, got {rows}x{cols}")
        if dilation < 1:
            raise ValueError(f"dilation must be at least 1, got {dilation}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = (rows, cols)
        self.dilation = dilation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, rows, cols))
        # Registered between weight and bias: optimizers of published checkpoints rely on that.
        self.mask_weight: nn.Parameter | None = None
        if mask_weight:
            self.mask_weight = nn.Parameter(torch.empty(out_channels, rows, cols))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters as ``torch.nn.Conv2d`` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.mask_weight is not None:
            nn.init.kaiming_uniform_(self.mask_weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: input, ``B x C_in x H x W``.
            mask: 0/1, ``1 x k*k x (H*W)`` for the whole batch or ``B x k*k x (H*W)``, one for each
                image. Taps and positions are row-major. Any real dtype; other values scale taps.

        Returns:
            ``B x C_out x H x W``, in the dtype of ``x`` or of the enclosing autocast region.

        Raises:
            ValueError: the input or the mask does not have the shape above, the two are on
                different devices, or the mask is complex.
        """
        self._check_inputs(x, mask)
        weight: Tensor = self.weight
        if torch.is_autocast_enabled(x.device.type):
            dtype = self.computation_dtype(x)
            x, weight = x.to(dtype), weight.to(dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        convolve = masked_convolution if _needs_operator(x) else _masked_convolution
        out = convolve(x, weight, bias, mask, self.dilation)
        if self.mask_weight is not None:
            out = out + self.mask_term(mask, x.dtype).unflatten(2, x.shape[2:])
        return out

    def computation_dtype(self, x: Tensor) -> torch.dtype:
        """The dtype that the layer multiplies in: the input's, or that of an autocast region."""
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            return torch.get_autocast_dtype(x.device.type)
        return x.dtype

    def mask_term(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """What the weights for the mask add to the output: ``M x C_out x positions``.

        Only for a layer with ``mask_weight``. The mask is ``M x k*k x positions``, for any set of
        positions.
        """
        assert self.mask_weight is not None
        return self.mask_weight.flatten(1).to(dtype) @ mask.to(dtype)

    def _check_inputs(self, x: Tensor, mask: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"the input must be B x {self.in_channels} x H x W, got {tuple(x.shape)}"
            )
        if not isinstance(mask, Tensor):
            raise ValueError(f"the mask must be a tensor, got {type(mask).__name__}")
        taps = self.kernel_size[0] * self.kernel_size[1]
        positions = x.shape[2] * x.shape[3]
        expected = [(1, taps, positions), (x.shape[0], taps, positions)]
        if tuple(mask.shape) not in expected:
            raise ValueError(
                f"the mask must be 1 x {taps} x {positions} or {x.shape[0]} x {taps} x {positions} "
                f"for an input of {x.shape[2]}x{x.shape[3]}, got {tuple(mask.shape)}"
            )
        if mask.device != x.device:
            raise ValueError(
                f"the mask is on {mask.device} and the input on {x.device}: "
                f"move it once with mask.to({str(x.device)!r})"
            )
        if mask.is_complex():
            raise ValueError(f"the mask must be real, got {mask.dtype}")

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"dilation={self.dilation}, bias={self.bias is not None}, "
            f"mask_weight={self.mask_weight is not None}"
        )


# The name of the layer in the published code.
locally_masked_conv2d = LocallyMaskedConv2d


def _masked_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    dilation: int = 1,
    transposed: bool = False,
) -> Tensor:
    """Convolve, using at each position only the taps that the mask leaves on.

    Args:
        x: ``B x C_in x H x W``, in any memory layout; channels-last needs no copy.
        weight: ``C_out x C_in x rows x cols``, in the dtype of ``x``.
        bias: ``C_out`` in the dtype of ``x``, or None.
        mask: ``1 x rows*cols x H*W`` or ``B x rows*cols x H*W``.
        dilation: distance between neighbouring taps.
        transposed: apply the adjoint of the (linear) operator instead: from ``B x C_out x H x W``
            to ``B x C_in x H x W``. This is the gradient with respect to the input.

    Returns:
        ``B x C_out x H x W``, channels-last.
    """
    plan = _plan(mask, weight.shape[2:], dilation, x.shape[2:])
    if transposed:
        plan, weight = plan.transposed, weight.flip(2, 3).transpose(0, 1)
    out = _empty_output(x, weight.shape[0])
    x = x.contiguous(memory_format=torch.channels_last)
    if _can_use_triton(x, plan):
        _convolve_triton(x, weight, bias, plan, out)
    elif _can_use_groups(x, plan):
        _convolve_grouped(x, weight, bias, plan, out)
    elif plan.pieces is not None:
        _convolve_regular(x, weight, bias, plan, out)
    else:
        _convolve_gathered(x, weight, bias, plan, out)
    return out


# The same function as a PyTorch operator, which has gradients and can be compiled.
masked_convolution = torch.library.custom_op(
    "lmconv::masked_convolution", _masked_convolution, mutates_args=()
)


def _needs_operator(x: Tensor) -> bool:
    """Whether the call needs gradients, is being compiled, or works on shapes alone.

    Otherwise the plain function is enough. It saves time: when an operator is first called, PyTorch
    imports its compiler, which takes more than a second.
    """
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or x.is_meta


def patch_matrix_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, dilation: int = 1
) -> Tensor:
    """``masked_convolution`` computed from its definition: slow, with every patch in memory.

    Use it to check the layer, or to see what the layer saves. Arguments and values are the same,
    but for ``transposed``, which it does not take.
    """
    batch, _, height, width = x.shape
    rows, cols = weight.shape[2:]
    padding = (dilation * (rows // 2), dilation * (cols // 2))
    # 1. Every patch: B x C_in x k*k x H*W.
    patches = F.unfold(x, (rows, cols), dilation=dilation, padding=padding)
    patches = patches.unflatten(1, (-1, rows * cols))
    # 2. Mask its taps.
    patches = patches * mask.unsqueeze(1).to(x.dtype)
    # 3. Multiply by the kernel as one matrix, and add the bias: B x C_out x H x W.
    out = weight.flatten(1) @ patches.flatten(1, 2)
    out = out if bias is None else out + bias.unsqueeze(1)
    return out.view(batch, len(weight), height, width)


def _masked_weight_gradient(
    x: Tensor, grad: Tensor, mask: Tensor, rows: int, cols: int, dilation: int
) -> Tensor:
    """The gradient with respect to the weight: ``C_out x C_in x rows x cols``.

    ``x`` is the input of ``masked_convolution``, ``B x C_in x H x W``, and ``grad`` the gradient of
    its output, ``B x C_out x H x W``.
    """
    plan = _plan(mask, (rows, cols), dilation, x.shape[2:])
    x = x.contiguous(memory_format=torch.channels_last)
    grad = grad.contiguous(memory_format=torch.channels_last)
    shape = (grad.shape[1], x.shape[1], rows, cols)
    # A sum over all positions of all images loses digits in half precision.
    total = torch.zeros(shape, dtype=_sum_dtype(x.dtype), device=x.device)
    if _can_use_triton(x, plan):
        _weight_gradient_triton(x, grad, plan, total)
    elif _can_use_groups(x, plan):
        _gradients_grouped(x, grad, plan, total)
    elif plan.pieces is not None:
        _weight_gradient_regular(x, grad, plan, total)
    else:
        _weight_gradient_gathered(x, grad, plan, total)
    return total.to(x.dtype)


masked_weight_gradient = torch.library.custom_op(
    "lmconv::masked_weight_gradient", _masked_weight_gradient, mutates_args=()
)


@torch.library.custom_op("lmconv::masked_gradients", mutates_args=())
def masked_gradients(
    x: Tensor, grad: Tensor, weight: Tensor, mask: Tensor, dilation: int
) -> tuple[Tensor, Tensor]:
    """The gradients of ``masked_convolution`` with respect to the input and to the weight."""
    plan = _plan(mask, weight.shape[2:], dilation, x.shape[2:])
    if not _can_use_groups(x, plan):
        grad_x = _masked_convolution(grad, weight, None, mask, dilation, transposed=True)
        rows, cols = weight.shape[2:]
        return grad_x, _masked_weight_gradient(x, grad, mask, rows, cols, dilation)
    x = x.contiguous(memory_format=torch.channels_last)
    grad = grad.contiguous(memory_format=torch.channels_last)
    grad_x = _empty_output(x, x.shape[1])
    total = torch.zeros(weight.shape, dtype=_sum_dtype(x.dtype), device=x.device)
    _gradients_grouped(x, grad, plan, total, weight, grad_x)
    return grad_x, total.to(x.dtype)


@masked_convolution.register_fake
def _(x, weight, bias, mask, dilation=1, transposed=False):  # type: ignore[no-untyped-def]
    return _empty_output(x, weight.shape[1 if transposed else 0])


@masked_weight_gradient.register_fake
def _(x, grad, mask, rows, cols, dilation):  # type: ignore[no-untyped-def]
    return x.new_empty(grad.shape[1], x.shape[1], rows, cols)


@masked_gradients.register_fake
def _(x, grad, weight, mask, dilation):  # type: ignore[no-untyped-def]
    return _empty_output(x, x.shape[1]), weight.new_empty(weight.shape)


def _save_convolution(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, _, mask, ctx.dilation, ctx.transposed = inputs
    ctx.save_for_backward(x, weight, mask)


def _convolution_gradients(ctx, grad):  # type: ignore[no-untyped-def]
    x, weight, mask = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    grad_x = grad_weight = None
    if needs_x and needs_weight and not ctx.transposed:
        grad_x, grad_weight = masked_gradients(x, grad, weight, mask, ctx.dilation)
    elif needs_x:
        grad_x = masked_convolution(grad, weight, None, mask, ctx.dilation, not ctx.transposed)
    if needs_weight and grad_weight is None:
        ends = (grad, x) if ctx.transposed else (x, grad)
        grad_weight = masked_weight_gradient(*ends, mask, *weight.shape[2:], ctx.dilation)
    grad_bias = grad.sum((0, 2, 3)) if needs_bias else None
    return grad_x, grad_weight, grad_bias, None, None, None


def _save_weight_gradient(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, grad, mask, *_, ctx.dilation = inputs
    ctx.save_for_backward(x, grad, mask)


def _weight_gradient_gradients(ctx, grad_weight):  # type: ignore[no-untyped-def]
    x, grad, mask = ctx.saved_tensors
    convolve = partial(masked_convolution, weight=grad_weight, bias=None, mask=mask)
    grad_x = grad_grad = None
    if ctx.needs_input_grad[0]:
        grad_x = convolve(x=grad, dilation=ctx.dilation, transposed=True)
    if ctx.needs_input_grad[1]:
        grad_grad = convolve(x=x, dilation=ctx.dilation)
    return grad_x, grad_grad, None, None, None, None


def _save_gradients(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, grad, weight, mask, ctx.dilation = inputs
    ctx.save_for_backward(x, grad, weight, mask)


def _gradients_gradients(ctx, grad_x, grad_weight):  # type: ignore[no-untyped-def]
    x, grad, weight, mask = ctx.saved_tensors
    needs_x, needs_grad, needs_weight = ctx.needs_input_grad[:3]
    convolve = partial(masked_convolution, bias=None, mask=mask, dilation=ctx.dilation)
    to_x = to_grad = to_weight = None
    if needs_x:
        to_x = convolve(grad, grad_weight, transposed=True)
    if needs_grad:
        to_grad = convolve(grad_x, weight) + convolve(x, grad_weight)
    if needs_weight:
        to_weight = masked_weight_gradient(grad_x, grad, mask, *weight.shape[2:], ctx.dilation)
    return to_x, to_grad, to_weight, None, None


masked_convolution.register_autograd(_convolution_gradients, setup_context=_save_convolution)
masked_weight_gradient.register_autograd(
    _weight_gradient_gradients, setup_context=_save_weight_gradient
)
masked_gradients.register_autograd(_gradients_gradients, setup_context=_save_gradients)


def _empty_output(x: Tensor, channels: int) -> Tensor:
    shape = (x.shape[0], channels, x.shape[2], x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


# --- What is derived from a mask, once ---------------------------------------------------------


class _Piece(NamedTuple):
    """A rectangle of the kernel that is on at all positions of a lattice."""

    rows: tuple[int, int]  # of the kernel: first, end
    cols: tuple[int, int]
    row_lattice: slice  # of the image: every row, or every second one
    col_lattice: slice


class _Pairs(NamedTuple):
    """The positions of a tile at which one tap is on."""

    tap: int
    first: int  # of them among the pairs of the tile
    source: Tensor  # for each, the row of the input that it reads
    destination: Tensor  # and the row of the output that it adds to
    scale: Tensor | None  # and the value of the mask, or None for a 0/1 mask


class _Tile(NamedTuple):
    """The active (tap, position) pairs of consecutive positions in some images, sorted by tap."""

    positions: slice  # of an image
    images: int  # that share the mask; 1 if each has its own: then positions run over all images
    num_pairs: int
    taps: list[_Pairs]
    bags: Tensor  # the pairs sorted by image and position
    bag_offsets: Tensor  # and where the pairs of each position begin


class _Group(NamedTuple):
    """Positions in some images at which about the same taps are on."""

    taps: Tensor
    sources: Tensor  # for each position and tap, the row of the input that is read, or of zeros
    positions: Tensor  # the rows of the output
    first: int  # of them in the output sorted by groups


class _Groups(NamedTuple):
    """All positions of some images."""

    groups: list[_Group]
    places: Tensor  # where each row of the output is in the output sorted by groups
    num_pairs: int  # of positions and taps, also of taps that are off


@dataclass(frozen=True)
class _Geometry:
    """Sizes that determine which pixel a tap reads at a position."""

    rows: int  # of the kernel
    cols: int
    dilation: int
    height: int  # of the image
    width: int

    def offset(self, tap: int) -> tuple[int, int]:
        """(rows, columns) from a position to the pixel under a tap."""
        row, col = divmod(tap, self.cols)
        return (row - self.rows // 2) * self.dilation, (col - self.cols // 2) * self.dilation

    def row_offset(self, tap: int) -> int:
        """The same offset, where the pixels of an image are numbered row by row."""
        down, right = self.offset(tap)
        return down * self.width + right

    @property
    def taps(self) -> int:
        """Number of taps of the kernel."""
        return self.rows * self.cols

    def inside(self, device: torch.device) -> Tensor:
        """Whether the pixel under each tap is inside the image: ``k*k x H x W``."""
        inside = torch.zeros(self.taps, self.height, self.width, dtype=torch.bool)
        for tap in range(len(inside)):
            inside[tap][self.overlap(tap)] = True
        return inside.to(device)

    def overlap(self, tap: int) -> tuple[slice, slice]:
        """The positions whose pixel under a tap is inside the image."""
        down, right = self.offset(tap)
        return _overlap(down, self.height), _overlap(right, self.width)


def _overlap(shift: int, size: int) -> slice:
    return slice(max(0, -shift), max(0, size - max(0, shift)))


class _MaskPlan:
    """A mask in the forms that the paths below need.

    Args:
        values: the mask, ``M x k*k x H x W``, zero where a tap reads outside the image.
        geometry: sizes of the kernel and of the image.
    """

    def __init__(self, values: Tensor, geometry: _Geometry) -> None:
        self.geometry = geometry
        self.is_on = values != 0
        self.values = None if bool((values == self.is_on).all()) else values
        self._tiles: dict[tuple[int, int], list[_Tile]] = {}
        self._groups: dict[int, _Groups] = {}

    @cached_property
    def transposed(self) -> "_MaskPlan":
        """The same taps seen from the pixels that they read; tap ``i`` becomes ``k*k - 1 - i``."""
        geometry = self.geometry
        values = self.is_on if self.values is None else self.values
        turned = torch.zeros_like(values)
        last = values.shape[1] - 1
        for tap in range(last + 1):
            rows, cols = geometry.overlap(tap)
            from_rows, from_cols = geometry.overlap(last - tap)
            turned[:, last - tap, from_rows, from_cols] = values[:, tap, rows, cols]
        # It does not refer back to this plan: a reference cycle would keep both alive after their
        # mask, until the garbage collector runs.
        return _MaskPlan(turned, geometry)

    @cached_property
    def pieces(self) -> list[_Piece] | None:
        """The convolutions that a regular mask amounts to, or None for any other mask."""
        if self.values is not None or len(self.is_on) != 1:
            return None
        geometry = self.geometry
        is_on = self.is_on[0].unflatten(0, (geometry.rows, geometry.cols))
        inside = geometry.inside(is_on.device).unflatten(0, (geometry.rows, geometry.cols))
        for step in (1, 2):
            patterns = _patterns(is_on, inside, step)
            if patterns is not None:
                return _pieces(patterns)
        patterns = _patterns(is_on.mT.transpose(0, 1), inside.mT.transpose(0, 1), 2)
        if patterns is None:
            return None
        return [_Piece(cols, rows, across, down) for rows, cols, down, across in _pieces(patterns)]

    @cached_property
    def offsets(self) -> Tensor:
        """How many rows away each tap reads, in images stored as ``B*H*W x C``."""
        offsets = [self.geometry.row_offset(tap) for tap in range(self.geometry.taps)]
        return torch.tensor(offsets, dtype=torch.int32, device=self.is_on.device)

    @cached_property
    def sorted_positions(self) -> tuple[Tensor, Tensor]:
        """Positions (``M*H*W``, int32) sorted by their bits, and those: bit ``t`` is tap ``t``."""
        by_tap = self.is_on.transpose(0, 1).flatten(1).long()  # k*k x M*H*W
        powers = 2 ** torch.arange(len(by_tap), device=by_tap.device)
        bits, positions = (by_tap * powers[:, None]).sum(0).sort(stable=True)
        return positions.int(), bits

    @cached_property
    def positions_by_tap(self) -> tuple[Tensor, Tensor]:
        """The positions at which tap 0 is on, then tap 1, ..., and where each tap begins, int32."""
        by_tap = self.is_on.transpose(0, 1).flatten(1)
        starts = F.pad(by_tap.sum(1).cumsum(0), (1, 0))
        return by_tap.nonzero()[:, 1].int().contiguous(), starts.int()

    @cached_property
    def num_pairs(self) -> int:
        """Number of active (tap, position) pairs."""
        return int(self.is_on.sum())

    def tiles(self, images: int, most_pairs: int) -> list[_Tile]:
        """The pairs of ``images`` images that share the mask, in tiles of about ``most_pairs``."""
        most_pairs = min(most_pairs, self.num_pairs * images)
        if (images, most_pairs) not in self._tiles:
            self._tiles[images, most_pairs] = list(self._make_tiles(images, most_pairs))
        return self._tiles[images, most_pairs]

    def _make_tiles(self, images: int, most_pairs: int) -> Iterator[_Tile]:
        images = images if len(self.is_on) == 1 else 1
        is_on = self.is_on.transpose(0, 1).flatten(1)  # k*k x H*W, or k*k x M*H*W
        pairs_before = is_on.sum(0).cumsum(0) * images
        tile_of_position = (pairs_before - 1).clamp(min=0) // max(1, most_pairs)
        counts = torch.unique_consecutive(tile_of_position, return_counts=True)[1].tolist()
        start = 0
        for count in counts:
            yield self._make_tile(is_on, slice(start, start + count), images)
            start += count

    def _make_tile(self, is_on: Tensor, positions: slice, images: int) -> _Tile:
        """A tile; what all images share is found once, as training may change its masks often."""
        on = is_on[:, positions].long()
        image = torch.arange(images, device=on.device).unsqueeze(1)
        of_tap, at_position = on.sum(1), on.sum(0)  # how many pairs
        # The pairs are sorted by tap, then image, then position: where are those of a position?
        first_of_tap = (of_tap.cumsum(0) - of_tap) * images
        position, tap = on.t().nonzero(as_tuple=True)
        rows = first_of_tap[tap] + (on.cumsum(1) - on)[tap, position]
        bags = (rows + image * of_tap[tap]).flatten()
        offsets = (at_position.cumsum(0) - at_position + image * len(rows)).flatten()
        pairs = list(self._pairs_by_tap(on, image * is_on.shape[1] + positions.start))
        return _Tile(positions, images, len(bags), pairs, bags, offsets)

    def _pairs_by_tap(self, on: Tensor, first: Tensor) -> Iterator[_Pairs]:
        """The pairs of a tile whose first position has these numbers in its images (``B x 1``)."""
        tap, position = on.nonzero(as_tuple=True)
        taps, counts = torch.unique_consecutive(tap, return_counts=True)
        start = 0
        for index, some in zip(taps.tolist(), position.split(counts.tolist()), strict=True):
            destination = (some + first).flatten()
            source = destination + self.geometry.row_offset(index)
            scale = None
            if self.values is not None:
                by_position = self.values[:, index].flatten()  # M*H*W
                scale = by_position[destination % len(by_position)].unsqueeze(1)
            yield _Pairs(index, start, source, destination, scale)
            start += len(destination)

    def groups(self, images: int) -> _Groups:
        """The positions of ``images`` images that share the mask, by the taps that are on."""
        if images not in self._groups:
            groups = list(self._make_groups(images))
            order = torch.cat([group.positions for group in groups])
            num_pairs = sum(len(group.sources) for group in groups)
            self._groups[images] = _Groups(groups, order.argsort().int(), num_pairs)
        return self._groups[images]

    def _make_groups(self, images: int) -> Iterator[_Group]:
        is_on = self.is_on[0].flatten(1)  # k*k x H*W
        image = torch.arange(images, device=is_on.device).unsqueeze(1) * is_on.shape[1]
        zeros, start = images * is_on.shape[1], 0
        for taps, own in _similar_positions(is_on, max(1, _PAIRS_OF_CALL // images)):
            positions = (image + own).flatten()
            sources = positions.unsqueeze(1) + self.offsets[taps]
            is_read = is_on[taps][:, own].t().repeat(images, 1)
            sources = sources.where(is_read, zeros).int()
            most = max(_FEWEST_ROWS, _PAIRS_OF_PRODUCT // max(1, len(taps)))
            for first in range(0, len(positions), most):
                part = slice(first, first + most)
                yield _Group(taps, sources[part].flatten(), positions[part].int(), start)
                start += len(positions[part])


def _similar_positions(is_on: Tensor, most_pairs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Put positions into groups, so that nearly the same taps are on at all positions of a group.

    Args:
        is_on: for each tap and position, ``k*k x H*W``.
        most_pairs: how many needless (tap, position) pairs cost as much as one more group.

    Yields:
        The taps and the positions of each group.
    """
    powers = 2 ** torch.arange(len(is_on), device=is_on.device)
    bits = (is_on * powers[:, None]).sum(0)
    patterns, pattern_of_position, counts = bits.unique(return_inverse=True, return_counts=True)
    unions, sizes = list[int](), list[int]()  # of the groups: bits, and number of positions
    group_of_pattern = [0] * len(patterns)
    most_frequent = counts.argsort(descending=True).tolist()
    all_bits, all_counts = patterns.tolist(), counts.tolist()
    for index in most_frequent:
        pattern, count = all_bits[index], all_counts[index]
        best, fewest = len(unions), most_pairs
        for group, (union, size) in enumerate(zip(unions, sizes, strict=True)):
            both = (union | pattern).bit_count()
            more = size * (both - union.bit_count()) + count * (both - pattern.bit_count())
            if more < fewest:
                best, fewest = group, more
        if best == len(unions):
            unions.append(0)
            sizes.append(0)
        unions[best] |= pattern
        sizes[best] += count
        group_of_pattern[index] = best
    group_of_position = torch.tensor(group_of_pattern, device=is_on.device)[pattern_of_position]
    for group, union in enumerate(unions):
        taps = (powers & union).nonzero().flatten()
        yield taps, (group_of_position == group).nonzero().flatten()


class _KnownMask:
    """The plans of a mask, and what tells whether it has changed since they were made."""

    def __init__(self, mask: Tensor) -> None:
        self.plans: dict[_Geometry, _MaskPlan] = {}
        # PyTorch counts the changes to a tensor, unless it was made in inference mode.
        self.version = mask.clone() if mask.is_inference() else mask._version

    def is_of(self, mask: Tensor) -> bool:
        if isinstance(self.version, Tensor):
            return torch.equal(self.version, mask)
        return self.version == mask._version


# Tensors compare element by element, so as keys they are compared by identity.
_PLANS = WeakTensorKeyDictionary()


def _plan(mask: Tensor, kernel: tuple[int, ...], dilation: int, size: tuple[int, ...]) -> _MaskPlan:
    """The plan of a mask, made when the mask is first seen and again when it has changed."""
    geometry = _Geometry(kernel[0], kernel[1], dilation, size[0], size[1])
    known = _PLANS.get(mask)
    if known is None or not known.is_of(mask):
        known = _PLANS[mask] = _KnownMask(mask)
    if geometry not in known.plans:
        inside = geometry.inside(mask.device)
        known.plans[geometry] = _MaskPlan(mask.detach().unflatten(2, size) * inside, geometry)
    return known.plans[geometry]


def _patterns(is_on: Tensor, inside: Tensor, step: int) -> Tensor | None:
    """The kernels (``step x rows x cols``) that the rows of an image repeat, or None.

    The kernels may differ only in their middle row.
    """
    patterns = []
    for first in range(step):
        on = is_on[:, :, first::step].sum((2, 3))
        can_be_on = inside[:, :, first::step].sum((2, 3))
        if bool(((on != 0) & (on != can_be_on)).any()):
            return None
        patterns.append(on > 0)
    stacked = torch.stack(patterns).cpu()
    differ = (stacked != stacked[0]).any(0).any(1)  # rows of the kernel
    differ[len(differ) // 2] = False
    return None if bool(differ.any()) else stacked


def _pieces(patterns: Tensor) -> list[_Piece]:
    """Rectangles that cover the kernels: first those for all image rows, then those for some."""
    step, rows = patterns.shape[:2]
    everywhere = slice(None)
    shared, own = [], []
    row = 0
    while row < rows:
        end = row + 1
        if bool((patterns[:, row] == patterns[0, row]).all()):
            while end < rows and bool((patterns[:, end] == patterns[0, row]).all()):
                end += 1
            for cols in _runs(patterns[0, row]):
                shared.append(_Piece((row, end), cols, everywhere, everywhere))
        else:
            for first in range(step):
                for cols in _runs(patterns[first, row]):
                    own.append(_Piece((row, end), cols, slice(first, None, step), everywhere))
        row = end
    return shared + own


def _runs(is_on: Tensor) -> list[tuple[int, int]]:
    """(first, end) of each run of ones."""
    edges = torch.diff(F.pad(is_on.int(), (1, 1))).nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


# --- Regular masks: convolutions with what is off cut away -------------------------------------

# Images are taken in blocks, and pairs in tiles, of about this many values: larger ones drop out of
# the cache between one step and the next, and for smaller ones the calls cost most.
_BLOCK_VALUES = 2**20
_TILE_VALUES = 3 * 2**20


def _convolve_regular(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: _MaskPlan, out: Tensor
) -> None:
    assert plan.pieces is not None
    for images in _image_blocks(x):
        total = out[images]
        total.zero_() if bias is None else total.copy_(bias[:, None, None].expand_as(total))
        for piece in plan.pieces:
            kernel = weight[:, :, slice(*piece.rows), slice(*piece.cols)]
            window = _window(x[images], piece, plan.geometry)
            part = F.conv2d(window, kernel, dilation=plan.geometry.dilation)
            total[:, :, piece.row_lattice, piece.col_lattice] += part


def _weight_gradient_regular(x: Tensor, grad: Tensor, plan: _MaskPlan, total: Tensor) -> None:
    assert plan.pieces is not None
    # Half precision comes here as float16, or with too many taps for groups. In bfloat16, oneDNN's
    # gradient of dilated kernels is wrong for some numbers of channels.
    dtype = _sum_dtype(x.dtype) if x.is_cpu else x.dtype
    for images in _image_blocks(x):
        inputs, grads = x[images].to(dtype), grad[images].to(dtype)
        for piece in plan.pieces:
            kernel = total[:, :, slice(*piece.rows), slice(*piece.cols)]
            window = _window(inputs, piece, plan.geometry)
            part = grads[:, :, piece.row_lattice, piece.col_lattice]
            kernel += conv2d_weight(window, kernel.shape, part, dilation=plan.geometry.dilation)


def _image_blocks(x: Tensor) -> Iterator[slice]:
    count = max(1, _BLOCK_VALUES // max(1, x[:1].numel()))
    return (slice(start, start + count) for start in range(0, len(x), count))


def _window(x: Tensor, piece: _Piece, geometry: _Geometry) -> Tensor:
    """What a piece reads, cut or padded so that an unpadded convolution fits its lattice."""

    def padding(taps: tuple[int, int], size: int) -> tuple[int, int]:
        first, end = taps
        return (size // 2 - first) * geometry.dilation, (end - 1 - size // 2) * geometry.dilation

    # A piece on a lattice of rows has taps only in the kernel's middle row: no rows are shifted.
    x = x[:, :, piece.row_lattice, piece.col_lattice]
    left_right = padding(piece.cols, geometry.cols)
    return F.pad(x, (*left_right, *padding(piece.rows, geometry.rows)))


# --- bfloat16: one product for all positions with about the same taps --------------------------

# The number of (tap, position) pairs whose products take as long as what a group costs by itself.
_PAIRS_OF_CALL = 1024
# How many times as many pairs as are on are still multiplied faster than each tap by itself.
_MOST_WASTE = 1.35
# Pairs of a product, unless these are few rows: what is read is to stay in the cache.
_PAIRS_OF_PRODUCT, _FEWEST_ROWS = 2**14, 256
# Processors with instructions for products in bfloat16 have none for those of other precisions,
# whose convolutions are faster. On other processors bfloat16 is slow on any path.
_GROUPED_DTYPES = (torch.bfloat16,)


def _can_use_groups(x: Tensor, plan: _MaskPlan) -> bool:
    if (
        not x.is_cpu
        or x.dtype not in _GROUPED_DTYPES
        or x.numel() == 0
        or plan.values is not None
        or len(plan.is_on) > 1
        or plan.geometry.taps > _MOST_TAPS
    ):
        return False
    images = len(x[next(_image_blocks(x))])
    return plan.groups(images).num_pairs <= _MOST_WASTE * images * max(1, plan.num_pairs)


def _convolve_grouped(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: _MaskPlan, out: Tensor
) -> None:
    matrices = weight.permute(2, 3, 1, 0).flatten(0, 1)  # k*k x C_in x C_out
    for images in _image_blocks(x):
        groups, places, _ = plan.groups(len(x[images]))
        inputs, out_rows = _rows_and_zeros(x[images]), _as_rows(out[images])
        results = _workspace("results", x, _most_rows(len(out_rows)), out_rows.shape[1])
        for group in groups:
            kernel = matrices.index_select(0, group.taps).flatten(0, 1)  # taps*C_in x C_out
            count = _common_number(x, len(group.positions))
            patches = _gather("inputs", inputs, group.sources, count * len(group.taps))
            patches = patches.view(count, len(kernel))  # positions x taps*C_in
            result = results[group.first : group.first + count]
            if bias is None:
                torch.mm(patches, kernel, out=result)
            else:
                torch.addmm(bias, patches, kernel, out=result)
        torch.index_select(results, 0, places, out=out_rows)


def _gradients_grouped(
    x: Tensor,
    grad: Tensor,
    plan: _MaskPlan,
    total: Tensor,
    weight: Tensor | None = None,
    grad_x: Tensor | None = None,
) -> None:
    """``total`` = the gradient of the weight; given the weight, ``grad_x`` = that of the input."""
    c_out, c_in, rows, cols = total.shape
    products = total.new_zeros(rows * cols, c_out, c_in)
    matrices = None  # k*k x C_out x C_in
    if weight is not None:
        matrices = weight.permute(2, 3, 0, 1).flatten(0, 1)
    for images in _image_blocks(x):
        groups, places, _ = plan.transposed.groups(len(x[images]))
        inputs, grads = _as_rows(x[images]), _rows_and_zeros(grad[images])
        results = _workspace("results", x, _most_rows(len(inputs)), inputs.shape[1])
        for group in groups:
            taps, count = len(products) - 1 - group.taps, _common_number(x, len(group.positions))
            patches = _gather("inputs", grads, group.sources, count * len(taps))
            patches = patches.view(count, len(taps) * c_out)
            if matrices is not None:
                kernel = matrices.index_select(0, taps).flatten(0, 1)
                torch.mm(patches, kernel, out=results[group.first : group.first + count])
            product = patches.t() @ _gather("products", inputs, group.positions, count)
            products.index_add_(0, taps, product.view(-1, c_out, c_in).to(total.dtype))
        if grad_x is not None:
            torch.index_select(results, 0, places, out=_as_rows(grad_x[images]))
    total.copy_(products.permute(1, 2, 0).view_as(total))


def _rows_and_zeros(x: Tensor) -> Tensor:
    """Images as rows of channels, and a row of zeros: ``B*H*W + 1 x C``."""
    rows = _as_rows(x)
    extended = _workspace("rows", x, len(rows) + 1, x.shape[1])
    extended[:-1] = rows
    extended[-1] = 0
    return extended


# --- Any mask: gather, multiply, sum -----------------------------------------------------------


def _convolve_gathered(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: _MaskPlan, out: Tensor
) -> None:
    # 1. Images as rows of channels, the kernel as one matrix for each tap.
    rows, out_rows = _as_rows(x), _as_rows(out)  # B*H*W x C_in, B*H*W x C_out
    matrices = weight.permute(2, 3, 1, 0).contiguous().flatten(0, 1)  # k*k x C_in x C_out
    c_out, c_in = weight.shape[:2]
    for images, tile in _tiles(x, plan, _TILE_VALUES // max(c_in, c_out)):
        # 2. For each tap: gather the rows that it reads, and multiply.
        inputs, lanes = rows[images], math.gcd(tile.images, _most_lanes(x))
        products = _workspace("products", x, _most_rows(tile.num_pairs), c_out)
        kernels = matrices.unsqueeze(1).expand(-1, lanes, -1, -1).unbind()
        for pairs in tile.taps:
            count = _common_number(x, len(pairs.source), lanes)
            gathered = _gather("inputs", inputs, pairs.source, count, pairs.scale)
            product = products[pairs.first : pairs.first + count].view(lanes, -1, c_out)
            torch.bmm(gathered.view(lanes, -1, c_in), kernels[pairs.tap], out=product)
        # 3. Sum over the taps of each position.
        sums = F.embedding_bag(tile.bags, products, tile.bag_offsets, mode="sum")
        total = out_rows[images].view(tile.images, -1, c_out)[:, tile.positions]
        sums = sums.view_as(total)
        total.copy_(sums) if bias is None else torch.add(sums, bias, out=total)


def _weight_gradient_gathered(x: Tensor, grad: Tensor, plan: _MaskPlan, total: Tensor) -> None:
    rows, grad_rows = _as_rows(x), _as_rows(grad)
    c_out, c_in = total.shape[:2]
    taps = plan.geometry.taps
    most_lanes = min(len(x), _most_lanes(x))
    matrices = total.new_zeros(taps, most_lanes, c_out, c_in)
    # Only the rows of one tap need to be in the cache at a time, not those of all taps.
    for images, tile in _tiles(x, plan, taps * _BLOCK_VALUES // max(c_in, c_out)):
        inputs, grads = rows[images], grad_rows[images]
        lanes = math.gcd(tile.images, most_lanes)
        for pairs in tile.taps:
            count = _common_number(x, len(pairs.source), lanes)
            right = _gather("inputs", inputs, pairs.source, count, pairs.scale)
            left = _gather("products", grads, pairs.destination, count)
            left, right = left.view(lanes, -1, c_out).mT, right.view(lanes, -1, c_in)
            sums = matrices[pairs.tap, :lanes]
            if total.dtype == x.dtype:
                sums.baddbmm_(left, right)
            else:
                sums += left @ right
    total.copy_(matrices.sum(1).permute(1, 2, 0).view_as(total))


def _most_lanes(x: Tensor) -> int:
    """How many lanes to split a product into at most: each thread multiplies what it gathered.

    The gradient of the kernel is stored once for each lane, so there are few.
    """
    return min(torch.get_num_threads(), 8) if x.device.type == "cpu" else 1


def _gather(
    name: str, rows: Tensor, index: Tensor, count: int, scale: Tensor | None = None
) -> Tensor:
    """Some rows, times ``scale``, and then zeros: ``count`` rows in all."""
    gathered = _workspace(name, rows, count, rows.shape[1])
    wanted = gathered[: len(index)]
    torch.index_select(rows, 0, index, out=wanted)
    if scale is not None:
        wanted *= scale
    gathered[len(index) :] = 0
    return gathered


# On a CPU, products of these are compiled for the sizes of their matrices.
_COMPILED_DTYPES = (torch.bfloat16, torch.float16)


def _common_number(x: Tensor, count: int, lanes: int = 1) -> int:
    """How many rows are multiplied to have ``count``: a multiple of ``lanes``, as ``count`` is.

    Compiling a product takes as long as multiplying thousands of rows. So up to an eighth more are
    multiplied than are needed: then few numbers occur, however often the masks change.
    """
    if not x.is_cpu or x.dtype not in _COMPILED_DTYPES:
        return count
    unit = lanes * 2 ** max(0, (count // lanes).bit_length() - 4)
    return math.ceil(count / unit) * unit


def _most_rows(count: int) -> int:
    """Rows for all results, of which each but the last overwrites the surplus of the one before."""
    return count + count // 8


_LOCAL = threading.local()
# Of each workspace; larger ones take so long to fill that their pages matter less.
_MOST_KEPT_VALUES = 2**24


def _workspace(name: str, like: Tensor, rows: int, columns: int) -> Tensor:
    """Memory for a tile, ``rows x columns``; on a CPU, all calls of a thread use the same.

    Fresh pages from the operating system would take as long as the products, so some MB are kept.
    """
    size = rows * columns
    if like.device.type != "cpu" or size > _MOST_KEPT_VALUES:
        return like.new_empty(rows, columns)
    kept = getattr(_LOCAL, name, None)
    if kept is None or kept.dtype != like.dtype or kept.numel() < size:
        with torch.inference_mode(False):  # otherwise only inference mode could write to it
            kept = like.new_empty(max(size, _BLOCK_VALUES))
        setattr(_LOCAL, name, kept)
    return kept[:size].view(rows, columns)


def _as_rows(x: Tensor) -> Tensor:
    """A view of channels-last images ``B x C x H x W`` as ``B*H*W x C``."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def _tiles(x: Tensor, plan: _MaskPlan, most_pairs: int) -> Iterator[tuple[slice, _Tile]]:
    """For each tile: the rows of the images that its pairs index into, and the tile."""
    if x.numel() == 0:
        return
    most_pairs = max(1, most_pairs)
    positions = x.shape[2] * x.shape[3]
    count = len(x)  # images in a tile; all of them, if each has its own mask
    if len(plan.is_on) == 1:
        # At least one image for each lane; a tile may cover only some of their positions.
        most_images = max(_most_lanes(x), most_pairs // max(1, plan.num_pairs))
        count = math.ceil(count / math.ceil(count / most_images))  # tiles of about equal size
    for first in range(0, len(x), count):
        images = min(count, len(x) - first)
        for tile in plan.tiles(images, most_pairs):
            yield slice(first * positions, (first + images) * positions), tile


# --- A GPU: one kernel for each product --------------------------------------------------------

# The bits of a position fit into one 64-bit word, less its sign.
_MOST_TAPS = 62


def _can_use_triton(x: Tensor, plan: _MaskPlan) -> bool:
    return (
        _HAS_TRITON
        and x.is_cuda
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
        and x.numel() > 0
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and plan.values is None
        and plan.geometry.taps <= _MOST_TAPS
    )


def _convolve_triton(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: _MaskPlan, out: Tensor
) -> None:
    """``out`` = the masked convolution; channels-last, any 0/1 mask of at most 62 taps."""
    c_out, c_in = weight.shape[:2]
    matrices = weight.permute(2, 3, 1, 0).contiguous()  # k x k x C_in x C_out
    positions, bits = plan.sorted_positions
    repeats = len(x) // len(plan.is_on)  # images that share the mask
    num_rows = len(positions) * repeats
    # Three stages of these blocks fit into the shared memory of any GPU since Ampere.
    block_rows, block_out = 128, 64 if c_out > 32 else 32
    block_in = 64 if c_in % 64 == 0 and x.element_size() == 2 else 32
    grid = (triton.cdiv(num_rows, block_rows), triton.cdiv(c_out, block_out))
    with _device_of(x):
        _convolve_kernel[grid](
            x,
            matrices,
            matrices if bias is None else bias,
            out,
            positions,
            bits,
            plan.offsets,
            num_rows,
            repeats,
            x.shape[2] * x.shape[3],
            c_in,
            c_out,
            HAS_BIAS=bias is not None,
            TAPS=plan.geometry.taps,
            PRECISION=_dot_precision(x),
            BLOCK_ROWS=block_rows,
            BLOCK_OUT=block_out,
            BLOCK_IN=block_in,
            num_warps=4,
            num_stages=3,
        )


def _weight_gradient_triton(x: Tensor, grad: Tensor, plan: _MaskPlan, total: Tensor) -> None:
    """``total`` = the gradient of the weight, summed in a fixed order to be reproducible."""
    c_out, c_in, rows, cols = total.shape
    positions, starts = plan.positions_by_tap
    repeats = len(x) // len(plan.is_on)
    block_rows, block = 128 // x.element_size(), 64 if min(c_in, c_out) > 32 else 32
    tiles = triton.cdiv(c_in, block) * triton.cdiv(c_out, block)
    # Enough programs to fill a large GPU a few times, each with at least a few hundred rows.
    splits = max(
        1, min(512 // (tiles * rows * cols), len(positions) * repeats // (rows * cols * 512))
    )
    parts = torch.empty(splits, rows * cols, c_out, c_in, dtype=torch.float32, device=x.device)
    grid = (tiles, rows * cols, splits)
    with _device_of(x):
        _weight_gradient_kernel[grid](
            x,
            grad,
            parts,
            positions,
            starts,
            plan.offsets,
            repeats,
            x.shape[2] * x.shape[3],
            c_in,
            c_out,
            splits,
            PRECISION=_dot_precision(x),
            BLOCK_ROWS=block_rows,
            BLOCK=block,
            num_warps=4,
            num_stages=3,
        )
    total.copy_(parts.sum(0).permute(1, 2, 0).view_as(total))


def _device_of(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _dot_precision(x: Tensor) -> str:
    """As for other convolutions, ``torch.backends.cudnn.allow_tf32`` decides for float32."""
    return "tf32" if x.dtype != torch.float32 or torch.backends.cudnn.allow_tf32 else "ieee"


# Triton takes a second to import; on a CPU it is useful only with its interpreter.
_HAS_TRITON = find_spec("triton") is not None and (
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
)
if _HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _or(left, right):  # type: ignore[no-untyped-def]
        return left | right

    @triton.jit
    def _convolve_kernel(  # type: ignore[no-untyped-def]
        x,  # B*H*W x C_in
        matrices,  # taps x C_in x C_out
        bias,  # C_out
        out,  # B*H*W x C_out
        positions,  # of an image (or of all, when each has its own mask), sorted by bits
        bits,  # of each position: bit t is tap t
        offsets,  # of each tap, in rows
        num_rows,
        repeats,
        image_rows,
        c_in,
        c_out,
        HAS_BIAS: tl.constexpr,
        TAPS: tl.constexpr,
        PRECISION: tl.constexpr,
        BLOCK_ROWS: tl.constexpr,
        BLOCK_OUT: tl.constexpr,
        BLOCK_IN: tl.constexpr,
    ):
        # 1. The rows of this block: adjacent when sorted by bits, for all images.
        row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        exists = row < num_rows
        position = tl.load(positions + row // repeats, mask=exists, other=0)
        row_bits = tl.load(bits + row // repeats, mask=exists, other=0)
        out_row = ((row % repeats) * image_rows).to(tl.int64) + position
        out_channel = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        # 2. One product for each tap that is on somewhere in the block.
        block_bits = tl.reduce(row_bits, 0, _or)
        total = tl.zeros((BLOCK_ROWS, BLOCK_OUT), dtype=tl.float32)
        for tap in range(TAPS):
            if ((block_bits >> tap) & 1) != 0:
                is_on = ((row_bits >> tap) & 1) != 0
                in_row = out_row + tl.load(offsets + tap)
                for first in range(0, c_in, BLOCK_IN):
                    in_channel = first + tl.arange(0, BLOCK_IN)
                    inputs = tl.load(
                        x + in_row[:, None] * c_in + in_channel[None, :],
                        mask=is_on[:, None] & (in_channel < c_in)[None, :],
                        other=0.0,
                    )
                    matrix = tl.load(
                        matrices
                        + (tap * c_in + in_channel)[:, None] * c_out
                        + out_channel[None, :],
                        mask=(in_channel < c_in)[:, None] & (out_channel < c_out)[None, :],
                        other=0.0,
                    )
                    total = tl.dot(inputs, matrix, total, input_precision=PRECISION)
        # 3. Add the bias, and write each output once.
        if HAS_BIAS:
            total += tl.load(bias + out_channel, mask=out_channel < c_out, other=0.0)[None, :]
        tl.store(
            out + out_row[:, None] * c_out + out_channel[None, :],
            total.to(out.dtype.element_ty),
            mask=exists[:, None] & (out_channel < c_out)[None, :],
        )

    @triton.jit
    def _weight_gradient_kernel(  # type: ignore[no-untyped-def]
        x,  # B*H*W x C_in
        grad,  # B*H*W x C_out
        parts,  # splits x taps x C_out x C_in
        positions,  # at which tap 0 is on, then those of tap 1, ...
        starts,  # where those of each tap begin
        offsets,
        repeats,
        image_rows,
        c_in,
        c_out,
        splits,
        PRECISION: tl.constexpr,
        BLOCK_ROWS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        # 1. This block of the gradient of one tap, over one part of the rows.
        blocks_in = tl.cdiv(c_in, BLOCK)
        in_channel = (tl.program_id(0) % blocks_in) * BLOCK + tl.arange(0, BLOCK)
        out_channel = (tl.program_id(0) // blocks_in) * BLOCK + tl.arange(0, BLOCK)
        tap = tl.program_id(1)
        start = tl.load(starts + tap)
        num_rows = (tl.load(starts + tap + 1) - start) * repeats
        offset = tl.load(offsets + tap)
        # 2. The products of the outputs' gradients with the inputs that the tap reads there.
        total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for first in range(tl.program_id(2) * BLOCK_ROWS, num_rows, splits * BLOCK_ROWS):
            row = first + tl.arange(0, BLOCK_ROWS)
            exists = row < num_rows
            position = tl.load(positions + start + row // repeats, mask=exists, other=0)
            out_row = ((row % repeats) * image_rows).to(tl.int64) + position
            inputs = tl.load(
                x + (out_row + offset)[:, None] * c_in + in_channel[None, :],
                mask=exists[:, None] & (in_channel < c_in)[None, :],
                other=0.0,
            )
            grads = tl.load(
                grad + out_row[None, :] * c_out + out_channel[:, None],
                mask=exists[None, :] & (out_channel < c_out)[:, None],
                other=0.0,
            )
            total = tl.dot(grads, inputs, total, input_precision=PRECISION)
        # 3. Each part has a place of its own; the parts are summed afterwards.
        part = tl.program_id(2) * tl.num_programs(1) + tap
        tl.store(
            parts + (part * c_out + out_channel)[:, None].to(tl.int64) * c_in + in_channel[None, :],
            total,
            mask=(out_channel < c_out)[:, None] & (in_channel < c_in)[None, :],
        )
