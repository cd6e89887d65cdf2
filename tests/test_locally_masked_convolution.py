"""The layer against its definition, the goldens and finite differences, on each of its paths."""

import copy
import gc
import json
import math
import threading
import weakref
from contextlib import contextmanager
from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.paths import REFERENCE
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.grad import conv2d_weight

import locally_masked_convolution as lmconv
from locally_masked_convolution import (
    LocallyMaskedConv2d,
    locally_masked_conv2d,
    masked_convolution,
    masked_gradients,
    masked_weight_gradient,
    patch_matrix_convolution,
)
from masking import generation_orders, get_generation_order_idx, get_unfolded_masks

GOLDEN = np.load(REFERENCE / "lmconv.npz")
CASES = [case["case"] for case in json.loads((REFERENCE / "lmconv_cases.json").read_text())]


def layer_with(weight, dilation=1, bias=None, mask_weight=None):
    """A layer that holds the given parameters."""
    layer = LocallyMaskedConv2d(
        weight.shape[1],
        weight.shape[0],
        tuple(weight.shape[2:]),
        dilation,
        bias=bias is not None,
        mask_weight=mask_weight is not None,
    ).to(weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
        if mask_weight is not None:
            layer.mask_weight.copy_(mask_weight)
    return layer


@pytest.mark.parametrize("case", CASES)
def test_goldens_forward_and_backward(case):
    arrays = {
        key.removeprefix(f"{case}_"): torch.from_numpy(GOLDEN[key])
        for key in GOLDEN.files
        if key.startswith(f"{case}_")
    }
    x = arrays["x"].requires_grad_()
    layer = layer_with(
        arrays["weight"], int(arrays["dilation"]), arrays.get("bias"), arrays.get("mask_weight")
    )
    output = layer(x, arrays["mask"])
    output.backward(arrays["grad_output"])
    got = {"output": output, "grad_x": x.grad}
    got |= {f"grad_{name}": parameter.grad for name, parameter in layer.named_parameters()}
    for name, value in got.items():
        torch.testing.assert_close(value, arrays[name], rtol=1e-5, atol=2e-5, msg=name)


def test_the_oracle_is_the_definition_term_by_term():
    x, weight, bias = torch.randn(1, 2, 3, 4), torch.randn(2, 2, 3, 5), torch.randn(2)
    mask = torch.rand(1, 15, 12)
    expected = bias.view(1, 2, 1, 1).expand(1, 2, 3, 4).clone()
    for o, c, i, j, row, col in product(*map(range, (2, 2, 3, 5, 3, 4))):
        from_row, from_col = row + 2 * (i - 1), col + 2 * (j - 2)
        if 0 <= from_row < 3 and 0 <= from_col < 4:
            value = mask[0, 5 * i + j, 4 * row + col] * x[0, c, from_row, from_col]
            expected[0, o, row, col] += weight[o, c, i, j] * value
    torch.testing.assert_close(patch_matrix_convolution(x, weight, bias, mask, 2), expected)


# Orders in their eight variants, and masks of no order.
MASKS = ("raster_scan", "s_curve", "gilbert2d", "random", "values", "ones", "zeros")


def make_mask(kind, batch, size, kernel, dilation, variant=0):
    """A mask of a kind, ``1 or batch x taps x positions``; orders need a square kernel."""
    taps, positions = kernel[0] * kernel[1], size[0] * size[1]
    if kind in ("raster_scan", "s_curve", "gilbert2d"):
        order = generation_orders([kind], (1, *size), all_variants=True)[variant]
        return get_unfolded_masks(order, *size, kernel[0], dilation, "AB"[variant % 2])
    if kind == "values":
        return torch.randn(batch, taps, positions) * (torch.rand(batch, taps, positions) < 0.7)
    density = {"random": 0.5, "ones": 1.0, "zeros": 0.0}[kind]
    return (torch.rand(batch, taps, positions) < density).float()


def in_memory_format(x, name):
    """The same values, in another layout."""
    if name == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if name == "strided":
        return torch.stack([x, x], dim=-1).flatten(3)[..., ::2].transpose(0, 1).transpose(0, 1)
    return x


def definition(layer, x, mask):
    """The layer by its oracle."""
    out = patch_matrix_convolution(x, layer.weight, layer.bias, mask, layer.dilation)
    if layer.mask_weight is not None:
        term = torch.einsum("ok,mkp->mop", layer.mask_weight.flatten(1), mask.to(x.dtype))
        out = out + term.view(-1, len(layer.weight), *x.shape[2:])
    return out


def gradients(function, layer, x, mask, grad):
    """The output, then the gradients of the input and of each parameter."""
    inputs = [x, *layer.parameters()]
    out = function(x, mask)
    return [out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


def assert_equals_definition(layer, x, mask, tolerance):
    """Output and gradients are those of the definition in float64, as a share of the largest."""
    x = x.detach().requires_grad_()
    grad = torch.randn(len(x), len(layer.weight), *x.shape[2:], dtype=torch.float64)
    results = gradients(layer, layer, x, mask, grad.to(x.dtype))
    exact = copy.deepcopy(layer).double()
    exact_x = x.detach().double().requires_grad_()
    exact_grad = grad.to(x.dtype).double()
    expected = gradients(
        lambda x, mask: definition(exact, x, mask), exact, exact_x, mask.double(), exact_grad
    )
    for got, want in zip(results, expected, strict=True):
        assert got.dtype == x.dtype and got.shape == want.shape
        if want.numel() > 0:
            error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1)
            assert error <= tolerance


@contextmanager
def work_split_up(tile_values, block_values, threads):
    """Tiles, blocks and lanes of other sizes, so that small images need several."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sizes = {"_TILE_VALUES": tile_values, "_BLOCK_VALUES": block_values}
        sizes |= {"_FEWEST_ROWS": block_values, "_PAIRS_OF_PRODUCT": block_values}
        sizes |= {"_PAIRS_OF_CALL": tile_values // 10}
        with patch.multiple(lmconv, **sizes):
            yield
    finally:
        torch.set_num_threads(before)


# The problems of all sizes and kinds that the paths are compared on.
PROBLEMS = given(
    kind=st.sampled_from(MASKS),
    variant=st.integers(0, 7),
    per_image=st.booleans(),
    batch=st.integers(0, 4),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    kernel=st.sampled_from([(1, 1), (3, 3), (5, 5), (3, 5), (5, 1)]),
    dilation=st.integers(1, 3),
    terms=st.sampled_from([(False, False), (True, False), (True, True)]),
    memory_format=st.sampled_from(["contiguous", "channels_last", "strided"]),
    split=st.sampled_from([(2**20, 2**20, 1), (1, 1, 1), (50, 50, 2), (200, 1, 3), (1, 50, 2)]),
    seed=st.integers(0, 10**6),
)


def problem(
    kind, variant, per_image, batch, channels, size, kernel, dilation, terms, memory_format, seed
):
    """A layer in float64, an input and a mask."""
    torch.manual_seed(seed)
    if kernel[0] != kernel[1]:
        kind = {"raster_scan": "random", "s_curve": "ones", "gilbert2d": "values"}.get(kind, kind)
    layer = LocallyMaskedConv2d(*channels, kernel, dilation, *terms).double()
    x = in_memory_format(torch.randn(batch, channels[0], *size, dtype=torch.float64), memory_format)
    masks = batch if per_image else 1
    return layer, x, make_mask(kind, masks, size, kernel, dilation, variant)


@settings(max_examples=300, deadline=None)
@PROBLEMS
def test_equals_the_definition_on_any_problem(split, **choices):
    layer, x, mask = problem(**choices)
    with work_split_up(*split):
        assert_equals_definition(layer, x, mask, 1e-10)


@settings(max_examples=200, deadline=None)
@PROBLEMS
def test_products_of_groups_equal_the_definition_on_any_problem(split, **choices):
    layer, x, mask = problem(**choices)
    settings = {"_GROUPED_DTYPES": (torch.float64,), "_MOST_WASTE": math.inf}
    with work_split_up(*split), patch.multiple(lmconv, **settings):
        assert_equals_definition(layer, x, mask, 1e-10)


@settings(max_examples=200, deadline=None)
@PROBLEMS
def test_surplus_rows_of_products_change_nothing_on_any_problem(split, **choices):
    layer, x, mask = problem(**choices)

    def unwritten(name, like, rows, columns):
        return like.new_full((rows, columns), math.nan)

    settings = {"_COMPILED_DTYPES": (torch.float64,), "_workspace": unwritten}
    for grouped in ((), (torch.float64,)):
        settings |= {"_GROUPED_DTYPES": grouped, "_MOST_WASTE": math.inf}
        with work_split_up(*split), patch.multiple(lmconv, **settings):
            assert_equals_definition(layer, x, mask, 1e-10)


@given(st.integers(0, 10**6), st.integers(1, 8))
def test_products_have_few_numbers_of_rows(count, lanes):
    rows = torch.zeros(1, dtype=torch.bfloat16)
    count *= lanes
    more = lmconv._common_number(rows, count, lanes)
    assert count <= more <= lmconv._most_rows(count) and more % lanes == 0
    leading_digits = f"{more // lanes:b}".rstrip("0")
    assert len(leading_digits) <= 4
    assert lmconv._common_number(rows.float(), count, lanes) == count


@settings(max_examples=100, deadline=None)
@PROBLEMS
def test_equals_the_definition_in_single_precision(split, **choices):
    layer, x, mask = problem(**choices)
    with work_split_up(*split):
        assert_equals_definition(layer.float(), x.float(), mask, 1e-4)


@pytest.mark.parametrize("kind", ["s_curve", "gilbert2d", "values"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_equals_the_definition_in_half_precision(dtype, tolerance, kind):
    layer = LocallyMaskedConv2d(40, 24, 3, mask_weight=True).to(dtype)
    mask = make_mask(kind, 1, (12, 12), (3, 3), 1).to(dtype)
    assert_equals_definition(layer, torch.randn(3, 40, 12, 12, dtype=dtype), mask, tolerance)


@settings(max_examples=80, deadline=None)
@given(
    dtype=st.sampled_from([(torch.bfloat16, 2e-2), (torch.float16, 3e-3)]),
    kind=st.sampled_from(MASKS),
    variant=st.integers(0, 7),
    channels=st.tuples(*2 * [st.sampled_from([1, 2, 3, 8, 16, 17, 24, 31, 32, 36, 40, 72])]),
    size=st.tuples(st.integers(3, 13), st.integers(3, 13) | st.integers(27, 35)),
    kernel=st.sampled_from([3, 5]),
    dilation=st.integers(1, 3),
    batch=st.integers(1, 5),
)
@example((torch.bfloat16, 2e-2), "s_curve", 0, (24, 24), (32, 32), 3, 2, 4)
@example((torch.bfloat16, 2e-2), "s_curve", 5, (36, 36), (32, 32), 3, 2, 4)
@example((torch.bfloat16, 2e-2), "raster_scan", 0, (72, 72), (32, 32), 3, 2, 4)
@example((torch.bfloat16, 2e-2), "s_curve", 0, (48, 40), (28, 28), 3, 1, 4)
def test_half_precision_is_right_for_any_number_of_channels(
    dtype, kind, variant, channels, size, kernel, dilation, batch
):
    """Also where a library's own convolution is not: it leaves values that are not finite."""
    dtype, tolerance = dtype
    layer = LocallyMaskedConv2d(*channels, kernel, dilation).to(dtype)
    mask = make_mask(kind, 1, size, (kernel, kernel), dilation, variant).to(dtype)
    x = torch.randn(batch, channels[0], *size).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    assert_equals_definition(layer, x, mask, tolerance)


def test_groups_have_each_position_once_and_the_taps_that_are_on_at_some_of_theirs():
    mask = make_mask("gilbert2d", 1, (8, 8), (3, 3), 1)
    is_on = lmconv._plan(mask, (3, 3), 1, (8, 8)).is_on[0].flatten(1)
    for most_pairs in (1, 50, 10**9):
        groups = list(lmconv._similar_positions(is_on, most_pairs))
        positions = torch.cat([positions for _, positions in groups])
        assert positions.sort().values.tolist() == list(range(64))
        assert len(groups) == 1 or most_pairs < 10**9
        for taps, positions in groups:
            on = is_on[:, positions]
            assert on.any(1).nonzero().flatten().tolist() == taps.tolist()
            assert most_pairs > 1 or bool((on == on[:, :1]).all())


@pytest.mark.parametrize(
    ("kind", "has_groups"), [("s_curve", True), ("raster_scan", True), ("random", False)]
)
def test_positions_with_little_in_common_are_not_multiplied_in_groups(kind, has_groups):
    plan = lmconv._plan(make_mask(kind, 1, (28, 28), (3, 3), 1), (3, 3), 1, (28, 28))
    for images in (1, 4, 30):
        x = torch.zeros(images, 48, 28, 28, dtype=torch.bfloat16)
        assert lmconv._can_use_groups(x, plan) == has_groups


def test_the_library_is_not_given_what_it_may_get_wrong(monkeypatch):
    """On any processor: oneDNN's own half precision is not there on all of them."""
    given = []

    def weight_gradient(x, shape, grad, **options):
        given.append(x.dtype)
        return conv2d_weight(x, shape, grad, **options)

    monkeypatch.setattr(lmconv, "conv2d_weight", weight_gradient)
    layer = LocallyMaskedConv2d(24, 16, 9, dilation=2).bfloat16()  # with too many taps for groups
    mask = make_mask("s_curve", 1, (8, 8), (9, 9), 2)
    assert_equals_definition(layer, torch.randn(2, 24, 8, 8).bfloat16(), mask, 2e-2)
    assert set(given) == {torch.float32}


def test_curves_by_rows_and_by_columns_are_cut_convolutions_and_others_are_not():
    for family, kernel, dilation in product(("raster_scan", "s_curve"), (3, 5), (1, 2)):
        for order in generation_orders([family], (1, 9, 8), all_variants=True):
            mask = get_unfolded_masks(order, 9, 8, kernel, dilation)
            pieces = lmconv._plan(mask, (kernel, kernel), dilation, (9, 8)).pieces
            assert pieces is not None and len(pieces) <= 4
    mask = get_unfolded_masks(get_generation_order_idx("gilbert2d", 9, 8), 9, 8, 3)
    assert lmconv._plan(mask, (3, 3), 1, (9, 8)).pieces is None


@pytest.mark.parametrize("kind", ["s_curve", "random", "values", "per_image", "groups"])
def test_gradients_and_second_derivatives_by_finite_differences(kind, monkeypatch):
    if kind == "groups":
        monkeypatch.setattr(lmconv, "_GROUPED_DTYPES", (torch.float64,))
        kind = "s_curve"
    layer = LocallyMaskedConv2d(2, 3, 3, dilation=2, mask_weight=True).double()
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    masks, kind = (2, "random") if kind == "per_image" else (1, kind)
    mask = make_mask(kind, masks, (4, 3), (3, 3), 2).double()
    parameters = tuple(layer.parameters())

    def run(x, *values):
        names = [name for name, _ in layer.named_parameters()]
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, mask))

    assert torch.autograd.gradcheck(run, (x, *parameters))
    assert torch.autograd.gradgradcheck(run, (x, *parameters))


