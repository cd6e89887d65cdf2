"""Networks against goldens, published layouts, and the autoregressive property itself."""

import itertools
import json
import math
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.paths import REFERENCE
from torch import nn

from layers import GatedResidualBlock, LocalPrediction, PositionEmbedding
from lmconv.checkpoints import load_checkpoint, load_published_state_dict, published_state_dict
from lmconv.description import read_description
from lmconv.likelihoods import Bernoulli, make_likelihood
from lmconv.modes.options import parse, settle
from lmconv.pixel_values import from_levels
from masking import ORDERS, generation_orders, get_generation_order_idx, get_masks
from model import NORMALIZATIONS, ModelConfig, build_model, count_parameters

MODELS = json.loads((REFERENCE / "models" / "index.json").read_text())
LAYOUTS = sorted(REFERENCE.glob("state_dict_*.json"))


def network(options):
    """Settings, likelihood and network that published command-line options describe."""
    words = shlex.split(options)
    if "--ours" not in words:
        words += ["--model", "pixelcnnpp"]
    args = settle(parse(words))
    description = read_description({"args": vars(args)})
    return args, description.make_likelihood(), build_model(description.network)


def tiny(normalization="pono", channels=1, outputs=2, **changes):
    """A float64 network with random biases, small enough for whole Jacobians."""
    settings = {"nr_resnet": 1, "nr_filters": 4, "kernel_size": 3, "dropout_prob": 0.0}
    config = ModelConfig(
        "lmconv", channels, outputs, normalization=normalization, **(settings | changes)
    )
    return build_model(config).double().eval()


def masks_of(order, size, kernel_size=3, dilation=2):
    return get_masks(order, *size, kernel_size, dilation).to(dtype=torch.float64)


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry["name"])
def test_published_checkpoints_give_golden_logits_and_likelihoods(entry):
    args, likelihood, model = network(entry["command_line_options"])
    assert count_parameters(model) == entry["parameters"]
    stem = REFERENCE / "models" / entry["name"]
    golden = np.load(stem.with_suffix(".npz"))
    path = stem.with_suffix(".pth")
    load_published_state_dict(model, load_checkpoint(path)["model_state_dict"], path.name)
    model.eval()
    x = torch.from_numpy(golden["x"])
    height, width = x.shape[2:]
    raster = generation_orders(["raster_scan"], (1, height, width), all_variants=False)[0]
    masks = []
    for j in itertools.count():
        if f"logits{j}" not in golden:
            break
        order = golden.get(f"order{j}", raster)
        masks.append(get_masks(order, height, width, args.kernel_size, args.max_dilation))
        with torch.no_grad():
            logits = model(x, masks[j])
        torch.testing.assert_close(
            logits, torch.from_numpy(golden[f"logits{j}"]), rtol=0, atol=1e-4
        )
    assert masks
    # Published likelihoods of fewer than 8 bits use the constant for 8; "matched" is right.
    prefix = "matched_" if args.n_bits < 8 else ""
    with torch.no_grad():
        maps = [likelihood.log_prob_per_pixel(model(x, each), x).double() for each in masks]
    maps = torch.stack(maps)  # K x B x H x W
    whole = maps.sum(dim=(2, 3))
    for j, values in enumerate(whole):
        np.testing.assert_allclose(values, golden[f"{prefix}log_likelihood{j}"], rtol=1e-5)
    ensemble = torch.logsumexp(whole, 0) - np.log(len(masks))
    np.testing.assert_allclose(ensemble, golden[f"{prefix}log_likelihood_ensemble"], rtol=1e-5)
    if not prefix:
        top, bottom, left, right = golden["region"].tolist()
        parts = maps[:, :, top:bottom, left:right].sum(dim=(2, 3))
        for j, values in enumerate(parts):
            np.testing.assert_allclose(values, golden[f"region_log_likelihood{j}"], rtol=1e-5)
        ensemble = torch.logsumexp(parts, 0) - np.log(len(masks))
        np.testing.assert_allclose(ensemble, golden["region_log_likelihood_ensemble"], rtol=1e-5)


OLD_FORMAT = sorted((REFERENCE / "models").glob("trained_*_old_format.pth"))


