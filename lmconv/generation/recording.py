"""Record the tensor operations of a function once, then run them again in the same memory.

Python takes longer between small operations than the operations themselves do: for modules, shapes,
views and allocations, which are the same at every step. A CUDA graph avoids all of that on a GPU; a
``Recording`` avoids it on a CPU.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Recording"]

_Call = tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]


class Recording(TorchDispatchMode):
    """The operations that run inside ``with recording:``, which ``replay`` runs again.

    Every tensor keeps its memory: a replay reads what the inputs hold at that time, and leaves its
    results in the tensors of the first run. Decisions that Python made from values or sizes are not
    made again. Nor are tensors made again from Python numbers, so these must not be changed in
    place. Record in inference mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[_Call] = []
        # Memory allocated inside, kept alive so that no other memory takes its key.
        self._made: dict[int, UntypedStorage] = {}

    def replay(self) -> None:
        """Run everything again."""
        for function, args, kwargs in self._calls:
            function(*args, **kwargs)

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function now and again in every replay, instead of recording its operations.

        This is for what has to differ between replays.
        """
        self._calls.append((function, args, {}))
        self.__exit__(None, None, None)
        try:
            function(*args)
        finally:
            self.__enter__()

    def share_memory(self) -> None:
        """Let results reuse the memory of others that are no longer read: less of it to cache.

        From then on, tensors that were made inside must not be used outside.
        """
        used = [
            _memory((args, kwargs)).keys() & self._made.keys() for _, args, kwargs in self._calls
        ]
        last_call = {memory: number for number, memories in enumerate(used) for memory in memories}
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

        for number, (function, args, kwargs) in enumerate(self._calls):
            if used[number]:
                self._calls[number] = (function, _mapped(moved, args), _mapped(moved, kwargs))
            for memory in used[number]:
                if last_call[memory] == number:
                    free[new[memory].nbytes()].append(new[memory])
        self._made.clear()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep PyTorch from importing its compiler just to shield ``__torch_dispatch__`` from it.

        Nothing is compiled while a function is recorded, and the import takes over a second.
        """
        return False

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operator = _operator(func)
        if operator.changes_inputs:
            self._calls.append((operator.function, operator.prepared(args), kwargs))
            return result
        made = _memory(result)
        if made.keys() & _memory((args, kwargs)).keys():
            return result  # a view: a replay has already updated its memory
        self._made |= made
        if not operator.leaves_empty:  # otherwise there is nothing to compute
            self._calls.append(operator.call_into(_tensors(result), args, kwargs))
        return result


class _Operator:
    """What is needed to record and replay a PyTorch operator.

    Attributes:
        function: PyTorch's Python function for it, which is faster to call, if there is one.
        changes_inputs: whether it works in place or fills a tensor that is passed.
        leaves_empty: whether it allocates memory without filling it.
    """

    def __init__(self, func: OpOverload) -> None:
        schema = func._schema
        name = schema.name.removeprefix("aten::")
        self.changes_inputs = schema.is_mutable
        self.leaves_empty = "empty" in name
        homes = (Tensor,) if name.endswith("_") else (torch, torch._C._nn)
        self.function = next((getattr(h, name) for h in homes if hasattr(h, name)), func._op)
        self._takes_tensor = [
            isinstance(argument.type, torch.TensorType) for argument in schema.arguments
        ]
        self._takes_out: bool | None = None

    def prepared(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Arguments with numbers as tensors where it takes tensors: PyTorch need not make them."""
        return tuple(
            _as_tensor(value, args) if takes_tensor and isinstance(value, (int, float)) else value
            for value, takes_tensor in zip(args, self._takes_tensor, strict=False)
        )

    def call_into(
        self, outputs: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Call:
        """A call that writes the results into existing tensors."""
        args = self.prepared(args)
        if len(outputs) > 1:
            return _compute_and_copy_all, (outputs, self.function, args, kwargs), {}
        (output,) = outputs
        into = {**kwargs, "out": output}
        if self._takes_out is None:
            try:
                self.function(*args, **into)
                self._takes_out = True
            except (TypeError, RuntimeError):
                self._takes_out = False
        if self._takes_out:
            return self.function, args, into
        return _compute_and_copy, (output, self.function, *args), kwargs


_operator = lru_cache(maxsize=None)(_Operator)


def _as_tensor(number: float, args: tuple[Any, ...]) -> Tensor | float:
    """A number as a tensor of the dtype that it is computed in, if that represents it exactly."""
    dtype = torch.result_type(next(value for value in args if isinstance(value, Tensor)), number)
    tensor = torch.tensor(number, dtype=dtype)
    return tensor if tensor.item() == number else number


def _compute_and_copy(
    output: Tensor, function: Callable[..., Any], *args: Any, **kwargs: Any
) -> None:
    output.copy_(function(*args, **kwargs))


def _compute_and_copy_all(
    outputs: list[Tensor],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    for output, value in zip(outputs, _tensors(function(*args, **kwargs)), strict=True):
        output.copy_(value)


def _tensors(values: Any) -> list[Tensor]:
    """The tensors among values, which may be nested in lists, tuples and dictionaries."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        return []
    tensors = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, (list, tuple, dict)):
            tensors.extend(_tensors(value))
    return tensors


def _memory(values: Any) -> dict[int, UntypedStorage]:
    """The storages of the tensors among values, by what identifies them."""
    storages = [tensor.untyped_storage() for tensor in _tensors(values)]
    return {storage._cdata: storage for storage in storages}


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
