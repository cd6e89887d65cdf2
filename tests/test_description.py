"""Descriptions of models: plain data and back, published arguments, and files that tell lies."""

import copy
import json
import math

import pytest
import torch
from helpers.models import tiny_model
from helpers.paths import REFERENCE
from hypothesis import given, settings
from hypothesis import strategies as st

import lmconv
from lmconv import ModelDescription, OrderConfig, Preparation, image_model
from lmconv.checkpoints import load_checkpoint
from lmconv.description import read_description
from lmconv.likelihoods import Bernoulli, DiscretizedMixtureLogistics
from masking import ORDERS
from model import NORMALIZATIONS, build_model

GOLDENS = REFERENCE / "models"
HUGE = 2**100


@st.composite
def descriptions(draw):
    """Descriptions of every kind that there is."""
    binarize = draw(st.booleans())
    channels = 1 if binarize else draw(st.sampled_from([1, 3]))
    sizes = draw(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=1))
    families = draw(st.lists(st.sampled_from(ORDERS), max_size=3))
    own = draw(st.lists(st.permutations(range(6)), min_size=not families, max_size=2))
    all_variants = draw(st.booleans())
    number = (8 if all_variants else 1) * (len(families) + len(own))
    variants = st.lists(st.integers(0, number - 1), min_size=1, max_size=4).map(tuple)
    orders = OrderConfig(
        tuple(families),
        all_variants,
        draw(st.none() | variants),
        *(draw(st.booleans()) for _ in range(3)),
        seed=draw(st.integers(-(2**40), 2**40)),
        own=tuple(map(tuple, own)),
    )
    return ModelDescription.of(
        tuple((channels, *size) for size in sizes),
        Preparation(binarize, draw(st.integers(1, 8))),
        orders,
        draw(st.integers(1, 20)),
        draw(st.none() | st.sampled_from(["mnist", "folder"])),
        architecture=draw(st.sampled_from(["lmconv", "pixelcnnpp"])),
        nr_resnet=draw(st.integers(1, 9)),
        nr_filters=draw(st.integers(2, 400)),
        dropout_prob=draw(st.floats(0, 0.99)),
        kernel_size=draw(st.sampled_from([1, 3, 5, 7])),
        max_dilation=draw(st.integers(1, 8)),
        normalization=draw(st.sampled_from(NORMALIZATIONS)),
        bias=draw(st.booleans()),
        mask_weight=draw(st.booleans()),
        input_positions=draw(st.booleans()),
        local_prediction=not binarize and draw(st.booleans()),
        coefficient_bound=draw(st.floats(1, 16)) if channels > 1 else 1.0,
        rematerialize=draw(st.booleans()),
    )


@given(descriptions())
def test_plain_data_describe_the_same_model(description):
    plain = description.as_plain_data()
    assert read_description({"model": plain}) == description
    lists = json.loads(json.dumps(plain))  # has lists for tuples
    assert read_description({"model": lists, "args": {"dataset": "cifar"}}) == description


def test_the_parts_of_a_description_fit_each_other():
    binary = ModelDescription.of(((1, 4, 4),), Preparation(binarize=True), OrderConfig())
    assert binary.network.architecture == "lmconv"
    assert isinstance(binary.make_likelihood(), Bernoulli)
    assert (binary.network.input_channels, binary.network.output_channels) == (1, 2)
    colour = ModelDescription.of(
        ((3, 4, 4),), Preparation(n_bits=5), OrderConfig(), 4, architecture="lmconv"
    )
    likelihood = colour.make_likelihood()
    assert isinstance(likelihood, DiscretizedMixtureLogistics)
    assert (likelihood.num_channels, likelihood.num_values, likelihood.num_mixtures) == (3, 32, 4)
    assert (colour.network.input_channels, colour.network.output_channels) == (3, 40)
    other = colour.with_orders(OrderConfig(("zipper",)))
    assert other.orders.families == ("zipper",) and other.network == colour.network


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shapes": ()}, "image_shapes"),
        ({"image_shapes": ((1, 4, 4), (3, 4, 4))}, "image_shapes"),
        ({"image_shapes": ((1, 0, 4),)}, "image_shapes"),
        ({"image_shapes": ((9, 4, 4),)}, "channels"),
        ({"image_shapes": ((3, 4, 4),), "preparation": Preparation(binarize=True)}, "binarize"),
        ({"preparation": Preparation(n_bits=17)}, "n_bits"),
        ({"num_mixtures": 0}, "mixture"),
        ({"orders": OrderConfig(())}, "orders"),
        ({"orders": OrderConfig(variants=())}, "orders"),
        ({"orders": OrderConfig(("scan",))}, "order.*scan"),
        ({"orders": OrderConfig(variants=(1,))}, "order_variants"),
        ({"orders": OrderConfig(own=((1, 2, 3),))}, "orders.own"),
    ],
)
def test_a_description_of_no_model_is_refused(changes, message):
    parts = {
        "image_shapes": ((1, 4, 4),),
        "preparation": Preparation(),
        "orders": OrderConfig(),
        "architecture": "lmconv",
    }
    with pytest.raises(ValueError, match=message):
        ModelDescription.of(**(parts | changes))