@pytest.mark.parametrize("kind", ["s_curve", "random", "groups"])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_operators_keep_the_rules_of_the_dispatcher(kind, transposed, monkeypatch):
    if kind == "groups":
        monkeypatch.setattr(lmconv, "_GROUPED_DTYPES", (torch.float32,))
        kind = "s_curve"
    mask = make_mask(kind, 1, (4, 5), (3, 3), 1)
    x, grad = torch.randn(2, 2, 4, 5), torch.randn(2, 3, 4, 5)
    weight = torch.randn(3, 2, 3, 3, requires_grad=True)
    ends = (grad, x) if transposed else (x, grad)
    convolution = (ends[0].clone().requires_grad_(), weight, None, mask, 1, transposed)
    torch.library.opcheck(masked_convolution, convolution)
    ends = tuple(end.clone().requires_grad_() for end in (x, grad))
    torch.library.opcheck(masked_weight_gradient, (*ends, mask, 3, 3, 1))
    torch.library.opcheck(masked_gradients, (*ends, weight, mask, 1))


@pytest.fixture
def plans_made(monkeypatch):
    """A list that grows with each mask that is analysed."""
    made = []
    make = lmconv._MaskPlan.__init__

    def counting(plan, values, geometry):
        made.append(geometry)
        make(plan, values, geometry)

    monkeypatch.setattr(lmconv._MaskPlan, "__init__", counting)
    return made


