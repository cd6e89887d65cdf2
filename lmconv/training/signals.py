"""Signals that stop a run cleanly: they are handled between steps, so that it is saved first."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["StopRequest", "Stopped"]

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
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
    """SIGTERM or Ctrl-C as a request to stop, which is looked at between steps.

    A second signal ends the run at once, unless it comes right after the first one: a launcher
    passes on what a terminal has already sent. Use it as a context manager, in the main thread.

    Attributes:
        signum: number of the signal that has come, or None.
    """

    signum: int | None = None

    def __enter__(self) -> "StopRequest":
        self._at_once: str | None = None
        self._before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
        for number in _STOP_SIGNALS:
            signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self, message: str) -> Iterator[None]:
        """Let a signal raise ``Stopped`` with this message, because there is nothing to save."""
        self._at_once = message
        try:
            if self.signum is not None:
                raise Stopped(self.signum, message)
            yield
        finally:
            self._at_once = None

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._time = signum, now
        elif now - self._time > _SECONDS_OF_ONE_SIGNAL:
            raise KeyboardInterrupt
        if self._at_once is not None:
            raise Stopped(signum, self._at_once)
