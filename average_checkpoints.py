"""Average the parameters of several checkpoints into one.

    python average_checkpoints.py --run_id 10000 --inputs runs/RUN_DIR --output averaged.pth \\
        --num-epoch-checkpoints 5
"""

import sys

try:
    import argparse
    import re
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any, NoReturn

    import torch
    from torch import Tensor

    from lmconv.checkpoints import load_checkpoint, model_weights, save_checkpoint
    from lmconv.image_model import describe
    from lmconv.modes import UsageError
    from lmconv.modes.program import exit_code_of
    from utils import leave_after
except KeyboardInterrupt:
    print("average_checkpoints.py: interrupted", file=sys.stderr)
    sys.exit(130)

__all__ = ["average_states", "main", "select_checkpoints"]


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
        help="average the last N checkpoints {run_id}_ep{epoch}.pth of the directory",
    )
    which.add_argument(
        "--num-update-checkpoints",
        type=int,
        help="average the last N checkpoints {run_id}_{epoch}_{update}.pth of the directory",
    )
    parser.add_argument(
        "--checkpoint-upper-bound", type=int, help="last epoch (or update) to take into account"
    )
    parser.add_argument(
        "--weights-only",
        action="store_true",
        help="write only the weights that testing and sampling use: a small file to share",
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
        raise UsageError(
            f"cannot average the last {number} checkpoints: {directory} has {len(numbered)} "
            f"named {run_id}_{kind}.pth{bound}"
        )
    return [path for _, path in sorted(numbered, reverse=True)[:number]]


def average_states(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each parameter, computed in float64; integers are taken from the first state.

    Raises:
        UsageError: the states do not have the same parameters.
    """
    first = states[0]
    for state in states[1:]:
        different = [
            key
            for key in first.keys() | state.keys()
            if key not in first or key not in state or first[key].shape != state[key].shape
        ]
        if different:
            raise UsageError(
                f"the checkpoints belong to different networks: {sorted(different)[0]} and "
                f"{len(different) - 1} other parameters differ"
            )

    def mean(key: str) -> Tensor:
        if not first[key].is_floating_point():
            return first[key]
        values = torch.stack([state[key].to(torch.float64) for state in states])
        return values.mean(dim=0).to(first[key].dtype)

    return {key: mean(key) for key in first}


def _paths(args: argparse.Namespace) -> list[Path]:
    inputs = [Path(name) for name in args.inputs]
    by_update = args.num_epoch_checkpoints is None
    number = args.num_update_checkpoints if by_update else args.num_epoch_checkpoints
    if number is None:
        if any(path.is_dir() for path in inputs):
            raise UsageError(
                "a directory needs --num-epoch-checkpoints or --num-update-checkpoints"
            )
        return inputs
    if len(inputs) != 1 or not inputs[0].is_dir():
        raise UsageError(f"--num-*-checkpoints needs one directory in --inputs, got {args.inputs}")
    return select_checkpoints(
        inputs[0], args.run_id, number, by_update, args.checkpoint_upper_bound
    )


def _average(paths: Sequence[Path]) -> dict[str, Any]:
    """The first checkpoint, but with averaged parameters."""
    checkpoints = [load_checkpoint(path) for path in paths]
    for checkpoint in checkpoints:
        model_weights(checkpoint)
    averaged = dict(checkpoints[0])
    names = ["model_state_dict"]
    if all("format_version" in c and c.get("ema_state_dict") for c in checkpoints):
        names.append("ema_state_dict")
    else:
        averaged.pop("ema_state_dict", None)
    for name in names:
        averaged[name] = average_states([checkpoint[name] for checkpoint in checkpoints])
    return averaged


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, and return the exit code, which is that of ``exit_code_of``."""
    return exit_code_of("average_checkpoints.py", lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    args = build_parser().parse_args(argv)
    paths = _paths(args)
    output = Path(args.output)
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: there is no directory {output.parent}")
    averaged = _average(paths)
    description = describe(averaged, str(paths[0]))
    if args.weights_only:
        weights = model_weights(averaged)
        averaged = {"epoch": averaged.get("epoch", -1), "model_state_dict": weights}
        if description is not None:
            averaged["model"] = description.as_plain_data()
    save_checkpoint(output, averaged)
    for path in paths:
        print(f"averaged {path}")
    print(f"wrote {output}")


if __name__ == "__main__":
    leave_after(main)