# Published checkpoints hold the flags of their command line.

PUBLISHED = {
    "pono_color": {"image_shapes": ((3, 32, 32),), "normalization": "pono", "dataset": "cifar"},
    "none_gray_mask_weight": {
        "normalization": "none",
        "mask_weight": True,
        "families": ("hilbert",),
        "image_shapes": ((1, 28, 28),),
        "dataset": "mnist",
    },
    "weight_norm_color_k5": {
        "kernel_size": 5,
        "dropout_prob": 0.5,
        "num_mixtures": 5,
        "output_channels": 50,
        "families": ("raster_scan", "s_curve"),
        "all_variants": False,
    },
    "order_rescale_binary": {
        "normalization": "order_rescale",
        "nr_resnet": 2,
        "binarize": True,
        "name": "bernoulli",
        "output_channels": 2,
    },
    "weight_norm_gray_mask_weight": {
        "normalization": "weight_norm",
        "nr_filters": 12,
        "output_channels": 30,
        "families": ("gilbert2d",),
    },
    "pono_5bit_nobias_md1": {
        "n_bits": 5,
        "bias": False,
        "max_dilation": 1,
        "image_shapes": ((3, 8, 8),),
        "dataset": "celebahq",
    },
    "pono_binary_mask_weight_q2": {
        "nr_filters": 16,
        "mask_weight": True,
        "families": ("s_curve_center_quarter_last",),
        "all_variants": True,
    },
    "pixelcnnpp_color": {
        "architecture": "pixelcnnpp",
        "families": ("raster_scan",),
        "all_variants": False,
        "output_channels": 100,
    },
    "pixelcnnpp_gray_q2": {"architecture": "pixelcnnpp", "nr_resnet": 2, "num_mixtures": 5},
    "trained_binary_mnist_old_format": {
        "architecture": "lmconv",
        "kernel_size": 3,
        "families": ("s_curve",),
        "all_variants": True,
        "binarize": True,
    },
}


def flat(data):
    """The entries of nested dictionaries by their own names."""
    entries = {}
    for key, value in data.items():
        entries |= flat(value) if isinstance(value, dict) else {key: value}
    return entries


@pytest.mark.parametrize("name", [path.stem for path in sorted(GOLDENS.glob("*.pth"))])
def test_published_arguments_are_understood(name):
    description = read_description(load_checkpoint(GOLDENS / f"{name}.pth"))
    entries = flat(description.as_plain_data())
    assert PUBLISHED[name].items() <= entries.items()


def test_published_arguments_that_are_missing_take_the_published_defaults():
    lmconv_args = read_description({"args": {"ours": True}})
    network = lmconv_args.network
    assert (network.nr_resnet, network.nr_filters, network.kernel_size) == (5, 160, 5)
    assert (network.max_dilation, network.normalization) == (2, "weight_norm")
    assert lmconv_args.image_shapes == ((3, 32, 32),)
    assert lmconv_args.orders == OrderConfig(("s_curve",))
    baseline = read_description({"args": {"dataset": "mnist", "kernel_size": 3}})
    assert baseline.network.architecture == "pixelcnnpp"
    assert baseline.orders == OrderConfig(("raster_scan",))


