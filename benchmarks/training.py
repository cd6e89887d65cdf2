"""Training steps: the options that save time or memory, the share of the machine's rate, new masks.

    python benchmarks/training.py [steps] [rate] [holes] [--quick] [--repeats N] [--json FILE]

``steps``: the optimizer steps of ``--mode train`` on random images, as the flags make them: full
precision, ``--precision bf16``, ``--rematerialize``, ``--accum_freq 4`` with batches of a quarter
of the size, and full precision with the usual formula in place of our layer (see network.py). The
network is a small one of the MNIST commands; on a GPU, that of the published CIFAR10 command is
measured too, and so are ``--tf32`` and ``--compile``. Times are medians of steps taken in turn.

``rate``: forward and backward passes of four images by the networks of presets/binary_mnist.txt (48
filters) and mnist_in_3_hours.txt (64), in each precision, plain and with ``--compile``, in turn
with products of two square matrices. The share is that of the operations of the network's products
in a second, taps that are off not counted, of those of the square matrices. Muon's step comes after
them; its time is given beside it.

``holes``: optimizer steps of the same networks in bfloat16 along S-curves, and with the random
holes of ``--train_holes``: each step with new masks is followed by one with the same masks, now
known. The share is what new masks cost of their step: making them, and finding out what they read.
Times are means over 32 holes for each of the repeats, as holes differ.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measure import Part, interleaved_medians, measure_parts, peak_memory, start
from network import PatchMatrixConv2d
from torch import nn

from lmconv.description import ModelDescription
from lmconv.generation.schedule import mask_reads
from lmconv.image_model import ImageModel
from lmconv.orders import Order, OrderConfig
from lmconv.pixel_values import ImageShape, Preparation, to_grid
from lmconv.training.holes import draw_hole
from lmconv.training.optimization import Optimization, OptimizationConfig
from locally_masked_convolution import LocallyMaskedConv2d

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


@dataclass(frozen=True)
class Case:
    """A network in training, and how its steps are taken."""

    nr_resnet: int
    nr_filters: int
    image_shape: ImageShape = MNIST
    batch_size: int = 32
    precision: str = "fp32"
    rematerialize: bool = False
    accum_freq: int = 1
    compile: bool = False
    tf32: bool = False

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.image_shape))
        return f"{self.nr_resnet} x {self.nr_filters} filters, {self.batch_size} of {shape}"

    def model(self, preparation: Preparation | None = None) -> ImageModel:
        """The network with the settings of the published commands, under the S-curve's variants."""
        model = ImageModel(
            ModelDescription.of(
                (self.image_shape,),
                preparation or Preparation(),
                OrderConfig(all_variants=True),
                architecture="lmconv",
                nr_resnet=self.nr_resnet,
                nr_filters=self.nr_filters,
                kernel_size=3,
                normalization="pono",
                dropout_prob=0.0,
                rematerialize=self.rematerialize,
            )
        )
        model.precision = self.precision
        return model


CASES = [Case(2, 64)]
GPU_CASES = [Case(5, 160, CIFAR)]
QUICK_CASES = [Case(1, 16, batch_size=8)]
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "rematerialize": {"rematerialize": True},
    "accum_freq 4": {"accum_freq": 4},
    "oracle layer": {},
}
GPU_VARIANTS: dict[str, dict[str, Any]] = {
    "tf32": {"tf32": True},
    "compile": {"compile": True},
    "bf16, compile": {"precision": "bf16", "compile": True},
}
LEARNING_RATE = 2e-4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def optimizer_step(case: Case, layer: type[LocallyMaskedConv2d]) -> Callable[[], None]:
    """A function that takes an optimizer step."""
    with patch("model.LocallyMaskedConv2d", layer):
        model = case.model()
    optimization = Optimization(model, OptimizationConfig(compile=case.compile))
    order = model.orders()[0]
    images = to_grid(2 * torch.rand(case.batch_size, *case.image_shape) - 1, n_bits=8)
    # As with --accum_freq: this many smaller batches.
    parts = images.chunk(case.accum_freq)

    def step() -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = case.tf32
        model.network.train()
        for number, part in enumerate(parts, start=1):
            optimization.backward(part, order, number == len(parts))
        optimization.step(len(images), LEARNING_RATE)

    return step


