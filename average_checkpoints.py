"""Average the parameters of several checkpoints into one.

    python average_checkpoints.py --run_id 10000 --inputs runs/RUN_DIR --output averaged.pth \\
        --num-epoch-checkpoints 5
"""

import sys

try:
    import argparse
    import re
    from collections.abc import Mapping, Sequence
    from dataclasses import replace
    from pathlib import Path
    from typing import Any, NoReturn

    import torch
    from torch import Tensor

    from lmconv.checkpoints import (
        CheckpointError,
        check_finite,
        load_checkpoint,
        model_weights,
        names_of_weights,
        save_checkpoint,
    )
    from lmconv.modes import UsageError
    from lmconv.modes.program import exit_code_of
    from lmconv.weight_checks import describe
    from utils import leave_after
except KeyboardInterrupt:
    print("average_checkpoints.py: interrupted", file=sys.stderr)
    sys.exit(130)

__all__ = ["average", "main", "select_checkpoints"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists all flags)")


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of ``average_checkpoints.py``."""
    parser = _Parser(description="Average the parameters of several checkpoints.")
    parser.add_argument("--run_id", required=True, help="the --exp_id that file names begin with")
    parser.add_argument(
        "--inputs", required=True, nargs="+", help="checkpoints, or a directory of checkpoints"
    )
    parser.add_argument("--output", required=True, help="file to write")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--num-epoch-checkpoints",
        type=int,
        help="average the last N checkpoints {run_id}_ep{epoch}.pth of the directory; training "
        "keeps only the newest and every --save_interval-th",
    )
    which.add_argument(
        "--num-update-checkpoints",
        type=int,
        help="average the last N checkpoints {run_id}_{epoch}_{update}.pth of the directory, which "
        "other programs write",
    )
    parser.add_argument(
        "--checkpoint-upper-bound", type=int, help="last epoch (or update) to take into account"
    )
    parser.add_argument(
        "--weights-only",
        action="store_true",
        help="write only the weights that testing and sampling use: a small file to share",
    )
    parser.add_argument(
        "--half",
        action="store_true",
        help="with --weights-only: round the weights to 16 bits (float16), for half the size",
    )
    return parser


def select_checkpoints(
    directory: Path, run_id: str, number: int, by_update: bool, upper_bound: int | None
) -> list[Path]:
    """The last ``number`` checkpoints of a run up to the bound, newest first.

    Raises:
        UsageError: there are fewer than that, or the number is below 1.
    """
    suffix = r"_\d+_(\d+)" if by_update else r"_ep(\d+)"
    pattern = re.compile(re.escape(run_id) + suffix + r"\.pth")
    found = [(pattern.fullmatch(path.name), path) for path in directory.glob("*.pth")]
    numbered = [(int(match[1]), path) for match, path in found if match]
    if upper_bound is not None:
        numbered = [entry for entry in numbered if entry[0] <= upper_bound]
    if number < 1 or len(numbered) < number:
        kind = "{epoch}_{update}" if by_update else "ep{epoch}"
        bound = "" if upper_bound is None else f" up to {upper_bound}"
        fewer = f"a number from 1 to {len(numbered)}, or " if numbered else ""
        raise UsageError(
            f"cannot average the last {number} checkpoints: {directory} has {len(numbered)} "
            f"named {run_id}_{kind}.pth{bound}: give {fewer}another directory or --run_id"
        )
    return [path for _, path in sorted(numbered, reverse=True)[:number]]


def _paths(args: argparse.Namespace) -> list[Path]:
    """The checkpoints to average."""
    inputs = [Path(name) for name in args.inputs]
    by_update = args.num_epoch_checkpoints is None
    number = args.num_update_checkpoints if by_update else args.num_epoch_checkpoints
    if number is None:
        if any(path.is_dir() for path in inputs):
            raise UsageError(
                f"--inputs {' '.join(args.inputs)} has a directory: add --num-epoch-checkpoints "
                "or --num-update-checkpoints, or list files"
            )
        if args.checkpoint_upper_bound is not None:
            raise UsageError("--checkpoint-upper-bound needs --num-*-checkpoints and a directory")
        return inputs
    if len(inputs) != 1 or not inputs[0].is_dir():
        raise UsageError(f"--num-*-checkpoints needs one directory in --inputs, got {args.inputs}")
    return select_checkpoints(
        inputs[0], args.run_id, number, by_update, args.checkpoint_upper_bound
    )


def _check_files(paths: Sequence[Path], output: Path, args: argparse.Namespace) -> None:
    """Raise UserError if a checkpoint is given twice, or if the output would replace another file.

    Only a checkpoint may be replaced that is neither an input nor one of the run's in a directory.
    """
    seen: dict[Path, Path] = {}
    for path in paths:
        if (same := seen.setdefault(path.resolve(), path)) is not path:
            raise UsageError(f"--inputs: {path} is the same file as {same}: give each only once")
    if output.suffix != ".pth":
        raise UsageError(f"--output {output}: its name must end in .pth")
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: there is no directory {output.parent}")
    folders = [path for path in map(Path, args.inputs) if path.is_dir()]
    own = [path for folder in folders for path in folder.glob("*.pth")]
    own = [path for path in own if path.name.startswith(f"{args.run_id}_")]
    if any(path.exists() and output.exists() and output.samefile(path) for path in [*paths, *own]):
        raise UsageError(f"--output {output} is one of the --inputs: give another name")
    if output.exists() or output.is_symlink():
        try:
            load_checkpoint(output)
        except CheckpointError as error:
            raise UsageError(
                f"--output {output} exists and cannot be replaced: {error}; give another name"
            ) from error


def average(paths: Sequence[Path]) -> dict[str, Any]:
    """The first checkpoint, but with the mean of all weights, computed in float64.

    Only two checkpoints are in memory at a time. The results of the first one's tests are left out,
    since they are not those of the mean.

    Raises:
        UserError: a file is not a checkpoint, its weights are not finite, or it is of another model
            than the first one.
    """
    averaged = load_checkpoint(paths[0])
    model = _model(averaged, paths[0])
    sums = {name: _doubles(averaged[name], paths[0]) for name in names_of_weights(averaged)}
    for path in paths[1:]:
        checkpoint = load_checkpoint(path)
        if _model(checkpoint, path) != model:
            raise UsageError(
                f"{path} and {paths[0]} are checkpoints of different models: leave one of them out"
            )
        sums = {name: total for name, total in sums.items() if name in names_of_weights(checkpoint)}
        for name, total in sums.items():
            _add(total, checkpoint[name], path, paths[0])
    for name in ("model_state_dict", "ema_state_dict"):
        first = averaged.pop(name, None)
        if name in sums:
            averaged[name] = {
                key: (total / len(paths)).to(torch.promote_types(first[key].dtype, torch.float32))
                for key, total in sums[name].items()
            }
    return {
        name: value
        for name, value in averaged.items()
        if not name.startswith("test_loss_") and name not in ("best_bpd", "replaces")
    }


def _model(checkpoint: Mapping[str, Any], path: Path) -> tuple[Any, ...] | None:
    """What the weights of a checkpoint are made for, as far as the file says it."""
    description = describe(checkpoint, str(path))
    if description is None:
        return None
    network = replace(description.network, dropout_prob=0.0, rematerialize=False)
    return network, description.likelihood, description.preparation


def _doubles(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    check_finite(state, str(path))
    return {key: value.to(torch.float64, copy=True) for key, value in state.items()}


def _add(total: dict[str, Tensor], state: Mapping[str, Tensor], path: Path, first: Path) -> None:
    different = [
        key
        for key in sorted(total.keys() | state.keys())
        if key not in total or key not in state or total[key].shape != state[key].shape
    ]
    if different:
        more = f", and {len(different) - 1} more" if len(different) > 1 else ""
        raise UsageError(
            f"{path} and {first} are checkpoints of different networks: {different[0]} differs"
            f"{more}; leave one of them out"
        )
    for key, value in _doubles(state, path).items():
        total[key] += value


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, and return the exit code, which is that of ``exit_code_of``."""
    return exit_code_of("average_checkpoints.py", lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    args = build_parser().parse_args(argv)
    if args.half and not args.weights_only:
        raise UsageError("--half needs --weights-only: training goes on from unrounded weights")
    paths, output = _paths(args), Path(args.output)
    _check_files(paths, output, args)
    averaged = average(paths)
    description = describe(averaged, str(paths[0]))
    if args.weights_only:
        weights = model_weights(averaged)
        if args.half:
            weights = {key: value.half() for key, value in weights.items()}
            if any(not value.isfinite().all() for value in weights.values()):
                raise UsageError(
                    f"{paths[0]} has weights above 65504, too large for 16 bits: leave out --half"
                )
        averaged = {"epoch": averaged.get("epoch", -1), "model_state_dict": weights}
        if description is not None:
            averaged["model"] = description.as_plain_data()
    save_checkpoint(output, averaged)
    for path in paths:
        print(f"averaged {path}")
    epoch = averaged.get("epoch", -1)
    others = [f"epoch {epoch}"] if epoch >= 0 else []
    others += [] if args.weights_only else ["optimizer and settings"]
    if len(paths) > 1 and others:
        print(f"{', '.join(others)}: those of {paths[0]}; results of tests are left out")
    print(f"wrote {output}")


if __name__ == "__main__":
    leave_after(main)