def test_arguments_name_the_sizes_that_images_were_resized_to():
    args = {"ours": True, "dataset": "celebahq", "celeba_size": 64, "n_bits": 5}
    assert read_description({"args": args}).image_shapes == ((3, 64, 64),)
    args |= {"resize_sizes": [16, 32]}
    assert read_description({"args": args}).image_shapes == ((3, 16, 16), (3, 32, 32))
    args = {"ours": True, "dataset": "folder", "image_size": [5, 7], "channels": 1}
    assert read_description({"args": args}).image_shapes == ((1, 5, 7),)


def test_weights_alone_have_no_description():
    assert read_description({"model_state_dict": {}}) is None
    assert read_description({"args": None, "epoch": 3}) is None


# Files that tell lies. What they hold is that of a tiny model, but for one change.


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "model.pth"
    tiny_model((1, 4, 4), binarize=True).save(path)
    return torch.load(path, weights_only=True)


@pytest.fixture
def refused(contents, tmp_path, monkeypatch):
    """A function: a file that is changed is refused, in one line, before anything large is made."""

    def make(network):
        assert network.nr_filters < 100 and network.nr_resnet < 10, "it took the file's word for it"
        return build_model(network)

    monkeypatch.setattr(image_model, "build_model", make)

    def check(change, *words):
        lie = copy.deepcopy(contents)
        change(lie)
        path = tmp_path / "lie.pth"
        torch.save(lie, path)
        with pytest.raises(lmconv.CheckpointError) as error:
            lmconv.load(path, device="cpu")
        message = str(error.value)
        assert "\n" not in message and len(message) < 500, message
        for word in words:
            assert word in message, message

    return check


def setting(*path):
    """A change of an entry of the description: its path, and the value to put there."""
    *names, last, value = path

    def change(contents):
        place = contents["model"]
        for name in names:
            place = place[name]
        place[last] = value

    return change


WRONG = {
    "int": ["3", 3.0, math.nan, True, None, [3], {}, HUGE, -HUGE],
    "bool": ["yes", 1, 0, None, math.nan, [True]],
    "float": ["0.5", True, None, [0.5], HUGE, math.nan, math.inf, -0.1, 1.0],
    "bound": ["1", True, None, [1.0], HUGE, math.nan, math.inf, -0.1, 0.99, 2.0],
    "str": [3, None, True, ["lmconv"], b"lmconv", "x" * 10_000, "unknown", "a\nb"],
    "tuple of str": ["s_curve", [3], [None], {}, None, ("unknown",), (("s_curve",),)],
    "tuple of int": ["1", [1.0], [True], [HUGE], {}, [-1], [8]],
    "tuple of tuples": [
        (0, 1),
        [[1.0]],
        ["01"],
        {},
        None,
        ((HUGE,) * 16,),
        ((-1,) * 16,),
        ((16,),),
    ],
}
FIELDS = {
    ("network", "architecture"): "str",
    ("network", "input_channels"): "int",
    ("network", "output_channels"): "int",
    ("network", "nr_resnet"): "int",
    ("network", "nr_filters"): "int",
    ("network", "dropout_prob"): "float",
    ("network", "kernel_size"): "int",
    ("network", "max_dilation"): "int",
    ("network", "normalization"): "str",
    ("network", "bias"): "bool",
    ("network", "mask_weight"): "bool",
    ("network", "input_positions"): "bool",
    ("network", "local_prediction"): "bool",
    ("network", "rematerialize"): "bool",
    ("network", "num_classes"): "int",
    ("likelihood", "name"): "str",
    ("likelihood", "num_mixtures"): "int",
    ("likelihood", "coefficient_bound"): "bound",
    ("orders", "families"): "tuple of str",
    ("orders", "all_variants"): "bool",
    ("orders", "variants"): "tuple of int",
    ("orders", "base_transpose"): "bool",
    ("orders", "base_reflect_rows"): "bool",
    ("orders", "base_reflect_cols"): "bool",
    ("orders", "seed"): "int",
    ("orders", "own"): "tuple of tuples",
    ("preparation", "binarize"): "bool",
    ("preparation", "n_bits"): "int",
}
# What a message calls a field, where it has not its own name.
CALLED = {"architecture": "model", "families": "order", "name": "likelihood"}


