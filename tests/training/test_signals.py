"""Signals are looked at between steps."""

import signal
import threading
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


def has(name):
    return pytest.param(name, marks=pytest.mark.skipif(not hasattr(signal, name), reason="none"))


STOPPING = [has(name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU")]
SAVING = [has(name) for name in ("SIGUSR1", "SIGUSR2")]


@pytest.mark.parametrize("name", STOPPING)
def test_schedulers_people_and_lost_terminals_ask_to_stop(name):
    with StopRequest() as stop:
        signal.raise_signal(getattr(signal, name))
        assert stop.signum == getattr(signal, name) and not stop.wants_save


@pytest.mark.parametrize("name", SAVING)
def test_warnings_of_schedulers_ask_to_save_and_stop_nothing(name):
    with StopRequest() as stop, stop.at_once("there is nothing to save"):
        signal.raise_signal(getattr(signal, name))
        assert stop.signum is None and stop.wants_save


@pytest.mark.parametrize("name", [*STOPPING, *SAVING])
def test_ignored_signals_stay_ignored(name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(number)
            assert stop.signum is None and not stop.wants_save
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_limits_of_time_that_are_signalled_every_second_do_not_end_a_run_at_once(monkeypatch):
    monkeypatch.setattr(signals, "_SECONDS_OF_ONE_SIGNAL", 0.0)
    with StopRequest() as stop:
        for name in ("SIGXCPU", "SIGXCPU", "SIGHUP"):
            if hasattr(signal, name):
                signal.raise_signal(getattr(signal, name))
        with pytest.raises(KeyboardInterrupt):
            for _ in range(2):
                time.sleep(0.01)
                signal.raise_signal(signal.SIGTERM)
        assert stop.signum is not None


def test_tidying_up_after_a_signal_is_not_stopped_by_the_next():
    tidied = False
    with StopRequest() as stop, pytest.raises(Stopped), stop.at_once("tidied up"):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # as a launcher passes it on
            tidied = True
    assert tidied


def test_other_threads_handle_no_signals():
    done = []

    def work():
        with StopRequest() as stop:
            done.append(stop.signum)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [None]
