"""What the benchmarks share: interleaved medians, peak memory, tables, and results as JSON."""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

# The modules under test are in the parent directory of this one, in a checkout.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler logs its starts and stops

import torch
from torch.profiler import ProfilerActivity, profile

from utils import keep_freed_memory, write_json

__all__ = [
    "Part",
    "geometric_mean",
    "interleaved_medians",
    "measure_parts",
    "peak_memory",
    "print_table",
    "start",
    "time_shares",
    "write_rows",
]

# The operators that multiply, and those of the others that only move or add numbers.
ARITHMETIC = ("mm", "matmul", "convolution", "conv2d")
MEMORY = ("index", "copy", "embedding_bag", "add", "fill", "zero", "pad", "sum", "mul", "flip")


def start(
    description: str,
    default_repeats: int | None,
    parts: Sequence[str] = (),
    data_dir: Path | None = None,
) -> argparse.Namespace:
    """Read the options of a benchmark, and prepare the process as ``main.py`` does.

    Args:
        description: text of the help.
        default_repeats: what ``args.repeats`` is by default; None for a benchmark without repeats.
        parts: names of the benchmark's parts, if there are several; ``args.parts`` says which of
            them to run, by default all.
        data_dir: folder of MNIST to use by default, for a benchmark with ``args.data_dir``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only a few small cases, in a minute")
    parser.add_argument("--json", type=Path, help="write the rows of the table to this file")
    if default_repeats is not None:
        parser.add_argument(
            "--repeats", type=int, default=default_repeats, help="number of runs for each median"
        )
    if data_dir is not None:
        text = "folder with MNIST (default: the example digits)"
        parser.add_argument("-i", "--data-dir", type=Path, default=data_dir, help=text)
    if parts:
        names = ", ".join(parts)
        parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {names} (default: all)")
    args = parser.parse_args()
    if parts:
        args.parts = args.parts or list(parts)
        for part in args.parts:
            if part not in parts:
                parser.error(f"there is no part {part!r}: choose one of {', '.join(parts)}")
    if default_repeats is not None and args.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {args.repeats}")
    keep_freed_memory()
    with profile(activities=[ProfilerActivity.CPU]):
        pass  # the profiler's first use must be in the main thread
    device = torch.backends.cpu.get_cpu_capability()
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    print(f"PyTorch {torch.__version__}, {device}, {torch.get_num_threads()} threads\n")
    return args


def interleaved_medians(
    functions: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
    """Median seconds of each function, run in turn so that all meet the same conditions."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn > 0:  # the first run fills caches
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(function: Callable[[], object]) -> int:
    """The most bytes that PyTorch has allocated at once during a call.

    On a CPU it is what the profiler sees: tensors and work space, inside operators as well, but not
    the buffers that a matrix library allocates for itself.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    # A new thread starts without the work space that others have kept.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_peak_of_allocations, function).result()


def _peak_of_allocations(function: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    kineto = profiled.profiler.kineto_results
    events = [event for event in kineto.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def time_shares(function: Callable[[], object]) -> dict[str, float]:
    """Shares of a call's time: multiplying, moving or adding numbers, and everything else.

    Everything else is what Python, the dispatcher and the profiler take for each call.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        function()
    shares = {"arithmetic": 0.0, "memory": 0.0, "calls": 0.0}
    for event in profiled.key_averages():
        is_of = {"arithmetic": ARITHMETIC, "memory": MEMORY}
        name = event.key if event.key.startswith("aten::") else ""
        kind = next((kind for kind in is_of if any(part in name for part in is_of[kind])), "calls")
        shares[kind] += event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: share / total for kind, share in shares.items()}


def geometric_mean(values: Iterable[float]) -> float:
    """The mean to use for ratios."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def print_table(
    header: Sequence[str],
    rows: Iterable[dict[str, Any]],
    table_row: Callable[[dict[str, Any]], Sequence[object]],
) -> list[dict[str, Any]]:
    """Print a Markdown table, each row as soon as it is measured, and return the rows.

    The table can go into the documentation as it is.
    """
    measured = []
    print("| " + " | ".join(header) + " |")
    print("|" + "|".join("---" for _ in header) + "|")
    for row in rows:
        measured.append(row)
        print("| " + " | ".join(str(cell) for cell in table_row(row)) + " |", flush=True)
    return measured


class Part(NamedTuple):
    """One of the tables of a benchmark, and how to fill it."""

    measure: Callable[[argparse.Namespace], Iterable[dict[str, Any]]]
    header: Sequence[str]
    table_row: Callable[[dict[str, Any]], Sequence[object]]


def measure_parts(args: argparse.Namespace, parts: Mapping[str, Part]) -> list[dict[str, Any]]:
    """Measure the requested parts, print a table of each, write the rows and return them."""
    rows: list[dict[str, Any]] = []
    for part in (parts[name] for name in args.parts):
        rows += print_table(part.header, part.measure(args), part.table_row)
        print()
    write_rows(args.json, rows)
    return rows


def write_rows(path: Path | None, rows: Sequence[Mapping[str, object]]) -> None:
    """Write the results for scripts, if a file is given."""
    if path is not None:
        write_json(path, list(rows))
