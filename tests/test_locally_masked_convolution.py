"""The layer against a plain patch-matrix oracle, the goldens and finite differences."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from locally_masked_convolution import LocallyMaskedConv2d, locally_masked_conv2d

REFERENCE = Path(__file__).parent / "reference"
GOLDEN = np.load(REFERENCE / "lmconv.npz")
CASES = [case["case"] for case in json.loads((REFERENCE / "lmconv_cases.json").read_text())]


def oracle(x, weight, mask, dilation, bias=None, mask_weight=None):
    """The definition: every patch is unfolded, masked and multiplied by the flattened kernel."""
    batch, channels, height, width = x.shape
    out_channels, _, rows, cols = weight.shape
    padding = (dilation * (rows - 1) // 2, dilation * (cols - 1) // 2)
    patches = F.unfold(x, (rows, cols), dilation=dilation, padding=padding)
    patches = patches.view(batch, channels, rows * cols, height * width) * mask.unsqueeze(1)
    out = torch.einsum("ock,bckp->bop", weight.flatten(2), patches)
    if mask_weight is not None:
        out = out + torch.einsum("ok,mkp->mop", mask_weight.flatten(1), mask)
    if bias is not None:
        out = out + bias[:, None]
    return out.view(batch, out_channels, height, width)


def layer_like(weight, dilation=1, bias=None, mask_weight=None):
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
    layer = layer_like(
        arrays["weight"], int(arrays["dilation"]), arrays.get("bias"), arrays.get("mask_weight")
    )
    output = layer(x, arrays["mask"])
    output.backward(arrays["grad_output"])
    got = {"output": output, "grad_x": x.grad}
    got |= {f"grad_{name}": parameter.grad for name, parameter in layer.named_parameters()}
    for name, value in got.items():
        torch.testing.assert_close(value, arrays[name], rtol=1e-5, atol=2e-5, msg=name)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    kernel=st.sampled_from([1, 3, 5, (3, 5), (5, 1)]),
    dilation=st.integers(1, 3),
    per_image=st.booleans(),
    bias=st.booleans(),
    mask_weight=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_equals_the_patch_matrix_oracle(
    batch, channels, size, kernel, dilation, per_image, bias, mask_weight, seed
):
    generator = torch.Generator().manual_seed(seed)
    layer = LocallyMaskedConv2d(*channels, kernel, dilation, bias, mask_weight).double()
    x = torch.randn(batch, channels[0], *size, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    masks = torch.rand(batch if per_image else 1, taps, size[0] * size[1], generator=generator)
    mask = (masks < 0.5).double()
    expected = oracle(x, layer.weight, mask, dilation, layer.bias, layer.mask_weight)
    grad = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    inputs = [x, *layer.parameters()]
    expected_grads = torch.autograd.grad(expected, inputs, grad)
    output = layer(x, mask)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    for got, want in zip(torch.autograd.grad(output, inputs, grad), expected_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("per_image", [False, True])
def test_gradients_and_second_derivatives_by_finite_differences(per_image):
    layer = LocallyMaskedConv2d(2, 3, 3, dilation=2, mask_weight=True).double()
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    mask = (torch.rand(2 if per_image else 1, 9, 12) < 0.6).double()
    parameters = tuple(layer.parameters())

    def run(x, *values):
        names = [name for name, _ in layer.named_parameters()]
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, mask))

    assert torch.autograd.gradcheck(run, (x, *parameters))
    assert torch.autograd.gradgradcheck(run, (x, *parameters))


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
    expected = torch.autograd.grad(
        oracle(x, layer.weight, mask, 1, layer.bias), x, upstream.transpose(2, 3)
    )[0]
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, torch.float32, torch.float64])
def test_any_mask_dtype_gives_the_same_result(mask_dtype):
    layer = LocallyMaskedConv2d(2, 3, mask_weight=True)
    x, mask = torch.randn(2, 2, 4, 4), torch.rand(1, 9, 16) < 0.5
    assert torch.equal(layer(x, mask.to(mask_dtype)), layer(x, mask.float()))


@pytest.mark.parametrize("mode", ["bfloat16", "autocast"])
def test_half_precision_stays_near_the_oracle_forward_and_backward(mode):
    layer = LocallyMaskedConv2d(16, 8, mask_weight=True)
    x = torch.randn(2, 16, 6, 6)
    mask = (torch.rand(1, 9, 36) < 0.5).float()
    expected = oracle(x, layer.weight, mask, 1, layer.bias, layer.mask_weight)
    expected_grad = torch.autograd.grad(expected.sum(), layer.weight)[0]
    if mode == "bfloat16":
        layer = layer.bfloat16()
        output = layer(x.bfloat16(), mask)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = layer(x, mask)
    grad = torch.autograd.grad(output.float().sum(), layer.weight)[0]
    assert output.dtype == torch.bfloat16
    assert grad.dtype == layer.weight.dtype
    torch.testing.assert_close(output.float(), expected, rtol=0.02, atol=0.03)
    torch.testing.assert_close(grad.float(), expected_grad, rtol=0.02, atol=0.2)


def test_compiles_without_graph_breaks():
    layer = LocallyMaskedConv2d(2, 3, mask_weight=True)
    x = torch.randn(2, 2, 5, 4, requires_grad=True)
    mask = (torch.rand(1, 9, 20) < 0.5).float()
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
    ],
)
def test_rejects_wrong_shapes(x_shape, mask, message):
    with pytest.raises(ValueError, match=message):
        LocallyMaskedConv2d(2, 1)(torch.zeros(x_shape), mask)
