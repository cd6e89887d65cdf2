"""What a checkpoint is, in lines for people: its model, its training, its results."""

from collections.abc import Iterator, Mapping
from typing import Any

from lmconv.checkpoints import model_weights
from lmconv.description import ModelDescription
from lmconv.file_names import printable

__all__ = ["summary_lines"]

# Number of classes that are named.
_SHOWN_CLASSES = 20


def summary_lines(
    contents: Mapping[str, Any], description: ModelDescription | None
) -> list[tuple[str, str]]:
    """Names and values that say what a checkpoint is.

    Args:
        contents: what ``load_checkpoint`` returns.
        description: what its model is; None if the file has only weights.
    """
    number = sum(value.numel() for value in model_weights(contents).values())
    lines = [("parameters", f"{number:,}")]
    if description is None:
        lines.append(("model", "not described: give the flags of its network"))
    else:
        lines += _of_model(description)
    return [*lines, *_of_training(contents)]


def _of_model(description: ModelDescription) -> Iterator[tuple[str, str]]:
    network, orders = description.network, description.orders
    kind = f"{network.architecture}, {network.nr_resnet} x {network.nr_filters} filters"
    if network.architecture == "lmconv":
        kind += (
            f", kernel {network.kernel_size}, dilation {network.max_dilation}, "
            f"normalization {network.normalization}"
        )
        kind += "" if network.bias else ", no bias"
        kind += ", weights for masks" if network.mask_weight else ""
        kind += ", given positions" if network.input_positions else ""
        kind += ", local prediction" if network.local_prediction else ""
    yield "network", kind
    shapes = ", ".join("x".join(map(str, shape)) for shape in description.image_shapes)
    preparation = description.preparation
    values = "binarized" if preparation.binarize else f"{preparation.n_bits} bits"
    origin = f", trained on {description.dataset}" if description.dataset else ""
    yield "images", f"{shapes}, {values}{origin}"
    likelihood = description.likelihood.name
    if not preparation.binarize:
        likelihood += f", {description.likelihood.num_mixtures} components"
        bound = description.likelihood.coefficient_bound
        likelihood += f", coefficients up to {bound:g}" if bound != 1 else ""
    yield "likelihood", likelihood
    if classes := description.classes:
        shown = ", ".join(map(printable, classes[:_SHOWN_CLASSES]))
        more = ", ..." * (len(classes) > _SHOWN_CLASSES)
        yield "classes", f"{len(classes)}: {shown}{more}"
    names = [*orders.families, *(f"own order {index}" for index in range(len(orders.own)))]
    changes = ("transpose", "reflect_rows", "reflect_cols")
    base = [name for name in changes if getattr(orders, f"base_{name}")]
    text = ", ".join(names) + (f" (seed {orders.seed})" if "random" in orders.families else "")
    text += f", base order {' and '.join(base)}" if base else ""
    text += ", all 8 variants" if orders.all_variants else ""
    if orders.variants is not None:
        text += f", of which numbers {', '.join(map(str, orders.variants))}"
    yield "orders", f"{orders.number}: {text}"


def _of_training(contents: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    position = [f"epoch {contents['epoch']}"] if contents.get("epoch", -1) >= 0 else []
    if "global_step" in contents:
        position.append(f"{contents['global_step']:,} optimizer steps")
    if contents.get("batches_done"):
        position.append(f"{contents['batches_done']} batches of the next epoch")
    yield "training", ", ".join(position) or "not recorded"
    parts = [
        ("optimizer", "optimizer_state_dict" in contents),
        ("running average", bool(contents.get("ema_state_dict"))),
    ]
    held = [name for name, is_there in parts if is_there]
    yield "contains", ", ".join(["weights", *held])
    for name, value in contents.items():
        if name.startswith("test_loss_") and isinstance(value, (int, float)):
            size = name.removeprefix("test_loss_")
            place = "of all images" if size == "all" else f"at {size}"
            yield "test", f"{value:.4f} bits per dimension {place}"
