"""The networks: an LMConv PixelCNN++ for any order, and the two-stream PixelCNN++ baseline.

Both map images in [-1, 1], ``B x C x H x W``, to the parameters of each pixel's distribution,
``B x L x H x W`` (see ``likelihoods.py``). Attribute names are those of the published checkpoints.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from layers import (
    DownRightShiftedConv2d,
    DownRightShiftedDeconv2d,
    DownShiftedConv2d,
    DownShiftedDeconv2d,
    GatedResidualBlock,
    LocalPrediction,
    NetworkInNetwork,
    OrderRescale,
    PositionalNorm,
    PositionEmbedding,
    append_ones,
    elu,
    shift_down,
    shift_right,
)
from locally_masked_convolution import LocallyMaskedConv2d
from masking import Masks

__all__ = [
    "NORMALIZATIONS",
    "LMConvPixelCNN",
    "ModelConfig",
    "OurPixelCNN",
    "PixelCNN",
    "build_model",
    "count_parameters",
    "least_activations",
    "least_parameters",
]

NORMALIZATIONS = ("none", "weight_norm", "order_rescale", "pono")


@dataclass(frozen=True)
class ModelConfig:
    """The settings that determine a network's shape and behaviour.

    Attributes:
        architecture: ``lmconv`` or ``pixelcnnpp`` (which ignores the settings from ``kernel_size``
            to ``local_prediction``).
        input_channels: C of the images.
        output_channels: L, the number of parameters of one pixel's distribution.
        nr_resnet: gated blocks in each of the six stages; the last two have one more.
        nr_filters: channels F inside the network.
        dropout_prob: probability of dropping a channel inside the gated blocks.
        kernel_size: odd size of the masked kernels.
        max_dilation: dilation of the four convolutions between the stages.
        normalization: one of ``NORMALIZATIONS``.
        bias: whether masked convolutions have a bias (1x1 convolutions have one in any case, except
            the one that takes in the differences of neighbours for ``local_prediction``).
        mask_weight: whether masked convolutions learn weights for their masks.
        input_positions: tell the network where in the image each position is.
        local_prediction: tell the network how the visible neighbours of each position differ, and
            make its last C outputs a weighted mean of them, to which all means are relative.
        rematerialize: recompute the blocks in the backward pass instead of storing them.
        num_classes: number of classes of images that the gated blocks have vectors for, besides
            that of unknown classes; 0 for a network without classes.
    """

    architecture: str
    input_channels: int
    output_channels: int
    nr_resnet: int = 5
    nr_filters: int = 160
    dropout_prob: float = 0.5
    kernel_size: int = 5
    max_dilation: int = 2
    normalization: str = "weight_norm"
    bias: bool = True
    mask_weight: bool = False
    input_positions: bool = False
    local_prediction: bool = False
    rematerialize: bool = False
    num_classes: int = 0

    @property
    def predicts(self) -> bool:
        """Whether the last C outputs are a prediction of the pixels."""
        return self.local_prediction and self.architecture == "lmconv"

    @property
    def direct_channels(self) -> int:
        """The number of output channels that the last 1x1 convolution makes: not the prediction."""
        return self.output_channels - (self.input_channels if self.predicts else 0)


def build_model(config: ModelConfig) -> nn.Module:
    """Make the network that a configuration describes.

    Raises:
        ValueError: the architecture or the normalisation is unknown, a number is out of range, or
            positional normalisation is combined with a single filter.
    """
    if config.architecture not in ("lmconv", "pixelcnnpp"):
        raise ValueError(f"unknown model {config.architecture!r}: choose lmconv or pixelcnnpp")
    for name in ("input_channels", "output_channels", "nr_resnet", "nr_filters"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.num_classes < 0:
        raise ValueError(f"num_classes must be at least 0, got {config.num_classes}")
    if not 0 <= config.dropout_prob < 1:
        raise ValueError(f"dropout_prob must be in [0, 1), got {config.dropout_prob}")
    return PixelCNN(config) if config.architecture == "pixelcnnpp" else LMConvPixelCNN(config)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of a network."""
    return sum(parameter.numel() for parameter in model.parameters())


def least_parameters(config: ModelConfig) -> int:
    """A lower bound of a network's number of parameters, without making it: the gated blocks.

    It is at least half of the number, unless the network has few filters.
    """
    taps = config.kernel_size**2 if config.architecture == "lmconv" else 4
    vectors = 2 * config.nr_filters * (config.num_classes + 1) if config.num_classes else 0
    return (6 * config.nr_resnet + 2) * (6 * config.nr_filters**2 * taps + vectors)


def least_activations(config: ModelConfig, num_pixels: int, trains: bool) -> int:
    """A lower bound of the numbers that a pass through a network keeps for one image.

    These are the skip inputs of the down stages and, in training, at least six maps of each block;
    measured peaks are two to ten times as high.
    """
    if config.architecture == "pixelcnnpp":  # only the first of its scales
        num_maps = 2 * (config.nr_resnet + 1)
    else:
        num_maps = 3 * (config.nr_resnet + 1)
    if trains and not config.rematerialize:
        num_maps = 12 * num_maps  # there are twice as many blocks as skip inputs
    return num_maps * config.nr_filters * num_pixels


