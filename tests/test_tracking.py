"""Trackers: the metrics file is always there, and no tracker can end a run."""

import json
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from tracking import Tracker


def read(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_appended_line_by_line_and_go_to_tensorboard(tmp_path):
    for step in (1, 2):
        with Tracker(tmp_path, {}, "run", use_wandb=False) as tracker:
            tracker.log(step, {"train/bpd": step / 2})
    assert [(line["step"], line["train/bpd"]) for line in read(tmp_path)] == [(1, 0.5), (2, 1.0)]
    assert list((tmp_path / "tensorboard").iterdir())


def test_tensorboard_does_not_load_tensorflow(tmp_path):
    loaded = "tensorflow" in sys.modules
    Tracker(tmp_path, {}, "run", use_wandb=False).close()
    assert ("tensorflow" in sys.modules) == loaded


def test_wandb_starts_offline_without_an_account(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("L", (4, 4)).save(tmp_path / "picture.png")
    with Tracker(tmp_path, {"lr": 0.1}, "run", use_wandb=True) as tracker:
        tracker.log(1, {"train/bpd": 3.0})
        tracker.image(1, "samples", tmp_path / "picture.png")
    assert list(tmp_path.glob("wandb/offline-run-*"))
    assert read(tmp_path)[0]["train/bpd"] == 3.0


def fail(*arguments, **options):
    raise RuntimeError("the service is down")


def test_a_wandb_that_does_not_start_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=fail, Settings=dict))
    with Tracker(tmp_path, {}, "run", use_wandb=True) as tracker:
        tracker.log(1, {"a": 1.0})
    assert read(tmp_path)[0]["a"] == 1.0


def test_a_wandb_that_breaks_is_left_out_from_then_on(tmp_path, monkeypatch):
    run = SimpleNamespace(log=fail, finish=fail)
    module = SimpleNamespace(init=lambda **options: run, Settings=dict, Image=str)
    monkeypatch.setitem(sys.modules, "wandb", module)
    with Tracker(tmp_path, {}, "run", use_wandb=True) as tracker:
        tracker.log(1, {"a": 1.0})
        tracker.log(2, {"a": 2.0})
    assert [line["a"] for line in read(tmp_path)] == [1.0, 2.0]
