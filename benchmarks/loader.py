"""How long training waits for its batches.

    python benchmarks/loader.py [--quick] [--json FILE]

Files in the format of each data set are written and trained on. The share is the part of the time
that steps of the small network spend waiting for their batch.
"""

import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import print_table, start, write_rows
from training import LEARNING_RATE, Case

from lmconv.data.celebahq import import_tensorflow
from lmconv.data.datasets import DataConfig, image_shapes, load_train
from lmconv.pixel_values import Preparation
from lmconv.training.optimization import Optimization, OptimizationConfig

HEADER = ("data", "ms: step", "ms: making a batch", "share if in turn", "share of waiting")


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


def measure(dataset: str, case: Case, num_batches: int) -> dict[str, Any]:
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


def table_row(row: dict[str, Any]) -> list[str]:
    """A row of the printed table."""
    return [
        row["name"],
        f"{1e3 * row['step_seconds']:.0f}",
        f"{1e3 * row['loader_seconds']:.1f}",
        f"{row['share_without_thread']:.2%}",
        f"{row['share']:.2%}",
    ]


def main() -> None:
    """Measure the wait for each data set, print the table and write its rows."""
    args = start(__doc__ or "", default_repeats=None)
    case, num_batches = (Case(1, 16), 5) if args.quick else (Case(2, 64), 20)
    rows = print_table(HEADER, (measure(name, case, num_batches) for name in LOADERS), table_row)
    write_rows(args.json, rows)


if __name__ == "__main__":
    main()
