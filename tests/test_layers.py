"""Parts of the networks against their plain formulas."""

import pytest
import torch
import torch.nn.functional as F

from layers import OrderRescale, PositionalNorm, concat_elu, elu


def assert_same_function(function, formula, x):
    """Values, gradients and second derivatives."""
    x = x.double().requires_grad_()
    got, expected = function(x), formula(x)
    torch.testing.assert_close(got, expected)
    grad = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, x, grad), torch.autograd.grad(expected, x, grad)
    )
    assert torch.autograd.gradgradcheck(function, x)


def test_concat_elu_is_the_elu_of_both_signs_and_keeps_its_output_alone():
    def formula(x):
        return F.elu(torch.cat([x, -x], dim=1))

    x = torch.randn(2, 3, 4, 5)
    assert_same_function(concat_elu, formula, x)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda index: index):
        out = concat_elu(x.requires_grad_())
    assert [tensor.data_ptr() for tensor in kept] == [out.data_ptr()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_concat_elu_of_small_numbers_keeps_what_the_precision_has(dtype):
    x = torch.tensor([1e-3, -1e-3, 0.02, -0.3, 2.0]).view(1, 5, 1, 1).to(dtype)
    expected = F.elu(torch.cat([x, -x], dim=1).double())
    torch.testing.assert_close(
        concat_elu(x).double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-7
    )


def test_elu_is_that_of_pytorch():
    assert_same_function(elu, F.elu, torch.randn(2, 3, 4, 5))


@pytest.mark.parametrize("channels", [2, 7])
def test_positional_norm_takes_the_unbiased_variance_of_each_position(channels):
    def formula(x):
        centred = x - x.mean(1, keepdim=True)
        variance = centred.square().sum(1, keepdim=True) / (channels - 1)
        return centred / torch.sqrt(variance + 1e-5)

    x = torch.randn(2, channels, 3, 4)
    assert_same_function(lambda x: PositionalNorm(channels)(x, None), formula, x)


@pytest.mark.parametrize("function", [concat_elu, lambda x: PositionalNorm(6)(x, None)])
def test_channels_last_images_stay_so(function):
    x = torch.randn(2, 6, 4, 5).to(memory_format=torch.channels_last)
    assert function(x).is_contiguous(memory_format=torch.channels_last)


def test_order_rescale_divides_by_the_taps_that_are_on():
    mask = (torch.rand(1, 9, 20) < 0.5).float()
    mask[:, 4] = 1
    x = torch.randn(2, 3, 4, 5)
    expected = x / mask.sum(1).view(1, 1, 4, 5)
    torch.testing.assert_close(OrderRescale()(x, mask), expected)
