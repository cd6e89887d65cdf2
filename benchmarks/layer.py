"""The layer against a dense convolution and against the usual patch-matrix formula, on a CPU.

    python benchmarks/layer.py [float32] [bfloat16] [--quick] [--repeats N] [--json FILE]

Times are of forward plus backward (gradients of input, weight and bias) with masks of type B:
medians of runs taken in turn in one process. ``dense`` is ``torch.nn.functional.conv2d`` without a
mask, with image and kernel channels-last, its fastest form. ``oracle`` is
``patch_matrix_convolution``.

The last column shows what limits a case, as shares of a profiled run. *Arithmetic* is products and
convolutions. They take at least the share of taps that are on, times the dense time, and more where
the library multiplies gathered rows more slowly than it convolves. *Memory* is padding and adding
up the pieces of a regular mask, or gathering, summing and copying the rows of any other mask. This
work grows with the number of channels and the products with its square, so it shows at 64 channels
and fades at 320. *Calls* is Python and the dispatcher, which matter only in small cases.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import (
    geometric_mean,
    interleaved_medians,
    peak_memory,
    print_table,
    start,
    time_shares,
    write_rows,
)
from torch import Tensor

from locally_masked_convolution import masked_convolution, patch_matrix_convolution
from masking import get_generation_order_idx, get_unfolded_masks

ORDERS = ("raster_scan", "s_curve", "gilbert2d")


@dataclass(frozen=True)
class Case:
    """One convolution: images ``batch x channels x size x size``, as many channels out as in."""

    batch: int
    channels: int
    size: int
    kernel_size: int
    dilation: int
    dtype: str = "float32"

    def __str__(self) -> str:
        precision = "" if self.dtype == "float32" else f" {self.dtype}"
        shape = f"{self.batch}x{self.channels}x{self.size}x{self.size}"
        return f"{shape} k{self.kernel_size} d{self.dilation}{precision}"


SHAPES = [(16, 320, 32), (8, 160, 64), (16, 160, 28), (16, 64, 28)]
QUICK_SHAPES = [(16, 160, 28), (16, 64, 28)]
HALF_PRECISION = [Case(16, 160, 28, 3, 1, "bfloat16"), Case(16, 320, 32, 3, 1, "bfloat16")]


def cases(quick: bool) -> list[Case]:
    """Every shape with every kernel; a few in half precision where the processor has it."""
    if quick:
        return [Case(*shape, kernel_size, 1) for shape in QUICK_SHAPES for kernel_size in (3, 5)]
    kernels = [(3, 1), (3, 2), (5, 1), (5, 2)]
    every = [Case(*shape, *kernel) for shape, kernel in itertools.product(SHAPES, kernels)]
    return every + (HALF_PRECISION if has_bfloat16() else [])


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 numbers (known only on Linux)."""
    info = Path("/proc/cpuinfo")
    return info.exists() and any(flag in info.read_text() for flag in ("avx512_bf16", "amx_bf16"))


@dataclass(frozen=True)
class Convolutions:
    """The oracle, the dense convolution, and ours under each order, for the same case.

    Attributes:
        calls: for each name, a function of input, weight and bias, and these three tensors.
        grad: the gradient of the output.
        taps_on: for each order, the share of all taps that are on.
    """

    calls: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, Tensor, Tensor]]]
    grad: Tensor
    taps_on: dict[str, float]

    def forward(self, name: str) -> Tensor:
        """The output, ``B x C x H x W``."""
        convolve, inputs = self.calls[name]
        return convolve(*inputs)

    def gradients(self, name: str) -> tuple[Tensor, ...]:
        """Forward plus backward: the gradients of input, weight and bias."""
        return torch.autograd.grad(self.forward(name), self.calls[name][1], self.grad)


