"""Averaging: the golden average, selection of files, refusals."""

import shlex
import shutil
from pathlib import Path

import pytest
import torch
from helpers.models import tiny_model
from helpers.paths import REFERENCE

import lmconv
from average_checkpoints import main
from lmconv.checkpoints import load_checkpoint, published_state_dict, save_checkpoint

GOLDEN = REFERENCE / "average"


@pytest.fixture(autouse=True)
def _in_a_directory_with_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN, tmp_path / "run")
    (tmp_path / "run" / "averaged.pth").unlink()


def run(command):
    return main(shlex.split(command))


@pytest.mark.parametrize(
    "inputs", ["run --num-epoch-checkpoints 2", "run/10000_ep1.pth run/10000_ep0.pth"]
)
def test_the_golden_average(inputs, capsys):
    assert run(f"--run_id 10000 --inputs {inputs} --output a.pth") == 0
    got, expected = load_checkpoint(Path("a.pth")), load_checkpoint(GOLDEN / "averaged.pth")
    assert got["epoch"] == expected["epoch"] == 1
    for key, value in expected["model_state_dict"].items():
        torch.testing.assert_close(got["model_state_dict"][key], value, rtol=1e-6, atol=1e-7)
    assert "10000_ep0.pth" in capsys.readouterr().out


def test_the_upper_bound_leaves_out_later_epochs():
    command = "--run_id 10000 --inputs run --num-epoch-checkpoints 1 --checkpoint-upper-bound 0"
    assert run(f"{command} --output a.pth") == 0
    assert load_checkpoint(Path("a.pth"))["epoch"] == 0


def test_updates_are_chosen_by_their_number():
    for update in (5, 20, 100):
        weights = {"w": torch.tensor([float(update)]), "n": torch.tensor([update])}
        save_checkpoint(Path(f"run/7_0_{update}.pth"), {"model_state_dict": weights})
    assert run("--run_id 7 --inputs run --num-update-checkpoints 2 --output a.pth") == 0
    weights = load_checkpoint(Path("a.pth"))["model_state_dict"]
    assert weights["w"].item() == 60
    assert weights["n"].item() == 100  # whole numbers are the newest's


def test_running_averages_are_averaged_where_all_have_one():
    for epoch in (0, 1):
        state = {"model_state_dict": {"w": torch.ones(1)}, "epoch": epoch}
        state["ema_state_dict"] = {"w": torch.tensor([float(epoch)])}
        save_checkpoint(Path(f"run/3_ep{epoch}.pth"), state)
    assert run("--run_id 3 --inputs run --num-epoch-checkpoints 2 --output a.pth") == 0
    assert load_checkpoint(Path("a.pth"))["ema_state_dict"]["w"].item() == 0.5


def test_weights_alone_are_those_that_would_be_tested():
    model = tiny_model()
    weights = published_state_dict(model.network)
    average = {name: torch.zeros_like(value) for name, value in weights.items()}
    state = {"model_state_dict": weights, "ema_state_dict": average, "epoch": 4}
    state |= {"optimizer_state_dict": {}, "args": {"data_dir": "private"}}
    state |= {"model": model.description.as_plain_data()}
    save_checkpoint(Path("run/3_ep4.pth"), state)
    assert run("--run_id 3 --inputs run/3_ep4.pth --output a.pth --weights-only") == 0
    got = load_checkpoint(Path("a.pth"))
    assert got.keys() == {"format_version", "epoch", "model", "model_state_dict"}
    assert got["epoch"] == 4
    assert not got["model_state_dict"]["u_init.weight"].any()
    assert lmconv.load("a.pth").description == model.description


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--inputs run --num-epoch-checkpoints 5 --output a.pth", ["2", "5"]),
        ("--inputs run --output a.pth", ["--num-epoch-checkpoints"]),
        ("--inputs run/lost.pth --output a.pth", ["lost.pth"]),
        ("--inputs run --num-epoch-checkpoints 2 --output nowhere/a.pth", ["nowhere"]),
        (
            "--inputs run --num-epoch-checkpoints 1 --num-update-checkpoints 1 --output a.pth",
            ["not allowed"],
        ),
        ("--inputs run --num-epoch-checkpoints 0 --output a.pth", ["0"]),
    ],
)
def test_mistakes_end_with_one_line_and_write_nothing(flags, words, capsys):
    assert run(f"--run_id 10000 {flags}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words)
    assert not Path("a.pth").exists()


def test_different_networks_are_refused(capsys):
    save_checkpoint(Path("run/10000_ep2.pth"), {"model_state_dict": {"w": torch.ones(1)}})
    assert run("--run_id 10000 --inputs run --num-epoch-checkpoints 2 --output a.pth") == 2
    assert "different networks" in capsys.readouterr().err


def test_the_run_id_is_no_pattern():
    save_checkpoint(Path("run/1x_ep5.pth"), {"model_state_dict": {"w": torch.ones(1)}})
    assert run("--run_id 1. --inputs run --num-epoch-checkpoints 1 --output a.pth") == 2
