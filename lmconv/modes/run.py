"""What every mode works with: a command line turned into data, a model and a run directory."""

import argparse
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmconv import plots
from lmconv.data.datasets import (
    DataConfig,
    LabelError,
    check_files,
    has_parts,
    image_shapes,
    load_files,
    load_test,
)
from lmconv.data.pipeline import TestData
from lmconv.distributed import Processes, join_processes
from lmconv.image_model import ImageModel, SamplingConfig
from lmconv.modes import MODES, UsageError
from lmconv.modes.batches import check_batches
from lmconv.modes.options import in_flags, settle
from lmconv.modes.run_directory import (
    Checkpoint,
    is_file_given,
    open_checkpoint,
    run_directory,
    searched_directory,
)
from lmconv.modes.settings import (
    check_shapes,
    data_config,
    describe_model,
    not_as_trained,
    shown,
    stored_settings,
)
from lmconv.modes.summary import write_summary
from lmconv.pixel_values import ImageShape, sizes_in_words
from lmconv.random_numbers import set_seed
from lmconv.training.lock import locked
from utils import ProgressBar, keep_freed_memory, remove_unfinished, setup_logging

__all__ = ["Run", "checked_one_size", "execute", "make_run"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A checked command line with everything that it describes, which a mode works with.

    Attributes:
        args: the command line, with every flag's value.
        run_dir: directory of the run's files.
        processes: the processes that share the run.
        data: the settings of the data set.
        model: the model, with the weights of the checkpoint, on ``processes.device``.
        image_shapes: (C, H, W) of each image size that the run works with.
        checkpoint: the checkpoint that the weights come from, or None.
        not_as_trained: the values of those flags that choose other images or orders than the
            checkpoint was trained with, and its own values: ``{flag: [value, in training]}``.
    """

    args: argparse.Namespace
    run_dir: Path
    processes: Processes
    data: DataConfig
    model: ImageModel
    image_shapes: list[ImageShape]
    checkpoint: Checkpoint | None
    not_as_trained: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> Checkpoint:
        """The checkpoint, for modes that always have one."""
        assert self.checkpoint is not None
        return self.checkpoint

    @property
    def sampling(self) -> SamplingConfig:
        """How pixels are drawn, from ``--sampler``, ``--guess`` and the temperatures."""
        args = self.args
        return SamplingConfig(
            args.sampler,
            None if args.guess == "auto" else args.guess,
            args.sample_mixture_temperature,
            args.sample_logistic_temperature,
        )

    def order_indices(self, name: str) -> list[int]:
        """The indices in ``--train_masks`` or ``--test_masks``; all if the flag is left out.

        Raises:
            UsageError: an index is beyond the last order.
        """
        number = self.model.description.orders.number
        given: list[int] | None = getattr(self.args, name)
        for index in given or ():
            if index >= number:
                raise UsageError(
                    f"--{name} {index} is out of range: --order and its variants make {number} "
                    f"order{'s' * (number > 1)}, 0 to {number - 1}"
                )
        return list(range(number)) if given is None else list(given)

    def orders_path(self, image_shape: ImageShape) -> Path:
        """The path of the plot of the orders for one image size."""
        name = f"{self.args.mode}_orderings_obs{'x'.join(map(str, image_shape))}.png"
        return self.run_dir / name

    def classes_to_draw(self) -> list[int]:
        """The classes of ``--sample_class``, and in training all; none if they are unknown.

        Raises:
            ValueError: the model does not know a class.
        """
        classes = self.model.description.classes
        if self.args.mode == "train":
            return list(range(len(classes)))
        names: list[str] = self.args.sample_class or []
        choices = [
            int(name) if name.isdecimal() and name not in classes else name for name in names
        ]
        label = self.model.label(choices or None, len(choices))
        return [] if label is None else label.tolist()

    @property
    def labelled_data(self) -> DataConfig:
        """The settings of the data set with labels, if the model knows classes."""
        return replace(self.data, classes=self.model.description.classes)

    @property
    def sharing(self) -> Processes:
        """The processes that share out images; in training each opens all that it asks for."""
        if self.args.mode == "train":
            return Processes(device=self.processes.device)
        return self.processes

    def progress_bar(
        self, description: str, num_images: int, pixels_per_image: float
    ) -> ProgressBar:
        """A bar of the pixels that all processes do."""
        processes = self.sharing
        return ProgressBar(
            *(description, num_images, pixels_per_image, processes.number, processes.is_main)
        )

    @property
    def part(self) -> str:
        """The part of the data set to work on: ``--part``, or else the test set.

        A folder that is not split is scored and compressed as a whole by default.

        Raises:
            DataError: the folder of a data set does not exist.
        """
        args = self.args
        if args.part is not None:
            return str(args.part)
        takes_all = args.mode in ("score", "compress") and args.max_test_images == -1
        return "all" if takes_all and not has_parts(self.data) else "test"

    def check_images(self, check: Callable[[ImageShape], object] = lambda shape: None) -> None:
        """Raises DataError where ``images`` would, as far as it can be known beforehand.

        Args:
            check: called with each (C, H, W) of the images, to raise errors of its own.
        """
        if not (self.args.images or self.args.own_sizes):
            for shape in self.image_shapes:
                check(shape)
            check_files(self.data, self.part)
            return
        # Not ``images``, whose opening says things in the log, which is not set up yet.
        for shape in dict.fromkeys(self._open_images().own_shapes or self.image_shapes):
            check(shape)

    def batches_of(
        self,
        data: TestData,
        first: int = 0,
        end: int | None = None,
        batch_size: int | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """This process's share of the images to work on, in batches of one size.

        A line says which have another size than the model was made for.

        Args:
            data: the images.
            first, end, batch_size: as in ``TestData.shared_batches``.

        Returns:
            An iterator over the number of a batch's first image and the images, ``B x C x H x W``
            in [-1, 1], for ``Processes.in_turn``.
        """
        different = dict.fromkeys(data.own_shapes)
        others = [shape for shape in different if shape not in self.image_shapes]
        if others:
            log.info(
                "images keep their sizes: %s (the model is made for %s)",
                *(sizes_in_words(others), sizes_in_words(self.image_shapes)),
            )
        shape = None if data.own_shapes else self.image_shapes[0]
        return data.shared_batches(shape, self.sharing, first, end, batch_size)

    @cached_property
    def images(self) -> TestData:
        """The files of ``--images``, or the part of the data set to work on; opened once.

        Raises:
            DataError: a file is not an image of the size that the run works with.
        """
        return self._open_images()

    def _open_images(self) -> TestData:
        if not self.args.images:
            return load_test(self.data, self.part, self.sharing)
        paths = [Path(name) for name in self.args.images]
        return load_files(self.data, paths, self.args.resize_images, self.sharing)

    def open_labelled(self) -> TestData:
        """Open the same images, with their labels if they have some that the model knows."""
        if not self.args.images and self.model.description.classes:
            try:
                return load_test(self.labelled_data, self.part, self.sharing)
            except LabelError as error:
                log.warning("the images are used without labels: %s", in_flags(str(error)))
        return self.images


def execute(given: argparse.Namespace) -> None:
    """Check and run the mode of a command line.

    Args:
        given: result of ``options.parse``.

    Raises:
        UserError: something is wrong that the user can correct.
    """
    mode = MODES[given.mode]
    keep_freed_memory()
    with join_processes() as processes, ExitStack() as lock:
        if not mode.makes_run:
            _execute_without_run(given, processes)
            return
        own = processes if mode.is_shared else Processes(device=processes.device)
        with processes.together():  # none may write what another has yet to check
            try:
                run = make_run(given, own)
                module = import_module(f"lmconv.modes.{_module(run.args)}")
                module.check(run)
            except ValueError as error:
                raise UsageError(str(error)) from error
        with processes.together():
            if processes.is_main:
                if given.mode == "train":
                    _lock(run, lock)
                    module.check(run)  # again: another run may have ended here in the meantime
                _start_files(run)
                _warn_of_idle(given, processes)
            else:
                setup_logging(None, logging.ERROR)
        # In training, processes also communicate in other ways than those of ``together``. Where
        # only one of them works, none waits for it.
        is_together = mode.is_shared and given.mode != "train"
        with processes.together() if is_together else ExitStack():
            try:
                if processes.is_main or mode.is_shared:
                    module.run(run)
            finally:
                if processes.is_main:
                    write_summary(run.run_dir)


def _execute_without_run(given: argparse.Namespace, processes: Processes) -> None:
    if not processes.is_main:
        return
    module = import_module(f"lmconv.modes.{MODES[given.mode].module}")
    module.check(given)
    setup_logging(None)
    _warn_of_idle(given, processes)
    module.run(given)


def _warn_of_idle(given: argparse.Namespace, processes: Processes) -> None:
    if processes.number > 1 and not MODES[given.mode].is_shared:
        log.warning(
            "--mode %s runs in one of the %d processes only", *(given.mode, processes.number)
        )


def make_run(given: argparse.Namespace, processes: Processes | None = None) -> Run:
    """Turn a command line into a run, with a model and its weights, without writing anything.

    Args:
        given: result of ``options.parse``.
        processes: the processes of the run; by default only this one.

    Raises:
        UserError, ValueError: the settings do not fit each other or the checkpoint.
    """
    processes = processes or Processes()
    resumes = given.load_last_params or given.load_params is not None
    needs_weights = MODES[given.mode].needs_weights or resumes
    checkpoint = open_checkpoint(given) if needs_weights else None
    args = settle(given, stored_settings(given, checkpoint))
    set_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    data = data_config(args)
    shapes = image_shapes(data)
    check_shapes(args, shapes, checkpoint)
    description = describe_model(given, args, shapes, checkpoint)
    model = ImageModel(description, device=processes.device)
    model.precision = args.precision
    check_batches(args, model, shapes)
    for shape in shapes:
        model.orders(shape)
    if checkpoint is not None:
        averaged = not args.raw_weights
        model.load_weights(checkpoint.contents, str(checkpoint.path), averaged)
    is_searched = checkpoint is not None and not is_file_given(given)
    run_dir = searched_directory(given) if is_searched else run_directory(args)
    others = not_as_trained(args, description, checkpoint)
    run = Run(args, run_dir, processes, data, model, shapes, checkpoint, others)
    for name in ("train_masks", "test_masks"):
        run.order_indices(name)
    return run


def _module(args: argparse.Namespace) -> str:
    """The module that does what a command line asks for; completions have a module of their own."""
    flags = (args.images, args.hole_mask, args.order_choice, args.completions, args.own_sizes)
    return "complete" if args.mode == "sample" and any(flags) else MODES[args.mode].module


def _lock(run: Run, stack: ExitStack) -> None:
    """Make the run directory and keep other trainings out of it until the stack is closed."""
    try:
        stack.enter_context(locked(run.run_dir))
    except OSError as error:
        raise _unwritable(run.run_dir, error) from error


def _unwritable(run_dir: Path, error: OSError) -> UsageError:
    return UsageError(
        f"the run directory {run_dir} cannot be written ({error.strerror}): give another --run_dir"
    )


def _start_files(run: Run) -> None:
    """Make the run directory, with a log and the plots of orders."""
    args, run_dir = run.args, run.run_dir
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        setup_logging(run_dir / f"{args.mode}_{time.strftime('%Y%m%d-%H%M%S')}.log")
    except OSError as error:
        raise _unwritable(run_dir, error) from error
    if args.mode == "train":  # other modes may be writing files of theirs
        for name in (f"{args.exp_id}_ep", "best", "args", "train_", "training_"):
            remove_unfinished(run_dir, name)
    for name in ("save_dir", "two_stream"):
        if getattr(args, name):
            log.warning("--%s is accepted for old command lines and ignored", name)
    _plot(run)
    if run.checkpoint is not None and args.mode != "train":
        epoch = run.checkpoint.epoch
        of_epoch = f" of epoch {epoch}" if epoch >= 0 else ""  # not known, or not finished
        log.info("weights%s from %s", of_epoch, run.checkpoint.path)
    if run.not_as_trained:
        pairs = run.not_as_trained.items()
        others = [
            f"--{name} {shown(name, now)} (was {shown(name, then)})" for name, (now, then) in pairs
        ]
        log.info("not as in training: %s", ", ".join(others))
    channels, num_values = run.model.image_shape[0], run.model.likelihood.num_values
    drawn = plots.what_is_shown(channels, num_values)
    if drawn and (args.mode in ("train", "sample") or args.likelihood_map):
        log.info("grids and other drawings show %s; files of single images have all", drawn)
    if num_values > 256 and args.precision == "bf16":
        log.warning(
            "--precision bf16 rounds the network's output to 8 bits, too few for values of %d "
            "bits: --precision fp32 gives better likelihoods",
            args.n_bits,
        )


def _plot(run: Run) -> None:
    """Draw the orders of each image size, and with ``--plot_masks`` their masks."""
    for shape in run.image_shapes:
        obs = "x".join(map(str, shape))
        orders = run.model.orders(shape)
        plots.plot_orders([order.pixels for order in orders], shape, run.orders_path(shape))
        if not run.args.plot_masks:
            continue
        for index, order in enumerate(orders):
            for name, mask in order.masks._asdict().items():
                if name == "dilated":
                    name = f"dilated_d{run.args.max_dilation}"
                path = run.run_dir / f"mask_{name}_obs{obs}_order{index}.pdf"
                plots.plot_masks(mask.cpu(), shape, path, f"{name}, order {index}")
                log.info("masks in %s", path)


def checked_one_size(run: Run) -> ImageShape:
    """The image size of a run that must have only one, unless each image has its own or a bucket.

    Raises:
        UsageError: it has several.
    """
    mode, has_buckets = run.args.mode, bool(run.data.buckets)
    takes_several = run.args.own_sizes or (has_buckets and mode != "classify")
    if len(run.image_shapes) > 1 and not takes_several:
        what = {"sample": "complete", "score": "score"}.get(mode, mode)
        flag = "--image_size" if has_buckets else "--resize_sizes"
        sizes = [
            f"{height}x{width}" if has_buckets else height for _, height, width in run.image_shapes
        ]
        raise UsageError(
            f"{flag} must be one size to {what} images, not {' '.join(map(str, sizes))}: give one"
        )
    return run.image_shapes[0]
