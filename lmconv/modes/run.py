"""What every mode works with: a command line turned into data, a model and a run directory.

Flags are turned into the settings of the modules below here, and nowhere else.
"""

import argparse
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lmconv import plots
from lmconv.checkpoints import (
    CheckpointError,
    best_or_newest_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    resolve_checkpoint,
)
from lmconv.data.datasets import (
    DataConfig,
    TestData,
    check_files,
    has_parts,
    image_shapes,
    load_files,
    load_test,
)
from lmconv.description import ModelDescription
from lmconv.distributed import Processes, join_processes
from lmconv.image_model import ImageModel, SamplingConfig, describe
from lmconv.modes import MODES, UsageError
from lmconv.modes.options import parse, parse_stored, settle
from lmconv.modes.summary import write_summary
from lmconv.orders import OrderConfig
from lmconv.pixel_values import ImageShape, Preparation
from lmconv.random_numbers import set_seed
from lmconv.training.lock import locked
from masking import load_order
from utils import keep_freed_memory, remove_unfinished, setup_logging

__all__ = [
    "Checkpoint",
    "Run",
    "checked_one_size",
    "checkpoint_file",
    "execute",
    "make_run",
    "open_checkpoint",
]

log = logging.getLogger(__name__)

# Flags whose values are fixed by a trained network.
_OF_THE_NETWORK = (
    "model",
    "nr_resnet",
    "nr_filters",
    "kernel_size",
    "max_dilation",
    "normalization",
    "no_bias",
    "learn_weight_for_masks",
    "nr_logistic_mix",
    "binarize",
    "n_bits",
)
# Flags that choose images or orders: other ones than in training are worth a line.
_CHOICES = (
    *("dataset", "image_size", "celeba_size", "resize_sizes", "order", "order_seed"),
    *("randomize_order", "order_variants", "base_order_transpose"),
    *("base_order_reflect_rows", "base_order_reflect_cols"),
)
# Flags that choose orders: if one is given, a checkpoint's choice of indices no longer applies.
_OF_ORDERS = ("order", "order_file", "randomize_order", "order_variants")

