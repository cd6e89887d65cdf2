"""Flags as the settings of the modules below here, and a model's description as flags."""

import argparse
from collections.abc import Mapping
from typing import Any

from lmconv.data.datasets import DataConfig, class_names
from lmconv.description import ModelDescription
from lmconv.modes import UsageError
from lmconv.modes.flags import SIZE_FLAGS
from lmconv.modes.options import has_several_sizes, parse_stored, size_words
from lmconv.modes.run_directory import Checkpoint, run_directory
from lmconv.orders import OrderConfig
from lmconv.pixel_values import ImageShape, Preparation
from masking import load_order

__all__ = [
    "check_shapes",
    "data_config",
    "describe_model",
    "not_as_trained",
    "shown",
    "stored_settings",
]

# Flags whose values are fixed by a trained network.
_OF_THE_NETWORK = (
    "model",
    "nr_resnet",
    "nr_filters",
    "kernel_size",
    "max_dilation",
    "normalization",
    "no_bias",
    "learn_weight_for_masks",
    "input_positions",
    "local_prediction",
    "class_conditional",
    "nr_logistic_mix",
    "coefficient_bound",
    "binarize",
    "n_bits",
)
# Flags that choose images or orders: other ones than in training are worth a line.
_CHOICES = (
    *("dataset", "image_size", "celeba_size", "resize_sizes", "order", "order_seed"),
    *("randomize_order", "order_variants", "base_order_transpose"),
    *("base_order_reflect_rows", "base_order_reflect_cols"),
)
# Flags that choose orders: if one is given, a checkpoint's choice of indices no longer applies.
_OF_ORDERS = ("order", "order_file", "randomize_order", "order_variants")


