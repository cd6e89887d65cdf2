"""The parts that the networks are built from: gated blocks, 1x1 convolutions, normalisations.

Only the convolutions inside the blocks, the reader of neighbours in ``LocalPrediction``, and the
shifts and shifted convolutions of the PixelCNN++ baseline look at other positions; everything else
acts on each position separately.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from locally_masked_convolution import LocallyMaskedConv2d

__all__ = [
    "DownRightShiftedConv2d",
    "DownRightShiftedDeconv2d",
    "DownShiftedConv2d",
    "DownShiftedDeconv2d",
    "GatedResidualBlock",
    "LocalPrediction",
    "Neighbours",
    "NetworkInNetwork",
    "OrderRescale",
    "PositionEmbedding",
    "PositionalNorm",
    "append_ones",
    "concat_elu",
    "elu",
    "shift_down",
    "shift_right",
]

# Contrasts are divided by this, two levels of 8 bits, before they are compressed.
_FINE_CONTRAST = 1 / 64
# What stands for minus infinity among the logits of weights, without making a NaN where all do.
_INVISIBLE = -1e4
# The vectors of classes are multiplied by this. Few images of a batch have the same class, so their
# gradients are noisy, and the small steps of Adam beside Muon would take long.
_CLASS_SCALE = 10
# Waves along each side of an image that a position embedding is made of, the constant included.
_WAVES = 8


class _ConcatELU(torch.autograd.Function):
    """``elu(cat([x, -x]))`` that keeps only its output for the backward pass.

    The next convolution keeps the same tensor, so nothing extra is stored for this function.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # Of x and -x one is positive and stays; the other, -|x|, becomes exp(-|x|) - 1.
        minus = -x
        below = _wide(torch.minimum(x, minus)).exp_().sub_(1).to(x.dtype)
        out = torch.cat([torch.maximum(x, below), torch.maximum(minus, below)], dim=1)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        # The slope of an ELU is 1 above zero, and its output plus 1 below.
        positive, negative = torch.ops.aten.elu_backward(grad, 1, 1, 1, True, out).chunk(2, dim=1)
        return positive - negative


def concat_elu(x: Tensor) -> Tensor:
    """ELU of the input and of its negative: ``B x C x H x W`` to ``B x 2C x H x W``."""
    return _ConcatELU.apply(x)


def elu(x: Tensor) -> Tensor:
    """``x`` above zero and ``exp(x) - 1`` below.

    On a CPU PyTorch's, and ``expm1``, can take forty times as long as ``exp``.
    """
    below = _wide(x.clamp(max=0)).exp() - 1
    return torch.maximum(x, below.to(x.dtype))


def _wide(x: Tensor) -> Tensor:
    """The same at least in single precision, in which ``exp(x) - 1`` is exact enough near zero."""
    return x.float() if x.dtype.itemsize < 4 else x


def append_ones(x: Tensor) -> Tensor:
    """Add a last channel of ones, so that a convolution can tell the padding from the image."""
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


def shift_down(x: Tensor) -> Tensor:
    """Move every row down by one, with zeros above."""
    return F.pad(x[:, :, :-1], (0, 0, 1, 0))


def shift_right(x: Tensor) -> Tensor:
    """Move every column right by one, with zeros on the left."""
    return F.pad(x[:, :, :, :-1], (1, 0))


class NetworkInNetwork(nn.Module):
    """A weight-normalised 1x1 convolution: ``B x C_in x H x W`` to ``B x C_out x H x W``."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__()
        self.lin_a = weight_norm(nn.Linear(in_channels, out_channels, bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.lin_a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PositionalNorm(nn.Module):
    """Normalise the channels of each position separately (PONO, Li et al. 2019).

    Subtracts the mean and divides by ``sqrt(unbiased variance + 1e-5)``. It mixes no positions, so
    it keeps the network autoregressive.

    Args:
        channels: number of input channels.
    """

    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Computed by layer norm, which divides by the biased variance: the ratio makes up for it.
        ratio = (channels - 1) / channels
        self.eps, self.factor = 1e-5 * ratio, math.sqrt(ratio)
        self.register_buffer("scale", torch.full((channels,), self.factor), persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scale = self.scale.to(x.dtype)
        if x.dtype == torch.float64:  # the buffer may have been made in single precision
            scale = torch.full_like(scale, self.factor)
        normal = F.layer_norm(x.permute(0, 2, 3, 1), scale.shape, scale, eps=self.eps)
        return normal.permute(0, 3, 1, 2).to(x.dtype)


class OrderRescale(nn.Module):
    """Divide each position by the number of kernel taps that its mask leaves on."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        taps_on = mask.sum(dim=1, keepdim=True, dtype=torch.float32)  # M x 1 x H*W
        return x / taps_on.to(x.dtype).unflatten(2, x.shape[2:])


