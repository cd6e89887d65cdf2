"""Record the tensor operations of a function once, then run them again in the same memory.

Between small operations Python takes longer than the operations themselves: modules, shapes, views
and allocations, the same at every step. A CUDA graph leaves all of that out on a GPU; a
``Recording`` does on a CPU.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, UntypedStorage
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
        # Memory that came into being inside; kept, so that no other takes its place.
        self._made: dict[int, UntypedStorage] = {}
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

    def share_memory(self) -> None:
        """Let results take the place of others that are not read any more, so as to stay in caches.

        From now on, nothing that was made inside may be used outside.
        """
        last_call = {
            memory: number
            for number, (_, args, kwargs) in enumerate(self._calls)
            for memory in _memory((args, kwargs)).keys() & self._made.keys()
        }
        new: dict[int, UntypedStorage] = {}
        free: dict[int, list[UntypedStorage]] = defaultdict(list)

        def moved(tensor: Tensor) -> Tensor:
            old = tensor.untyped_storage()
            if old._cdata not in last_call:
                return tensor
            if old._cdata not in new:
                same_size = free[old.nbytes()]
                new[old._cdata] = same_size.pop() if same_size else old.clone()
            place = tensor.storage_offset(), tensor.shape, tensor.stride()
            return torch.empty(0, dtype=tensor.dtype).set_(new[old._cdata], *place)

        calls = []
        for number, (function, args, kwargs) in enumerate(self._calls):
            calls.append((function, _mapped(moved, args), _mapped(moved, kwargs)))
            for memory in _memory((args, kwargs)).keys() & self._made.keys():
                if last_call[memory] == number:
                    free[new[memory].nbytes()].append(new[memory])
        self._calls = calls
        self._made.clear()

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
        made = _memory(result)
        if made.keys() & _memory((args, kwargs)).keys():
            return  # a view, of memory that is up to date
        self._made |= made
        if "empty" not in name:  # otherwise there is nothing to compute again
            self._calls.append(_into(_tensors(result), func, _fastest(func, name), args, kwargs))


def _tensors(values: Any) -> list[Tensor]:
    """The tensors among values, in lists, tuples and dictionaries of them as well."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        return []
    return [tensor for value in values for tensor in _tensors(value)]


def _mapped(function: Callable[[Tensor], Tensor], values: Any) -> Any:
    """The same values with their tensors replaced."""
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, dict):
        return {key: _mapped(function, value) for key, value in values.items()}
    if not isinstance(values, (list, tuple)):
        return values
    mapped = [_mapped(function, value) for value in values]
    return mapped if isinstance(values, list) else tuple(mapped)


def _memory(values: Any) -> dict[int, UntypedStorage]:
    """The memory of the tensors among values, by what identifies it."""
    storages = [tensor.untyped_storage() for tensor in _tensors(values)]
    return {storage._cdata: storage for storage in storages}


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
    return _compute_and_copy, (outputs, function, args, kwargs), {}


def _compute_and_copy(
    outputs: list[Tensor],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    for output, value in zip(outputs, _tensors(function(*args, **kwargs)), strict=True):
        output.copy_(value)