@pytest.mark.parametrize("kind", ["s_curve", "gilbert2d"])
def test_a_mask_is_analysed_once(plans_made, kind):
    mask = make_mask(kind, 1, (6, 6), (3, 3), 1)
    layers = [LocallyMaskedConv2d(2, 2), LocallyMaskedConv2d(2, 2, dilation=2)]
    for _ in range(3):
        x = torch.randn(2, 2, 6, 6, requires_grad=True)
        for layer in layers:
            layer(layer(x, mask), mask).sum().backward()
    # For each dilation, and turned around for the gradient of the input.
    assert len(plans_made) == 2 * len(layers)
    with torch.no_grad():
        layers[0](torch.randn(1, 2, 4, 9), mask)  # another geometry with as many positions
    assert len(plans_made) == 2 * len(layers) + 1


@pytest.mark.parametrize("made_in_inference_mode", [False, True])
def test_a_mask_that_changes_in_place_is_analysed_again(made_in_inference_mode):
    layer = LocallyMaskedConv2d(2, 3).eval()
    x = torch.randn(1, 2, 4, 4)
    with torch.inference_mode(made_in_inference_mode):
        mask = make_mask("random", 1, (4, 4), (3, 3), 1)
        first = layer(x, mask)
        assert torch.equal(layer(x, mask), first)
        mask.zero_()
        assert torch.equal(layer(x, mask), layer.bias.view(1, 3, 1, 1).expand_as(first))


