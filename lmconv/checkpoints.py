"""Checkpoint files: atomic saving, safe loading, published layouts, finding the newest one.

Files name the parameters as published checkpoints do: ``weight_g`` and ``weight_v`` for the norm
and the direction of a weight-normalised weight, whatever the modules call them.
"""

import errno
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmconv.checkpoint_contents import (
    FORMAT_VERSION,
    checked_contents,
    is_plain_tensor,
    published_name,
    shown,
)
from lmconv.file_kinds import kind_of_file
from lmconv.training.muon import Muon, is_kernel
from utils import UserError, write_atomically

__all__ = [
    "FORMAT_VERSION",
    "CheckpointError",
    "best_or_newest_checkpoint",
    "check_finite",
    "checkpoint_path",
    "find_checkpoints",
    "has_checkpoints",
    "load_checkpoint",
    "load_optimizer_state",
    "load_published_state_dict",
    "model_weights",
    "names_of_weights",
    "newest_checkpoint",
    "published_state_dict",
    "resolve_checkpoint",
    "save_checkpoint",
]

_FULL = (errno.ENOSPC, errno.EDQUOT)
# In torch's errors, this names what must not be loaded.
_FORBIDDEN = re.compile(r"GLOBAL ([\w.]+)")
# Settings of an optimizer that decide what its moments mean.
_SETTINGS = {"betas", "eps", "amsgrad", "maximize", "momentum"}


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or does not fit; the message is one line with the remedy."""


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint, marked with the format version; on failure, an older file survives.

    Raises:
        CheckpointError: the file cannot be written.
    """
    contents = {"format_version": FORMAT_VERSION, **checkpoint}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            torch.save(contents, file)

    try:
        write_atomically(path, write)
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__  # on a full disk, torch raises an error of its own about it
        if cause is None:
            raise
        reason = "the disk is full" if cause.errno in _FULL else cause.strerror or str(cause)
        raise CheckpointError(f"cannot save {path}: {reason}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, ours or a published one, without running code from it.

    A file of nothing but weights, by their names, is read as a checkpoint that has only these.

    Returns:
        What the file contains, as ``checkpoint_contents.checked_contents`` returns it.

    Raises:
        CheckpointError: the file is missing, damaged or something else, or has an impossible value.
    """
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint {path}")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a checkpoint, but a folder, a pipe or a device")
    try:
        if (kind := kind_of_file(path)) is not None:
            raise CheckpointError(f"{path} is not a checkpoint: it {kind}")
        with torch.serialization.safe_globals(_numpy_scalar_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats, which are read all the same
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except UserError:
        raise
    except Exception as error:  # on a damaged file, torch's reader can raise almost anything
        raise CheckpointError(f"{path} {_what_is_wrong(error)}") from error
    try:
        checked = checked_contents(contents)
    except ValueError as error:
        raise CheckpointError(f"{path} is not a valid checkpoint: {error}") from error
    if checked.get("replaces") == path.name:  # the file was renamed: it replaces no other
        checked["replaces"] = None
    return checked


def _what_is_wrong(error: Exception) -> str:
    """Why torch cannot read a file; its own words advise to run the code in the file."""
    if match := _FORBIDDEN.search(str(error)):
        return (
            f"contains an object of type {match[1]:.80}, which is not loaded, since it could run "
            "any code: use a checkpoint of weights and plain data"
        )
    return "is damaged, or not a checkpoint: copy or download it again"


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
    return {published_name(key): value for key, value in module.state_dict().items()}


def load_published_state_dict(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy parameters under their published names into a module: all of them or none.

    Args:
        module: the module, whose parameters keep their type.
        state: the parameters, as ``load_checkpoint`` returns them.
        source: name of the file, for errors.

    Raises:
        CheckpointError: parameters are missing, unexpected or of another shape; the message lists
            them; or some are not finite.
    """
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
            f"the weights in {source} are those of another network: {shown}{more}; give the "
            "settings that they were trained with, or another checkpoint"
        )
    check_finite(state, source)
    inside = {published_name(key): key for key in module.state_dict()}
    module.load_state_dict({inside[key]: value for key, value in state.items()})


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError if some weights are infinite or not numbers."""
    for name, value in state.items():
        if not value.isfinite().all():
            raise CheckpointError(
                f"{source} has weights that are not finite, the first being {name}: use another "
                "checkpoint"
            )


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a scalar"


def model_weights(checkpoint: Mapping[str, Any], averaged: bool = True) -> dict[str, Tensor]:
    """The weights to test and sample with: the running average where the file has a valid one.

    Args:
        checkpoint: what ``load_checkpoint`` returns.
        averaged: whether to prefer the average.

    The averages in files without our format version are wrong and are ignored.
    """
    name = names_of_weights(checkpoint)[-1 if averaged else 0]
    weights: dict[str, Tensor] = checkpoint[name]
    return weights


def names_of_weights(checkpoint: Mapping[str, Any]) -> list[str]:
    """The fields with valid weights: first the weights themselves, then their running average."""
    has_average = "format_version" in checkpoint and checkpoint.get("ema_state_dict") is not None
    return ["model_state_dict", *(["ema_state_dict"] if has_average else [])]


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], source: str
) -> None:
    """Restore moments and steps of Adam or Muon, even if a file keys them by memory address.

    Its learning rate and other settings stay those of this run.

    Raises:
        CheckpointError: the state belongs to other parameters or another optimizer, or is damaged.
    """
    try:
        moments = _checked_state(optimizer, state)
    except ValueError as error:
        raise CheckpointError(
            f"the optimizer in {source} does not fit: {error}; use `do_not_load_optimizer` to "
            "start with a fresh one"
        ) from error
    optimizer.load_state_dict(
        {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _checked_state(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> dict[int, dict[str, Tensor]]:
    """The step and moments of each parameter, by its number; ValueError if they do not fit it."""
    groups, entries = state.get("param_groups"), state.get("state")
    if not (
        isinstance(entries, dict)
        and isinstance(groups, list)
        and all(isinstance(each, dict) and isinstance(each.get("params"), list) for each in groups)
    ):
        raise ValueError("it has no state, or no lists of parameters")
    for group in groups:
        if ("momentum" in group) != isinstance(optimizer, Muon):
            kinds = ("adam", "muon") if isinstance(optimizer, Muon) else ("muon", "adam")
            raise ValueError(f"it is that of `optimizer` {kinds[0]}, not {kinds[1]}")
        for name in sorted(_SETTINGS & optimizer.defaults.keys()):
            own = optimizer.defaults[name]
            if repr(value := group.get(name, own)) != repr(own):
                raise ValueError(f"its {name} is {shown(value)}, not {own}")
    keys = [key for group in groups for key in group["params"]]
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    if len(keys) != len(parameters):
        raise ValueError(f"it has {len(keys)} parameters, not {len(parameters)}")
    if not all(type(key) is int for key in keys) or entries.keys() - set(keys):
        raise ValueError("its parameters are not those of its state")
    return {
        index: _checked_moments_of(entries[key], parameter, index, optimizer)
        for index, (key, parameter) in enumerate(zip(keys, parameters, strict=True))
        if key in entries  # there is nothing for a parameter before its first step
    }


def _checked_moments_of(
    entry: Any, parameter: Tensor, index: int, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    is_kernel_of_muon = isinstance(optimizer, Muon) and is_kernel(parameter)
    names = ("momentum",) if is_kernel_of_muon else ("step", "exp_avg", "exp_avg_sq")
    for name in names:
        value: Any = entry.get(name) if isinstance(entry, dict) else None
        if name == "step" and type(value) in (int, float) and abs(value) < 2**53:
            value = torch.tensor(float(value))
        shape = () if name == "step" else parameter.shape
        if not is_plain_tensor(value) or value.shape != shape:
            raise ValueError(f"parameter {index} has no {name}, or one of another type or shape")
        if not value.isfinite().all() or (
            name in ("step", "exp_avg_sq") and bool((value < 0).any())
        ):
            raise ValueError(f"{name} of parameter {index} is negative or not finite")
        values[name] = value
    return values


def checkpoint_path(run_dir: Path, exp_id: int, epoch: int) -> Path:
    """The path of the checkpoint of an epoch."""
    return run_dir / f"{exp_id}_ep{epoch}.pth"


def find_checkpoints(run_dir: Path, exp_id: int) -> list[tuple[int, Path]]:
    """The (epoch, path) of every checkpoint of an experiment, sorted by epoch."""
    pattern = re.compile(rf"{exp_id}_ep(\d+)\.pth")
    found = [(pattern.fullmatch(path.name), path) for path in run_dir.glob("*.pth")]
    return sorted((int(match[1]), path) for match, path in found if match)


def has_checkpoints(run_dir: Path) -> bool:
    """Whether a training of any experiment has written checkpoints into a directory."""
    return (run_dir / "best.pth").is_file() or any(
        re.fullmatch(r"\d+_ep\d+\.pth", path.name) for path in run_dir.glob("*.pth")
    )


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
    paths = (Path(name), run_dir / name)
    for path in sorted(paths, key=Path.is_file, reverse=True):  # a folder only if there is no file
        if path.exists():
            return path
    if paths[0] == paths[1]:
        raise CheckpointError(f"`load_params`: there is no {name}")
    raise CheckpointError(f"`load_params`: there is neither {name} nor {run_dir / name}")
