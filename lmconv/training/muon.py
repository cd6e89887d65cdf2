"""Muon: updates of kernels with all singular values brought to 1; Adam for other parameters.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". PyTorch's own
Muon takes matrices alone, one by one; here kernels of one shape are brought to orthogonal form
together, in fewer calls.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.optimizer import Optimizer

__all__ = ["Muon", "is_kernel", "orthogonalize"]

_MOMENTUM = 0.95
# Of the quintic polynomial of the iteration, by Jordan et al. 2024: five steps bring singular
# values from 0.0015 to 1 between 0.67 and 1.21.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_SMALLEST_NORM = 1e-12
# Adam's rate for the other parameters, as a part of the rate of kernels.
_ADAM_SHARE = 0.1


class Muon(Optimizer):
    """Muon for the kernels of convolutions, and Adam for all other parameters.

    The update of a kernel, as a matrix of ``C_out`` rows, is its momentum brought to orthogonal
    form, times ``sqrt(max(1, rows / columns))``. So the rate is a length of steps that hardly
    depends on the network; 0.02 suits all networks here. Adam takes a tenth of it.

    Example:
        >>> network = torch.nn.Conv2d(2, 4, 3)
        >>> optimizer = Muon(network.parameters(), lr=0.02)
        >>> network(torch.ones(1, 2, 3, 3)).sum().backward()
        >>> optimizer.step()

    Args:
        parameters: of a network.
        lr: learning rate of kernels.
        weight_decay: in each step, parameters shrink by this factor times their rate.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float = 0.02, weight_decay: float = 0.0
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.999), "eps": 1e-8}
        super().__init__(parameters, {**defaults, "momentum": _MOMENTUM})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the parameters that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            changed = [each for each in group["params"] if each.grad is not None]
            kernels = [each for each in changed if is_kernel(each)]
            others = [each for each in changed if not is_kernel(each)]
            self._step_kernels(kernels, group)
            self._step_others(others, group)
        return loss

    def _step_kernels(self, kernels: list[Tensor], group: dict[str, Any]) -> None:
        if not kernels:
            return
        for kernel in kernels:
            if not self.state[kernel]:
                self.state[kernel]["momentum"] = torch.zeros_like(kernel)
        grads = [kernel.grad for kernel in kernels if kernel.grad is not None]
        momenta = [self.state[kernel]["momentum"] for kernel in kernels]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, momenta, group["momentum"])  # as Nesterov looks ahead
        _shrink(kernels, group["lr"] * group["weight_decay"])
        by_shape: dict[torch.Size, list[int]] = {}
        for index, kernel in enumerate(kernels):
            by_shape.setdefault(kernel.shape, []).append(index)
        for shape, indices in by_shape.items():
            matrices = torch.stack([updates[index].flatten(1) for index in indices])
            rows, columns = matrices.shape[1:]
            steps = orthogonalize(matrices).view(-1, *shape)
            rate = group["lr"] * math.sqrt(max(1, rows / columns))
            torch._foreach_add_([kernels[index] for index in indices], list(steps), alpha=-rate)

    def _step_others(self, others: list[Tensor], group: dict[str, Any]) -> None:
        if not others:
            return
        for other in others:
            if not (state := self.state[other]):
                state["step"] = torch.zeros((), device=other.device)
                state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(other) for _ in range(2))
        states = [self.state[other] for other in others]
        rate, (beta1, beta2) = _ADAM_SHARE * group["lr"], group["betas"]
        _shrink(others, rate * group["weight_decay"])
        adam(
            others,
            [other.grad for other in others if other.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=rate,
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )


def is_kernel(parameter: Tensor) -> bool:
    """Whether Muon takes a parameter as a kernel: 4 dimensions, and more than one column."""
    return parameter.dim() == 4 and parameter[0].numel() > 1


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring singular values that are not tiny near 1, leaving the singular vectors as they are.

    A step of Newton and Schulz maps X to ``(a + b X X^T + c (X X^T)^2) X``. So each result is a
    polynomial of ``X X^T`` times the first X: it is enough to iterate on these square matrices,
    which are small where kernels have few output channels.

    Args:
        matrices: ``N x rows x columns``, one matrix for each kernel.

    Returns:
        Matrices of this shape and dtype; singular values are between 0.67 and 1.21 where they were
        more than 0.0015 of the Frobenius norm.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    dtype = torch.promote_types(matrices.dtype, torch.float32)
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(_SMALLEST_NORM)
    gram = x @ x.mT
    identity = torch.eye(gram.shape[1], dtype=dtype, device=gram.device)
    product = identity
    for number in range(_ITERATIONS):
        factor = a * identity + torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        product = factor @ product
        if number < _ITERATIONS - 1:
            gram = factor @ gram @ factor
    x = product @ x
    return (x.mT if is_tall else x).to(matrices.dtype)


def _shrink(parameters: list[Tensor], share: float) -> None:
    if share:
        torch._foreach_mul_(parameters, 1 - share)