@pytest.mark.parametrize("path", OLD_FORMAT, ids=lambda path: path.stem)
def test_old_gpu_checkpoints_give_golden_logits(path):
    checkpoint = load_checkpoint(path)
    options = checkpoint["args"]
    golden = np.load(path.with_suffix(".npz"))
    likelihood = make_likelihood(1, binarize=True)
    config = ModelConfig(
        "lmconv",
        1,
        likelihood.num_output_channels,
        options["nr_resnet"],
        options["nr_filters"],
        0.0,
        options["kernel_size"],
        options["max_dilation"],
        options["normalization"],
    )
    model = build_model(config).eval()
    load_published_state_dict(model, checkpoint["model_state_dict"], path.name)
    x = torch.from_numpy(golden["x"])
    for j in (0, 1):
        masks = get_masks(golden[f"order{j}"], 28, 28, config.kernel_size, config.max_dilation)
        with torch.no_grad():
            logits = model(x, masks)
        torch.testing.assert_close(
            logits, torch.from_numpy(golden[f"logits{j}"]), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("path", LAYOUTS, ids=lambda path: path.stem)
def test_published_layouts_and_parameter_counts(path):
    layout = json.loads(path.read_text())
    with torch.device("meta"):
        _, _, model = network(layout["command_line_options"])
    assert count_parameters(model) == layout["total_parameters"]
    got = [(key, list(value.shape)) for key, value in published_state_dict(model).items()]
    assert got == [(entry["key"], entry["shape"]) for entry in layout["entries"]]


def reachable(order, size, kernel_size, dilation):
    """Which inputs each output may depend on, by following the masks through the layers.

    Every stage is modelled as many small convolutions as the network has in sequence; skip
    connections only shorten paths. Positions x positions, bool.
    """

    def step(mask):
        height, width = size
        connected = torch.zeros(height * width, height * width, dtype=torch.bool)
        for tap, (i, j) in enumerate(itertools.product(range(kernel_size), repeat=2)):
            rows, cols = (i - kernel_size // 2), (j - kernel_size // 2)
            for p in mask[0, tap].nonzero().flatten().tolist():
                row, col = p // width + rows * step.dilation, p % width + cols * step.dilation
                connected[p, row * width + col] = True
        return connected.double()

    masks = masks_of(order, size, kernel_size, dilation)
    step.dilation = 1
    init, undilated = step(masks.init), step(masks.undilated)
    step.dilation = dilation
    dilated = step(masks.dilated)

    def blocks(reach, number):
        for _ in range(2 * number):
            reach = ((undilated @ reach) > 0).double()
        return reach

    reach = init
    for stage, number in enumerate([1, 1, 1, 1, 2, 2]):
        reach = blocks(reach, number)
        if stage not in (2, 5):
            reach = ((dilated @ reach) > 0).double()
    return reach > 0


def dependencies(model, masks, size, channels=1):
    """The zero pattern of the network's Jacobian: positions x positions, bool.

    Several random inputs, because a single one can hit an accidental zero.
    """
    positions = size[0] * size[1]
    pattern = torch.zeros(positions, positions, dtype=torch.bool)
    for _ in range(2):
        x = torch.randn(1, channels, *size, dtype=torch.float64)
        number = model(x, masks).numel()
        # One copy of the image for each output, so that one backward pass gives the Jacobian.
        copies = x.repeat(number, 1, 1, 1).requires_grad_()
        model(copies, masks).flatten(1).diagonal().sum().backward()
        jacobian = copies.grad.view(-1, positions, channels, positions)
        pattern |= (jacobian != 0).any(dim=2).any(dim=0)
    return pattern


def check_dependencies(order, size, normalization, kernel_size=3, dilation=2, **changes):
    model = tiny(normalization, kernel_size=kernel_size, max_dilation=dilation, **changes)
    pattern = dependencies(model, masks_of(order, size, kernel_size, dilation), size)
    rank = torch.empty(len(order), dtype=torch.long)
    rank[torch.as_tensor(order[:, 0] * size[1] + order[:, 1])] = torch.arange(len(order))
    earlier = rank[None, :] < rank[:, None]
    assert not (pattern & ~earlier).any(), "an output depends on itself or on a later pixel"
    assert torch.equal(pattern, reachable(order, size, kernel_size, dilation))


@pytest.mark.parametrize("variant", range(8))
@pytest.mark.parametrize("family", ORDERS)
def test_outputs_depend_on_exactly_the_reachable_earlier_pixels_in_every_order(family, variant):
    order = generation_orders([family], (1, 8, 8), all_variants=True)[variant]
    check_dependencies(order, (8, 8), "none")


@pytest.mark.parametrize("normalization", ["none", "weight_norm", "order_rescale", "pono"])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (3, 3), (5, 1), (5, 2), (1, 1)])
def test_outputs_depend_on_exactly_the_reachable_earlier_pixels_in_every_network(
    normalization, kernel_size, dilation
):
    for size in [(6, 6), (4, 7)]:
        order = generation_orders(["gilbert2d"], (1, *size), all_variants=True)[6]
        check_dependencies(order, size, normalization, kernel_size, dilation)