def convolutions(case: Case, device: str = "cpu") -> Convolutions:
    """Random inputs for a case, and the convolutions to compare on them."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    def as_input(values: Tensor) -> Tensor:
        return values.detach().to(memory_format=torch.channels_last).requires_grad_()

    size, channels, kernel_size = case.size, case.channels, case.kernel_size
    x = as_input(random(case.batch, channels, size, size))
    weight = random(channels, channels, kernel_size, kernel_size) / channels
    bias = random(channels).requires_grad_()
    inputs, dense_inputs = (x, weight.requires_grad_(), bias), (x, as_input(weight), bias)
    padding = case.dilation * (kernel_size // 2)
    dense: Callable[..., Tensor] = partial(F.conv2d, padding=padding, dilation=case.dilation)
    calls = {"dense": (dense, dense_inputs)}
    taps_on = {}
    for name in ORDERS:
        order = get_generation_order_idx(name, size, size)
        mask = get_unfolded_masks(order, size, size, kernel_size, case.dilation).to(device)
        calls[name] = (partial(masked_convolution, mask=mask, dilation=case.dilation), inputs)
        taps_on[name] = float(mask.mean())
    oracle = partial(patch_matrix_convolution, mask=mask, dilation=case.dilation)
    calls["oracle"] = (oracle, inputs)
    return Convolutions(calls, torch.randn_like(x), taps_on)


def measure(case: Case, repeats: int) -> Iterator[dict[str, Any]]:
    """One row for each order."""
    compared = convolutions(case)
    runs = {name: partial(compared.gradients, name) for name in compared.calls}
    memory = {name: peak_memory(run) for name, run in runs.items()}
    seconds = interleaved_medians(runs, repeats)
    for order in ORDERS:
        yield {
            "name": f"{case} {order}",
            **asdict(case),
            "order": order,
            "taps_on": compared.taps_on[order],
            **{f"{name}_seconds": seconds[name] for name in ("dense", "oracle")},
            "seconds": seconds[order],
            "ratio_to_dense": seconds[order] / seconds["dense"],
            "speedup_over_oracle": seconds["oracle"] / seconds[order],
            **{f"{name}_bytes": memory[name] for name in ("dense", "oracle")},
            "bytes": memory[order],
            "memory_saving_over_oracle": memory["oracle"] / memory[order],
            "shares": time_shares(runs[order]),
        }


def table_row(row: dict[str, Any]) -> list[str]:
    """A row of the printed table."""
    megabytes = [f"{row[key] / 2**20:.0f}" for key in ("bytes", "dense_bytes", "oracle_bytes")]
    return [
        row["name"].rsplit(" ", 1)[0],
        row["order"],
        f"{row['taps_on']:.2f}",
        f"{1e3 * row['seconds']:.1f}",
        f"{row['ratio_to_dense']:.2f}",
        f"{row['speedup_over_oracle']:.1f}x",
        " / ".join(megabytes),
        " / ".join(f"{100 * share:.0f}" for share in row["shares"].values()),
    ]


HEADER = (
    "case",
    "order",
    "taps on",
    "ms",
    "time / dense",
    "oracle / time",
    "MB: ours / dense / oracle",
    "%: arithmetic / memory / calls",
)


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Geometric means and the worst case, for each precision."""
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        own = [row for row in rows if row["dtype"] == dtype]
        worst = max(own, key=lambda row: row["ratio_to_dense"])
        mean = {
            key: geometric_mean(row[key] for row in own)
            for key in ("ratio_to_dense", "speedup_over_oracle", "memory_saving_over_oracle")
        }
        yield (
            f"{dtype}, geometric means of {len(own)}: {mean['ratio_to_dense']:.2f} of the time of "
            f"dense (worst {worst['ratio_to_dense']:.2f}: {worst['name']}), "
            f"{mean['speedup_over_oracle']:.1f}x faster than the oracle in "
            f"1/{mean['memory_saving_over_oracle']:.1f} of its memory"
        )


def main() -> None:
    """Measure every case, print the table and write its rows."""
    args = start(__doc__ or "", 7, ("float32", "bfloat16"))
    wanted = (case for case in cases(args.quick) if case.dtype in args.parts)
    measured = itertools.chain.from_iterable(measure(case, args.repeats) for case in wanted)
    rows = print_table(HEADER, measured, table_row)
    print("", *summary(rows), sep="\n")
    write_rows(args.json, rows)


if __name__ == "__main__":
    main()
