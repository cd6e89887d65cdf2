"""Locally masked convolution: the kernel is masked separately at every position of the image.

One file that depends on PyTorch alone, so that it can be copied into another project.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LocallyMaskedConv2d", "locally_masked_conv2d"]


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
        ValueError: the kernel is even, or the dilation is below 1.
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
        # Registered between weight and bias: optimizers of published checkpoints count on it.
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
            mask: 0/1, ``1 x k*k x (H*W)`` shared by the batch or ``B x k*k x (H*W)``, one for each
                image; taps and positions both row-major. Any dtype.

        Returns:
            ``B x C_out x H x W``, in the dtype of ``x`` or of the enclosing autocast region.

        Raises:
            ValueError: the input or the mask does not have the shape above.
        """
        self._check_shapes(x, mask)
        weight: Tensor = self.weight
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        mask = mask.to(x.dtype)
        out = _MaskedProducts.apply(x, weight, mask, self.dilation)
        if self.mask_weight is not None:
            mask_term = self.mask_weight.flatten(1).to(x.dtype) @ mask  # M x C_out x H*W
            out = out + mask_term.unflatten(2, x.shape[2:])
        if self.bias is not None:
            out = out + self.bias.to(x.dtype)[:, None, None]
        return out

    def _check_shapes(self, x: Tensor, mask: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"the input must be B x {self.in_channels} x H x W, got {tuple(x.shape)}"
            )
        if not isinstance(mask, Tensor):
            raise ValueError(f"the mask must be a tensor, got {type(mask).__name__}")
        taps = self.kernel_size[0] * self.kernel_size[1]
        positions = x.shape[2] * x.shape[3]
        if (
            mask.dim() != 3
            or mask.shape[0] not in (1, x.shape[0])
            or mask.shape[1:]
            != (
                taps,
                positions,
            )
        ):
            raise ValueError(
                f"the mask must be 1 x {taps} x {positions} or {x.shape[0]} x {taps} x {positions} "
                f"for an input of {x.shape[2]}x{x.shape[3]}, got {tuple(mask.shape)}"
            )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"dilation={self.dilation}, bias={self.bias is not None}, "
            f"mask_weight={self.mask_weight is not None}"
        )


# The name of the layer in the published code.
locally_masked_conv2d = LocallyMaskedConv2d


class _MaskedProducts(torch.autograd.Function):
    """The sum over taps of (masked, shifted input) x (weight of the tap), one tap at a time.

    Forward and backward hold one shifted copy of the input, never the k*k times larger patch
    matrix. Inside, images are ``B x H x W x C``: then a tap is one matrix product over channels.
    """

    @staticmethod
    def forward(ctx, x, weight, mask, dilation):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight, mask)
        ctx.dilation = dilation
        batch, _, height, width = x.shape
        # Sums of many products in half precision lose digits, so those are kept in float32.
        out = x.new_zeros(batch, height, width, weight.shape[0], dtype=_sum_dtype(x.dtype))
        padded = _pad(x, weight, dilation)
        for (row, col), tap_mask, window in _taps(weight, mask, dilation, height, width):
            masked = padded[window] * tap_mask
            _add_product(out.flatten(0, 2), masked.flatten(0, 2), weight[:, :, row, col].t())
        return out.to(x.dtype).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, grad_out):  # type: ignore[no-untyped-def]
        x, weight, mask = ctx.saved_tensors
        _, _, height, width = x.shape
        padded = _pad(x, weight, ctx.dilation)
        grad_out = grad_out.permute(0, 2, 3, 1).contiguous()  # B x H x W x C_out
        grad_padded = torch.zeros_like(padded, dtype=_sum_dtype(x.dtype))
        grad_weight = torch.zeros_like(weight)
        for (row, col), tap_mask, window in _taps(weight, mask, ctx.dilation, height, width):
            if ctx.needs_input_grad[0]:
                grad_padded[window].addcmul_(grad_out @ weight[:, :, row, col], tap_mask)
            if ctx.needs_input_grad[1]:
                masked = padded[window] * tap_mask
                grad_weight[:, :, row, col] = grad_out.flatten(0, 2).t() @ masked.flatten(0, 2)
        pad_rows, pad_cols = _padding(weight, ctx.dilation)
        grad_x = grad_padded[:, pad_rows : pad_rows + height, pad_cols : pad_cols + width]
        return grad_x.permute(0, 3, 1, 2).to(x.dtype), grad_weight, None, None


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to ``total``, which is at least as precise."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _padding(weight: Tensor, dilation: int) -> tuple[int, int]:
    rows, cols = weight.shape[2:]
    return dilation * (rows - 1) // 2, dilation * (cols - 1) // 2


def _pad(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """``B x C x H x W`` to zero-padded ``B x H' x W' x C``."""
    pad_rows, pad_cols = _padding(weight, dilation)
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, pad_cols, pad_cols, pad_rows, pad_rows))


def _taps(weight: Tensor, mask: Tensor, dilation: int, height: int, width: int):  # type: ignore[no-untyped-def]
    """For each tap: its (row, column) in the kernel, its mask (M x H x W x 1) and its window."""
    rows, cols = weight.shape[2:]
    for row in range(rows):
        for col in range(cols):
            top, left = row * dilation, col * dilation
            window = (slice(None), slice(top, top + height), slice(left, left + width))
            tap_mask = mask[:, row * cols + col].unflatten(1, (height, width))
            yield (row, col), tap_mask.unsqueeze(-1), window
