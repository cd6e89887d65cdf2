"""Where a run's files are: its directory, and the checkpoint that a command line asks for."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmconv.checkpoints import (
    CheckpointError,
    best_or_newest_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    resolve_checkpoint,
)
from lmconv.description import ModelDescription
from lmconv.modes.flags import PICTURE_DATASETS, SIZE_FLAGS
from lmconv.modes.options import parse, settle, size_words
from lmconv.weight_checks import describe

__all__ = [
    "Checkpoint",
    "checkpoint_file",
    "is_file_given",
    "open_checkpoint",
    "run_directory",
    "searched_directory",
]

# How the default name of a run directory tells settings that are not the default. Dropout is left
# out: published commands change it, and their directories keep their names.
_IN_NAMES = {
    "model": "{}",
    "nr_resnet": "q{}",
    "nr_filters": "n{}",
    "nr_logistic_mix": "m{}",
    "coefficient_bound": "bound{}",
    "no_bias": "nobias",
    "learn_weight_for_masks": "maskweight",
    "n_bits": "bits{}",
    "celeba_size": "size{}",
    "image_size": "size{}",
    "crop": "crop{}",
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
    if is_file_given(given):
        return Path(given.load_params)
    run_dir = searched_directory(given)
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


def run_directory(args: argparse.Namespace) -> Path:
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
    unnamed = [] if args.dataset in PICTURE_DATASETS else ["image_size", "channels"]
    if args.crop:
        unnamed.append("image_size")
    parts = []
    for name, text in _IN_NAMES.items():
        value = getattr(args, name)
        if value == usual[name] or name in unnamed:
            continue
        parts.append(text.format("_".join(size_words(value)) if name in SIZE_FLAGS else value))
    described = "_".join([published, *parts])
    seeded = described if args.seed == usual["seed"] else f"{described}_seed{args.seed}"
    end = f"+{args.exp_name}" if args.exp_name else ""
    found = [Path(name + end) for name in (seeded, described, published)]
    is_new = args.mode == "train" and not args.load_last_params and args.load_params is None
    if not is_new and not is_file_given(args):
        for path in found:
            if any(path.glob("*.pth")):
                return path
    return found[0] if args.mode == "train" else found[1]


def searched_directory(given: argparse.Namespace) -> Path:
    """The run directory that has the checkpoint which a command line asks for."""
    # Only the name of a default directory depends on the other flags. They are settled later, with
    # those of the checkpoint: some only make sense together.
    return run_directory(given if given.run_dir is not None else settle(given))


def is_file_given(given: argparse.Namespace) -> bool:
    """Whether ``--load_params`` is the path of a file, so that no directory is searched for one."""
    return bool(given.load_params) and Path(given.load_params).is_file()
