"""Checkpoint files: round trips, published layouts, broken and hostile files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import REFERENCE
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lmconv import checkpoints
from lmconv.checkpoints import (
    CheckpointError,
    best_or_newest_checkpoint,
    find_checkpoints,
    load_checkpoint,
    load_optimizer_state,
    load_published_state_dict,
    model_weights,
    newest_checkpoint,
    published_state_dict,
    resolve_checkpoint,
    save_checkpoint,
)

MODELS = REFERENCE / "models"
OLD = MODELS / "trained_binary_mnist_old_format.pth"


def network():
    return nn.Sequential(weight_norm(nn.Linear(2, 3)), nn.Linear(3, 1))


def test_round_trip_under_published_names(tmp_path):
    saved, loaded = network(), network()
    save_checkpoint(tmp_path / "a.pth", {"model_state_dict": published_state_dict(saved)})
    checkpoint = load_checkpoint(tmp_path / "a.pth")
    names = ["0.bias", "0.weight_g", "0.weight_v", "1.weight", "1.bias"]
    assert list(checkpoint["model_state_dict"]) == names
    assert checkpoint["format_version"] == checkpoints.FORMAT_VERSION
    load_published_state_dict(loaded, checkpoint["model_state_dict"], "a.pth")
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_prefixes_of_parallel_wrappers_are_taken_off():
    saved, loaded = network(), network()
    state = {f"module.{key}": value for key, value in published_state_dict(saved).items()}
    load_published_state_dict(loaded, state, "a.pth")
    assert torch.equal(loaded[1].weight, saved[1].weight)


def test_the_old_format_loads_with_its_numpy_scalars_and_optimizer():
    checkpoint = load_checkpoint(OLD)
    assert isinstance(checkpoint["test_loss_1x28x28"], float)
    state = checkpoint["model_state_dict"]
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros_like(v)) for v in state.values()])
    load_optimizer_state(optimizer, checkpoint["optimizer_state_dict"], OLD.name)
    moments = list(optimizer.state.values())
    assert len(moments) == len(state)
    assert all(m["exp_avg"].abs().sum() > 0 for m in moments)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("1.bias"), "1.bias is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra is unexpected"),
        (lambda state: state.update({"1.weight": torch.zeros(1, 1)}), "1.weight is 1x1, not 1x3"),
    ],
)
def test_another_network_is_refused_and_nothing_is_loaded(change, message):
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = published_state_dict(network())
    change(state)
    with pytest.raises(CheckpointError, match=message):
        load_published_state_dict(model, state, "a.pth")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_an_optimizer_of_other_parameters_is_refused():
    mine = torch.optim.Adam(network().parameters())
    other = torch.optim.Adam(nn.Linear(2, 2).parameters())
    with pytest.raises(CheckpointError, match="do_not_load_optimizer"):
        load_optimizer_state(mine, other.state_dict(), "a.pth")


class Hostile:
    def __reduce__(self):
        return (print, ("code ran",))


def test_files_never_run_code(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"model_state_dict": Hostile()}, path)
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        load_checkpoint(path)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("contents", [b"", b"not a checkpoint", OLD.read_bytes()[:5000]])
def test_broken_files_are_named_in_one_line(tmp_path, contents):
    path = tmp_path / "broken.pth"
    path.write_bytes(contents)
    with pytest.raises(CheckpointError, match=r"broken\.pth") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="list"):
        load_checkpoint(tmp_path / "list.pth")


def test_a_failed_save_is_an_error_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"epoch": 1})

    def full_disk(value, file):
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_averages_of_published_files_are_ignored():
    raw, average = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    published = {"model_state_dict": raw, "ema_state_dict": average}
    assert model_weights(published) is raw
    assert model_weights({**published, "format_version": 1}) is average
    with pytest.raises(CheckpointError, match="model_state_dict"):
        model_weights({})


def test_checkpoints_are_found_by_experiment_and_epoch(tmp_path):
    for name in ["7_ep2.pth", "7_ep10.pth", "17_ep99.pth", "7_ep11.pth.tmp", "7_epx.pth"]:
        (tmp_path / name).touch()
    assert [epoch for epoch, _ in find_checkpoints(tmp_path, 7)] == [2, 10]
    assert newest_checkpoint(tmp_path, 7).name == "7_ep10.pth"
    assert best_or_newest_checkpoint(tmp_path, 7).name == "7_ep10.pth"
    (tmp_path / "best.pth").touch()
    assert best_or_newest_checkpoint(tmp_path, 7).name == "best.pth"
    with pytest.raises(CheckpointError, match="train first"):
        newest_checkpoint(tmp_path, 8)


def test_names_are_paths_or_files_of_the_run_directory(tmp_path):
    (tmp_path / "a.pth").touch()
    assert resolve_checkpoint("a.pth", tmp_path) == tmp_path / "a.pth"
    assert resolve_checkpoint(str(tmp_path / "a.pth"), Path("x")) == tmp_path / "a.pth"
    with pytest.raises(CheckpointError, match=r"b\.pth"):
        resolve_checkpoint("b.pth", tmp_path)


def test_numpy_scalars_become_python_numbers(tmp_path):
    torch.save({"test_loss_3x32x32": np.float64(2.5), "n": np.int64(3)}, tmp_path / "a.pth")
    checkpoint = load_checkpoint(tmp_path / "a.pth")
    assert type(checkpoint["test_loss_3x32x32"]) is float
    assert type(checkpoint["n"]) is int
