"""Signals are looked at between steps."""

import signal
import time

import pytest

from lmconv.training import signals
from lmconv.training.signals import Stopped, StopRequest


def test_a_signal_is_a_wish_and_a_second_one_ends_at_once(monkeypatch):
    monkeypatch.setattr(signals, "_SECONDS_OF_ONE_SIGNAL", 0.05)
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert stop.signum is None
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # the same, passed on by a launcher
        assert stop.signum == signal.SIGTERM
        time.sleep(0.1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_where_there_is_nothing_to_save_a_signal_ends_at_once():
    with StopRequest() as stop:
        with stop.at_once("all is saved"):
            pass
        message = "stopped by SIGTERM: all is saved"
        with pytest.raises(Stopped, match=message), stop.at_once("all is saved"):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match=message), stop.at_once("all is saved"):
            pass
