"""The queue of what browsers ask for: short jobs first, each stoppable, one at a time.

One thread does the work, so that PyTorch's threads are never shared by two jobs. A long job lets
short ones go first at each of its steps: they run inside it, and nobody waits for it to end.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from utils import UserError

__all__ = ["Busy", "Event", "Job", "StoppedByUser", "Worker"]

log = logging.getLogger(__name__)

Event = dict[str, Any]

# Jobs of more work than this, in pixels drawn, are long: about a second of the shipped models.
_MOST_OF_SHORT = 4000
_SECONDS_BETWEEN_REPORTS = 0.1
_OUT_OF_MEMORY = "can't allocate memory", "out of memory"  # in PyTorch's errors


class Busy(UserError):
    """There are too many jobs already; the message says whose."""


class StoppedByUser(Exception):
    """Whoever asked for a job does not want its result any more."""


class Job:
    """Something to compute for a browser.

    Args:
        work: computes the result; it is given the job, to report to.
        cost: about how much work it is, in pixels drawn.
        client: who asks for it.
        on_event: called from another thread with each event: ``{"progress": 0 to 1}``, ``{"part":
            ...}``, and at last ``{"result": ...}`` or ``{"error": sentence}``; with none if the job
            is stopped.

    Attributes:
        is_long: whether it lets short jobs go first.
        is_nested: whether it runs inside a long one, whose network it must not use.
        turn: among the jobs of its client and of others, the worker's.
    """

    def __init__(
        self,
        work: Callable[["Job"], Any],
        cost: float,
        client: str,
        on_event: Callable[[Event], object],
    ) -> None:
        self.client, self.on_event = client, on_event
        self.is_long, self.is_nested, self.turn = cost > _MOST_OF_SHORT, False, 0
        self._work, self._stop = work, threading.Event()
        self._give_way: Callable[[], object] = lambda: None
        self._done, self._reported = 0, 0.0

    def stop(self) -> None:
        """Let the job end at its next step, or never begin."""
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    def advance(self, amount: int, total: int) -> None:
        """Count steps of the work as done, and let short jobs go first.

        Raises:
            StoppedByUser: the job was asked to stop.
        """
        if self.is_stopped:
            raise StoppedByUser
        self._done += amount
        self._give_way()
        if time.monotonic() - self._reported > _SECONDS_BETWEEN_REPORTS:
            self.on_event({"progress": min(1.0, self._done / max(1, total))})
            self._reported = time.monotonic()

    def show(self, part: Any) -> None:
        """Send a part of the result that is finished."""
        self.on_event({"part": part})

    def run(self, give_way: Callable[[], object], is_nested: bool) -> None:
        """Do the work and send what comes of it: a result, or a sentence that says what is wrong.

        Args:
            give_way: called at each step; it may run shorter jobs.
            is_nested: whether this happens inside a longer job.
        """
        self._give_way, self.is_nested = give_way, is_nested
        try:
            self.on_event({"result": self._work(self)})
        except StoppedByUser:
            pass
        except (UserError, ValueError) as error:
            self.on_event({"error": str(error).replace("`", "")})
        except Exception as error:
            is_full = any(words in str(error) for words in _OUT_OF_MEMORY)
            is_full |= isinstance(error, MemoryError)
            if not is_full:
                log.exception("a request has failed")
            why = "there is not enough memory for it" if is_full else "the program's log says why"
            self.on_event({"error": f"This could not be computed: {why}."})


class Worker:
    """A thread that does one job after another.

    Args:
        num_threads: threads of PyTorch for the work.
        most_waiting: number of jobs that may wait.
        most_of_client: number of jobs that one client may have, waiting or not.
    """

    def __init__(self, num_threads: int, most_waiting: int = 32, most_of_client: int = 12) -> None:
        self._most_waiting, self._most_of_client = most_waiting, most_of_client
        self._num_threads = num_threads
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._turns: dict[str, int] = {}  # the last of each client that has jobs waiting
        self._turn = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job into the queue.

        Raises:
            Busy: the queue is full, or the client has too many jobs.
        """
        with self._changed:
            self._waiting = [each for each in self._waiting if not each.is_stopped]
            if len(self._waiting) >= self._most_waiting:
                raise Busy("Too many requests are waiting: try again in a moment.")
            theirs = [each for each in self._waiting + self._running if each.client == job.client]
            if len([each for each in theirs if not each.is_stopped]) >= self._most_of_client:
                raise Busy(
                    f"You have {self._most_of_client} requests at work already: wait for one, or "
                    "stop it."
                )
            self._turns = {each: turn for each, turn in self._turns.items() if turn > self._turn}
            job.turn = self._turns[job.client] = self._turns.get(job.client, self._turn) + 1
            self._waiting.append(job)
            self._changed.notify()

    def number_before(self, job: Job) -> int | None:
        """How many jobs come before a waiting one; None if it does not wait any more."""
        with self._changed:
            if job not in self._waiting:
                return None
            return len(self._running) + self._in_turn().index(job)

    def _in_turn(self) -> list[Job]:
        """The waiting jobs as they come next: short ones first, and clients take turns."""
        return sorted(self._waiting, key=lambda job: (job.is_long, job.turn))

    def _take(self, only_short: bool) -> Job | None:
        """Take the job whose turn it is out of the queue, if there is one."""
        self._waiting = [each for each in self._waiting if not each.is_stopped]
        first = next(iter(self._in_turn()), None)
        if first is None or (only_short and first.is_long):
            return None
        self._waiting.remove(first)
        self._turn = max(self._turn, first.turn)
        self._running.append(first)
        return first

    def _run(self) -> None:
        torch.set_num_threads(self._num_threads)  # of this thread
        while True:
            with self._changed:
                while (job := self._take(only_short=False)) is None:
                    self._changed.wait()
            give_way = self._run_short_ones if job.is_long else lambda: None
            self._finish(job, give_way, is_nested=False)

    def _run_short_ones(self) -> None:
        """Do all short jobs that wait, inside a long one."""
        while self._waiting:
            with self._changed:
                job = self._take(only_short=True)
            if job is None:
                return
            self._finish(job, lambda: None, is_nested=True)

    def _finish(self, job: Job, give_way: Callable[[], object], is_nested: bool) -> None:
        job.run(give_way, is_nested)
        with self._changed:
            self._running.remove(job)
