"""What every mode works with: settings turned into data, orders, a network and its likelihood."""

import argparse
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lmconv.checkpoints import (
    best_or_newest_checkpoint,
    load_checkpoint,
    load_published_state_dict,
    model_weights,
    newest_checkpoint,
    resolve_checkpoint,
)
from lmconv.data.datasets import DataConfig, TestData, image_shapes, load_files, load_test
from lmconv.distributed import Processes
from lmconv.likelihoods import Likelihood, make_likelihood
from masking import Masks, generation_orders, get_masks
from model import ModelConfig, build_model
from sources import ImageShape
from utils import UsageError, run_directory_name, set_seed

__all__ = ["Experiment", "build_network", "set_up"]


@dataclass(frozen=True)
class Experiment:
    """A run's settings with all that they describe; every mode is a function of one.

    Attributes:
        args: the checked command line (``options.parse``).
        run_dir: where the run's files are.
        processes: those that the run is shared by.
        data: the settings of the data set.
        image_shapes: (C, H, W) of each image size that the run works with.
        likelihood: what the network's output means.
        model: the network, on ``processes.device``.
        log: for lines that people read.
    """

    args: argparse.Namespace
    run_dir: Path
    processes: Processes
    data: DataConfig
    image_shapes: list[ImageShape]
    likelihood: Likelihood
    model: nn.Module
    log: logging.Logger

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.processes.device

    def orders(self, image_shape: ImageShape) -> list[np.ndarray]:
        """The generation orders of one image size, in the order of their indices."""
        args = self.args
        return generation_orders(
            args.order,
            image_shape,
            all_variants=args.randomize_order,
            variants=args.order_variants,
            base_transpose=args.base_order_transpose,
            base_reflect_rows=args.base_order_reflect_rows,
            base_reflect_cols=args.base_order_reflect_cols,
            files=args.order_file,
            seed=args.order_seed,
        )

    def masks(self, image_shape: ImageShape) -> list[Masks]:
        """The masks of each of ``orders(image_shape)``, on the run's device."""
        return [self.masks_of(order, image_shape) for order in self.orders(image_shape)]

    def masks_of(self, order: np.ndarray, image_shape: ImageShape) -> Masks:
        """The masks of one order of an image size, on the run's device."""
        _, height, width = image_shape
        kernel_size, dilation = self.args.kernel_size, self.args.max_dilation
        return get_masks(order, height, width, kernel_size, dilation).to(self.device)

    def orders_path(self, image_shape: ImageShape) -> Path:
        """Where the plot of the orders of one image size is."""
        name = f"{self.args.mode}_orderings_obs{'x'.join(map(str, image_shape))}.png"
        return self.run_dir / name

    def order_indices(self, name: str) -> list[int]:
        """The indices that ``--train_masks`` or ``--test_masks`` gives; all when it is left out.

        Raises:
            UsageError: an index is beyond the last order.
        """
        number = len(self.orders(self.image_shapes[0]))
        indices: Sequence[int] | None = getattr(self.args, name)
        for index in indices or ():
            if index >= number:
                raise UsageError(
                    f"--{name} {index} is out of range: --order and its variants give {number} "
                    f"order{'s' * (number > 1)}, 0 to {number - 1}"
                )
        return list(range(number)) if indices is None else list(indices)

    def open_images(self) -> TestData:
        """The files of ``--images``, or the test set.

        Raises:
            DataError: a file is no image of the size that the run works with.
        """
        if not self.args.images:
            return load_test(self.data)
        paths = [Path(name) for name in self.args.images]
        return load_files(self.data, paths, self.args.resize_images)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision that the network runs in (``--precision``); likelihoods stay in float32."""
        enabled = self.args.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    @property
    def resumes(self) -> bool:
        """Whether training goes on from a checkpoint."""
        return self.args.load_last_params or self.args.load_params is not None

    def checkpoint_path(self) -> Path:
        """The checkpoint that the command line asks for; by default the run's best or newest.

        Raises:
            CheckpointError: there is none.
        """
        if self.args.load_params:
            return resolve_checkpoint(self.args.load_params, self.run_dir)
        if self.args.load_last_params:
            return newest_checkpoint(self.run_dir, self.args.exp_id)
        return best_or_newest_checkpoint(self.run_dir, self.args.exp_id)

    def load_weights(self) -> tuple[Path, int]:
        """Load the weights to test or sample with; returns the file and its epoch.

        Raises:
            CheckpointError: there is no checkpoint, or it holds another network.
        """
        path = self.checkpoint_path()
        checkpoint = load_checkpoint(path)
        weights = model_weights(checkpoint, averaged=not self.args.raw_weights)
        load_published_state_dict(self.model, weights, str(path))
        epoch = int(checkpoint.get("epoch", -1))
        self.log.info("weights of epoch %d from %s", epoch, path)
        return path, epoch


def set_up(
    args: argparse.Namespace, log: logging.Logger, processes: Processes | None = None
) -> Experiment:
    """Turn settings into an experiment. Reads and writes no files.

    Args:
        args: the checked command line.
        log: for lines that people read.
        processes: those of the run; by default this one alone.

    Raises:
        UsageError, DataError, ValueError: the settings do not fit together.
    """
    set_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    data = DataConfig(
        dataset=args.dataset,
        data_dir=args.data_dir,
        batch_size=args.batch_size,
        binarize=args.binarize,
        n_bits=args.n_bits,
        seed=args.seed,
        celeba_size=args.celeba_size,
        channels=args.channels,
        image_size=args.image_size,
        split_seed=args.split_seed,
        max_celeba_train_batches=args.max_celeba_train_batches,
        max_celeba_test_batches=args.max_celeba_test_batches,
        max_train_images=args.max_train_images,
        max_test_images=args.max_test_images,
        resize_sizes=tuple(args.resize_sizes or ()),
        resize_probs=tuple(args.resize_probs or ()),
    )
    shapes = image_shapes(data)
    if args.model == "pixelcnnpp":
        _check_divisible(shapes)
    processes = processes or Processes()
    likelihood, model = build_network(args, channels=shapes[0][0])
    experiment = Experiment(
        args=args,
        run_dir=_run_dir(args),
        processes=processes,
        data=data,
        image_shapes=shapes,
        likelihood=likelihood,
        model=model.to(processes.device),
        log=log,
    )
    for shape in shapes:
        experiment.orders(shape)
    for name in ("train_masks", "test_masks"):
        experiment.order_indices(name)
    return experiment


def build_network(args: argparse.Namespace, channels: int) -> tuple[Likelihood, nn.Module]:
    """The likelihood and the network that settings describe, for images of so many channels.

    Raises:
        ValueError: the settings are impossible.
    """
    likelihood = make_likelihood(channels, args.nr_logistic_mix, args.n_bits, args.binarize)
    config = ModelConfig(
        architecture=args.model,
        input_channels=channels,
        output_channels=likelihood.num_output_channels,
        nr_resnet=args.nr_resnet,
        nr_filters=args.nr_filters,
        dropout_prob=args.dropout_prob,
        kernel_size=args.kernel_size,
        max_dilation=args.max_dilation,
        normalization=args.normalization,
        bias=not args.no_bias,
        mask_weight=args.learn_weight_for_masks,
        rematerialize=args.rematerialize,
    )
    return likelihood, build_model(config)


def _check_divisible(shapes: list[ImageShape]) -> None:
    for _, height, width in shapes:
        if height % 4 or width % 4:
            raise UsageError(
                f"--model pixelcnnpp needs a height and width divisible by 4, got "
                f"{height}x{width}: choose other --resize_sizes or --model lmconv"
            )


def _run_dir(args: argparse.Namespace) -> Path:
    if args.run_dir is not None:
        return Path(args.run_dir)
    return Path(
        run_directory_name(
            args.exp_id,
            args.dataset,
            args.binarize,
            args.lr,
            args.batch_size,
            args.clip,
            args.kernel_size,
            args.max_dilation,
            args.normalization,
            args.exp_name,
        )
    )
