"""Signals that stop a run cleanly: they are handled between steps, so that it is saved first."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["StopRequest", "Stopped"]


def _known(*names: str) -> tuple[signal.Signals, ...]:
    """Those of the signals that this system has; Windows lacks most."""
    return tuple(signal.Signals[name] for name in names if name in signal.Signals.__members__)


# What people send, what a lost terminal sends, and what a used-up limit of processor time sends.
_BY_PEOPLE = _known("SIGTERM", "SIGINT")
_STOP_SIGNALS = (*_BY_PEOPLE, *_known("SIGHUP", "SIGXCPU"))
# What schedulers send some time before they end a job.
_SAVE_SIGNALS = _known("SIGUSR1", "SIGUSR2")
_SECONDS_OF_ONE_SIGNAL = 2.0


class Stopped(KeyboardInterrupt):
    """A signal has stopped the run cleanly.

    Args:
        signum: number of the signal.
        message: what is saved, and how to go on.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}: {message}")
        self.signum = signum


class StopRequest:
    """Signals as requests to stop or to save, which are looked at between steps.

    SIGTERM, Ctrl-C, SIGHUP and SIGXCPU ask to stop, SIGUSR1 and SIGUSR2 to save and go on. A second
    SIGTERM or Ctrl-C ends the run at once, unless it comes right after the first signal: a launcher
    passes on what a terminal has already sent. Signals that are ignored, as under ``nohup``, stay
    ignored. Use it as a context manager. Only the main thread can receive signals; in others, no
    signal is handled.

    Attributes:
        signum: number of the signal that asked to stop, or None.
        wants_save: whether a signal has asked to save; whoever saves sets it back.
    """

    signum: int | None = None
    wants_save: bool = False

    def __enter__(self) -> "StopRequest":
        self._at_once: str | None = None
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (*_STOP_SIGNALS, *_SAVE_SIGNALS):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self, message: str) -> Iterator[None]:
        """Let a signal raise ``Stopped`` with this message, because there is nothing to save.

        It is raised once: what follows tidies up, and must not be stopped by the next signal.
        """
        self._at_once = message
        try:
            if self.signum is not None:
                raise Stopped(self.signum, message)
            yield
        finally:
            self._at_once = None

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if signum in _SAVE_SIGNALS:
            self.wants_save = True
        elif self.signum is None:
            self.signum, self._time = signum, now
            if self._at_once is not None:
                raise Stopped(signum, self._at_once)
        elif signum in _BY_PEOPLE and now - self._time > _SECONDS_OF_ONE_SIGNAL:
            raise KeyboardInterrupt