def stored_settings(given: argparse.Namespace, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """The settings of a checkpoint, by flag.

    Raises:
        UsageError: a flag that is given contradicts the network.
    """
    if checkpoint is None or checkpoint.description is None:
        return {}
    args = settings = _settings_of(checkpoint)
    if given.mode != "train":
        args = {name: args[name] for name in ("data_dir", "split_seed", "crop") if name in args}
    stored = parse_stored(args, str(checkpoint.path)) | _flags_of(checkpoint.description, settings)
    for name in _OF_THE_NETWORK:
        value = getattr(given, name)
        if value is not None and name in stored and value != stored[name]:
            raise UsageError(
                f"--{name} {value} contradicts {checkpoint.path}, which has {stored[name]}: leave "
                "it out, or give another checkpoint"
            )
    if given.dataset not in (None, stored.get("dataset")):
        for name in (
            *("data_dir", "split_seed", "random_crop", "crop", "max_reduction"),
            *("resize_sizes", "resize_probs", "celeba_size"),
        ):
            stored.pop(name, None)
        if has_several_sizes(stored.get("image_size")):
            if given.own_sizes:
                stored["image_size"] = stored["image_size"][0]  # that no picture is brought to
            else:
                del stored["image_size"]
    if has_several_sizes(given.image_size):
        stored.pop("resize_sizes", None)
        stored.pop("resize_probs", None)
    if given.image_size is not None or given.own_sizes:
        stored.pop("crop", None)
        stored.pop("max_reduction", None)
    if given.crop is not None:
        stored.pop("random_crop", None)
    if given.optimizer not in (None, stored.get("optimizer", "adam")):
        stored.pop("lr", None)
    if any(getattr(given, name) is not None for name in _OF_ORDERS):
        stored.pop("order_variants", None)
    if given.order_file is not None:
        stored.pop("order", None)
    return stored


def not_as_trained(
    args: argparse.Namespace, description: ModelDescription, checkpoint: Checkpoint | None
) -> dict[str, Any]:
    """What ``Run.not_as_trained`` is; nothing if the checkpoint does not say how it was trained."""
    if checkpoint is None or checkpoint.description is None:
        return {}
    used = _flags_of(description, vars(args))
    trained = _flags_of(checkpoint.description, _settings_of(checkpoint))
    if checkpoint.description.dataset is None:  # it was trained on images without a name
        trained.pop("dataset")
    different = {
        name: [used.get(name), trained[name]]
        for name in _CHOICES
        if name in trained and used.get(name) != trained[name]
    }
    if description.orders.own != checkpoint.description.orders.own:
        before = _settings_of(checkpoint).get("order_file")
        different["order_file"] = [args.order_file, before]
    return different


def _settings_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The flags that a checkpoint was trained with; none if it was trained without flags."""
    settings = checkpoint.contents.get("args")
    return settings if isinstance(settings, dict) else {}


def _flags_of(description: ModelDescription, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that describe a model, which is used with these settings."""
    network, orders = description.network, description.orders
    sizes = [(height, width) for _, height, width in description.image_shapes]
    are_squares = all(height == width for height, width in sizes)
    flags: dict[str, Any] = {
        "model": network.architecture,
        "dataset": description.dataset or "folder",
        "nr_resnet": network.nr_resnet,
        "nr_filters": network.nr_filters,
        "dropout_prob": network.dropout_prob,
        "rematerialize": network.rematerialize,
        "class_conditional": network.num_classes > 0,
        "binarize": description.preparation.binarize,
        "image_size": sizes[0],
        "channels": description.image_shapes[0][0],
    }
    if not description.preparation.binarize:
        flags["n_bits"] = description.preparation.n_bits
        flags["nr_logistic_mix"] = description.likelihood.num_mixtures
        flags["coefficient_bound"] = description.likelihood.coefficient_bound
    if description.dataset == "celebahq":
        flags["celeba_size"] = sizes[0][0]
    elif len(sizes) > 1 and are_squares and not has_several_sizes(settings.get("image_size")):
        flags["resize_sizes"] = [height for height, _ in sizes]
    elif len(sizes) > 1:
        flags["image_size"] = sizes
    if network.architecture == "pixelcnnpp":
        return flags
    return flags | {
        "kernel_size": network.kernel_size,
        "max_dilation": network.max_dilation,
        "normalization": network.normalization,
        "no_bias": not network.bias,
        "learn_weight_for_masks": network.mask_weight,
        "input_positions": network.input_positions,
        "local_prediction": network.local_prediction,
        "order": list(orders.families),
        "randomize_order": orders.all_variants,
        "order_variants": None if orders.variants is None else list(orders.variants),
        "base_order_transpose": orders.base_transpose,
        "base_order_reflect_rows": orders.base_reflect_rows,
        "base_order_reflect_cols": orders.base_reflect_cols,
        "order_seed": orders.seed,
    }


def data_config(args: argparse.Namespace) -> DataConfig:
    has_buckets = has_several_sizes(args.image_size)
    return DataConfig(
        dataset=args.dataset,
        data_dir=args.data_dir,
        batch_size=args.batch_size,
        preparation=Preparation(args.binarize, args.n_bits),
        seed=args.seed,
        celeba_size=args.celeba_size,
        channels=args.channels,
        image_size=None if has_buckets else args.image_size,
        buckets=tuple(args.image_size) if has_buckets else (),
        own_sizes=args.own_sizes,
        crop=args.crop,
        max_reduction=args.max_reduction,
        split_seed=args.split_seed,
        max_celeba_train_batches=args.max_celeba_train_batches,
        max_celeba_test_batches=args.max_celeba_test_batches,
        max_train_images=args.max_train_images,
        max_test_images=args.max_test_images,
        resize_sizes=tuple(args.resize_sizes or ()),
        resize_probs=tuple(args.resize_probs or ()),
        random_crop=args.random_crop,
        flip=args.flip,
        permute_channels=args.permute_channels,
        run_dir=run_directory(args),
    )


def describe_model(
    given: argparse.Namespace,
    args: argparse.Namespace,
    shapes: list[ImageShape],
    checkpoint: Checkpoint | None,
) -> ModelDescription:
    """The description of the model that a command line and its checkpoint ask for."""
    return ModelDescription.of(
        tuple(shapes),
        Preparation(args.binarize, args.n_bits),
        _orders(given, args, shapes, checkpoint),
        args.nr_logistic_mix,
        args.dataset,
        architecture=args.model,
        classes=_classes(args, checkpoint),
        coefficient_bound=args.coefficient_bound,
        nr_resnet=args.nr_resnet,
        nr_filters=args.nr_filters,
        dropout_prob=args.dropout_prob,
        kernel_size=args.kernel_size,
        max_dilation=args.max_dilation,
        normalization=args.normalization,
        bias=not args.no_bias,
        mask_weight=args.learn_weight_for_masks,
        input_positions=args.input_positions,
        local_prediction=args.local_prediction,
        rematerialize=args.rematerialize,
    )


def _classes(args: argparse.Namespace, checkpoint: Checkpoint | None) -> tuple[str, ...]:
    """The names of the model's classes: those of the checkpoint, else those of the data set."""
    if not args.class_conditional:
        return ()
    if checkpoint is not None and checkpoint.description is not None:
        return checkpoint.description.classes
    return class_names(data_config(args))


def _orders(
    given: argparse.Namespace,
    args: argparse.Namespace,
    shapes: list[ImageShape],
    checkpoint: Checkpoint | None,
) -> OrderConfig:
    own: tuple[tuple[int, ...], ...] = ()
    if args.order_file:
        orders = [load_order(name, *shape[1:]) for shape in shapes for name in args.order_file]
        width = shapes[0][2]
        own = tuple(tuple((order @ [width, 1]).tolist()) for order in orders)
    elif given.order is None and checkpoint is not None and checkpoint.description is not None:
        own = checkpoint.description.orders.own
    return OrderConfig(
        families=tuple(args.order),
        all_variants=args.randomize_order,
        variants=None if args.order_variants is None else tuple(args.order_variants),
        base_transpose=args.base_order_transpose,
        base_reflect_rows=args.base_order_reflect_rows,
        base_reflect_cols=args.base_order_reflect_cols,
        seed=args.order_seed,
        own=own,
    )


def check_shapes(
    args: argparse.Namespace, shapes: list[ImageShape], checkpoint: Checkpoint | None
) -> None:
    if checkpoint is not None and checkpoint.description is not None:
        channels = checkpoint.description.image_shapes[0][0]
        if channels != shapes[0][0]:
            raise UsageError(
                f"the images of {args.dataset} have {shapes[0][0]} channels, but the model of "
                f"{checkpoint.path} works on {channels}: choose another -d/--dataset"
            )
    for _, height, width in shapes:
        if args.model == "pixelcnnpp" and (height % 4 or width % 4):
            raise UsageError(
                f"--model pixelcnnpp needs a height and width divisible by 4, got "
                f"{height}x{width}: choose other sizes or --model lmconv"
            )


def shown(name: str, value: Any) -> str:
    """The value of a flag as a line shows it."""
    if name in SIZE_FLAGS and isinstance(value, (list, tuple)):
        value = size_words(value)
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
