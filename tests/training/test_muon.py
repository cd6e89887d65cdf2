"""Muon against its definition, against PyTorch's own, and over a network's parameters."""

import copy
import math

import pytest
import torch
from helpers.models import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmconv.training.muon import Muon, is_kernel, orthogonalize


def iterated(matrix):
    """Five steps of Newton and Schulz, as they are published, in double precision."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.t() if is_tall else matrix).double()
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.t()
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.t() if is_tall else x


@settings(max_examples=60, deadline=None)
@given(
    number=st.integers(1, 3),
    rows=st.integers(1, 20),
    columns=st.integers(1, 40),
    rank=st.integers(1, 20),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_matrices_are_iterated_together_as_published(number, rows, columns, rank, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(number, rows, rank, generator=generator)
    matrices = scale * left @ torch.randn(number, rank, columns, generator=generator)
    for result, matrix in zip(orthogonalize(matrices), matrices, strict=True):
        torch.testing.assert_close(result.double(), iterated(matrix), rtol=2e-3, atol=2e-3)


def test_singular_values_come_near_one_and_vectors_stay():
    matrices = torch.randn(5, 12, 30)
    results = orthogonalize(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    in_old_basis = u.mT @ results @ v.mT
    values = in_old_basis.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.65 and values.max() < 1.25
    assert (in_old_basis - torch.diag_embed(values)).abs().max() < 1e-3


def test_matrices_of_zeros_stay():
    assert not orthogonalize(torch.zeros(2, 3, 4)).any()


def with_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_kernels_step_like_the_matrices_of_pytorchs_muon(decay):
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this release of PyTorch has no Muon")
    shapes = [(6, 4, 3, 3), (6, 4, 3, 3), (8, 2, 1, 1), (5, 3, 1, 1)]
    kernels = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    matrices = [nn.Parameter(kernel.detach().flatten(1).clone()) for kernel in kernels]
    optimizer = Muon(kernels, lr=0.02, weight_decay=decay)
    peer = torch.optim.Muon(matrices, lr=0.02, weight_decay=decay)  # its products are in bfloat16
    for seed in range(4):
        with_gradients(kernels, seed)
        for kernel, matrix in zip(kernels, matrices, strict=True):
            matrix.grad = kernel.grad.flatten(1).clone()
        before = [kernel.detach().clone() for kernel in kernels]
        optimizer.step()
        peer.step()
        for kernel, matrix, old in zip(kernels, matrices, before, strict=True):
            change = (kernel.detach() - old).flatten(1)
            assert (kernel.detach().flatten(1) - matrix).norm() < 0.1 * change.norm()
            matrix.data.copy_(kernel.detach().flatten(1))  # differences do not add up


def test_other_parameters_step_as_with_adam_at_a_tenth_of_the_rate():
    shapes = [(6,), (6, 4), (6, 1, 1, 1), ()]
    mine = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    others = [nn.Parameter(parameter.detach().clone()) for parameter in mine]
    muon, adam = Muon(mine, lr=0.05), torch.optim.Adam(others, lr=0.005)
    for seed in range(3):
        with_gradients(mine, seed)
        with_gradients(others, seed)
        muon.step()
        adam.step()
    for one, other in zip(mine, others, strict=True):
        torch.testing.assert_close(one, other)


def test_parameters_without_gradients_stay():
    parameters = [nn.Parameter(torch.randn(3, 2, 3, 3)), nn.Parameter(torch.randn(3))]
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = Muon(parameters, weight_decay=0.1)
    optimizer.step()
    assert all(map(torch.equal, parameters, before))
    assert not optimizer.state


def test_a_closure_is_called_with_gradients_on():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = Muon([parameter])

    def closure():
        parameter.grad = None
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2
    assert parameter.detach().max() < 1


def test_in_a_network_kernels_are_those_of_masked_convolutions():
    network = tiny_model().network
    kernels = [name for name, value in network.named_parameters() if is_kernel(value)]
    assert kernels
    assert all(
        type(network.get_submodule(name.rpartition(".")[0])).__name__ == "LocallyMaskedConv2d"
        for name in kernels
    )


def test_a_state_that_was_saved_goes_on_alike():
    torch.manual_seed(0)
    first = [nn.Parameter(torch.randn(4, 2, 3, 3)), nn.Parameter(torch.randn(4))]
    one = Muon(first)
    with_gradients(first, 0)
    one.step()
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    other = Muon(second)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for seed in (1, 2):
        with_gradients(first, seed)
        with_gradients(second, seed)
        one.step()
        other.step()
    assert all(map(torch.equal, first, second))
    assert math.isfinite(first[0].sum().item())
