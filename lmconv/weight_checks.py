"""Whether weights are those of a network: their names and shapes show most of its settings."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lmconv.checkpoints import CheckpointError, model_weights
from lmconv.description import ModelDescription, read_description
from lmconv.likelihoods import parameters_per_component
from model import ModelConfig, least_parameters

__all__ = ["check_network", "describe"]

# The vectors of the classes in the first gated block, as weights are named.
_CLASS_VECTORS = "up_layers.0.u_stream.0.classes"


def describe(checkpoint: Mapping[str, Any], source: str) -> ModelDescription | None:
    """Read the description of a checkpoint's model; None if the file has only weights.

    Raises:
        CheckpointError: the description is damaged, or does not fit the weights.
    """
    try:
        description = read_description(checkpoint)
        if description is not None:
            _check_sizes(description, model_weights(checkpoint))
    except ValueError as error:
        raise CheckpointError(f"{source} has an invalid model description: {error}") from error
    return description


def check_network(
    network: ModelConfig, weights: Mapping[str, Tensor], num_channels: int, source: str
) -> None:
    """Raise CheckpointError in terms of a network's settings if weights show that they are others.

    Where they do not show it, the names and shapes of weights are compared later.
    """
    names = set(weights)
    if "nin_out.lin_a.weight_v" not in names:
        return  # of no network of ours
    architecture = "lmconv" if names & {"u_init.weight", "u_init.weight_v"} else "pixelcnnpp"
    predicts = "prediction.nin_weights.lin_a.weight_v" in names
    problems = []
    if architecture != network.architecture:
        problems.append(f"`model` {architecture}, not {network.architecture}")
    else:
        sizes = _sizes(weights, network)
        theirs, ours = sizes.pop("output_channels"), network.output_channels
        classes = sizes.pop("num_classes", 0)
        channels = num_channels
        for name, value in weights.items():
            if name.endswith(("u_init.weight", "u_init.weight_v", "u_init.conv.weight_v")):
                channels = value.shape[1] - 1 if value.dim() == 4 else 0  # and one of ones
        problems = [
            f"`{name}` {size}, not {getattr(network, name)}"
            for name, size in sizes.items()
            if size != getattr(network, name)
        ]
        if classes != network.num_classes:
            problems.append(
                f"{classes or 'no'} classes, not {network.num_classes or 'none'} "
                "(`class_conditional`)"
            )
        if channels != num_channels:
            problems.append(f"images with `channels` {channels}, not {num_channels} (`dataset`)")
        elif theirs != ours and predicts == network.local_prediction:
            problems.append(
                f"{_pixel_values(theirs, num_channels)}, not {_pixel_values(ours, num_channels)}"
            )
    if architecture == network.architecture == "lmconv":
        if ("u_init.weight_v" in names) != (network.normalization == "weight_norm"):
            other = "weight_norm" if "u_init.weight_v" in names else "other than weight_norm"
            problems.append(f"`normalization` {other}, not {network.normalization}")
        for name, weight in (("bias", "u_init.bias"), ("mask_weight", "u_init.mask_weight")):
            if (weight in names) != getattr(network, name):
                word = "with" if weight in names else "without"
                problems.append(f"{word} {weight.partition('.')[2]} (`{name}`)")
        if predicts != network.local_prediction:
            problems.append(f"{'with' if predicts else 'without'} `local_prediction`")
    if problems:
        raise CheckpointError(
            f"the weights in {source} are those of another network: {'; '.join(problems)}; give "
            "the settings of these weights, or another checkpoint"
        )


def _check_sizes(description: ModelDescription, weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError if the weights in the file are not as large as the description says.

    This is checked before any memory is allocated for the network.
    """
    network = description.network
    for name, value in _sizes(weights, network).items():
        if value != getattr(network, name):
            raise ValueError(
                f"it says {name} {getattr(network, name)}, but its weights have {value}"
            )
    # The network then takes little more memory than its file.
    least, number = least_parameters(network), sum(value.numel() for value in weights.values())
    if number < least:
        raise ValueError(f"its network needs at least {least} weights, but it has {number}")


def _sizes(weights: Mapping[str, Tensor], network: ModelConfig) -> dict[str, int]:
    """The sizes of a network that its weights show, by their names in ``ModelConfig``."""
    predicted = network.output_channels - network.direct_channels
    shapes = {name: value.shape for name, value in weights.items()}
    blocks = {name.split(".")[3] for name in shapes if name.startswith("up_layers.0.u_stream.")}
    found = {"nr_resnet": len(blocks), "output_channels": 0, "nr_filters": 0}
    if network.architecture == "lmconv":
        found["kernel_size"] = 0
    if network.num_classes or _CLASS_VECTORS in shapes:
        found["num_classes"] = 0
    for name, shape in shapes.items():
        if name == _CLASS_VECTORS and len(shape) == 2:
            found["num_classes"] = shape[0] - 1
        if name == "nin_out.lin_a.weight_v" and len(shape) == 2:
            found["output_channels"], found["nr_filters"] = shape[0] + predicted, shape[1]
        if name in ("u_init.weight", "u_init.weight_v") and len(shape) == 4:
            found["kernel_size"] = shape[2]
    return found


def _pixel_values(output_channels: int, num_channels: int) -> str:
    """The settings of a likelihood with this number of output channels."""
    if output_channels == 2:
        return "`binarize`"
    return f"`nr_logistic_mix` {output_channels // parameters_per_component(num_channels)}"