def measure_steps(case: Case, repeats: int) -> Iterator[dict[str, Any]]:
    """One row for each variant of a network's training."""
    variants = VARIANTS | (GPU_VARIANTS if torch.cuda.is_available() else {})
    steps = {}
    for variant, more in variants.items():
        layer = PatchMatrixConv2d if variant == "oracle layer" else LocallyMaskedConv2d
        steps[variant] = optimizer_step(replace(case, **more), layer)
        steps[variant]()  # in its first step, Adam allocates its averages
    memory = {variant: peak_memory(step) for variant, step in steps.items()}
    seconds = interleaved_medians(steps, repeats)
    for variant in variants:
        yield {
            "name": f"{case}, {variant}",
            "network": str(case),
            "variant": variant,
            "seconds": seconds[variant],
            "images_per_second": case.batch_size / seconds[variant],
            "speedup_over_oracle": seconds["oracle layer"] / seconds[variant],
            "bytes": memory[variant],
            "memory_ratio": memory[variant] / memory["fp32"],
        }


def preset_model(nr_filters: int) -> ImageModel:
    """The network of presets/binary_mnist.txt, with as many filters."""
    return ImageModel(
        ModelDescription.of(
            (MNIST,),
            Preparation(binarize=True),
            OrderConfig(all_variants=True),
            nr_resnet=1,
            nr_filters=nr_filters,
            kernel_size=3,
            max_dilation=6,
            normalization="pono",
            dropout_prob=0.0,
            input_positions=True,
        )
    )


def count_operations(model: ImageModel, images: int) -> int:
    """Additions and multiplications of a network's products in a forward and a backward pass."""
    order, operations = model.orders()[0], 0
    reads = mask_reads(order.masks, *order.size, model.description.network.max_dilation)
    pairs = [int((table >= 0).sum()) for table in reads]
    for name, module in model.network.named_modules():
        if isinstance(module, LocallyMaskedConv2d):
            is_first = name == "u_init"  # whose input needs no gradient
            active = pairs[0] if is_first else pairs[2 if module.dilation > 1 else 1]
            products = active * module.in_channels * module.out_channels
            operations += (2 if is_first else 3) * products
        elif isinstance(module, nn.Linear):
            operations += 3 * reads.init.shape[0] * module.in_features * module.out_features
    return 2 * images * operations


