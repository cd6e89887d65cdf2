"""What a model is, as plain data: everything that is needed to rebuild it, except its weights.

Checkpoints store it under ``"model"``. Those of the published code, and older ones, store the flags
of their command line under ``"args"`` instead, which say the same.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from lmconv.data.standard_sets import STANDARD_SETS
from lmconv.likelihoods import Likelihood, make_likelihood
from lmconv.orders import OrderConfig
from lmconv.pixel_values import MOST_BITS, ImageShape, Preparation
from masking import ORDERS
from model import ModelConfig

__all__ = ["LikelihoodConfig", "ModelDescription", "read_description"]

T = TypeVar("T")

_BERNOULLI, _MIXTURE = "bernoulli", "discretized_mixture_logistics"
# The most that a file or a command line may ask for: nobody has trained a larger network.
_LARGEST = {"nr_resnet": 2**10, "nr_filters": 2**16, "num_mixtures": 2**10}
_LARGEST |= {"kernel_size": 2**8, "max_dilation": 2**8}
_MOST_PIXELS, _MOST_ORDERS, _LONGEST_NAME = 2**22, 2**10, 100


@dataclass(frozen=True)
class LikelihoodConfig:
    """What the network's output means.

    Attributes:
        name: ``bernoulli`` or ``discretized_mixture_logistics``.
        num_mixtures: number of components of the mixture; Bernoulli has none.
        coefficient_bound: how much channels can shift later ones (published: 1).
    """

    name: str
    num_mixtures: int = 10
    coefficient_bound: float = 1.0


@dataclass(frozen=True)
class ModelDescription:
    """A model without its weights.

    Attributes:
        network: kind and sizes of the network.
        likelihood: what the network's output means.
        image_shapes: (C, H, W) of each image size that the model is made for.
        orders: the orders that the model is used with.
        preparation: how stored images become the model's images.
        dataset: name of the data set that the model was trained on, or None.
        classes: names of the classes of images that the network knows, by their labels.
    """

    network: ModelConfig
    likelihood: LikelihoodConfig
    image_shapes: tuple[ImageShape, ...]
    orders: OrderConfig
    preparation: Preparation
    dataset: str | None = None
    classes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        image_shapes: tuple[ImageShape, ...],
        preparation: Preparation,
        orders: OrderConfig,
        num_mixtures: int = 10,
        dataset: str | None = None,
        architecture: str = "lmconv",
        classes: tuple[str, ...] = (),
        coefficient_bound: float = 1.0,
        **network: Any,
    ) -> "ModelDescription":
        """Make a description whose parts fit each other.

        Args:
            image_shapes, preparation, orders, dataset, classes: as the attributes.
            num_mixtures: number of components of the mixture, for images that are not binary.
            architecture: kind of network, ``lmconv`` or ``pixelcnnpp``.
            coefficient_bound: as in ``LikelihoodConfig``.
            network: further fields of ``ModelConfig``.

        Raises:
            ValueError: the arguments do not describe a possible model.
        """
        if not image_shapes:
            raise ValueError("image_shapes is empty: give the (C, H, W) of the images")
        channels = image_shapes[0][0]
        likelihood = make_likelihood(
            channels,
            num_mixtures,
            preparation.n_bits,
            preparation.binarize,
            architecture == "lmconv" and network.get("local_prediction", False),
            coefficient_bound,
        )
        outputs = likelihood.num_output_channels
        config = ModelConfig(architecture, channels, outputs, num_classes=len(classes), **network)
        name = _BERNOULLI if preparation.binarize else _MIXTURE
        return _checked(
            cls(
                config,
                LikelihoodConfig(name, num_mixtures, coefficient_bound),
                image_shapes,
                orders,
                preparation,
                dataset,
                classes,
            )
        )

    def make_likelihood(self) -> Likelihood:
        """Make the likelihood that is described."""
        return make_likelihood(
            self.image_shapes[0][0],
            self.likelihood.num_mixtures,
            self.preparation.n_bits,
            self.preparation.binarize,
            self.network.predicts,
            self.likelihood.coefficient_bound,
        )

    def with_orders(self, orders: OrderConfig) -> "ModelDescription":
        """The same model used with other orders."""
        return replace(self, orders=orders)

    def as_plain_data(self) -> dict[str, Any]:
        """The description as dictionaries, tuples, strings and numbers, as files store it."""
        return asdict(self)


def read_description(checkpoint: Mapping[str, Any]) -> ModelDescription | None:
    """Read the description of a checkpoint's model; None if the file has only weights.

    Raises:
        ValueError: the description is damaged, or does not describe a possible model.
    """
    if "model" in checkpoint:
        return _checked(_from_plain_data(ModelDescription, checkpoint["model"], "model"))
    if isinstance(checkpoint.get("args"), dict):
        return _from_flags(checkpoint["args"])
    return None


def _checked(description: ModelDescription) -> ModelDescription:
    """Return a description; raise ValueError if its parts do not fit each other."""
    likelihood, preparation = description.likelihood, description.preparation
    if not description.image_shapes:
        raise ValueError("image_shapes is empty")
    channels = {shape[0] for shape in description.image_shapes}
    for shape in description.image_shapes:
        if len(channels) > 1 or min(shape) < 1 or shape[1] * shape[2] > _MOST_PIXELS:
            raise ValueError(
                f"image_shapes has {shape}: (C, H, W) must be positive, with one C for all and at "
                f"most {_MOST_PIXELS} pixels: choose smaller images"
            )
    if likelihood.name not in (_BERNOULLI, _MIXTURE):
        raise ValueError(f"it has an unknown likelihood, {likelihood.name!r}")
    if preparation.binarize != (likelihood.name == _BERNOULLI):
        raise ValueError(f"the likelihood {likelihood.name} does not fit {preparation}")
    if not 1 <= preparation.n_bits <= MOST_BITS:
        raise ValueError(f"`n_bits` must be 1 to {MOST_BITS}, got {preparation.n_bits}")
    for config in (likelihood, description.network):
        for field in fields(config):
            value = getattr(config, field.name)
            largest = _LARGEST.get(field.name, 2**16)
            if isinstance(value, int) and not 0 <= value <= largest:
                raise ValueError(f"`{field.name}` must be between 0 and {largest}, got {value}")
    _check_orders(description.orders)
    _check_classes(description)
    network = description.network
    outputs = description.make_likelihood().num_output_channels
    if (network.input_channels, network.output_channels) != (*channels, outputs):
        raise ValueError(
            f"its network takes {network.input_channels} channels and outputs "
            f"{network.output_channels}, but its images and likelihood need {min(channels)} and "
            f"{outputs}"
        )
    return description


def _check_classes(description: ModelDescription) -> None:
    """Raise ValueError if names of classes are impossible, or not as many as the network's."""
    classes, number = description.classes, description.network.num_classes
    if len(classes) != number:
        raise ValueError(f"it has {len(classes)} names of classes, but its network has {number}")
    if len(classes) == 1:
        raise ValueError(f"there is only one class, {classes[0]!r}: classes need at least two")
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise ValueError(f"two classes have the name {repeated[0]!r}: give each another")
    for name in classes:
        if not 0 < len(name) <= _LONGEST_NAME:
            raise ValueError(
                f"names of classes have 1 to {_LONGEST_NAME} characters, but one has {len(name)}: "
                f"{_shown(name)}"
            )


