"""The processes of a run: a single one, or those that ``torchrun`` starts, on one host or many."""

import itertools
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from utils import UserError

__all__ = ["PeerError", "ProcessError", "Processes", "Turns", "join_processes"]

T = TypeVar("T")
R = TypeVar("R")

# How long a process waits for the others, which may be testing or sampling.
_TIMEOUT = timedelta(hours=2)
_TIMEOUT_AT_START = timedelta(minutes=5)
# Words that tell gloo's errors from others, as they have no class of their own.
_LOST = ("Connection closed", "Connection reset", "Gloo")


class ProcessError(UserError):
    """The processes of a run cannot communicate with each other; the message is one line."""

    exit_code = 1


class PeerError(UserError):
    """Another process of the run has failed, so this one ends as well.

    Args:
        message: why; empty where another process says it.
        exit_code: exit code of the process that has failed.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Turns(Iterator[T]):
    """The items of a process that takes turns with others, for ``Processes.in_turn``.

    Args:
        items: of all items, those of this process.
        at_once: how many items in a row a process works on when it is its turn.
    """

    def __init__(self, items: Iterable[T], at_once: int = 1) -> None:
        self._items, self.at_once = iter(items), at_once

    def __next__(self) -> T:
        return next(self._items)


def _default_device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; by default it is the only one.

    Attributes:
        rank: rank of this process, from 0; only the process with rank 0 writes files.
        number: number of processes.
        device: device that this process computes on; by default the GPU, if there is one.
    """

    rank: int = 0
    number: int = 1
    device: torch.device = field(default_factory=_default_device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    def share(self, length: int) -> slice:
        """This process's share of ``length`` items; sizes of shares differ by one at most."""
        return slice(
            self.rank * length // self.number,
            (self.rank + 1) * length // self.number,
        )

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum each number over all processes, in float64."""
        if self.number == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: T) -> list[T]:
        """Collect the values of all processes, by rank.

        Raises:
            PeerError: another process has failed (``together``).
        """
        if self.number == 1:
            return [value]
        values, failures = self._exchange(value, None)
        failed = [failure for failure in failures if failure is not None]
        if failed:
            raise self._peer_error(failed)
        return values

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
        self.gather(None)

    def in_turn(self, items: Iterable[T], work: Callable[[T], R]) -> Iterator[R]:
        """Work on items that the processes share, and yield the results of all.

        The processes take turns with the items. In each round each one works on its next item, or
        on as many as ``Turns`` say, and all get the results of the round, by rank, so that no more
        than these are in memory.

        Args:
            items: the items of this process. Results are in the order of all items if these are the
                one numbered by its rank, and from there on every ``number``-th one; the same for
                the turns of ``Turns``.
            work: what to do with an item.
        """
        own, at_once = iter(items), items.at_once if isinstance(items, Turns) else 1
        while True:
            results = self.gather([work(item) for item in itertools.islice(own, at_once)])
            yield from itertools.chain.from_iterable(results)
            if not any(results):
                return

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let all processes end if one of them fails, of which only one says why.

        They must communicate by ``gather``, or what uses it, alone: a process that fails answers
        the next one with its failure.
        """
        try:
            yield
        except PeerError:
            raise
        except Exception as error:
            if self.number > 1 and not _is_loss(error):
                self._tell(error)
            raise
        self.gather(None)

    def _tell(self, error: Exception) -> None:
        """Tell the other processes of an error, and raise PeerError if another one reports it."""
        is_line = isinstance(error, (UserError, OSError))
        failure = (str(error) if is_line else "", getattr(error, "exit_code", 2 if is_line else 1))
        _, failures = self._exchange(None, failure)
        if is_line and not self.is_main:
            raise self._peer_error([each for each in failures if each is not None]) from error

    def _exchange(self, value: T, failure: Any) -> tuple[list[T], list[Any]]:
        """Collect the values and the failures of all processes, by rank."""
        messages: list[Any] = [None] * self.number
        dist.all_gather_object(messages, (value, failure))
        values, failures = zip(*messages, strict=True)
        return list(values), list(failures)

    def _peer_error(self, failures: Sequence[tuple[str, int]]) -> PeerError:
        """The error of a process that ends because others have failed; the first one reports it."""
        message, exit_code = max(failures, key=lambda failure: bool(failure[0]))
        return PeerError(message if self.is_main else "", exit_code)

    def parallel(self, model: nn.Module) -> nn.Module:
        """Wrap a network so that its backward pass averages the gradients over all processes."""
        if self.number == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices)


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Connect to the other processes, if ``torchrun`` started this one.

    GPUs communicate through NCCL, CPUs through gloo. If a process ends too early, torchrun ends
    the others.

    Raises:
        UserError: there are more processes on this host than GPUs, or the environment does not
            describe the processes of a run.
        ProcessError: another process has ended, or cannot be reached.
    """
    if "LOCAL_RANK" not in os.environ:
        yield Processes()
        return
    rank, number, local_rank = _places()
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started process {local_rank} on a host with {torch.cuda.device_count()} "
                "GPUs: set --nproc-per-node to the number of GPUs"
            )
        device, backend = torch.device("cuda", local_rank), "nccl"
        torch.cuda.set_device(device)
    try:
        _connect(backend, rank, number)
        yield Processes(rank, number, device)
    except RuntimeError as error:
        if _is_loss(error):
            reason = str(error).strip().splitlines()[0]
            raise ProcessError(
                f"process {rank} has lost contact with the others, one of which may have ended: "
                f"{reason}"
            ) from error
        raise
    dist.destroy_process_group()


def _is_loss(error: Exception) -> bool:
    """Whether an error says that another process cannot be reached."""
    is_lost = isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
    return is_lost or isinstance(error, dist.DistError)


def _places() -> tuple[int, int, int]:
    """This process's rank, the number of processes, and its rank on this host, as torchrun says.

    Raises:
        UserError: the environment does not say them, or not where the processes meet.
    """
    places = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    meeting = {name: os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT")}
    wrong = {name: value for name, value in places.items() if not _is_number(value)}
    if not meeting["MASTER_ADDR"]:
        wrong["MASTER_ADDR"] = ""
    if not (_is_number(meeting["MASTER_PORT"]) and 0 < int(meeting["MASTER_PORT"]) < 2**16):
        wrong["MASTER_PORT"] = meeting["MASTER_PORT"]
    if not wrong:
        rank, number, local_rank = map(int, places.values())
        if rank < number and local_rank <= rank:
            return rank, number, local_rank
        wrong = places
    texts = (f"{name}={value!r}" if value else f"no {name}" for name, value in wrong.items())
    raise UserError(
        f"LOCAL_RANK is set, as by torchrun, but the environment has {', '.join(texts)}: start "
        "with torchrun, or unset LOCAL_RANK to use one process"
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _connect(backend: str, rank: int, number: int) -> None:
    """Meet the other processes.

    Raises:
        ProcessError: they cannot be reached.
    """
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        socket.getaddrinfo(address, None)  # PyTorch would try an unknown name again and again
        # In a thread, as the main thread would not look at signals as long as it waits.
        meeting = ThreadPoolExecutor(1).submit(
            lambda: next(dist.rendezvous("env://", rank, number, timeout=_TIMEOUT_AT_START))
        )
        store, rank, number = meeting.result()
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=number, timeout=_TIMEOUT
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ProcessError(
            f"process {rank} cannot reach the others at MASTER_ADDR {address}, MASTER_PORT {port}: "
            f"{reason}"
        ) from error