def test_a_mask_first_seen_in_inference_mode_can_train_later():
    layer = LocallyMaskedConv2d(2, 3)
    x, mask = torch.randn(1, 2, 4, 4), make_mask("values", 1, (4, 4), (3, 3), 1)
    with torch.inference_mode():
        layer(x, mask)
    layer(x, mask).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("kind", ["s_curve", "random", "values"])
def test_a_mask_takes_what_is_known_of_it_along(kind):
    """At once: the garbage collector is off."""
    layer = LocallyMaskedConv2d(1, 1)
    x = torch.randn(1, 1, 3, 3, requires_grad=True)
    gc.collect()
    before = len(lmconv._PLANS)
    plans = weakref.WeakSet()
    make = lmconv._MaskPlan.__init__

    def watched(plan, *arguments):
        plans.add(plan)
        make(plan, *arguments)

    gc.disable()
    try:
        with patch.object(lmconv._MaskPlan, "__init__", watched):
            for _ in range(100):
                layer(x, make_mask(kind, 1, (3, 3), (3, 3), 1)).sum().backward()
        assert len(lmconv._PLANS) == before and len(plans) == 0
    finally:
        gc.enable()


needs_triton = pytest.mark.skipif(
    not lmconv._HAS_TRITON, reason="Triton is not installed, or has neither GPU nor interpreter"
)


