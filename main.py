"""Train, test and sample locally masked convolution networks.

python main.py --mode train                      # a small network on built-in digits
python main.py --mode test                       # its exact likelihoods
python main.py --mode sample                     # its samples
python main.py --mode compress --output FILE.lmc # its test set in the bits that it promises
python main.py --help                            # everything else
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lmconv import plots
from lmconv.checkpoints import CheckpointError, find_checkpoints
from lmconv.compression.entropy_coding import CodingError
from lmconv.compression.file_format import CompressedFileError, is_compressed_file
from lmconv.data.datasets import DataError, check_files
from lmconv.distributed import ProcessError, join_processes
from lmconv.modes.complete import complete
from lmconv.modes.compress import compress, decompress, open_compressed
from lmconv.modes.options import parse
from lmconv.modes.plot import plot_runs
from lmconv.modes.regions import hidden_region, scored_pixels, scored_region
from lmconv.modes.run import Experiment, set_up
from lmconv.modes.sample import sample
from lmconv.modes.score import score
from lmconv.scoring import test
from lmconv.training.trainer import train
from model import count_parameters
from utils import Stopped, UsageError, keep_freed_memory, remove_unfinished, setup_logging

__all__ = ["main"]

# What users can mend.
_MISTAKES = (
    UsageError,
    CheckpointError,
    DataError,
    CompressedFileError,
    CodingError,
    OSError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Returns:
        The exit code: 0; 2 after a line that says what to mend; 1 if another process of the run has
        ended; 128 and the number of the signal that stopped the run.
    """
    try:
        _run(parse(argv))
    except _MISTAKES as error:
        print(f"main.py: error: {error}", file=sys.stderr)
        return 2
    except ProcessError as error:
        print(f"main.py: error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"main.py: {stopped}", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        print("main.py: interrupted", file=sys.stderr)
        return 130
    return 0


def _run(args: argparse.Namespace) -> None:
    if args.mode == "plot":
        setup_logging(None).info("learning curves in %s", plot_runs(args))
        return
    keep_freed_memory()
    with join_processes() as processes:
        try:
            experiment = set_up(args, logging.getLogger("lmconv"), processes)
        except ValueError as error:
            raise UsageError(str(error)) from error
        _check(experiment)
        processes.wait()  # none may write what another is still to check
        if processes.is_main:
            _start_files(experiment)
        else:
            setup_logging(None, logging.ERROR)
        processes.wait()
        modes = {
            "train": train,
            "test": test,
            "sample": complete if args.completes else sample,
            "score": score,
            "compress": compress,
            "decompress": decompress,
            "count_params": count_params,
        }
        if processes.is_main or args.mode in ("train", "test"):  # others are for one process
            modes[args.mode](experiment)


def _start_files(experiment: Experiment) -> None:
    """Make the run directory, with a log and the plots of orders."""
    args, run_dir = experiment.args, experiment.run_dir
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        setup_logging(run_dir / f"{args.mode}_{time.strftime('%Y%m%d-%H%M%S')}.log")
    except OSError as error:
        raise UsageError(
            f"the run directory {run_dir} cannot be written ({error.strerror}): give another "
            "--run_dir"
        ) from error
    if args.mode == "train":
        remove_unfinished(run_dir)
    for name in ("save_dir", "two_stream"):
        if getattr(args, name):
            experiment.log.warning("--%s is accepted for old command lines and ignored", name)
    _plot(experiment)


def _check(experiment: Experiment) -> None:
    """Find what a mode would stumble over before anything is written."""
    args = experiment.args
    for shape in experiment.image_shapes:
        if args.mode in ("train", "sample"):
            hidden = hidden_region(args, shape)
            if args.completes and hidden.all():
                raise UsageError(
                    "there is nothing to complete the images with: hide a part of them with "
                    "--hole_mask or --sample_region"
                )
        elif args.mode == "test":
            scored_region(args, shape)
        elif args.mode == "score":
            scored_pixels(args, shape)
    if args.mode == "decompress":
        open_compressed(experiment)
    elif args.images:
        experiment.open_images()
    elif args.mode != "count_params":
        for train_part in (True, False) if args.mode == "train" else (False,):
            check_files(experiment.data, train_part)
    _check_output(args, experiment.run_dir)
    if args.mode not in ("train", "count_params") or experiment.resumes:
        experiment.checkpoint_path()
    elif args.mode == "train" and find_checkpoints(experiment.run_dir, args.exp_id):
        raise UsageError(
            f"{experiment.run_dir} already holds checkpoints: --load_last_params goes on from "
            "them, --run_dir or --exp_name start another run"
        )


def _check_output(args: argparse.Namespace, run_dir: Path) -> None:
    """What is there already must not be in the way, or be lost."""
    if args.mode not in ("compress", "decompress"):
        return
    output = Path(args.output)
    if args.mode == "decompress" and (output.exists() or output.resolve() == run_dir.resolve()):
        raise UsageError(f"--output {output} is there already: give a new folder")
    if args.mode == "compress" and output.exists() and not is_compressed_file(output):
        raise UsageError(
            f"--output {output} is there already, and no compressed file: give another name"
        )


def count_params(experiment: Experiment) -> None:
    """``--mode count_params``: print the size of the network."""
    model = experiment.model
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    experiment.log.info("  Total number of parameters in model: %d", count_parameters(model))
    experiment.log.info("  Total number of trainable parameters in model: %d", trainable)


def _plot(experiment: Experiment) -> None:
    """Draw the orders of each image size, and with ``--plot_masks`` their masks."""
    for shape in experiment.image_shapes:
        obs = "x".join(map(str, shape))
        plots.plot_orders(experiment.orders(shape), shape, experiment.orders_path(shape))
        if not experiment.args.plot_masks:
            continue
        for index, masks in enumerate(experiment.masks(shape)):
            for name, mask in masks._asdict().items():
                if name == "dilated":
                    name = f"dilated_d{experiment.args.max_dilation}"
                path = experiment.run_dir / f"mask_{name}_obs{obs}_order{index}.pdf"
                plots.plot_masks(mask.cpu(), shape, path, f"{name}, order {index}")
                experiment.log.info("masks in %s", path)


def _leave(code: int) -> NoReturn:
    """End without the exit handlers of libraries: one that waits for a server would hang."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main())
