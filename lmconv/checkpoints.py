"""Checkpoint files: atomic saving, safe loading, published layouts, finding the newest one.

Files name the parameters as published checkpoints do: ``weight_g`` and ``weight_v`` for the norm
and the direction of a weight-normalised weight, whatever the modules call them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils import UserError, write_atomically

__all__ = [
    "FORMAT_VERSION",
    "CheckpointError",
    "best_or_newest_checkpoint",
    "checkpoint_path",
    "find_checkpoints",
    "load_checkpoint",
    "load_optimizer_state",
    "load_published_state_dict",
    "model_weights",
    "newest_checkpoint",
    "published_state_dict",
    "resolve_checkpoint",
    "save_checkpoint",
]

FORMAT_VERSION = 1
_PUBLISHED_NAMES = {
    ".parametrizations.weight.original0": ".weight_g",
    ".parametrizations.weight.original1": ".weight_v",
}


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or does not fit; the message is one line with the remedy."""


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint, marked with the format version; on failure, an older file survives.

    Raises:
        CheckpointError: the file cannot be written.
    """
    contents = {"format_version": FORMAT_VERSION, **checkpoint}
    try:
        write_atomically(path, lambda temporary: torch.save(contents, temporary))
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(f"cannot save {path}: {error}") from error


def load_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint, ours or a published one, without running code from it.

    NumPy scalars among the metadata become Python numbers.

    Raises:
        CheckpointError: the file is missing or damaged, contains forbidden objects, or is not a
            dictionary.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with torch.serialization.safe_globals(_numpy_scalar_globals()):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    except Exception as error:  # on a damaged file, torch's reader can raise almost anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be loaded safely as a checkpoint ({reason})"
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"{path} contains an object of type {type(checkpoint).__name__}, not a checkpoint"
        )
    contents = {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in checkpoint.items()
    }
    for name in ("epoch", "global_step"):
        value = contents.get(name, 0)
        if type(value) is not int or not -1 <= value < 2**62:
            raise CheckpointError(f"{path} is damaged: {name} has an invalid value, {value!r:.40}")
    return contents


def _numpy_scalar_globals() -> list[Any]:
    """The globals that a pickled NumPy scalar needs, under their NumPy 1 and NumPy 2 names."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(dtype)) for dtype in dtypes),
    ]


def published_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters under their published names, in the same order."""
    return {_published_name(key): value for key, value in module.state_dict().items()}


def _published_name(key: str) -> str:
    for inside, published in _PUBLISHED_NAMES.items():
        if f".{key}".endswith(inside):
            return f".{key}".removesuffix(inside).removeprefix(".") + published
    return key


def load_published_state_dict(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copy parameters under their published names into a module: all of them or none.

    A ``module.`` prefix, which data-parallel wrappers add, is removed.

    Raises:
        CheckpointError: parameters are missing, unexpected or of another shape; the message lists
            them.
    """
    state = _checked_weights(state, source)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    own = published_state_dict(module)
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is unexpected" for key in state if key not in own]
    problems += [
        f"{key} is {_shape(state[key])}, not {_shape(own[key])}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:4])
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"the weights in {source} are those of another network: {shown}{more}"
        )
    inside = {_published_name(key): key for key in module.state_dict()}
    module.load_state_dict({inside[key]: value for key, value in state.items()})


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a scalar"


def model_weights(checkpoint: Mapping[str, Any], averaged: bool = True) -> dict[str, Tensor]:
    """The weights to test and sample with: the running average where the file has a valid one.

    Args:
        checkpoint: what ``load_checkpoint`` returns.
        averaged: whether to prefer the average.

    The averages in files without our format version are wrong and are ignored.

    Raises:
        CheckpointError: the file has no weights.
    """
    average = checkpoint.get("ema_state_dict")
    if averaged and "format_version" in checkpoint and average is not None:
        return _checked_weights(average, "ema_state_dict")
    if "model_state_dict" not in checkpoint:
        raise CheckpointError("the file has no model_state_dict: it is not a model's checkpoint")
    return _checked_weights(checkpoint["model_state_dict"], "model_state_dict")