@pytest.fixture
def on_triton(monkeypatch):
    """Send whatever the kernels can do to them, on a CPU as well; gives the device to use."""

    def can_use(x, plan):
        return x.numel() > 0 and plan.values is None and x.dtype != torch.float64

    monkeypatch.setattr(lmconv, "_can_use_triton", can_use)
    for path in ("_convolve_regular", "_convolve_gathered"):
        monkeypatch.delattr(lmconv, path)
    return "cuda" if torch.cuda.is_available() else "cpu"


@needs_triton
@pytest.mark.parametrize("kind", ["s_curve", "gilbert2d", "random", "ones", "zeros"])
@pytest.mark.parametrize(
    ("batch", "channels", "size", "kernel", "dilation"),
    [
        (2, (3, 5), (4, 5), (3, 3), 1),
        (3, (33, 40), (5, 3), (5, 5), 2),
        (1, (64, 70), (12, 13), (3, 3), 2),
        (2, (2, 2), (1, 1), (3, 3), 1),
        (4, (2, 3), (24, 24), (3, 3), 1),  # enough rows to split the sum for the kernel
    ],
)
def test_triton_kernels_equal_the_definition(
    on_triton, kind, batch, channels, size, kernel, dilation
):
    layer = LocallyMaskedConv2d(*channels, kernel, dilation).to(on_triton)
    x = torch.randn(batch, channels[0], *size).to(on_triton)
    for masks in {1, batch} if kind == "random" else {1}:
        mask = make_mask(kind, masks, size, kernel, dilation).to(on_triton)
        with torch.backends.cudnn.flags(allow_tf32=False):
            assert_equals_definition(layer, x, mask, 1e-5)


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float16, 3e-3),
        pytest.param(
            torch.bfloat16,
            2e-2,
            marks=pytest.mark.skipif(
                not torch.cuda.is_available(), reason="the interpreter has no bfloat16 products"
            ),
        ),
    ],
)
def test_triton_kernels_in_half_precision(on_triton, dtype, tolerance):
    layer = LocallyMaskedConv2d(40, 24, 3).to(on_triton, dtype)
    mask = make_mask("gilbert2d", 1, (12, 12), (3, 3), 1).to(on_triton, dtype)
    x = torch.randn(3, 40, 12, 12).to(on_triton, dtype)
    assert_equals_definition(layer, x, mask, tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@settings(max_examples=100, deadline=None)
@PROBLEMS
def test_equals_the_definition_on_a_gpu(split, **choices):
    layer, x, mask = problem(**choices)
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert_equals_definition(layer.float().cuda(), x.float().cuda(), mask.cuda(), 1e-4)


def test_all_ones_is_an_ordinary_convolution():
    layer = LocallyMaskedConv2d(3, 4, 3, dilation=2)
    x = torch.randn(2, 3, 6, 5)
    expected = F.conv2d(x, layer.weight, layer.bias, padding=2, dilation=2)
    torch.testing.assert_close(layer(x, torch.ones(1, 9, 30)), expected)


def test_backward_accepts_a_transposed_upstream_gradient():
    layer = LocallyMaskedConv2d(2, 3)
    x = torch.randn(1, 2, 4, 5, requires_grad=True)
    mask = (torch.rand(1, 9, 20) < 0.5).float()
    upstream = torch.randn(1, 3, 5, 4)
    layer(x, mask).transpose(2, 3).backward(upstream)
    expected = torch.autograd.grad(definition(layer, x, mask), x, upstream.transpose(2, 3))[0]
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, torch.float32, torch.float64])
def test_any_mask_dtype_gives_the_same_result(mask_dtype):
    layer = LocallyMaskedConv2d(2, 3, mask_weight=True)
    x, mask = torch.randn(2, 2, 4, 4), torch.rand(1, 9, 16) < 0.5
    assert torch.equal(layer(x, mask.to(mask_dtype)), layer(x, mask.float()))


