"""A replay computes what the recorded function would compute."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lmconv.generation.recording import Recording


def record(function):
    recording = Recording()
    with torch.inference_mode(), recording:
        result = function()
    return recording, result


class Watch(TorchDispatchMode):
    """Notes the memory that the operations inside work on, a list for each operation."""

    def __init__(self):
        super().__init__()
        self.memory = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        values = (*args, *(kwargs or {}).values())
        self.memory.append([v.data_ptr() for v in values if isinstance(v, torch.Tensor)])
        return func(*args, **(kwargs or {}))


def watched_replay(recording):
    with torch.inference_mode(), Watch() as watch:
        recording.replay()
    return watch.memory


FUNCTIONS = {
    "arithmetic": lambda x: (x * 2 + x.sin()) / (1 + x.abs()),
    "views": lambda x: x.t()[1:].chunk(2, dim=1)[0] + x.view(-1)[:5].unsqueeze(1),
    "in_place": lambda x: x.clone().exp_().sub_(1).clamp_(min=0),
    "slices_of_new_memory": lambda x: _filled_in_halves(x),
    "several_outputs": lambda x: sum(torch.var_mean(x, dim=1)) + x.topk(2, dim=1)[0].sum(1),
    "copying_reshape": lambda x: x.t().reshape(-1) * 2,
    "overloads_of_one_name": lambda x: x.sum(1).sum() + x.max(dim=1)[0] + torch.max(x, -x).max(),
    "another_dtype": lambda x: x.to(torch.float32).mul(3).double(),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "linear": lambda x: F.linear(x, torch.ones(2, x.shape[1], dtype=x.dtype)),
    "matrix_product": lambda x: torch.addmm(x.sum(1), x, x.t()),
    "indexing": lambda x: x[torch.tensor([2, 0])].index_select(1, torch.tensor([1, 1])),
    "a_constant": lambda x: torch.ones_like(x).add_(x).add_(1),
    "elu": lambda x: F.elu(x) + F.gelu(x),
    "numbers": lambda x: (x.bfloat16() * 0.1 + 1).double() + (x > 0.3) * 2 + x.long() / 4,
    "inputs_as_results": lambda x: F.dropout2d(x[None, None], 0.5, training=False)[0, 0].to(x) + 1,
    "where": lambda x: torch.where(x > 0, x, -1.0).argmax(dim=1),
}


def _filled_in_halves(x):
    out = torch.empty(2 * len(x), x.shape[1], dtype=x.dtype)
    torch.maximum(x, -x, out=out[: len(x)])
    torch.neg(x, out=out[len(x) :])
    return out


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_replay_computes_the_function_of_new_inputs(name):
    function = FUNCTIONS[name]
    x = torch.randn(4, 6, dtype=torch.float64)
    recording, result = record(lambda: function(x))
    torch.testing.assert_close(result, function(x), check_stride=False)
    for _ in range(3):
        x.copy_(torch.randn(4, 6))
        with torch.inference_mode():
            recording.replay()
        torch.testing.assert_close(result, function(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_that_share_memory_are_the_same(name):
    function = FUNCTIONS[name]
    x = torch.randn(4, 6, dtype=torch.float64)
    kept = function(x).clone()

    def twice():
        first = function(x)
        kept.copy_(function(x * 2) + first.sum())

    recording, _ = record(twice)
    recording.share_memory()
    for _ in range(3):
        x.copy_(torch.randn(4, 6))
        with torch.inference_mode():
            recording.replay()
        torch.testing.assert_close(kept, (function(2 * x) + function(x).sum()).to(kept.dtype))


def test_a_chain_of_operations_takes_the_memory_of_two():
    x = torch.randn(64)

    def chain():
        value = x
        for _ in range(20):
            value = value.sin()
        x.copy_(value)

    recording, _ = record(chain)
    recording.share_memory()
    memory = watched_replay(recording)
    seen = set().union(*memory)
    assert len(memory) == 21 and x.data_ptr() in seen and len(seen) == 3


def test_a_replay_allocates_nothing_and_runs_no_python_of_the_function():
    x, calls = torch.randn(5, 5), []

    def function():
        calls.append(None)
        return (x @ x).relu()

    recording, result = record(function)
    memory = result.data_ptr()
    with torch.inference_mode():
        recording.replay()
    assert len(calls) == 1 and result.data_ptr() == memory


def test_calls_are_made_each_time_and_not_recorded_inside():
    x, total = torch.ones(3), torch.zeros(3)
    factors = iter([2.0, 3.0, 5.0])

    def differs(out):
        torch.mul(x, next(factors), out=out)

    recording = Recording()
    with torch.inference_mode(), recording:
        scaled = torch.empty(3)
        recording.call(differs, scaled)
        total.add_(scaled + 1)
    assert total.tolist() == [3, 3, 3]
    with torch.inference_mode():
        recording.replay()
        assert total.tolist() == [7, 7, 7]
        recording.replay()
    assert total.tolist() == [13, 13, 13]


def test_an_error_in_a_call_leaves_the_recording_usable():
    errors = [RuntimeError("no")]

    def fails_once():
        if errors:
            raise errors.pop()

    recording = Recording()
    with torch.inference_mode(), recording:
        with pytest.raises(RuntimeError, match="no"):
            recording.call(fails_once)
        doubled = torch.ones(2) * 2
    with torch.inference_mode():
        doubled.zero_()
        recording.replay()
    assert doubled.tolist() == [2, 2]


def test_results_that_are_inputs_are_no_memory_of_the_recording():
    x = torch.ones(3, 4, 1, 1)

    def function():
        F.dropout2d(x, 0.5, training=False).mul_(2)

    recording, _ = record(function)
    recording.share_memory()
    operations = watched_replay(recording)
    assert x.unique().tolist() == [4] and len(operations) == 1
