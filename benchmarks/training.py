"""Training steps with the options that save time or memory, and how long training waits for data.

    python benchmarks/training.py [steps] [rate] [holes] [loader] [--quick] [--repeats N]
        [--json FILE]

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

``loader``: files in the format of each data set are written and trained on. The share is the
part of the time that steps of the small network spend waiting for their batch.
"""

import argparse
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measure import Part, interleaved_medians, measure_parts, peak_memory, start
from network import PatchMatrixConv2d
from torch import nn

from lmconv.data.celebahq import import_tensorflow
from lmconv.data.datasets import DataConfig, image_shapes, load_train
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


def write_mnist(folder: Path, number: int) -> None:
    """Write random images as MNIST's training file."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    header = np.array([2051, number, 28, 28], ">i4").tobytes()
    (raw / "train-images-idx3-ubyte").write_bytes(header + random_bytes(number * 784))


def write_cifar(folder: Path, number: int) -> None:
    """Write random images as CIFAR10's training files."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for part in range(1, 6):
        images = np.frombuffer(random_bytes(number // 5 * 3072), np.uint8).reshape(-1, 3072)
        content = {"data": images, "labels": [0] * len(images)}
        (batches / f"data_batch_{part}").write_bytes(pickle.dumps(content, protocol=2))


def write_celebahq(folder: Path, number: int) -> None:
    """Write random images as one of CelebA-HQ's training files."""
    tf = import_tensorflow()  # must not be loaded before Triton
    path = folder / "celeba-tfr" / "train" / "train-r08-s-0000-of-0001.tfrecords"
    path.parent.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(number):
            values = tf.train.BytesList(value=[random_bytes(256 * 256 * 3)])
            feature = {"data": tf.train.Feature(bytes_list=values)}
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())


def random_bytes(number: int) -> bytes:
    """``number`` random bytes."""
    return np.random.default_rng(0).bytes(number)


LOADERS: dict[str, tuple[Callable[[Path, int], None], DataConfig]] = {
    "mnist": (
        write_mnist,
        DataConfig("mnist", batch_size=32, preparation=Preparation(binarize=True)),
    ),
    "cifar": (write_cifar, DataConfig("cifar", batch_size=32)),
    "celebahq": (
        write_celebahq,
        DataConfig("celebahq", batch_size=8, celeba_size=64, preparation=Preparation(n_bits=5)),
    ),
}


def measure_loader(dataset: str, case: Case, num_batches: int) -> dict[str, Any]:
    """How long training waits for batches, and how long making them takes by itself."""
    write, config = LOADERS[dataset]
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, data_dir=folder)
        write(Path(folder), num_batches * config.batch_size)
        (shape,) = image_shapes(config)
        model = replace(case, image_shape=shape).model(config.preparation)
        optimization = Optimization(model, OptimizationConfig())
        train_data = load_train(config)
        list(train_data.epoch(0))  # loads what is loaded only once
        begin = time.perf_counter()
        batches = sum(1 for _ in train_data.epoch(1))
        alone = (time.perf_counter() - begin) / batches
        waited, begin = 0.0, time.perf_counter()
        last = begin
        for images in train_data.epoch(2):
            waited += time.perf_counter() - last
            optimization.backward(images, model.orders()[0])
            optimization.step(len(images), LEARNING_RATE)
            last = time.perf_counter()
    seconds = last - begin
    return {
        "name": f"{dataset}, batches of {config.batch_size}",
        "batches": batches,
        "step_seconds": (seconds - waited) / batches,
        "loader_seconds": alone,
        "share_without_thread": alone * batches / (alone * batches + seconds - waited),
        "share": waited / seconds,
    }


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
LOADER_HEADER = ("data", "ms: step", "ms: making a batch", "share if in turn", "share of waiting")


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


def loader_row(row: dict[str, Any]) -> list[str]:
    """A row of the printed table."""
    return [
        row["name"],
        f"{1e3 * row['step_seconds']:.0f}",
        f"{1e3 * row['loader_seconds']:.1f}",
        f"{row['share_without_thread']:.2%}",
        f"{row['share']:.2%}",
    ]


def steps_part(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Steps of all networks."""
    cases = CASES + (GPU_CASES if torch.cuda.is_available() else [])
    for case in QUICK_CASES if args.quick else cases:
        yield from measure_steps(case, args.repeats)


def loader_part(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The wait for each data set."""
    for dataset in LOADERS:
        case = Case(1, 16) if args.quick else Case(2, 64)
        yield measure_loader(dataset, case, 5 if args.quick else 20)


def main() -> None:
    """Measure the requested parts, and print a table of each."""
    parts = {
        "steps": Part(steps_part, STEPS_HEADER, steps_row),
        "rate": Part(measure_rates, RATE_HEADER, rate_row),
        "holes": Part(measure_holes, HOLES_HEADER, holes_row),
        "loader": Part(loader_part, LOADER_HEADER, loader_row),
    }
    measure_parts(start(__doc__ or "", 3, list(parts)), parts)


if __name__ == "__main__":
    main()
