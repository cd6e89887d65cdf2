"""Trackers: the metrics file is always there, and no tracker can end a run."""

import json
import math
import sys
import threading
from types import SimpleNamespace

import pytest
from PIL import Image

from lmconv.training import tracking
from lmconv.training.tracking import Tracker
from utils import UserError, setup_logging


def read(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_appended_line_by_line_and_go_to_tensorboard(tmp_path):
    for step in (1, 2):
        with Tracker(tmp_path, {}, use_wandb=False) as tracker:
            tracker.log(step, {"train/bpd": step / 2})
    assert [(line["step"], line["train/bpd"]) for line in read(tmp_path)] == [(1, 0.5), (2, 1.0)]
    assert list((tmp_path / "tensorboard").iterdir())


def test_tensorboard_does_not_load_tensorflow(tmp_path):
    loaded = "tensorflow" in sys.modules
    Tracker(tmp_path, {}, use_wandb=False).close()
    assert ("tensorflow" in sys.modules) == loaded


def test_wandb_starts_offline_without_an_account(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("L", (4, 4)).save(tmp_path / "picture.png")
    with Tracker(tmp_path, {"lr": 0.1}, use_wandb=True) as tracker:
        tracker.log(1, {"train/bpd": 3.0})
        tracker.image(1, "samples", tmp_path / "picture.png")
    assert list(tmp_path.glob("wandb/offline-run-*"))
    assert read(tmp_path)[0]["train/bpd"] == 3.0


def fail(*arguments, **options):
    raise RuntimeError("the service is down")


def test_a_wandb_that_does_not_start_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=fail, Settings=dict))
    with Tracker(tmp_path, {}, use_wandb=True) as tracker:
        tracker.log(1, {"a": 1.0})
    assert read(tmp_path)[0]["a"] == 1.0


def test_a_wandb_that_breaks_is_left_out_from_then_on(tmp_path, monkeypatch):
    run = SimpleNamespace(log=fail, finish=fail)
    module = SimpleNamespace(init=lambda **options: run, Settings=dict, Image=str)
    monkeypatch.setitem(sys.modules, "wandb", module)
    with Tracker(tmp_path, {}, use_wandb=True) as tracker:
        tracker.log(1, {"a": 1.0})
        tracker.log(2, {"a": 2.0})
    assert [line["a"] for line in read(tmp_path)] == [1.0, 2.0]


def test_a_slow_wandb_does_not_hold_up_the_run(tmp_path, monkeypatch):
    is_asked, goes_on = threading.Event(), threading.Event()

    def slow(*arguments, **options):
        is_asked.set()
        goes_on.wait(10)

    run = SimpleNamespace(log=slow, finish=slow)
    module = SimpleNamespace(init=lambda **options: run, Settings=dict, Image=str)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(tracking, "_WANDB_BACKLOG", 2)
    monkeypatch.setattr(tracking, "_WANDB_SECONDS", 0.1)
    with Tracker(tmp_path, {}, use_wandb=True) as tracker:
        for step in range(9):
            tracker.log(step, {"a": 1.0})
        assert is_asked.wait(10)
    assert len(read(tmp_path)) == 9
    goes_on.set()


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path):
    with Tracker(tmp_path, {}, use_wandb=False) as tracker:
        tracker.log(1, {"a": 1.0})
        size = tracker.size
        tracker.log(2, {"a": 2.0})
    with Tracker(tmp_path, {}, use_wandb=False, step=1, kept_size=size) as tracker:
        tracker.log(2, {"a": 3.0})
    assert [line["a"] for line in read(tmp_path)] == [1.0, 3.0]


def test_other_processes_log_nothing(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "picture.png")
    with Tracker(tmp_path, {}, use_wandb=True, is_on=False) as tracker:
        tracker.log(1, {"a": 1.0})
        tracker.image(1, "picture", tmp_path / "picture.png")
        assert tracker.size == 0
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_metrics_that_cannot_be_written_name_the_file(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl .* give another `run_dir`"):
        Tracker(tmp_path, {}, use_wandb=False)


@pytest.mark.parametrize("what", ["file", "surrogate", "broken library"])
def test_a_tensorboard_that_cannot_start_is_left_out(what, tmp_path, monkeypatch, capsys):
    setup_logging(None)
    folder = tmp_path / ("run\udcff" if what == "surrogate" else "run")
    folder.mkdir()
    if what == "file":
        (folder / "tensorboard").touch()
    if what == "broken library":
        module = SimpleNamespace(SummaryWriter=fail)
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    Image.new("L", (4, 4)).save(tmp_path / "picture.png")
    with Tracker(folder, {}, use_wandb=False) as tracker:
        tracker.log(1, {"a": 1.0})
        tracker.image(1, "samples", tmp_path / "picture.png")
    assert read(folder)[0]["a"] == 1.0
    out = capsys.readouterr().out
    assert out.startswith("going on without TensorBoard: ") and out.count("\n") == 1


def test_wandb_without_a_thread_is_left_out(tmp_path, monkeypatch, capsys):
    setup_logging(None)
    monkeypatch.setattr(threading.Thread, "start", fail)
    with Tracker(tmp_path, {}, use_wandb=True, use_tensorboard=False) as tracker:
        tracker.log(1, {"a": 1.0})
    assert capsys.readouterr().out == "going on without Weights & Biases: the service is down\n"


def test_numbers_that_are_not_finite_are_null(tmp_path):
    with Tracker(tmp_path, {}, use_wandb=False) as tracker:
        tracker.log(1, {"a": math.nan, "b": math.inf, "c": 1.0})
    line = read(tmp_path)[0]
    assert (line["a"], line["b"], line["c"]) == (None, None, 1)


def test_a_tensorboard_that_breaks_is_left_out_and_hides_no_other_error(tmp_path):
    with pytest.raises(UserError, match="the real one"), Tracker(tmp_path, {}, False) as tracker:
        tracker._tensorboard = SimpleNamespace(add_scalar=fail, close=fail)
        tracker.log(1, {"a": 1.0})
        tracker.log(2, {"a": 2.0})
        tracker._tensorboard = SimpleNamespace(close=fail)
        raise UserError("the real one")
    assert [line["a"] for line in read(tmp_path)] == [1.0, 2.0]