def _run_block(
    block: GatedResidualBlock, x: Tensor, *mask: Tensor, skip: Tensor | None, label: Tensor | None
) -> Tensor:
    return block(x, *mask, skip=skip, label=label)


def _run_block_rematerialized(
    block: GatedResidualBlock, x: Tensor, *mask: Tensor, skip: Tensor | None, label: Tensor | None
) -> Tensor:
    return checkpoint(block, x, *mask, skip=skip, label=label, use_reentrant=False)


class _Stage(nn.Module):
    """The gated blocks between two dilated convolutions, called ``u_stream`` in checkpoints."""

    def __init__(self, blocks: list[GatedResidualBlock]) -> None:
        super().__init__()
        self.u_stream = nn.ModuleList(blocks)


class LMConvPixelCNN(nn.Module):
    """PixelCNN++ built from locally masked convolutions (Jain et al., UAI 2020, section 4).

    The masks alone decide the order: the output at a position depends only on the pixels that come
    before it. No layer changes the size of the image.
    """

    # Lists of stages; PyTorch does not declare the type of their elements.
    up_layers: Any
    down_layers: Any

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.normalization not in NORMALIZATIONS:
            raise ValueError(
                f"unknown normalization {config.normalization!r}: choose one of "
                f"{', '.join(NORMALIZATIONS)}"
            )
        if config.normalization == "pono" and config.nr_filters < 2:
            raise ValueError(
                "`normalization` pono needs `nr_filters` of at least 2: one has no variance"
            )
        self.config = config
        filters, blocks = config.nr_filters, config.nr_resnet
        self.norm: nn.Module | None = None
        if config.normalization == "pono":
            self.norm = PositionalNorm(filters)
        elif config.normalization == "order_rescale":
            self.norm = OrderRescale()
        self._run = _run_block_rematerialized if config.rematerialize else _run_block

        self.down_layers = nn.ModuleList(
            self._stage(number, skip_channels=filters)
            for number in (blocks, blocks + 1, blocks + 1)
        )
        self.up_layers = nn.ModuleList(self._stage(blocks, skip_channels=0) for _ in range(3))
        self.u_init = self._convolution(config.input_channels + 1, filters)
        self.positions = PositionEmbedding(filters) if config.input_positions else None
        dilated = partial(self._convolution, filters, filters, dilation=config.max_dilation)
        self.downsize_u_stream = nn.ModuleList(dilated() for _ in range(2))
        self.upsize_u_stream = nn.ModuleList(dilated() for _ in range(2))
        self.prediction: LocalPrediction | None = None
        if config.local_prediction:
            self.prediction = LocalPrediction(config.input_channels, filters, config.kernel_size)
        self.nin_out = NetworkInNetwork(filters, config.direct_channels)

    def _convolution(self, in_channels: int, out_channels: int, dilation: int = 1) -> nn.Module:
        config = self.config
        layer = LocallyMaskedConv2d(
            in_channels, out_channels, config.kernel_size, dilation, config.bias, config.mask_weight
        )
        return weight_norm(layer) if config.normalization == "weight_norm" else layer

    def _stage(self, blocks: int, skip_channels: int) -> _Stage:
        config = self.config
        return _Stage(
            [
                GatedResidualBlock(
                    config.nr_filters,
                    self._convolution,
                    skip_channels,
                    config.dropout_prob,
                    self.norm,
                    config.num_classes,
                )
                for _ in range(blocks)
            ]
        )

    def _normalize(self, x: Tensor, mask: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x, mask)

    def forward(self, x: Tensor, masks: Masks, label: Tensor | None = None) -> Tensor:
        """The parameters of every pixel's distribution given the pixels before it.

        Args:
            x: images in [-1, 1], ``B x C x H x W``.
            masks: the masks of one order, at the size of the images (``masking.get_masks``).
            label: the class of each image, B, int64, or ``num_classes`` if it is unknown, as it is
                by default. A network without classes ignores it.

        Returns:
            Network output, ``B x L x H x W``.
        """
        init, undilated, dilated = masks
        u = self.u_init(append_ones(x), init)
        if self.prediction is not None:
            neighbours = self.prediction.look(x, init)
            u = u + self.prediction.features(neighbours)
        u = self._normalize(u, undilated)
        if self.positions is not None:
            u = self.positions(u)
        skips = [u]
        for stage, up_layer in enumerate(self.up_layers):
            for block in up_layer.u_stream:
                u = self._run(block, u, undilated, skip=None, label=label)
                skips.append(u)
            if stage < 2:
                u = self._normalize(self.downsize_u_stream[stage](u, dilated), dilated)
                skips.append(u)
        u = skips.pop()
        for stage, down_layer in enumerate(self.down_layers):
            for block in down_layer.u_stream:
                u = self._run(block, u, undilated, skip=skips.pop(), label=label)
            if stage < 2:
                u = self._normalize(self.upsize_u_stream[stage](u, dilated), dilated)
        u = elu(u)
        out = self.nin_out(u)
        if self.prediction is None:
            return out
        predicted = self.prediction(u, neighbours)
        return torch.cat([out.to(predicted.dtype), predicted], dim=1)


