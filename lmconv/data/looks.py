"""How image files are looked at before they are used: by which processes, and how many at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lmconv.distributed import Processes
from utils import progress

__all__ = ["Looks"]

S = TypeVar("S")
T = TypeVar("T")

_CHECKED_AT_ONCE = 1000


@dataclass(frozen=True)
class Looks:
    """How files are looked at before they are used: by which processes, and how many at once.

    Attributes:
        processes: those that take turns with the files; by default only this one.
        at_once: number of files of a turn. If it is the number of files of a batch, a file is
            looked at by the process that works on it, as long as all of them can be used.
    """

    processes: Processes = field(default_factory=Processes)
    at_once: int = _CHECKED_AT_ONCE

    def at(
        self,
        files: Sequence[S],
        look: Callable[[Sequence[S]], list[T]],
        description: str | None = None,
    ) -> list[T]:
        """What ``look`` returns for each of all files, which is given some of them at a time.

        Args:
            files: the files, or what else stands for them.
            look: returns a value for each of the files that it is given.
            description: what a progress bar calls this; None for no bar.
        """
        processes, at_once = self.processes, self.at_once
        turns = range(processes.rank * at_once, len(files), processes.number * at_once)
        found = processes.in_turn((files[first : first + at_once] for first in turns), look)
        number = -(-len(files) // at_once)
        is_shown = description is not None and processes.is_main
        parts = progress(found, description or "", number, is_on=is_shown)
        return [value for part in parts for value in part]
