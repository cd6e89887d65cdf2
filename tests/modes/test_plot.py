"""Learning curves: what is read of runs, and pictures of one run and of several."""

import json
import shlex
from pathlib import Path

import pytest
from PIL import Image

from lmconv.training.metrics import read_metrics
from main import main


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_run(name, steps):
    run_dir = Path(name)
    run_dir.mkdir(parents=True)
    with (run_dir / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            record = {"step": step, "train/bpd": 1 / step, "lr": 0.1, "gradient_norm": None}
            file.write(json.dumps(record) + "\n")
        nothing = {"step": steps, "test/bpd_1x9x9": None}
        file.write(json.dumps(nothing) + "\n")
        test = {"step": steps, "test/bpd_1x8x8": 0.5, "test/bpd_1x8x8_order0": 0.6}
        file.write(json.dumps(test) + "\n")
    return run_dir


def test_runs_are_drawn_alone_and_over_each_other():
    for name, steps in (("a/run", 3), ("b/run", 200), ("c", 1)):
        write_run(name, steps)
    assert main(shlex.split("--mode plot --run_dir a/run")) == 0
    alone = Image.open("a/run/learning_curves.png").tobytes()
    assert main(shlex.split("--mode plot --run_dir a/run --compare_runs b/run c")) == 0
    assert Image.open("a/run/learning_curves.png").tobytes() != alone
    assert {path.name for path in Path("a/run").iterdir()} == {
        "metrics.jsonl",
        "learning_curves.png",
    }


def test_a_line_that_a_kill_has_cut_off_is_left_out():
    path = write_run("run", 3) / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "tra')
    assert [record["step"] for record in read_metrics(Path("run"))] == [1, 2, 3, 3, 3]


@pytest.mark.parametrize(
    "damage",
    [
        '{"step": 4, "tra',
        "",
        "[1]",
        "null",
        '{"lr": 1}',
        '{"step": "4"}',
        '{"step": true}',
        '{"step": null}',
        '{"step": 4, "lr": "0.1"}',
        '{"step": 4, "train/bpd": [1]}',
        '{"step": 4, "train/bpd": true}',
        '{"step": 4, "train/bpd": 1e999}',
        '{"step": 4, "train/bpd": 1' + "0" * 400 + "}",
        '{"step": 4, "lr": 1' + "0" * 9999 + "}",
        "[" * 99999,
    ],
)
def test_a_damaged_line_is_named(damage, capsys):
    path = write_run("run", 3) / "metrics.jsonl"
    path.write_text(f'{{"step": 3}}\n{damage}\n{{"step": 5}}\n')
    assert main(shlex.split("--mode plot --run_dir run")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "metrics.jsonl is damaged in line 2" in error


@pytest.mark.parametrize("value", ["NaN", "Infinity", "null", "0", "-1e99"])
def test_a_run_may_have_records_that_cannot_be_drawn(value, capsys):
    path = write_run("run", 1) / "metrics.jsonl"
    names = ("train/bpd", "gradient_norm", "lr", "test/bpd_1x8x8")
    values = ", ".join(f'"{name}": {value}' for name in names)
    path.write_text(f'{{"step": 3, {values}}}\n')
    assert main(shlex.split("--mode plot --run_dir run")) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["train/bpd", "gradient_norm", "lr", "test/bpd_1x8x8"])
def test_a_curve_of_one_point_can_be_seen(name):
    for value in (0.5, None):
        path = write_run(f"{value}/run", 0) / "metrics.jsonl"
        path.write_text(json.dumps({"step": 3, name: value}) + "\n")
        assert main(["--mode", "plot", "--run_dir", str(path.parent)]) == 0
        picture = Image.open(path.with_name("learning_curves.png")).convert("RGB")
        blue = (31, 119, 180)  # the colour of the first curve
        assert (blue in {colour for _, colour in picture.getcolors(2**20)}) == (value is not None)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", ["--run_dir"]),
        ("--run_dir nowhere", ["nowhere", "No such file"]),
        ("--run_dir empty", ["empty", "first metrics"]),
        ("--run_dir run --compare_runs nowhere", ["nowhere"]),
    ],
)
def test_runs_without_metrics_are_named(flags, words, capsys):
    write_run("run", 2)
    Path("empty").mkdir()
    Path("empty/metrics.jsonl").touch()
    assert main(shlex.split(f"--mode plot {flags}")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words)
    assert not list(Path().rglob("*.png"))