def measure_rates(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each network and precision, plain and compiled."""
    for nr_filters in (8,) if args.quick else (48, 64):
        yield from measure_rate(nr_filters, args)


def measure_rate(nr_filters: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of one network."""
    images, runs = 4, dict[str, Callable[[], object]]()
    model = preset_model(nr_filters)
    batch = (torch.rand(images, *MNIST) < 0.2).float() * 2 - 1
    order, side = model.orders()[0], 128 if args.quick else 1024
    model.network.train()

    def backward(optimization: Optimization, precision: str) -> None:
        model.precision = precision
        optimization.optimizer.zero_grad(set_to_none=True)
        optimization.backward(batch, order)

    for compiled in (False,) if args.quick else (False, True):
        config = OptimizationConfig("muon", lr=0.0, compile=compiled)
        optimization = Optimization(model, config)
        for precision in DTYPES:
            name = f"{precision}, compile" if compiled else precision
            runs[name] = partial(backward, optimization, precision)
    for name, dtype in DTYPES.items():
        factor = torch.randn(side, side).to(dtype)
        runs[f"product {name}"] = partial(torch.mm, factor, factor)
    for name in DTYPES:
        runs[name]()
    kept = [parameter.grad for parameter in model.network.parameters()]

    def optimizer_alone() -> None:
        for parameter, grad in zip(model.network.parameters(), kept, strict=True):
            parameter.grad = grad
        optimization.step(images, 0.0)

    runs["optimizer"] = optimizer_alone
    seconds = interleaved_medians(runs, args.repeats)
    operations = count_operations(model, images)
    for name in runs:
        if name.startswith(("product", "optimizer")):
            continue
        product = 2 * side**3 / seconds[f"product {name.split(',')[0]}"]
        rate = operations / seconds[name]
        yield {
            "name": f"rate, {nr_filters} filters, {name}",
            "variant": f"1 x {nr_filters}, {name}",
            "seconds": seconds[name],
            "operations": operations,
            "rate": rate,
            "product_rate": product,
            "share": rate / product,
            "optimizer_seconds": seconds["optimizer"],
        }


def rate_row(row: dict[str, Any]) -> list[str]:
    """A row of the printed table."""
    return [
        row["variant"],
        f"{1e3 * row['seconds']:.1f}",
        f"{row['rate'] / 1e9:.0f}",
        f"{row['product_rate'] / 1e9:.0f}",
        f"{row['share']:.0%}",
        f"{1e3 * row['optimizer_seconds']:.1f}",
    ]


HOLES_OF_A_REPEAT = 32


def measure_holes(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each network, plain and compiled."""
    for nr_filters in (8,) if args.quick else (48, 64):
        for compiled in (False,) if args.quick else (False, True):
            yield measure_new_masks(nr_filters, compiled, args.repeats)


def measure_new_masks(nr_filters: int, compiled: bool, repeats: int) -> dict[str, Any]:
    """What steps with holes take, the first time and again."""
    model = preset_model(nr_filters)
    model.precision = "bf16"
    model.network.train()
    optimization = Optimization(model, OptimizationConfig("muon", lr=0.0, compile=compiled))
    orders, random = model.orders(), np.random.default_rng(0)
    batch = (torch.rand(4, *MNIST) < 0.2).float() * 2 - 1

    def step(order: Order) -> None:
        optimization.backward(batch, order)
        optimization.step(len(batch), 0.0)

    seconds: dict[str, list[float]] = {"curve": [], "making": [], "new": [], "known": []}

    def timed(name: str, function: Callable[[], object]) -> None:
        begin = time.perf_counter()
        function()
        seconds[name].append(time.perf_counter() - begin)

    for number in range(HOLES_OF_A_REPEAT * (repeats + 1)):
        order = orders[number % len(orders)]
        hole = order.visible_first(torch.from_numpy(draw_hole(28, 28, random)))
        timed("curve", partial(step, order))
        timed("making", partial(getattr, hole, "masks"))
        timed("new", partial(step, hole))
        timed("known", partial(step, hole))
    # The first repeat fills caches.
    means = {name: statistics.mean(times[HOLES_OF_A_REPEAT:]) for name, times in seconds.items()}
    variant = f"1 x {nr_filters}" + ", compile" * compiled
    whole = means["making"] + means["new"]
    return {
        "name": f"holes, {variant}",
        "variant": variant,
        **{f"{name}_seconds": value for name, value in means.items()},
        "share": (whole - means["known"]) / whole,
    }


def holes_row(row: dict[str, Any]) -> list[str]:
    """A row of the printed table."""
    names = ("curve", "known", "new", "making")
    milliseconds = (f"{1e3 * row[f'{name}_seconds']:.1f}" for name in names)
    return [row["variant"], *milliseconds, f"{row['share']:.1%}"]


STEPS_HEADER = (
    "network",
    "variant",
    "seconds",
    "images/s",
    "faster than the oracle layer",
    "peak MB",
    "memory / fp32",
)
RATE_HEADER = (
    "variant",
    "ms: both passes",
    "GFLOP/s",
    "of square matrices",
    "share",
    "ms: Muon",
)
HOLES_HEADER = (
    "variant",
    "ms: step along an S-curve",
    "with a hole, masks known",
    "masks new",
    "making masks",
    "share of new masks",
)


def steps_row(row: dict[str, Any]) -> list[str]:
    """A row of the printed table."""
    return [
        row["network"],
        row["variant"],
        f"{row['seconds']:.3f}",
        f"{row['images_per_second']:.1f}",
        f"{row['speedup_over_oracle']:.1f}x",
        f"{row['bytes'] / 2**20:.0f}",
        f"{row['memory_ratio']:.2f}",
    ]


def steps_part(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Steps of all networks."""
    cases = CASES + (GPU_CASES if torch.cuda.is_available() else [])
    for case in QUICK_CASES if args.quick else cases:
        yield from measure_steps(case, args.repeats)


def main() -> None:
    """Measure the requested parts, and print a table of each."""
    parts = {
        "steps": Part(steps_part, STEPS_HEADER, steps_row),
        "rate": Part(measure_rates, RATE_HEADER, rate_row),
        "holes": Part(measure_holes, HOLES_HEADER, holes_row),
    }
    measure_parts(start(__doc__ or "", 3, list(parts)), parts)


if __name__ == "__main__":
    main()