def _checked_weights(state: Any, name: str) -> dict[str, Tensor]:
    """Return ``state`` if it is a dictionary of real tensors that are completely in the file."""
    if not isinstance(state, dict):
        raise CheckpointError(f"{name} is of type {type(state).__name__}, not a dictionary")
    sizes: dict[int, int] = {}  # bytes of each storage, which several weights may share
    needed = 0
    for key, value in state.items():
        is_plain = isinstance(value, Tensor) and value.layout is torch.strided
        if not (isinstance(key, str) and is_plain and not (value.is_meta or value.is_complex())):
            raise CheckpointError(f"{name} is damaged: it contains something other than weights")
        storage = value.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        needed += value.numel() * value.element_size()
    if needed > sum(sizes.values()):
        raise CheckpointError(f"{name} is damaged: it claims more weights than the file contains")
    return state


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], source: str
) -> None:
    """Restore an optimizer's state, even from files that key it by memory address.

    Raises:
        CheckpointError: the state belongs to other parameters.
    """
    remedy = "use `do_not_load_optimizer` to start with a fresh one"
    mine = [len(group["params"]) for group in optimizer.param_groups]
    theirs = [len(group["params"]) for group in state.get("param_groups", [])]
    if mine != theirs:
        raise CheckpointError(
            f"the optimizer in {source} has {theirs} parameters, not {mine}: {remedy}"
        )
    saved = [key for group in state["param_groups"] for key in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, parameter in zip(saved, parameters, strict=True):
        moment = state["state"].get(key, {}).get("exp_avg")
        if moment is not None and moment.shape != parameter.shape:
            raise CheckpointError(
                f"the optimizer in {source} has parameters of other shapes: {remedy}"
            )
    # These options choose how to compute the same update: this run keeps its own.
    how = [
        {key: group[key] for key in ("fused", "foreach", "capturable") if key in group}
        for group in optimizer.param_groups
    ]
    groups = [{**group, **own} for group, own in zip(state["param_groups"], how, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})


def checkpoint_path(run_dir: Path, exp_id: int, epoch: int) -> Path:
    """The path of the checkpoint of an epoch."""
    return run_dir / f"{exp_id}_ep{epoch}.pth"


def find_checkpoints(run_dir: Path, exp_id: int) -> list[tuple[int, Path]]:
    """The (epoch, path) of every checkpoint of an experiment, sorted by epoch."""
    pattern = re.compile(rf"{exp_id}_ep(\d+)\.pth")
    found = [(pattern.fullmatch(path.name), path) for path in run_dir.glob("*.pth")]
    return sorted((int(match[1]), path) for match, path in found if match)


def newest_checkpoint(run_dir: Path, exp_id: int) -> Path:
    """The path of the checkpoint of the last epoch.

    Raises:
        CheckpointError: there is none.
    """
    found = find_checkpoints(run_dir, exp_id)
    if not found:
        raise CheckpointError(
            f"{run_dir} has no checkpoint {exp_id}_ep*.pth: train first, or give `run_dir` or "
            "`load_params` PATH"
        )
    return found[-1][1]


def best_or_newest_checkpoint(run_dir: Path, exp_id: int) -> Path:
    """The path of ``best.pth`` if there is one, otherwise that of the last epoch's checkpoint.

    Raises:
        CheckpointError: there is neither.
    """
    best = run_dir / "best.pth"
    return best if best.is_file() else newest_checkpoint(run_dir, exp_id)


def resolve_checkpoint(name: str, run_dir: Path) -> Path:
    """Find a checkpoint that is given by its path, or by its name inside the run directory.

    Raises:
        CheckpointError: it is in neither place.
    """
    for path in (Path(name), run_dir / name):
        if path.is_file():
            return path
    raise CheckpointError(f"`load_params`: there is neither {name} nor {run_dir / name}")
