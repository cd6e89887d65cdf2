"""Training steps with the options that save time or memory, and the wait for data in training.

    python benchmarks/training.py [steps] [loader] [--quick] [--repeats N] [--json FILE]

``steps``: the optimizer steps of ``--mode train`` on random images, as the flags make them: full
precision, ``--precision bf16``, ``--rematerialize``, and ``--accum_freq 4`` with a fourth of the
batch; and full precision with the usual formula in place of our layer (see network.py). The network
is a small one of the MNIST commands; on a GPU also that of the published CIFAR10 command, and
``--compile``. Medians of steps taken in turn.

``loader``: files in the format of each data set are written and trained on; the share is the time
that steps of the small network wait for their batch.
"""

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measure import Part, interleaved_medians, measure_parts, peak_memory, start
from network import PatchMatrixConv2d

import sources
from lmconv.data import datasets as data
from lmconv.likelihoods import to_grid
from lmconv.modes.options import parse
from lmconv.modes.run import set_up
from lmconv.training.optimization import Optimization
from locally_masked_convolution import LocallyMaskedConv2d
from utils import setup_logging

PONO = "--normalization pono -k 3 --randomize_order -dp 0"
NETWORKS = {
    "2 x 64 filters, 32 of 1 x 28 x 28": f"-d mnist {PONO} -q 2 -n 64 -b 32",
}
GPU_NETWORKS = {
    "published CIFAR10 network, 32 of 3 x 32 x 32": f"-d cifar {PONO} -q 5 -n 160 -b 32",
}
QUICK_NETWORKS = {
    "1 x 16 filters, 8 of 1 x 28 x 28": f"-d mnist {PONO} -q 1 -n 16 -b 8",
}
VARIANTS = {
    "fp32": "",
    "bf16": "--precision bf16",
    "rematerialize": "--rematerialize",
    "accum_freq 4": "--accum_freq 4",
    "oracle layer": "",
}
GPU_VARIANTS = {
    "tf32": "--tf32",
    "compile": "--compile",
    "bf16, compile": "--precision bf16 --compile",
}


def optimizer_step(flags: str, layer: type[LocallyMaskedConv2d]) -> tuple[Callable[[], None], int]:
    """A function that takes an optimizer step as the flags say, and its number of images."""
    args = parse(flags.split())
    with patch("model.LocallyMaskedConv2d", layer):
        experiment = set_up(args, setup_logging(None))
    optimization = Optimization(experiment)
    shape = experiment.image_shapes[0]
    masks = experiment.masks(shape)[0]
    tf32 = args.tf32
    images = to_grid(2 * torch.rand(args.batch_size, *shape) - 1, n_bits=8)
    parts = images.chunk(args.accum_freq)

    def step() -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        experiment.model.train()
        for number, part in enumerate(parts, start=1):
            optimization.backward(part, masks, number == len(parts))
        optimization.step(len(images), args.lr)

    return step, len(images)


def measure_steps(name: str, flags: str, repeats: int) -> Iterator[dict[str, Any]]:
    """One row for each variant of a network's training."""
    variants = VARIANTS | (GPU_VARIANTS if torch.cuda.is_available() else {})
    steps, images = {}, 0
    for variant, more in variants.items():
        layer = PatchMatrixConv2d if variant == "oracle layer" else LocallyMaskedConv2d
        steps[variant], images = optimizer_step(f"{flags} {more}", layer)
        steps[variant]()  # Adam allocates its averages
    memory = {variant: peak_memory(step) for variant, step in steps.items()}
    seconds = interleaved_medians(steps, repeats)
    for variant in variants:
        yield {
            "name": f"{name}, {variant}",
            "network": name,
            "variant": variant,
            "seconds": seconds[variant],
            "images_per_second": images / seconds[variant],
            "speedup_over_oracle": seconds["oracle layer"] / seconds[variant],
            "bytes": memory[variant],
            "memory_ratio": memory[variant] / memory["fp32"],
        }