class PositionEmbedding(nn.Module):
    """Add to the features of each position a learned function of where it is in the image.

    The function is a sum of the lowest waves of a two-dimensional cosine transform, with weights
    that are zero at first. The waves are stretched to the size of the image, so the function means
    "a third from the top" at any size. It mixes no positions.

    Args:
        channels: number of features.

    Attributes:
        place: if the network is given a part of an image: the first row, the first column, and the
            height and width of the whole.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, _WAVES**2 - 1))
        self.place: tuple[int, int, int, int] | None = None

    def table(self, height: int, width: int) -> Tensor:
        """What is added at each position of an image, or of a part of one: ``H*W x C``."""
        top, left, whole_height, whole_width = self.place or (0, 0, height, width)
        rows = _waves(whole_height, self.weight)[top : top + height]
        cols = _waves(whole_width, self.weight)[left : left + width]
        products = rows[:, None, :, None] * cols[None, :, None, :]  # H x W x waves x waves
        return products.flatten(2).flatten(0, 1)[:, 1:] @ self.weight.t()  # without the constant

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return x + self.table(height, width).to(x.dtype).t().unflatten(1, (height, width))


def _waves(size: int, like: Tensor) -> Tensor:
    """The lowest waves of a cosine transform: ``size x waves``, the first one constant."""
    positions = (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) / size
    numbers = torch.arange(_WAVES, dtype=like.dtype, device=like.device)
    return torch.cos(math.pi * positions[:, None] * numbers)


class Neighbours(NamedTuple):
    """What is visible around each position, as ``LocalPrediction`` reads it.

    Attributes:
        mean: mean of the visible neighbours, ``B x C x H x W``; 0 if there are none.
        contrasts: their differences from it, ``B x C x k*k x H x W``; 0 for others.
        is_visible: 1 for visible neighbours and 0 for others, ``B x 1 x k*k x H x W``.
    """

    mean: Tensor
    contrasts: Tensor
    is_visible: Tensor


class LocalPrediction(nn.Module):
    """Predict each pixel as a weighted mean of the visible pixels around it.

    Neighbours in photographs are nearly equal, and their small differences tell most. But in half
    precision, and beside features of all sizes, a network cannot carry 256 levels through its
    layers. Here it gets the differences themselves, compressed as ``asinh`` does; and at its end it
    only chooses the weights, so that the prediction is exact where the neighbours are equal.

    Args:
        channels: C of the images.
        filters: features of the network.
        kernel_size: side of the square of neighbours.
    """

    def __init__(self, channels: int, filters: int, kernel_size: int) -> None:
        super().__init__()
        taps = kernel_size**2
        self.reader = _NeighbourReader(channels + 1, kernel_size)
        told = (channels + 1) * taps + channels
        # Its result is added to that of a convolution with a bias.
        self.nin_contrasts = NetworkInNetwork(told, filters, bias=False)
        self.nin_weights = NetworkInNetwork(filters, taps)

    def look(self, x: Tensor, mask: Tensor) -> Neighbours:
        """Read the neighbours of each position.

        Args:
            x: images, ``B x C x H x W``.
            mask: of the network's first layer, which hides the position itself.
        """
        values = self.reader(append_ones(x), mask).unflatten(1, (x.shape[1] + 1, -1))
        is_visible = values[:, -1:]
        mean = values[:, :-1].sum(dim=2) / is_visible.sum(dim=2).clamp(min=1)
        return Neighbours(mean, (values[:, :-1] - mean.unsqueeze(2)) * is_visible, is_visible)

    def features(self, neighbours: Neighbours) -> Tensor:
        """What the network is told of the neighbours: ``B x filters x H x W``."""
        compressed = torch.asinh(neighbours.contrasts / _FINE_CONTRAST)
        told = [compressed.flatten(1, 2), neighbours.mean, neighbours.is_visible[:, 0]]
        return self.nin_contrasts(torch.cat(told, dim=1))

    def forward(self, u: Tensor, neighbours: Neighbours) -> Tensor:
        """Predict each pixel, ``B x C x H x W``, by weights made from features ``u``."""
        logits = self.nin_weights(u).unsqueeze(1).to(neighbours.mean.dtype)
        hidden = torch.where(neighbours.is_visible > 0, logits, _INVISIBLE)
        return neighbours.mean + (neighbours.contrasts * hidden.softmax(dim=2)).sum(dim=2)


class _NeighbourReader(LocallyMaskedConv2d):
    """A masked convolution whose kernel only moves what its taps read into channels.

    ``B x C x H x W`` to ``B x C*k*k x H x W``, with zeros where the mask hides, in the precision of
    the input, also in regions of lower precision.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        taps = kernel_size**2
        super().__init__(channels, channels * taps, kernel_size, bias=False)
        kernel = torch.eye(channels * taps).view(channels * taps, channels, kernel_size, -1)
        del self.weight
        self.register_buffer("weight", kernel, persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x, mask)

    def computation_dtype(self, x: Tensor) -> torch.dtype:
        return x.dtype

    def reset_parameters(self) -> None:
        """Nothing is learnt here."""