def test_a_random_order_with_mask_weights_and_no_bias_is_autoregressive():
    positions = np.stack(np.divmod(np.random.default_rng(0).permutation(25), 5), axis=1)
    check_dependencies(positions, (5, 5), "pono", mask_weight=True, bias=False)


def test_a_network_that_is_given_positions_is_autoregressive():
    order = generation_orders(["s_curve"], (1, 5, 6), all_variants=True)[2]
    check_dependencies(order, (5, 6), "pono", input_positions=True)


@pytest.mark.parametrize("family", ["raster_scan", "gilbert2d"])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_network_that_predicts_from_neighbours_is_autoregressive(family, kernel_size):
    order = generation_orders([family], (1, 5, 6), all_variants=True)[2]
    changes = {"local_prediction": True, "outputs": 4, "bias": False}
    check_dependencies(order, (5, 6), "none", kernel_size, **changes)


@pytest.mark.parametrize("normalization", ["pono", "weight_norm"])
def test_a_network_that_is_told_classes_is_autoregressive(normalization):
    order = generation_orders(["s_curve"], (1, 5, 6), all_variants=True)[6]
    model = tiny(normalization, num_classes=3)
    give_vectors(model)
    labels = torch.arange(4).repeat(5 * 6 * 2)

    def told(x, masks):
        return model(x, masks, labels[: len(x)])

    pattern = dependencies(told, masks_of(order, (5, 6)), (5, 6))
    assert torch.equal(pattern, reachable(order, (5, 6), 3, 2))


def give_vectors(model):
    """Classes have the same vector at first; let them differ."""
    for name, parameter in model.named_parameters():
        if name.endswith("classes"):
            nn.init.normal_(parameter)


@pytest.mark.parametrize("architecture", ["lmconv", "pixelcnnpp"])
def test_a_network_without_classes_is_the_published_one_and_vectors_add_to_it(architecture):
    config = ModelConfig(architecture, 1, 2, 1, 4, 0.0, 3, normalization="pono")
    torch.manual_seed(1)
    plain = build_model(config).double()
    torch.manual_seed(1)
    model = build_model(replace(config, num_classes=2)).double()
    assert not any("classes" in name for name in plain.state_dict())
    added = model.state_dict().keys() - plain.state_dict().keys()
    blocks = [each for each in model.modules() if isinstance(each, GatedResidualBlock)]
    assert len(added) == len(blocks) and all(name.endswith(".classes") for name in added)
    order = generation_orders(["s_curve"], (1, 8, 8), all_variants=False)[0]
    masks, x = masks_of(order, (8, 8)), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    label = torch.tensor([0, 1, 2])
    assert torch.equal(model(x, masks, label), plain(x, masks))  # vectors are zero at first
    give_vectors(model)
    out = model(x, masks, label)
    assert torch.equal(out[2:], model(x, masks)[2:])  # the last label is the unknown one
    same = x[:1].expand(3, -1, -1, -1)
    first, second, unknown = model(same, masks, label)
    assert not torch.allclose(first, second) and not torch.allclose(first, unknown)
    model(x[:2], masks, torch.tensor([1, 2])).square().sum().backward()
    for block in blocks:
        reached = block.classes.grad.abs().sum(dim=1) > 0
        assert reached.tolist() == [False, True, True]


