"""How threads are told to wait, before PyTorch is there."""

import os
import sys

import pytest

from lmconv.modes.waiting import let_threads_give_way

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def settings_at(load, monkeypatch, torch_is_there=False, **own):
    """The settings of OpenMP after the call, at a load of so many busy processors of four."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    if not torch_is_there:
        monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", dict(os.environ))
        let_threads_give_way()
        return {name: os.environ[name] for name in NAMES if name in os.environ}


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (0.0, {"GOMP_SPINCOUNT": "1000"}),
        (1.9, {"GOMP_SPINCOUNT": "1000"}),
        (2.0, {"OMP_WAIT_POLICY": "PASSIVE"}),
        (9.0, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_threads_sleep_at_once_where_other_programs_work(load, expected, monkeypatch):
    assert settings_at(load, monkeypatch) == expected


@pytest.mark.parametrize("own", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "5"}])
def test_what_the_user_has_set_stays(own, monkeypatch):
    assert settings_at(9.0, monkeypatch, **own) == own


def test_nothing_is_set_when_it_is_too_late(monkeypatch):
    assert settings_at(9.0, monkeypatch, torch_is_there=True) == {}
