"""What a checkpoint may contain: its values are checked once, when it is read, like any input.

The description of the model is checked where it is understood, in ``description.py``; moments of an
optimizer are checked where they meet their parameters, in ``checkpoints.load_optimizer_state``.
"""

import math
import re
from dataclasses import fields
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from lmconv.training.progress import Totals

__all__ = ["FORMAT_VERSION", "checked_contents", "is_plain_tensor", "published_name", "shown"]

FORMAT_VERSION = 1

# Prefixes that DataParallel, DistributedDataParallel and torch.compile put before names.
_WRAPPERS = re.compile(r"(?:module\.|_orig_mod\.)+")
# Names of the parts of a weight-normalised weight: inside modules, and in files.
_PUBLISHED_NAMES = {
    ".parametrizations.weight.original0": ".weight_g",
    ".parametrizations.weight.original1": ".weight_v",
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST = 2**53  # the largest whole number that a float also has
# Smallest and largest value of each count.
_COUNTS = {
    "format_version": (1, FORMAT_VERSION),
    "epoch": (-1, 10**9),
    "global_step": (0, _MOST),
    "skipped_steps": (0, _MOST),
    "ema_steps": (0, _MOST),
    "batches_done": (0, 10**7),
    "global_batch_size": (0, 10**7),
    "metrics_size": (0, _MOST),
}
_OPTIONAL = ("ema_state_dict", "args", "metrics_size", "replaces")  # they may be None
_LONGEST_TEXT = 4096


def checked_contents(contents: Any) -> dict[str, Any]:
    """Return what a file contains as a checkpoint.

    NumPy scalars become Python numbers, the prefixes of wrappers are taken off the weights' names,
    and a bare state dictionary becomes a checkpoint with nothing but weights.

    Raises:
        ValueError: it is no checkpoint, or a field has an impossible value; the message names it.
    """
    if not isinstance(contents, dict):
        raise ValueError(f"it contains {shown(contents)}, not a dictionary")
    for name in contents:
        if not (isinstance(name, str) and name.isprintable()):
            raise ValueError(f"it has an impossible field, {shown(name)}")
    if contents and all(isinstance(value, Tensor) for value in contents.values()):
        contents = {"model_state_dict": contents}
    if "model_state_dict" not in contents:
        raise ValueError("it has no model_state_dict")
    checked: dict[str, Any] = {}
    for name, value in contents.items():
        if value is None and name in _OPTIONAL:
            checked[name] = value
        else:
            plain = value.item() if isinstance(value, np.generic) else value
            checked[name] = _checked_field(name, plain)
    if checked.get("batches_done", 0) * checked.get("global_batch_size", 0) > 10**9:
        raise ValueError("batches_done and global_batch_size make an impossible number of images")
    return checked


def published_name(key: str) -> str:
    """The name that files give to a parameter, from its name inside a module."""
    for inside, published in _PUBLISHED_NAMES.items():
        if f".{key}".endswith(inside):
            return f".{key}".removesuffix(inside).removeprefix(".") + published
    return key


def is_plain_tensor(value: Any) -> TypeGuard[Tensor]:
    """Whether a value is an ordinary tensor of floating-point numbers that has data."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.layout is torch.strided
        and not (value.is_nested or value.is_meta)
        and value.dtype in _FLOATS
    )


def _checked_field(name: str, value: Any) -> Any:
    if name in ("model_state_dict", "ema_state_dict"):
        return _checked_weights(value, name)
    if name in _COUNTS:
        low, high = _COUNTS[name]
        _require(type(value) is int and low <= value <= high, name, value, f"{low} to {high}")
    elif name.startswith("test_loss_"):
        _require(_is_number(value), name, value, "a number")
    elif name == "best_bpd":
        _require(_is_number(value) and not math.isnan(value), name, value, "a number")
    elif name == "is_closed":
        _require(type(value) is bool, name, value, "True or False")
    elif name in ("totals", "window"):
        _check_totals(name, value)
    elif name == "random_states":
        _check_random_states(value)
    elif name == "replaces":
        is_name = isinstance(value, str) and re.fullmatch(r"\d{1,20}_ep\d{1,20}\.pth", value)
        _require(bool(is_name), name, value, "the name of a run's checkpoint")
    elif name == "args":
        _check_flags(value)
    elif name == "optimizer_state_dict":
        _require(isinstance(value, dict), name, value, "a dictionary")
    return value


def _checked_weights(state: Any, name: str) -> dict[str, Tensor]:
    """Return weights under the names of the network, if they are completely in the file."""
    _require(isinstance(state, dict), name, state, "a dictionary")
    weights: dict[str, Tensor] = {}
    sizes: dict[int, int] = {}  # bytes of each storage, which several weights may share
    needed = 0
    for key, value in state.items():
        if not (isinstance(key, str) and key.isprintable() and len(key) <= 200):
            raise ValueError(f"{name} has an impossible name, {shown(key)}")
        _require(is_plain_tensor(value), f"{name}: {key}", value, "a tensor of floating point")
        own_key = published_name(key[match.end() :] if (match := _WRAPPERS.match(key)) else key)
        if own_key in weights:
            raise ValueError(f"{name} has {own_key} twice")
        weights[own_key] = value
        storage = value.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        needed += value.numel() * value.element_size()
    if needed > sum(sizes.values()):
        raise ValueError(f"{name} claims more weights than the file contains")
    return weights


def _check_totals(name: str, value: Any) -> None:
    _require(isinstance(value, dict), name, value, "a dictionary")
    known = {field.name for field in fields(Totals)}
    for key, number in value.items():
        is_total = key in known and _is_number(number) and abs(number) < _MOST
        _require(is_total, f"{name}: {shown(key)}", number, "a total of batches")


def _check_random_states(states: Any) -> None:
    _require(isinstance(states, list), "random_states", states, "a list")
    for state in states:
        is_state = isinstance(state, dict) and "cpu" in state and state.keys() <= {"cpu", "cuda"}
        _require(is_state, "random_states", state, "the state of a process's generators")
        for device, value in state.items():
            is_bytes = type(value) is Tensor and value.dtype is torch.uint8 and value.dim() == 1
            is_bytes = is_bytes and value.layout is torch.strided and not value.is_meta
            name = f"random_states: {device}"
            _require(is_bytes, name, value, "the state of a generator")
            if device == "cuda" and not torch.cuda.is_available():
                continue  # nothing will read it
            try:
                torch.Generator(device).set_state(value)
            except RuntimeError:
                _require(False, name, value, "the state of a generator")


def _check_flags(args: Any) -> None:
    """Check that flags have values as a command line gives them; ``options`` checks each flag."""
    _require(isinstance(args, dict), "args", args, "a dictionary")
    for name, value in args.items():
        parts = value if isinstance(value, (list, tuple)) else [value]
        _require(
            isinstance(name, str)
            and all(_is_word(part) or (name == "image_size" and _is_size(part)) for part in parts),
            f"args: {shown(name)}",
            value,
            "the value of a flag",
        )


def _is_word(value: Any) -> bool:
    if isinstance(value, str):
        return value.isprintable() and len(value) <= _LONGEST_TEXT
    is_number = type(value) in (bool, float) or (type(value) is int and abs(value) < 2**63)
    return value is None or is_number


def _is_size(value: Any) -> bool:
    """Whether it is a height and a width, of which ``image_size`` can have several."""
    return isinstance(value, (list, tuple)) and [type(side) for side in value] == [int, int]


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float can be, infinity and nan included."""
    return type(value) is float or (type(value) is int and abs(value) <= _MOST)


def _require(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {shown(value)}, not {expected}")


def shown(value: Any) -> str:
    """A value for a message; only its type if it may be long."""
    if isinstance(value, Tensor):
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        return f"a {value.device.type} tensor ({kind}, {str(value.dtype).removeprefix('torch.')})"
    is_short = value is None or isinstance(value, (bool, float))
    is_short = is_short or (isinstance(value, int) and abs(value) < 10**30)
    is_short = is_short or (isinstance(value, (str, bytes)) and len(value) <= 40)
    return repr(value) if is_short else f"a value of type {type(value).__name__}"