@pytest.mark.parametrize("precision", [torch.float64, torch.float32, torch.bfloat16])
def test_a_prediction_is_a_weighted_mean_of_the_visible_neighbours(precision):
    order = generation_orders(["s_curve"], (1, 5, 6), all_variants=True)[1]
    prediction = LocalPrediction(3, 4, 3).double()
    mask = masks_of(order, (5, 6)).init
    images = from_levels(torch.randint(0, 256, (2, 3, 5, 6)), 256).double()
    images[1] = images[1, :, :1, :1]  # one colour
    features = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    if precision != torch.float64:
        prediction, images, features, mask = (
            each.float() for each in (prediction, images, features, mask)
        )
    with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
        weights = prediction.nin_weights(features)
        predicted = prediction(features, prediction.look(images, mask))
    assert predicted.dtype == images.dtype
    expected = torch.zeros_like(predicted)
    for row, col in order.tolist():
        place = row * 6 + col
        taps = mask[0, :, place].nonzero().flatten().tolist()
        near = [(row + tap // 3 - 1, col + tap % 3 - 1) for tap in taps]
        if near:
            shares = weights[:, taps, row, col].to(images.dtype).softmax(dim=1)
            values = torch.stack([images[:, :, i, j] for i, j in near], dim=2)
            expected[:, :, row, col] = (values * shares.unsqueeze(1)).sum(dim=2)
    torch.testing.assert_close(predicted, expected, rtol=1e-5, atol=1e-6)
    later = order[1:]
    one_colour = predicted[1, :, later[:, 0], later[:, 1]]
    colour = images[1, :, :1, 0].expand_as(one_colour)
    torch.testing.assert_close(one_colour, colour, rtol=1e-6, atol=1e-6)
    assert (predicted[:, :, order[0, 0], order[0, 1]] == 0).all()  # nothing is visible


def test_positions_are_added_to_features_as_waves_that_stretch_with_the_image():
    embedding = PositionEmbedding(5).double()
    assert torch.equal(embedding(torch.ones(2, 5, 3, 4)), torch.ones(2, 5, 3, 4))  # zero at first
    nn.init.normal_(embedding.weight)
    small, large = embedding.table(5, 3).view(5, 3, 5), embedding.table(15, 9).view(15, 9, 5)
    torch.testing.assert_close(small, large[1::3, 1::3])  # at the centres of the same parts
    features = embedding(torch.zeros(1, 5, 5, 3, dtype=torch.float64))
    torch.testing.assert_close(features[0].permute(1, 2, 0), small)
    row, col, wave = 3, 1, 2 * 8 + 5  # the product of a wave along each side
    alone = torch.zeros_like(embedding.weight)
    alone[0, wave - 1] = 1
    embedding.weight.data = alone
    expected = math.cos(2 * math.pi * 3.5 / 5) * math.cos(5 * math.pi * 1.5 / 3)
    assert embedding.table(5, 3).view(5, 3, 5)[row, col, 0].item() == pytest.approx(expected)


def test_rgb_outputs_depend_on_earlier_pixels_alone():
    order = generation_orders(["s_curve"], (3, 5, 5), all_variants=True)[3]
    model = tiny("order_rescale", channels=3, outputs=20)
    pattern = dependencies(model, masks_of(order, (5, 5)), (5, 5), channels=3)
    assert torch.equal(pattern, reachable(order, (5, 5), 3, 2))


def test_the_baseline_depends_on_earlier_pixels_in_raster_order_alone():
    config = ModelConfig("pixelcnnpp", 1, 2, nr_resnet=1, nr_filters=4, dropout_prob=0.0)
    model = build_model(config).double().eval()
    pattern = dependencies(model, None, (8, 8))
    earlier = torch.ones(64, 64, dtype=torch.bool).tril(-1)
    assert not (pattern & ~earlier).any()
    assert pattern.sum() > 0.8 * earlier.sum()


def all_binary_images(height, width):
    bits = torch.arange(2 ** (height * width))[:, None] >> torch.arange(height * width) & 1
    return (2.0 * bits - 1).double().view(-1, 1, height, width)


NORMALIZED = [(name, (2, 5), slice(None)) for name in NORMALIZATIONS]
# Images of 12 pixels take four times as long: each network is given another quarter of the orders.
NORMALIZED += [(name, (3, 4), slice(first, None, 4)) for first, name in enumerate(NORMALIZATIONS)]


@pytest.mark.parametrize(("normalization", "size", "some"), NORMALIZED)
def test_probabilities_of_all_images_sum_to_one_in_every_order_and_ensemble(
    normalization, size, some
):
    model = tiny(normalization, mask_weight=True)
    images = all_binary_images(*size)
    families = [family for family in ORDERS if family != "hilbert"]
    orders = generation_orders(families, (1, *size), all_variants=True)[some]
    masks = [masks_of(order, size) for order in orders]
    with torch.no_grad():
        joint = [Bernoulli().log_prob(model(images, each), images) for each in masks]
    joint = torch.stack(joint)  # K x 2**(H*W)
    totals = joint.logsumexp(dim=1).exp()
    torch.testing.assert_close(totals, torch.ones_like(totals), rtol=1e-9, atol=0)
    ensemble = torch.logsumexp(joint, 0) - np.log(len(masks))
    assert ensemble.logsumexp(0).exp().item() == pytest.approx(1, abs=1e-9)
    assert joint.std() > 0.01


@pytest.mark.parametrize("normalization", ["none", "weight_norm", "order_rescale", "pono"])
@pytest.mark.parametrize("architecture", ["lmconv", "pixelcnnpp"])
def test_rematerialized_gradients_equal_stored_ones_and_reach_every_parameter(
    architecture, normalization
):
    config = ModelConfig(
        architecture,
        1,
        2,
        nr_resnet=1,
        nr_filters=4,
        dropout_prob=0.25,
        kernel_size=3,
        normalization=normalization,
        num_classes=1,
    )
    gradients = []
    for rematerialize in (False, True):
        torch.manual_seed(3)
        model = build_model(replace(config, rematerialize=rematerialize)).double()
        give_vectors(model)
        x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
        masks = masks_of(generation_orders(["s_curve"], (1, 8, 8), all_variants=False)[0], (8, 8))
        model(x, masks, torch.tensor([0, 1])).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(grad is not None and grad.abs().sum() > 0 for grad in gradients[0])
    for stored, rematerialized in zip(*gradients, strict=True):
        assert torch.equal(stored, rematerialized)


def test_the_network_compiles_as_one_graph_for_all_batch_sizes():
    config = ModelConfig("lmconv", 1, 2, nr_resnet=1, nr_filters=4, kernel_size=3, dropout_prob=0.0)
    model = build_model(config).double().train()
    masks = masks_of(get_generation_order_idx("gilbert2d", 6, 5), (6, 5))
    # What can break is tracing, forwards and backwards; a code generator only takes time.
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 5):
        x = torch.randn(batch, 1, 6, 5, dtype=torch.float64)
        torch._dynamo.mark_dynamic(x, 0)
        with torch.compiler.set_stance("default" if batch == 2 else "fail_on_recompile"):
            got = compiled(x, masks)
        expected = model(x, masks)
        torch.testing.assert_close(got, expected)
        parameters = list(model.parameters())
        got_grads = torch.autograd.grad(got.square().sum(), parameters)
        expected_grads = torch.autograd.grad(expected.square().sum(), parameters)
        torch.testing.assert_close(got_grads, expected_grads)


def test_dropout_acts_in_training_only():
    model = tiny(dropout_prob=0.5)
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    masks = masks_of(generation_orders(["raster_scan"], (1, 4, 4), all_variants=False)[0], (4, 4))
    assert torch.equal(model(x, masks), model(x, masks))
    model.train()
    assert not torch.equal(model(x, masks), model(x, masks))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "transformer"}, "transformer"),
        ({"normalization": "batch"}, "batch"),
        ({"normalization": "pono", "nr_filters": 1}, "at least 2"),
        ({"nr_resnet": 0}, "nr_resnet"),
        ({"dropout_prob": 1.0}, "dropout_prob"),
        ({"kernel_size": 2}, "odd"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_model(replace(ModelConfig("lmconv", 1, 2, 1, 4), **changes))


def test_the_baseline_names_a_size_that_it_cannot_work_at():
    model = build_model(ModelConfig("pixelcnnpp", 1, 2, 1, 4))
    with pytest.raises(ValueError, match="10x8"):
        model(torch.zeros(1, 1, 10, 8))