def _check_orders(orders: OrderConfig) -> None:
    """Raise ValueError if a list of orders is empty, or cannot exist at any image size."""
    number = replace(orders, variants=None).number
    if number == 0 or orders.number == 0:
        raise ValueError("orders is an empty list: a model needs at least one order")
    if number > _MOST_ORDERS:
        raise ValueError(f"a model can have at most {_MOST_ORDERS} orders, got {number}")
    for family in orders.families:
        if family not in ORDERS:
            raise ValueError(f"unknown order {family!r}: choose one of {', '.join(ORDERS)}")
    for index in orders.variants or ():
        if not 0 <= index < number:
            raise ValueError(f"`order_variants` {index} is out of range: there are {number} orders")
    for order in orders.own:
        if not all(0 <= pixel < len(order) for pixel in order):
            raise ValueError("orders.own must list the numbers of pixels, from 0 to H*W - 1")


def _from_flags(args: Mapping[str, Any]) -> ModelDescription:
    """The model that a command line's stored flags describe, ours or the published code's."""

    def flag(name: str, kind: Any, default: Any) -> Any:
        value = args.get(name, default)
        return default if value is None else _from_plain_data(kind, value, name)

    # The published code uses its own network with this flag, and the baseline without it.
    fallback = "lmconv" if flag("ours", bool, False) else "pixelcnnpp"
    architecture = flag("model", str, fallback)
    is_baseline = architecture == "pixelcnnpp"
    orders = OrderConfig(
        families=flag("order", tuple[str, ...], ("raster_scan",) if is_baseline else ("s_curve",)),
        all_variants=flag("randomize_order", bool, False),
        variants=flag("order_variants", tuple[int, ...] | None, None),
        base_transpose=flag("base_order_transpose", bool, False),
        base_reflect_rows=flag("base_order_reflect_rows", bool, False),
        base_reflect_cols=flag("base_order_reflect_cols", bool, False),
        seed=flag("order_seed", int, 0),
    )
    settings = {
        "nr_resnet": flag("nr_resnet", int, 5),
        "nr_filters": flag("nr_filters", int, 160),
        "dropout_prob": flag("dropout_prob", float, 0.5),
        "rematerialize": flag("rematerialize", bool, False),
    }
    if not is_baseline:
        settings |= {
            "kernel_size": flag("kernel_size", int, 5),
            "max_dilation": flag("max_dilation", int, 2),
            "normalization": flag("normalization", str, "weight_norm"),
            "bias": not flag("no_bias", bool, False),
            "mask_weight": flag("learn_weight_for_masks", bool, False),
        }
    return ModelDescription.of(
        _shapes_of_flags(flag),
        Preparation(flag("binarize", bool, False), flag("n_bits", int, 8)),
        orders,
        flag("nr_logistic_mix", int, 10),
        flag("dataset", str, "cifar"),
        architecture=architecture,
        **settings,
    )