def test_autocast_multiplies_in_half_precision_and_keeps_the_parameters_in_single():
    layer = LocallyMaskedConv2d(16, 8, mask_weight=True)
    x, mask = torch.randn(2, 16, 6, 6), make_mask("random", 1, (6, 6), (3, 3), 1)
    expected = definition(layer, x, mask)
    expected_grad = torch.autograd.grad(expected.sum(), layer.weight)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x, mask)
    grad = torch.autograd.grad(output.float().sum(), layer.weight)[0]
    assert output.dtype == torch.bfloat16
    assert grad.dtype == torch.float32
    torch.testing.assert_close(output.float(), expected, rtol=0.02, atol=0.03)
    torch.testing.assert_close(grad, expected_grad, rtol=0.02, atol=0.2)


def test_compiles_without_graph_breaks_after_use_in_inference_mode(monkeypatch):
    layer = LocallyMaskedConv2d(2, 3, mask_weight=True)
    x = torch.randn(2, 2, 5, 4, requires_grad=True)
    mask = (torch.rand(1, 9, 20) < 0.5).float()
    monkeypatch.setattr(lmconv, "_LOCAL", threading.local())
    with torch.inference_mode():
        layer(x, mask)
    # Dynamo and autograd tracing are what can break; the C++ back end only adds minutes.
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    inputs = [x, *layer.parameters()]
    output, expected = compiled(x, mask), layer(x, mask)
    torch.testing.assert_close(output, expected)
    grads = torch.autograd.grad(output.square().sum(), inputs)
    for got, want in zip(grads, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
        torch.testing.assert_close(got, want)


def test_nothing_saved_for_backward_is_as_large_as_the_patch_matrix():
    layer = LocallyMaskedConv2d(4, 4, 5)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        layer(x, torch.ones(1, 25, 64)).sum()
    assert sizes and max(sizes) < 25 * x.numel() / 2


def test_initial_parameters_are_distributed_as_in_conv2d():
    torch.manual_seed(1)
    ours = LocallyMaskedConv2d(7, 9, 3)
    torch.manual_seed(1)
    theirs = torch.nn.Conv2d(7, 9, 3)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
    assert [name for name, _ in LocallyMaskedConv2d(1, 1, mask_weight=True).named_parameters()] == [
        "weight",
        "mask_weight",
        "bias",
    ]


def test_the_published_name_is_the_same_layer():
    assert locally_masked_conv2d is LocallyMaskedConv2d


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"kernel_size": 4}, "odd"), ({"kernel_size": (3, 2)}, "3x2"), ({"dilation": 0}, "dilation")],
)
def test_rejects_impossible_kernels(arguments, message):
    with pytest.raises(ValueError, match=message):
        LocallyMaskedConv2d(1, 1, **arguments)


@pytest.mark.parametrize(
    ("x_shape", "mask", "message"),
    [
        ((1, 3, 4, 4), torch.ones(1, 9, 16), "B x 2"),
        ((1, 2, 4, 4), torch.ones(1, 9, 15), "1 x 9 x 16"),
        ((3, 2, 4, 4), torch.ones(2, 9, 16), "3 x 9 x 16"),
        ((1, 2, 4, 4), None, "NoneType"),
        ((1, 2, 4, 4), torch.ones(1, 9, 16, device="meta"), r"mask\.to\('cpu'\)"),
        ((1, 2, 4, 4), torch.ones(1, 9, 16, dtype=torch.complex64), "complex64"),
    ],
)
def test_rejects_masks_that_do_not_fit(x_shape, mask, message):
    with pytest.raises(ValueError, match=message):
        LocallyMaskedConv2d(2, 1)(torch.zeros(x_shape), mask)
