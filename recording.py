"""Record the tensor operations of a function once, then run them again in the same memory.

Between small operations Python takes longer than the operations themselves: modules, shapes, views
and allocations, the same at every step. A CUDA graph leaves all of that out on a GPU; a
``Recording`` does on a CPU.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Recording"]

_Call = tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]


class Recording(TorchDispatchMode):
    """The operations that run inside ``with recording:``, to be run again by ``replay``.

    Every tensor keeps its memory: a replay reads what the inputs hold by then and leaves its
    results in the tensors of the first run. What Python decided from values or sizes stays as it
    was; so do tensors made of Python numbers, which must not be changed in place. Record in
    inference mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[_Call] = []
        self._paused = False

    def replay(self) -> None:
        """Run everything again."""
        for function, args, kwargs in self._calls:
            function(*args, **kwargs)

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function now and in every replay, Python included: for what is to differ."""
        self._calls.append((function, args, {}))
        self._paused = True
        try:
            function(*args)
        finally:
            self._paused = False

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self._paused:
            self._record(func, args, kwargs, result)
        return result

    def _record(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        name = func._schema.name.removeprefix("aten::")
        if func._schema.is_mutable:
            self._calls.append((_fastest(func, name), args, kwargs))
            return
        if "empty" in name:
            return  # memory is kept, and it held nothing
        outputs = _tensors((result,))
        if _memory(outputs).isdisjoint(_memory(_tensors((args, *kwargs.values())))):
            self._calls.append(_into(outputs, func, _fastest(func, name), args, kwargs))
        # Otherwise it is a view, of memory that is up to date.


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among values, and in the lists and tuples among them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def _memory(tensors: list[Tensor]) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tensors}


def _fastest(func: OpOverload, name: str) -> Callable[..., Any]:
    """An operator as PyTorch's own Python function, where there is one: it is called faster."""
    for functions in (Tensor,) if name.endswith("_") else (torch, torch._C._nn):
        if hasattr(functions, name):
            return getattr(functions, name)
    return func._op


# Whether an operator's Python function leaves its result in a tensor that is passed as ``out``.
_TAKES_OUT: dict[OpOverload, bool] = {}


def _into(
    outputs: list[Tensor],
    func: OpOverload,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> _Call:
    """A call that leaves the results of a function in existing tensors."""
    if len(outputs) == 1:
        (output,) = outputs
        into = {**kwargs, "out": output}
        if func not in _TAKES_OUT:
            try:
                function(*args, **into)
                _TAKES_OUT[func] = True
            except (TypeError, RuntimeError):
                _TAKES_OUT[func] = False
        if _TAKES_OUT[func]:
            return function, args, into
        return lambda: output.copy_(function(*args, **kwargs)), (), {}

    def copy_all() -> None:
        for output, value in zip(outputs, _tensors((function(*args, **kwargs),)), strict=True):
            output.copy_(value)

    return copy_all, (), {}