class GatedResidualBlock(nn.Module):
    """The gated residual block of PixelCNN++ (Salimans et al. 2017), around any convolution.

    Args:
        filters: channels of the input and of the output.
        convolution: makes a convolution from (in_channels, out_channels).
        skip_channels: channels of the skip input, 0 for none.
        dropout_prob: probability that a channel is dropped between the two convolutions.
        norm: normalisation called as ``norm(x, mask)``, or None.
        num_classes: number of classes of images; 0 for a block without classes.

    ``forward(x, *mask, skip=None, label=None)`` passes the mask, if there is one, to both
    convolutions and to the normalisation. Each class of images has a vector that is added to the
    values and to the gates, as in PixelCNN++, at all positions. So has the label "unknown", the
    last one, which images have if no ``label`` (B, int64) is given. The vectors are zero at first.
    """

    def __init__(
        self,
        filters: int,
        convolution: Callable[[int, int], nn.Module],
        skip_channels: int = 0,
        dropout_prob: float = 0.5,
        norm: nn.Module | None = None,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.conv_input = convolution(2 * filters, filters)
        if skip_channels:
            self.nin_skip = NetworkInNetwork(2 * skip_channels, filters)
        self.dropout = nn.Dropout2d(dropout_prob)
        self.conv_out = convolution(2 * filters, 2 * filters)
        self.norm = norm
        self.classes: nn.Parameter | None = None
        if num_classes:
            self.classes = nn.Parameter(torch.zeros(num_classes + 1, 2 * filters))

    def forward(
        self, x: Tensor, *mask: Tensor, skip: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        hidden = self.conv_input(concat_elu(x), *mask)
        if self.norm is not None:
            hidden = self.norm(hidden, *mask)
        if skip is not None:
            hidden = hidden + self.nin_skip(concat_elu(skip))
        hidden = self.dropout(concat_elu(hidden))
        hidden = self.conv_out(hidden, *mask)
        if self.classes is not None:
            vectors = self.classes[-1:] if label is None else self.classes.index_select(0, label)
            hidden = hidden + (_CLASS_SCALE * vectors).to(hidden.dtype)[:, :, None, None]
        values, gates = hidden.chunk(2, dim=1)
        if self.norm is not None:
            values = self.norm(values, *mask)
        return torch.addcmul(x, values, torch.sigmoid(gates))


class _ShiftedConv2d(nn.Module):
    """A weight-normalised convolution whose padding lets it see only up (and left)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: int,
        padding: tuple[int, int, int, int],
    ) -> None:
        super().__init__()
        self.padding = padding  # left, right, top, bottom
        self.conv = weight_norm(nn.Conv2d(in_channels, out_channels, kernel_size, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class DownShiftedConv2d(_ShiftedConv2d):
    """A convolution over the rows up to and including the position's own."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int] = (2, 3),
        stride: int = 1,
    ) -> None:
        rows, cols = kernel_size
        padding = ((cols - 1) // 2, (cols - 1) // 2, rows - 1, 0)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)


class DownRightShiftedConv2d(_ShiftedConv2d):
    """A convolution over the positions above and to the left, the position itself included."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int] = (2, 2),
        stride: int = 1,
    ) -> None:
        rows, cols = kernel_size
        super().__init__(in_channels, out_channels, kernel_size, stride, (cols - 1, 0, rows - 1, 0))


class _ShiftedDeconv2d(nn.Module):
    """A weight-normalised transposed convolution that doubles the size, cropped to stay causal."""

    def __init__(self, channels: int, kernel_size: tuple[int, int], crop_left: int) -> None:
        super().__init__()
        self.crop_left = crop_left
        self.deconv = weight_norm(
            nn.ConvTranspose2d(channels, channels, kernel_size, stride=2, output_padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows, cols = 2 * x.shape[2], 2 * x.shape[3]
        return self.deconv(x)[:, :, :rows, self.crop_left : self.crop_left + cols]


class DownShiftedDeconv2d(_ShiftedDeconv2d):
    """Double the size of the stream that sees the rows above (kernel 2 x 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, (2, 3), crop_left=1)


class DownRightShiftedDeconv2d(_ShiftedDeconv2d):
    """Double the size of the stream that sees what is above and to the left (kernel 2 x 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, (2, 2), crop_left=0)