# The name of the network in the published code.
OurPixelCNN = LMConvPixelCNN


class _TwoStreamStage(nn.Module):
    """Gated blocks of the baseline: ``u_stream`` sees above, ``ul_stream`` above and left."""

    def __init__(self, config: ModelConfig, blocks: int, skip_streams: int) -> None:
        super().__init__()
        filters = config.nr_filters
        block = partial(
            GatedResidualBlock,
            filters,
            dropout_prob=config.dropout_prob,
            num_classes=config.num_classes,
        )
        self.u_stream = nn.ModuleList(
            block(DownShiftedConv2d, skip_streams * filters) for _ in range(blocks)
        )
        # The second stream also takes the first one as input.
        self.ul_stream = nn.ModuleList(
            block(DownRightShiftedConv2d, (skip_streams + 1) * filters) for _ in range(blocks)
        )


class PixelCNN(nn.Module):
    """The PixelCNN++ baseline (Salimans et al. 2017): raster order through shifted convolutions.

    Height and width must be divisible by 4, because of the two strided convolutions.
    """

    # Lists of stages; PyTorch does not declare the type of their elements.
    up_layers: Any
    down_layers: Any

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        filters, blocks = config.nr_filters, config.nr_resnet
        self._run = _run_block_rematerialized if config.rematerialize else _run_block
        self.down_layers = nn.ModuleList(
            _TwoStreamStage(config, number, skip_streams=1)
            for number in (blocks, blocks + 1, blocks + 1)
        )
        self.up_layers = nn.ModuleList(
            _TwoStreamStage(config, blocks, skip_streams=0) for _ in range(3)
        )
        self.downsize_u_stream = nn.ModuleList(
            DownShiftedConv2d(filters, filters, stride=2) for _ in range(2)
        )
        self.downsize_ul_stream = nn.ModuleList(
            DownRightShiftedConv2d(filters, filters, stride=2) for _ in range(2)
        )
        self.upsize_u_stream = nn.ModuleList(DownShiftedDeconv2d(filters) for _ in range(2))
        self.upsize_ul_stream = nn.ModuleList(DownRightShiftedDeconv2d(filters) for _ in range(2))
        channels = config.input_channels + 1
        self.u_init = DownShiftedConv2d(channels, filters)
        self.ul_init = nn.ModuleList(
            [
                DownShiftedConv2d(channels, filters, (1, 3)),
                DownRightShiftedConv2d(channels, filters, (2, 1)),
            ]
        )
        self.nin_out = NetworkInNetwork(filters, config.output_channels)

    def forward(self, x: Tensor, masks: Masks | None = None, label: Tensor | None = None) -> Tensor:
        """The parameters of every pixel's distribution given the pixels before it in raster order.

        Args:
            x: images in [-1, 1], ``B x C x H x W``.
            masks: ignored, since the order is built into the convolutions.
            label: as in ``LMConvPixelCNN``.

        Returns:
            Network output, ``B x L x H x W``.

        Raises:
            ValueError: the height or the width is not divisible by 4.
        """
        if x.shape[2] % 4 or x.shape[3] % 4:
            raise ValueError(
                f"`model` pixelcnnpp needs a height and width divisible by 4, got "
                f"{x.shape[2]}x{x.shape[3]}: use `model` lmconv or `resize_sizes`"
            )
        u, ul = self._first_features(append_ones(x))
        skips = [(u, ul)]
        for stage, up_layer in enumerate(self.up_layers):
            for u_block, ul_block in zip(up_layer.u_stream, up_layer.ul_stream, strict=True):
                u = self._run(u_block, u, skip=None, label=label)
                ul = self._run(ul_block, ul, skip=u, label=label)
                skips.append((u, ul))
            if stage < 2:
                u, ul = self.downsize_u_stream[stage](u), self.downsize_ul_stream[stage](ul)
                skips.append((u, ul))
        u, ul = skips.pop()
        for stage, down_layer in enumerate(self.down_layers):
            for u_block, ul_block in zip(down_layer.u_stream, down_layer.ul_stream, strict=True):
                u_skip, ul_skip = skips.pop()
                u = self._run(u_block, u, skip=u_skip, label=label)
                ul_skip = torch.cat([u, ul_skip], dim=1)
                ul = self._run(ul_block, ul, skip=ul_skip, label=label)
            if stage < 2:
                u, ul = self.upsize_u_stream[stage](u), self.upsize_ul_stream[stage](ul)
        return self.nin_out(elu(ul))

    def _first_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """First features of both streams, shifted so that no position sees itself."""
        above = shift_down(self.u_init(x))
        above_and_left = shift_down(self.ul_init[0](x)) + shift_right(self.ul_init[1](x))
        return above, above_and_left
