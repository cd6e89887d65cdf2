"""Shared by all tests: modules import from the repository root, wherever pytest starts."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The networks of the tests are too small to share among threads, in the processes that tests start
# as well: several of those at once would wait for each other's threads most of the time. Threads
# that wait must not keep others from working.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

# Without a GPU, kernels for it run in Triton's interpreter: to be asked for before they load.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)

# A shell starts what runs in the background with Ctrl-C ignored, and the program keeps it so.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slow tests, so that no process is left with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _log_of_one_test() -> Iterator[None]:
    """Where the program's messages go is forgotten after each test."""
    yield
    log = logging.getLogger("lmconv")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.propagate = True
    log.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, so that a failure repeats."""
    torch.manual_seed(0)