def _shapes_of_flags(flag: Any) -> tuple[ImageShape, ...]:
    dataset = flag("dataset", str, "cifar")
    sizes = flag("resize_sizes", tuple[int, ...], ())
    if dataset == "folder":
        height, width = flag("image_size", tuple[int, int], (1, 1))
        channels = flag("channels", int, 3)
    elif dataset in STANDARD_SETS:
        channels, height, width = STANDARD_SETS[dataset].image_shape
    else:
        raise ValueError(f"it was trained on an unknown data set, {dataset!r}")
    if dataset == "celebahq":
        height = width = flag("celeba_size", int, 256)
    return tuple((channels, size, size) for size in sizes) or ((channels, height, width),)


def _from_plain_data(kind: Any, value: Any, name: str) -> Any:
    """Convert what a file contains to a value of a declared type.

    Args:
        kind: a dataclass, a tuple type, a union with None, or a plain type.
        value: what the file contains; lists are accepted as tuples, whole numbers as floats.
        name: name of the value in the file, for errors.

    Raises:
        ValueError: the value has another type; the message names it.
    """
    origin = get_origin(kind)
    if is_dataclass(kind):
        return _read_dataclass(kind, value, name)
    if origin is UnionType or NoneType in get_args(kind):
        (inner,) = (each for each in get_args(kind) if each is not NoneType)
        return None if value is None else _from_plain_data(inner, value, name)
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = get_args(kind)
        inner = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(inner) == len(value):
            pairs = enumerate(zip(inner, value, strict=True))
            return tuple(_from_plain_data(part, each, f"{name}[{i}]") for i, (part, each) in pairs)
    elif type(value) is int and abs(value) >= 2**63:
        raise ValueError(f"{name} is a number with more than 64 bits")
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif type(value) is kind and not (kind is str and len(value) > _LONGEST_NAME):
        return value
    raise ValueError(f"{name} is {_shown(value)}, not {_kind_name(kind)}")


def _read_dataclass(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_shown(value)}, not a dictionary")
    hints = get_type_hints(kind)
    unknown = sorted(map(str, value.keys() - hints.keys()))
    if unknown:
        raise ValueError(f"{name} has an unknown entry, {_shown(unknown[0])}")
    for field in fields(kind):
        if field.name not in value and field.default is MISSING:
            raise ValueError(f"{name} has no entry {field.name!r}")
    return kind(
        **{key: _from_plain_data(hints[key], each, f"{name}.{key}") for key, each in value.items()}
    )


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, (str, int, float, NoneType)) else type(value).__name__
    return text if len(text) <= 40 else f"{text[:39]}…"


def _kind_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and get_origin(kind) is None else str(kind)