def test_every_field_is_among_those_that_are_tested(contents):
    own = {"image_shapes", "dataset", "classes"}
    assert {path[-1] for path in FIELDS} | own == set(flat(contents["model"]))


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_a_field_of_another_type_or_without_meaning_is_refused_by_name(path, refused):
    for value in WRONG[FIELDS[path]]:
        refused(setting(*path, value), CALLED.get(path[-1], path[-1]))


@pytest.mark.parametrize(
    "value",
    [
        (),
        (1, 4, 4),
        ((1, 4),),
        ((1, 4, 4.0),),
        ((1, -4, 4),),
        ((1, 0, 4),),
        ((1, 4, 4), (3, 4, 4)),
        ((1, 2**30, 2**30),),
        ((1, 4, HUGE),),
        "4x4",
        None,
    ],
)
def test_image_shapes_that_no_image_has_are_refused(value, refused):
    refused(setting("image_shapes", value), "image_shapes")


@pytest.mark.parametrize("value", [5, ["mnist"], "x" * 10_000])
def test_a_data_set_without_a_name_is_refused(value, refused):
    refused(setting("dataset", value), "dataset")


@pytest.mark.parametrize("part", ["network", "likelihood", "orders", "preparation"])
def test_parts_must_be_there_and_have_what_they_need_and_no_more(part, refused, contents):
    refused(lambda lie: lie["model"].pop(part), f"'{part}'")
    for value in (None, [], "x", 3):
        refused(setting(part, value), part)
    refused(setting(part, "colour", 3), part, "'colour'")
    refused(setting(part, 7, 3), part, "'7'")
    refused(setting(part, "x" * 10_000, 3), part, "xxx")


def test_entries_without_a_default_must_be_there(refused):
    for name in ("architecture", "input_channels", "output_channels"):
        refused(lambda lie, name=name: lie["model"]["network"].pop(name), f"'{name}'")
    refused(lambda lie: lie["model"]["likelihood"].pop("name"), "'name'")
    refused(lambda lie: lie["model"].pop("image_shapes"), "'image_shapes'")


@pytest.mark.parametrize("value", [None, [], "model", 3, torch.zeros(2)])
def test_a_description_that_is_no_dictionary_is_refused(value, refused):
    refused(lambda lie: lie.update(model=value), "model", "dictionary")


@pytest.mark.parametrize("value", [0, -1, 1, 5, 10_000, 65_536, 2**40])
@pytest.mark.parametrize("name", ["nr_filters", "nr_resnet", "kernel_size"])
def test_sizes_that_are_not_those_of_the_weights_are_refused(name, value, refused):
    if (name, value) != ("nr_resnet", 1):
        refused(setting("network", name, value), name)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("network", "bias"), False),
        (("network", "mask_weight"), True),
        (("network", "input_positions"), True),
        (("network", "local_prediction"), True),
        (("network", "normalization"), "weight_norm"),
        (("network", "architecture"), "pixelcnnpp"),
    ],
)
def test_a_kind_of_network_that_the_weights_are_not_of_is_refused(path, value, refused):
    refused(setting(*path, value))


def test_a_likelihood_that_does_not_fit_is_refused(refused):
    refused(setting("preparation", "binarize", False), "likelihood", "binarize")
    refused(setting("likelihood", "name", "discretized_mixture_logistics"), "likelihood")
    refused(setting("network", "output_channels", 3), "3", "2")
    refused(setting("network", "input_channels", 3), "3", "1")

    def mixture(lie):
        lie["model"]["preparation"]["binarize"] = False
        lie["model"]["likelihood"] = {"name": "discretized_mixture_logistics", "num_mixtures": 2}
        lie["model"]["network"]["output_channels"] = 6

    refused(mixture, "output_channels", "6", "2")


def claims_large_weights(lie):
    """A network of 20,000 filters, all of whose weights are one and the same number."""
    lie["model"]["network"]["nr_filters"] = 20_000
    for name, value in lie["model_state_dict"].items():
        sizes = [20_000 if size == 4 else 40_000 if size == 8 else size for size in value.shape]
        lie["model_state_dict"][name] = torch.zeros(1).expand(sizes)


def claims_many_filters(lie):
    """Only the layers that are looked at first are large."""
    lie["model"]["network"]["nr_filters"] = 20_000
    lie["model_state_dict"]["nin_out.lin_a.weight_v"] = torch.zeros(2, 20_000)


