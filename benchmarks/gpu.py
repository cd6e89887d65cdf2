"""Layer, network, training and sampling on a GPU: agreement with the definitions, speed, memory.

    python benchmarks/gpu.py [PART...] [--quick] [--repeats N] [--json FILE]

The parts are layer, network, training, sampling and guessing; the default is all of them.

``dense`` is cuDNN's channels-last convolution without a mask, and ``oracle`` is the patch-matrix
formula. Each measurement covers several calls in a row, so that the GPU is timed and not Python.
The program exits with 1, after the tables, if a result is further from the definition in float64
than its precision explains, if cached sampling and full forward passes draw different images, or
if other images are drawn with guesses than without.

Sampling draws 100 colour images of 32 x 32 with the published CIFAR10 network, in float32. Guessing
draws digits with a shipped model and with an untrained one, with windows of all sizes.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import guessing
import network
import sampling
import torch
import training
from layer import ORDERS, Case, Convolutions, convolutions
from measure import Part, interleaved_medians, measure_parts, peak_memory, start
from torch import Tensor

CALLS = 20
# Largest difference from float64, as a share of the largest value.
TOLERANCE = {"float32": 1e-5, "tf32": 5e-3, "bfloat16": 2e-2, "float16": 5e-3}
SHAPES = [(64, 320, 32, 3, 1), (32, 160, 64, 3, 2), (64, 160, 28, 5, 1), (64, 64, 28, 3, 1)]


def in_precision(case: Case, precision: str) -> Case:
    """The case in ``float32`` (with or without ``tf32`` products), ``bfloat16`` or ``float16``."""
    return replace(case, dtype="float32" if precision == "tf32" else precision)


def tf32(precision: str) -> AbstractContextManager[None]:
    """cuDNN's setting, which the layer follows."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=precision == "tf32")


def largest_error(case: Case, compared: Convolutions, order: str) -> float:
    """The largest error of the output and all gradients, against the oracle in float64."""
    ours, inputs = compared.calls[order]
    exact_inputs = [value.detach().double().requires_grad_() for value in inputs]
    mask = ours.keywords["mask"]  # type: ignore[attr-defined]
    oracle = partial(compared.calls["oracle"][0], mask=mask)
    exact = oracle(*exact_inputs)
    exact_grads = torch.autograd.grad(exact, exact_inputs, compared.grad.double())
    results = [compared.forward(order), *compared.gradients(order)]
    return max(map(_relative_error, results, [exact, *exact_grads]))


def _relative_error(result: Tensor, exact: Tensor) -> float:
    result, exact = result.detach().double(), exact.detach()
    return float((result - exact).abs().max() / exact.abs().max())


def repeat(function: Callable[[], object]) -> None:
    """Call several times in a row, so that the GPU has the next call before one ends."""
    for _ in range(CALLS):
        function()


def measure_layer(case: Case, precision: str, repeats: int) -> Iterator[dict[str, Any]]:
    """One row for each order."""
    compared = convolutions(in_precision(case, precision), "cuda")
    names = list(compared.calls)
    backward = {name: partial(compared.gradients, name) for name in names}

    def forward(name: str) -> None:
        with torch.no_grad():
            compared.forward(name)

    forwards = {name: partial(repeat, partial(forward, name)) for name in names}
    memory = {name: peak_memory(run) for name, run in backward.items()}
    seconds = {
        "forward": interleaved_medians(forwards, repeats),
        "both": interleaved_medians({n: partial(repeat, f) for n, f in backward.items()}, repeats),
    }
    for order in ORDERS:
        row: dict[str, Any] = {"name": f"{case} {precision} {order}", **asdict(case)}
        row |= {"precision": precision, "order": order}
        for part, times in seconds.items():
            row[f"{part}_seconds"] = times[order] / CALLS
            row[f"{part}_ratio_to_dense"] = times[order] / times["dense"]
            row[f"{part}_speedup_over_oracle"] = times["oracle"] / times[order]
        row |= {f"{name}_bytes": memory[name] for name in ("dense", "oracle")}
        row |= {"bytes": memory[order], "error": largest_error(case, compared, order)}
        yield row


LAYER_HEADER = (
    "case",
    "order",
    "forward ms",
    "/ dense",
    "oracle /",
    "with backward ms",
    "/ dense",
    "oracle /",
    "MB: ours / dense / oracle",
    "error",
)


def layer_row(row: dict[str, Any]) -> list[str]:
    """A row of the printed table."""
    cells = [row["name"].rsplit(" ", 1)[0], row["order"]]
    for part in ("forward", "both"):
        cells += [
            f"{1e3 * row[f'{part}_seconds']:.3f}",
            f"{row[f'{part}_ratio_to_dense']:.2f}",
            f"{row[f'{part}_speedup_over_oracle']:.1f}x",
        ]
    megabytes = [f"{row[key] / 2**20:.0f}" for key in ("bytes", "dense_bytes", "oracle_bytes")]
    return [*cells, " / ".join(megabytes), f"{row['error']:.1e}"]


def layer_part(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The layer in every precision."""
    for precision in ["bfloat16", "tf32"] if args.quick else list(TOLERANCE):
        for shape in SHAPES[-2:] if args.quick else SHAPES:
            with tf32(precision):
                yield from measure_layer(Case(*shape), precision, args.repeats)


def network_part(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A training step of the network in bfloat16 and float32."""
    for case in network.QUICK_CASES if args.quick else network.CASES:
        for dtype in (torch.bfloat16, None):
            yield network.measure(case, args.repeats, "cuda", dtype)


def sampling_part(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Whole images from the published network, or from a small one in a quick run."""
    case = sampling.Case(5, 160, images=100, size=32, channels=3)
    if args.quick:
        case = sampling.Case(1, 32, images=16, size=12, channels=3)
    same = sampling.draws_the_same_images("cuda")
    for row in sampling.measure(case, args.repeats, "cuda"):
        yield {**row, "same_images": same}


def guessing_part(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Windows of guesses, by a trained and an untrained network."""
    for name in ("mnist", "untrained"):
        yield from guessing.guessing_part(name, args)


def faults(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Say what is wrong with the results."""
    for row in rows:
        if "error" in row and row["error"] > TOLERANCE[row["precision"]]:
            yield f"{row['name']} differs from the definition"
        if not row.get("same_images", True):
            yield f"{row['name']}: other images are drawn without the cache, or without guesses"


def main() -> int:
    """Measure the requested parts, and print a table of each."""
    parts = {
        "layer": Part(layer_part, LAYER_HEADER, layer_row),
        "network": Part(network_part, network.HEADER, network.table_row),
        "training": Part(training.steps_part, training.STEPS_HEADER, training.steps_row),
        "sampling": Part(sampling_part, sampling.HEADER, sampling.table_row),
        "guessing": Part(guessing_part, guessing.HEADER, guessing.table_row),
    }
    args = start(__doc__ or "", 7, list(parts))
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: error: PyTorch finds no CUDA GPU here", file=sys.stderr)
        return 2
    rows = measure_parts(args, parts)
    wrong = list(faults(rows))
    for fault in wrong:
        print(f"benchmarks/gpu.py: error: {fault}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