def write_mnist(folder: Path, number: int) -> None:
    """Random images as MNIST's training file."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    header = np.array([2051, number, 28, 28], ">i4").tobytes()
    (raw / "train-images-idx3-ubyte").write_bytes(header + random_bytes(number * 784))


def write_cifar(folder: Path, number: int) -> None:
    """Random images as CIFAR10's training files."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for part in range(1, 6):
        images = np.frombuffer(random_bytes(number // 5 * 3072), np.uint8).reshape(-1, 3072)
        content = {"data": images, "labels": [0] * len(images)}
        (batches / f"data_batch_{part}").write_bytes(pickle.dumps(content, protocol=2))


def write_celebahq(folder: Path, number: int) -> None:
    """Random images as one of CelebA-HQ's training files."""
    tf = sources._import_tensorflow()  # after Triton, before which it may not be loaded
    path = folder / "celeba-tfr" / "train" / "train-r08-s-0000-of-0001.tfrecords"
    path.parent.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(number):
            values = tf.train.BytesList(value=[random_bytes(256 * 256 * 3)])
            feature = {"data": tf.train.Feature(bytes_list=values)}
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())


def random_bytes(number: int) -> bytes:
    """So many random bytes."""
    return np.random.default_rng(0).bytes(number)


LOADERS: dict[str, tuple[Callable[[Path, int], None], str]] = {
    "mnist": (write_mnist, "--binarize -b 32"),
    "cifar": (write_cifar, "-b 32"),
    "celebahq": (write_celebahq, "--celeba_size 64 --n_bits 5 -b 8"),
}


def measure_loader(dataset: str, network: str, num_batches: int) -> dict[str, Any]:
    """Time that training waits for batches, and time that making them takes alone."""
    write, flags = LOADERS[dataset]
    with tempfile.TemporaryDirectory() as folder:
        args = parse(f"-d {dataset} -i {folder} {PONO} {network} {flags}".split())
        write(Path(folder), num_batches * args.batch_size)
        experiment = set_up(args, setup_logging(None))
        optimization = Optimization(experiment)
        masks = experiment.masks(experiment.image_shapes[0])[0]
        train_data = data.load_train(experiment.data, experiment.processes)
        list(train_data.epoch(0))  # what is loaded once
        begin = time.perf_counter()
        batches = sum(1 for _ in train_data.epoch(1))
        alone = (time.perf_counter() - begin) / batches
        waited, begin = 0.0, time.perf_counter()
        last = begin
        for images in train_data.epoch(2):
            waited += time.perf_counter() - last
            optimization.backward(images, masks)
            optimization.step(len(images), args.lr)
            last = time.perf_counter()
    seconds = last - begin
    return {
        "name": f"{dataset}, {flags}",
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
LOADER_HEADER = ("data", "ms: step", "ms: making a batch", "share if in turn", "share that waits")


def steps_row(row: dict[str, Any]) -> list[str]:
    """A row as people read it."""
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
    """A row as people read it."""
    return [
        row["name"],
        f"{1e3 * row['step_seconds']:.0f}",
        f"{1e3 * row['loader_seconds']:.1f}",
        f"{row['share_without_thread']:.2%}",
        f"{row['share']:.2%}",
    ]


def steps_part(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All networks."""
    networks = NETWORKS | (GPU_NETWORKS if torch.cuda.is_available() else {})
    for name, flags in (QUICK_NETWORKS if args.quick else networks).items():
        yield from measure_steps(name, flags, args.repeats)


def loader_part(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All data sets."""
    for dataset in LOADERS:
        network = "-q 1 -n 16" if args.quick else "-q 2 -n 64"
        yield measure_loader(dataset, network, 5 if args.quick else 20)


def main() -> None:
    """Measure the parts that are asked for, and print a table of each."""
    parts = {
        "steps": Part(steps_part, STEPS_HEADER, steps_row),
        "loader": Part(loader_part, LOADER_HEADER, loader_row),
    }
    measure_parts(start(__doc__ or "", 3, list(parts)), parts)


if __name__ == "__main__":
    main()
