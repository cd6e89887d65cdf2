"""The processes of a run: one alone, or those that ``torchrun`` starts, on one host or many."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from utils import UsageError

__all__ = ["ProcessError", "Processes", "join_processes"]

# How long a process waits for the others, which may be testing or sampling.
_TIMEOUT = timedelta(hours=2)
# What gloo says, in errors of no class of their own.
_LOST = ("Connection closed", "Connection reset", "Gloo")


class ProcessError(Exception):
    """The processes of a run cannot speak to each other; the message is one line."""


def _default_device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; by itself by default.

    Attributes:
        rank: of this process, from 0; that of rank 0 alone writes.
        number: of processes.
        device: that this process computes on; the GPU, where there is one.
    """

    rank: int = 0
    number: int = 1
    device: torch.device = field(default_factory=_default_device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    def share(self, length: int) -> slice:
        """The part of ``length`` things that is this process's; parts differ by one at most."""
        return slice(
            self.rank * length // self.number,
            (self.rank + 1) * length // self.number,
        )

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum over all processes of each number, in float64."""
        if self.number == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        values = [value]
        if self.number > 1:
            values = [None] * self.number
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.sum([0.0])

    def parallel(self, model: nn.Module) -> nn.Module:
        """A network whose backward pass leaves the mean gradient of all processes in each."""
        if self.number == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices)


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Find the other processes, if ``torchrun`` started this one.

    NCCL connects GPUs, gloo CPUs. When a process ends before its time, torchrun ends the others.

    Raises:
        UsageError: there are more processes on this host than GPUs.
        ProcessError: another process has ended, or cannot be reached.
    """
    if "LOCAL_RANK" not in os.environ:
        yield Processes()
        return
    rank, number, local_rank = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    )
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"torchrun started process {local_rank} on a host of {torch.cuda.device_count()} "
                "GPUs: give --nproc-per-node as many as there are GPUs"
            )
        device, backend = torch.device("cuda", local_rank), "nccl"
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend, timeout=_TIMEOUT)
        yield Processes(rank, number, device)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(word in str(error) for word in _LOST):
            reason = str(error).strip().splitlines()[0]
            raise ProcessError(
                f"process {rank} has lost the others, one of which may have ended: {reason}"
            ) from error
        raise
    dist.destroy_process_group()