def claims_many_blocks(lie):
    lie["model"]["network"]["nr_resnet"] = 1_000
    for number in range(1_000):
        lie["model_state_dict"][f"up_layers.0.u_stream.{number}.x"] = torch.zeros(0)


@pytest.mark.parametrize("change", [claims_large_weights, claims_many_filters, claims_many_blocks])
def test_weights_that_are_not_in_the_file_take_no_memory(change, refused):
    refused(change, "weights")


@pytest.mark.parametrize(
    "weights",
    [
        None,
        [],
        3,
        torch.zeros(2),
        {"nin_out.lin_a.bias": 3},
        {"nin_out.lin_a.bias": [0.0, 0.0]},
        {3: torch.zeros(2)},
        {"nin_out.lin_a.bias": torch.zeros(2, device="meta")},
        {"nin_out.lin_a.bias": torch.zeros(2, dtype=torch.complex64)},
        {},
    ],
    ids=["none", "list", "number", "tensor", "int", "floats", "key", "meta", "complex", "empty"],
)
@pytest.mark.parametrize("name", ["model_state_dict", "ema_state_dict"])
def test_weights_that_are_none_are_refused(name, weights, refused):
    if (name, weights) != ("ema_state_dict", None):
        refused(lambda lie: lie.update({name: weights}))


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ({"dataset": "imagenet"}, "imagenet"),
        ({"dataset": 3}, "dataset"),
        ({"dataset": ["mnist"]}, "dataset"),
        ({"order": "s_curve"}, "order"),
        ({"order": ["scan"]}, "scan"),
        ({"order": []}, "orders"),
        ({"order": 3}, "order"),
        ({"order_variants": [9]}, "order_variants"),
        ({"order_variants": ["1"]}, "order_variants"),
        ({"randomize_order": "yes"}, "randomize_order"),
        ({"nr_filters": 99}, "nr_filters"),
        ({"nr_filters": HUGE}, "nr_filters"),
        ({"nr_filters": "4"}, "nr_filters"),
        ({"nr_resnet": 2}, "nr_resnet"),
        ({"kernel_size": 5}, "kernel_size"),
        ({"max_dilation": 10**9}, "max_dilation"),
        ({"dropout_prob": math.nan}, "dropout_prob"),
        ({"normalization": "batch"}, "normalization"),
        ({"n_bits": 0}, "n_bits"),
        ({"binarize": False}, "output_channels"),
        ({"ours": 1}, "ours"),
        ({"model": "resnet"}, "resnet"),
        ({"resize_sizes": [0]}, "image_shapes"),
        ({"resize_sizes": [10**6]}, "image_shapes"),
        ({"dataset": "folder", "channels": 1, "image_size": [4]}, "image_size"),
        ({"dataset": "folder", "channels": 2, "image_size": [4, 4]}, "channel"),
        ({"dataset": "cifar"}, "binarize"),
    ],
)
def test_arguments_that_describe_another_model_or_none_are_refused(args, word, refused):
    good = {
        "dataset": "mnist",
        "binarize": True,
        "ours": True,
        "nr_filters": 4,
        "nr_resnet": 1,
        "kernel_size": 3,
        "normalization": "pono",
        "dropout_prob": 0.0,
    }

    def change(lie):
        del lie["model"]
        lie["args"] = good | args

    refused(change, word)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=5)
    | st.sampled_from([HUGE, -HUGE, 2**63, 2**16, 0, 1, 3, 4]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
    ),
    max_leaves=4,
)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_file_with_any_change_is_loaded_or_refused_in_one_line(data, contents, tmp_path_factory):
    lie = copy.deepcopy(contents)
    for _ in range(data.draw(st.integers(1, 2))):
        place = lie["model"]
        while True:
            name = data.draw(st.sampled_from([*place, "unknown"]))
            if not isinstance(place.get(name), dict) or data.draw(st.integers(0, 9)) == 0:
                break
            place = place[name]
        place[name] = data.draw(ANYTHING)
    path = tmp_path_factory.mktemp("lie") / "lie.pth"
    torch.save(lie, path)
    try:
        model = lmconv.load(path, device="cpu")
    except lmconv.CheckpointError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert repr(model).startswith("ImageModel(")
        assert read_description({"model": model.description.as_plain_data()}) == model.description