# How the default name of a run directory tells settings that are not the default. Dropout is left
# out: published commands change it, and their directories keep their names.
_IN_NAMES = {
    "model": "{}",
    "nr_resnet": "q{}",
    "nr_filters": "n{}",
    "nr_logistic_mix": "m{}",
    "no_bias": "nobias",
    "learn_weight_for_masks": "maskweight",
    "n_bits": "bits{}",
    "celeba_size": "size{}",
    "image_size": "size{0[0]}x{0[1]}",
    "channels": "channels{}",
    "max_train_images": "images{}",
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file that has been read.

    Attributes:
        path: path of the file.
        contents: contents of the file.
        description: what its model is; None if the file has only weights.
    """

    path: Path
    contents: Mapping[str, Any]
    description: ModelDescription | None

    @property
    def epoch(self) -> int:
        """The last epoch that was trained, -1 if it is not known."""
        return int(self.contents.get("epoch", -1))


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
        """How pixels are drawn, from ``--sampler`` and the temperatures."""
        args = self.args
        return SamplingConfig(
            args.sampler, args.sample_mixture_temperature, args.sample_logistic_temperature
        )

    def order_indices(self, name: str) -> list[int]:
        """The indices in ``--train_masks`` or ``--test_masks``; all if the flag is left out.

        Raises:
            UsageError: an index is beyond the last order.
        """
        number = len(self.model.orders(self.image_shapes[0]))
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

    def check_images(self) -> None:
        """Raises DataError where ``open_images`` would, as far as it can be known beforehand."""
        if self.args.images:
            self.open_images()
        else:
            check_files(self.data, self.part)

    def open_images(self) -> TestData:
        """Open the files of ``--images``, or the part of the data set to work on.

        Raises:
            DataError: a file is not an image of the size that the run works with.
        """
        if not self.args.images:
            return load_test(self.data, self.part)
        paths = [Path(name) for name in self.args.images]
        return load_files(self.data, paths, self.args.resize_images)


def execute(given: argparse.Namespace) -> None:
    """Check and run the mode of a command line.

    Args:
        given: result of ``options.parse``.

    Raises:
        UserError: something is wrong that the user can correct.
    """
    mode = MODES[given.mode]
    if not mode.makes_run:
        module = import_module(f"lmconv.modes.{mode.module}")
        module.check(given)
        setup_logging(None)
        module.run(given)
        return
    keep_freed_memory()
    with join_processes() as processes, ExitStack() as lock:
        try:
            run = make_run(given, processes)
            module = import_module(f"lmconv.modes.{_module(run.args)}")
            module.check(run)
        except ValueError as error:
            raise UsageError(str(error)) from error
        processes.wait()  # none may write what another has yet to check
        if processes.is_main:
            if given.mode == "train":
                _lock(run, lock)
                module.check(run)  # again: another run may have ended here in the meantime
            _start_files(run)
        else:
            setup_logging(None, logging.ERROR)
        processes.wait()
        if processes.is_main or mode.is_shared:
            try:
                module.run(run)
            finally:
                if processes.is_main:
                    write_summary(run.run_dir)


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
    args = settle(given, _stored(given, checkpoint))
    set_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    data = _data_config(args)
    shapes = image_shapes(data)
    _check_shapes(args, shapes, checkpoint)
    description = _describe(given, args, shapes, checkpoint)
    model = ImageModel(description, device=processes.device)
    for shape in shapes:
        model.orders(shape)
    model.precision = args.precision
    if checkpoint is not None:
        averaged = not args.raw_weights
        model.load_weights(checkpoint.contents, str(checkpoint.path), averaged)
    is_searched = checkpoint is not None and not _is_file_given(given)
    run_dir = _searched_dir(given) if is_searched else _run_dir(args)
    others = _not_as_trained(args, description, checkpoint)
    run = Run(args, run_dir, processes, data, model, shapes, checkpoint, others)
    for name in ("train_masks", "test_masks"):
        run.order_indices(name)
    return run


def _module(args: argparse.Namespace) -> str:
    """The module that does what a command line asks for; completions have a module of their own."""
    completes = (args.images, args.hole_mask, args.order_choice, args.completions)
    return "complete" if args.mode == "sample" and any(completes) else MODES[args.mode].module


def open_checkpoint(given: argparse.Namespace) -> Checkpoint:
    """Read the checkpoint that a command line asks for; by default the run's best or newest.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    path = checkpoint_file(given)
    contents = load_checkpoint(path)
    return Checkpoint(path, contents, describe(contents, str(path)))


def checkpoint_file(given: argparse.Namespace) -> Path:
    """The path of the checkpoint that a command line asks for.

    Raises:
        CheckpointError: there is none.
    """
    if _is_file_given(given):
        return Path(given.load_params)
    run_dir = _searched_dir(given)
    if given.load_params:
        return resolve_checkpoint(given.load_params, run_dir)
    find = newest_checkpoint if given.load_last_params else best_or_newest_checkpoint
    try:
        return find(run_dir, given.exp_id or 0)
    except CheckpointError as error:
        alike = {path.parent for path in run_dir.parent.glob(f"{run_dir.name}_*/*.pth")}
        if given.run_dir is not None or not alike:
            raise
        names = ", ".join(sorted(map(str, alike)))
        raise CheckpointError(f"{error} (of runs with other settings, there is {names})") from error


def _is_file_given(given: argparse.Namespace) -> bool:
    """Whether ``--load_params`` is the path of a file, so that no directory is searched for one."""
    return bool(given.load_params) and Path(given.load_params).is_file()


def _searched_dir(given: argparse.Namespace) -> Path:
    """The run directory that has the checkpoint which a command line asks for."""
    # Only the name of a default directory depends on the other flags. They are settled later, with
    # those of the checkpoint: some only make sense together.
    return _run_dir(given if given.run_dir is not None else settle(given))


def _stored(given: argparse.Namespace, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """The settings of a checkpoint, by flag.

    Raises:
        UsageError: a flag that is given contradicts the network.
    """
    if checkpoint is None or checkpoint.description is None:
        return {}
    args = checkpoint.contents.get("args")
    args = args if isinstance(args, dict) else {}
    if given.mode != "train":
        args = {name: args[name] for name in ("data_dir", "split_seed") if name in args}
    stored = parse_stored(args, str(checkpoint.path)) | _flags_of(checkpoint.description)
    for name in _OF_THE_NETWORK:
        value = getattr(given, name)
        if value is not None and name in stored and value != stored[name]:
            raise UsageError(
                f"--{name} {value} contradicts {checkpoint.path}, which has {stored[name]}: leave "
                "it out, or give another checkpoint"
            )
    if given.dataset not in (None, stored.get("dataset")):
        for name in (
            *("data_dir", "split_seed", "random_crop"),
            *("resize_sizes", "resize_probs", "celeba_size"),
        ):
            stored.pop(name, None)
    if any(getattr(given, name) is not None for name in _OF_ORDERS):
        stored.pop("order_variants", None)
    if given.order_file is not None:
        stored.pop("order", None)
    return stored


def _not_as_trained(
    args: argparse.Namespace, description: ModelDescription, checkpoint: Checkpoint | None
) -> dict[str, Any]:
    """What ``Run.not_as_trained`` is; nothing if the checkpoint does not say how it was trained."""
    if checkpoint is None or checkpoint.description is None:
        return {}
    used, trained = _flags_of(description), _flags_of(checkpoint.description)
    if checkpoint.description.dataset is None:  # it was trained on images without a name
        trained.pop("dataset")
    different = {
        name: [used.get(name), trained[name]]
        for name in _CHOICES
        if name in trained and used.get(name) != trained[name]
    }
    if description.orders.own != checkpoint.description.orders.own:
        before = (checkpoint.contents.get("args") or {}).get("order_file")
        different["order_file"] = [args.order_file, before]
    return different


def _flags_of(description: ModelDescription) -> dict[str, Any]:
    """The flags that describe a model."""
    network, orders = description.network, description.orders
    channels, height, width = description.image_shapes[0]
    flags: dict[str, Any] = {
        "model": network.architecture,
        "dataset": description.dataset or "folder",
        "nr_resnet": network.nr_resnet,
        "nr_filters": network.nr_filters,
        "dropout_prob": network.dropout_prob,
        "rematerialize": network.rematerialize,
        "binarize": description.preparation.binarize,
        "image_size": (height, width),
        "channels": channels,
    }
    if not description.preparation.binarize:
        flags["n_bits"] = description.preparation.n_bits
        flags["nr_logistic_mix"] = description.likelihood.num_mixtures
    if description.dataset == "celebahq":
        flags["celeba_size"] = height
    elif len(description.image_shapes) > 1:
        flags["resize_sizes"] = [shape[1] for shape in description.image_shapes]
    if network.architecture == "pixelcnnpp":
        return flags
    return flags | {
        "kernel_size": network.kernel_size,
        "max_dilation": network.max_dilation,
        "normalization": network.normalization,
        "no_bias": not network.bias,
        "learn_weight_for_masks": network.mask_weight,
        "order": list(orders.families),
        "randomize_order": orders.all_variants,
        "order_variants": None if orders.variants is None else list(orders.variants),
        "base_order_transpose": orders.base_transpose,
        "base_order_reflect_rows": orders.base_reflect_rows,
        "base_order_reflect_cols": orders.base_reflect_cols,
        "order_seed": orders.seed,
    }


def _data_config(args: argparse.Namespace) -> DataConfig:
    return DataConfig(
        dataset=args.dataset,
        data_dir=args.data_dir,
        batch_size=args.batch_size,
        preparation=Preparation(args.binarize, args.n_bits),
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
        random_crop=args.random_crop,
        flip=args.flip,
        run_dir=_run_dir(args),
    )


def _describe(
    given: argparse.Namespace,
    args: argparse.Namespace,
    shapes: list[ImageShape],
    checkpoint: Checkpoint | None,
) -> ModelDescription:
    """The description of the model that a command line and its checkpoint ask for."""
    return ModelDescription.of(
        tuple(shapes),
        Preparation(args.binarize, args.n_bits),
        _orders(given, args, shapes, checkpoint),
        args.nr_logistic_mix,
        args.dataset,
        architecture=args.model,
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


def _orders(
    given: argparse.Namespace,
    args: argparse.Namespace,
    shapes: list[ImageShape],
    checkpoint: Checkpoint | None,
) -> OrderConfig:
    own: tuple[tuple[int, ...], ...] = ()
    if args.order_file:
        orders = [load_order(name, *shape[1:]) for shape in shapes for name in args.order_file]
        width = shapes[0][2]
        own = tuple(tuple((order @ [width, 1]).tolist()) for order in orders)
    elif given.order is None and checkpoint is not None and checkpoint.description is not None:
        own = checkpoint.description.orders.own
    return OrderConfig(
        families=tuple(args.order),
        all_variants=args.randomize_order,
        variants=None if args.order_variants is None else tuple(args.order_variants),
        base_transpose=args.base_order_transpose,
        base_reflect_rows=args.base_order_reflect_rows,
        base_reflect_cols=args.base_order_reflect_cols,
        seed=args.order_seed,
        own=own,
    )


def _check_shapes(
    args: argparse.Namespace, shapes: list[ImageShape], checkpoint: Checkpoint | None
) -> None:
    if checkpoint is not None and checkpoint.description is not None:
        channels = checkpoint.description.image_shapes[0][0]
        if channels != shapes[0][0]:
            raise UsageError(
                f"the images of {args.dataset} have {shapes[0][0]} channels, but the model of "
                f"{checkpoint.path} works on {channels}: choose another -d/--dataset"
            )
    for _, height, width in shapes:
        if args.model == "pixelcnnpp" and (height % 4 or width % 4):
            raise UsageError(
                f"--model pixelcnnpp needs a height and width divisible by 4, got "
                f"{height}x{width}: choose other --resize_sizes or --model lmconv"
            )


def _run_dir(args: argparse.Namespace) -> Path:
    """The run directory: the one given, or one named after the settings.

    The name is that of the published code, followed by what differs from the defaults among the
    settings of the network and the data, and the seed. A run to go on from or to use is also found
    without the latter: a seed may be that of samples, and older runs have the published name.
    """
    if args.run_dir is not None:
        return Path(args.run_dir)
    published = (
        f"runs/{args.exp_id:05d}_{'binary_' if args.binarize else ''}{args.dataset}"
        f"_lr{args.lr:.5f}_bs{args.batch_size}_gc{args.clip}_k{args.kernel_size}"
        f"_md{args.max_dilation}"
    )
    if args.normalization != "weight_norm":
        published += f"_{args.normalization}"
    usual = vars(settle(parse(["--dataset", args.dataset])))
    of_folders = () if args.dataset == "folder" else ("image_size", "channels")
    parts = [
        text.format(getattr(args, name))
        for name, text in _IN_NAMES.items()
        if getattr(args, name) != usual[name] and name not in of_folders
    ]
    described = "_".join([published, *parts])
    seeded = described if args.seed == usual["seed"] else f"{described}_seed{args.seed}"
    end = f"+{args.exp_name}" if args.exp_name else ""
    found = [Path(name + end) for name in (seeded, described, published)]
    is_new = args.mode == "train" and not args.load_last_params and args.load_params is None
    if not is_new and not _is_file_given(args):
        for path in found:
            if any(path.glob("*.pth")):
                return path
    return found[0] if args.mode == "train" else found[1]


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
        log.info("weights of epoch %d from %s", run.checkpoint.epoch, run.checkpoint.path)
    if run.not_as_trained:
        pairs = run.not_as_trained.items()
        others = [f"--{name} {_shown(now)} (was {_shown(then)})" for name, (now, then) in pairs]
        log.info("not as in training: %s", ", ".join(others))


def _shown(value: Any) -> str:
    """The value of a flag as a line shows it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return "not given" if value is None else str(value)


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
    """The image size of a run that must have only one.

    Raises:
        UsageError: it has several.
    """
    if len(run.image_shapes) > 1:
        what = {"sample": "complete", "score": "score"}.get(run.args.mode, run.args.mode)
        raise UsageError(f"--resize_sizes must be one size to {what} images")
    return run.image_shapes[0]
