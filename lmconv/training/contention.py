"""Notices when the threads of a training wait for processors that other programs use."""

__all__ = ["ThreadWatch"]

# A verdict needs this much time and this many steps, so that short disturbances do not count.
_SECONDS = 20.0
_STEPS = 3
# On a processor of its own, the main thread runs all the time: it computes, or it looks again and
# again whether the other threads are done. Below this share, it often had to give way.
_USUAL_SHARE = 0.75


class ThreadWatch:
    """Compares how long the steps took with how long the main thread ran in them.

    Threads divide each operation into equal parts and wait for the last one. If other programs
    take the processor of one thread, all wait, so two threads can take ten times as long as one.
    The main thread tells this better than the process does: how much the other threads run depends
    on how much there is to divide.

    Args:
        num_threads: number of threads; with one, nothing is noticed, as none waits for another.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._is_done = num_threads == 1
        self._begin_window()

    def _begin_window(self) -> None:
        self._seconds = self._running = 0.0
        self._steps = 0

    def note(self, seconds: float, running: float) -> str | None:
        """Take a step into account, and return a warning when one is due, which is once.

        Args:
            seconds: time that the step took.
            running: time for which the main thread ran in it.
        """
        self._seconds, self._running = self._seconds + seconds, self._running + running
        self._steps += 1
        if self._is_done or self._seconds < _SECONDS or self._steps < _STEPS:
            return None
        share = self._running / self._seconds
        if share >= _USUAL_SHARE:
            self._begin_window()
            return None
        self._is_done = True
        return (
            f"other programs use the processors: the main thread ran in {share:.0%} of the time of "
            f"{self._steps} steps, and {self._num_threads} threads wait for each other; --threads "
            "1 (or OMP_NUM_THREADS=1) can be many times faster"
        )
