"""Checkpoint files: round trips, published layouts, broken and hostile files."""

import copy
import errno
import math
import os
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
from lmconv.training.muon import Muon

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


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module._orig_mod."],
)
def test_prefixes_of_wrappers_are_taken_off(prefix, tmp_path):
    saved, loaded = network(), network()
    state = {f"{prefix}{key}": value for key, value in published_state_dict(saved).items()}
    torch.save({"model_state_dict": state, "ema_state_dict": state}, tmp_path / "a.pth")
    checkpoint = load_checkpoint(tmp_path / "a.pth")
    for name in ("model_state_dict", "ema_state_dict"):
        load_published_state_dict(loaded, checkpoint[name], "a.pth")
        assert torch.equal(loaded[1].weight, saved[1].weight)


@pytest.mark.parametrize("prefix", ["", "module._orig_mod."])
def test_a_bare_state_dictionary_is_a_checkpoint_of_nothing_but_weights(prefix, tmp_path):
    weights = published_state_dict(network())
    torch.save({prefix + key: value for key, value in weights.items()}, tmp_path / "a.pth")
    checkpoint = load_checkpoint(tmp_path / "a.pth")
    assert checkpoint.keys() == {"model_state_dict"}
    assert list(checkpoint["model_state_dict"]) == list(weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_converted(dtype, tmp_path):
    saved, loaded = network(), network()
    state = {key: value.to(dtype) for key, value in published_state_dict(saved).items()}
    save_checkpoint(tmp_path / "a.pth", {"model_state_dict": state})
    checkpoint = load_checkpoint(tmp_path / "a.pth")
    load_published_state_dict(loaded, checkpoint["model_state_dict"], "a.pth")
    assert torch.equal(loaded[1].weight, saved[1].weight.to(dtype).float())


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


def trained_adam(model, **settings):
    optimizer = torch.optim.Adam(model.parameters(), **settings)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer


def test_an_optimizer_of_other_parameters_is_refused():
    mine = torch.optim.Adam(network().parameters())
    other = torch.optim.Adam(nn.Linear(2, 2).parameters())
    with pytest.raises(CheckpointError, match="do_not_load_optimizer"):
        load_optimizer_state(mine, other.state_dict(), "a.pth")


def test_an_optimizer_keeps_the_settings_of_its_run():
    saved, mine = network(), network()
    optimizer = torch.optim.Adam(mine.parameters(), lr=0.5, weight_decay=0.25)
    load_optimizer_state(optimizer, trained_adam(saved).state_dict(), "a.pth")
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["weight_decay"] == 0.25
    assert len(optimizer.state) == len(list(mine.parameters()))


@pytest.mark.parametrize(
    "settings", [{"betas": (0.5, 0.9)}, {"eps": 1.0}, {"amsgrad": True}, {"maximize": True}]
)
def test_moments_of_another_kind_of_adam_are_refused(settings):
    state = trained_adam(network(), **settings).state_dict()
    with pytest.raises(CheckpointError, match=next(iter(settings))):
        load_optimizer_state(torch.optim.Adam(network().parameters()), state, "a.pth")


def test_the_state_of_another_optimizer_is_refused():
    adam, muon = trained_adam(network()), Muon(network().parameters())
    with pytest.raises(CheckpointError, match="it is that of `optimizer` adam, not muon"):
        load_optimizer_state(muon, adam.state_dict(), "a.pth")
    with pytest.raises(CheckpointError, match="it is that of `optimizer` muon, not adam"):
        load_optimizer_state(adam, muon.state_dict(), "a.pth")


def test_momenta_that_are_missing_or_impossible_are_refused():
    kernel = nn.Parameter(torch.randn(3, 1, 3, 3))
    kernel.grad = torch.randn_like(kernel)
    optimizer = Muon([kernel])
    optimizer.step()
    good = optimizer.state_dict()
    load_optimizer_state(Muon([kernel]), copy.deepcopy(good), "a.pth")
    for value in WRONG_MOMENTS:
        state = copy.deepcopy(good)
        state["state"][0]["momentum"] = value
        with pytest.raises(CheckpointError, match=r"a\.pth.*momentum.*do_not_load_optimizer"):
            load_optimizer_state(Muon([kernel]), state, "a.pth")
    good["param_groups"][0]["momentum"] = 0.5
    with pytest.raises(CheckpointError, match=r"momentum is 0\.5, not 0\.95"):
        load_optimizer_state(Muon([kernel]), good, "a.pth")


WRONG_MOMENTS = [
    *(None, "x", [], {}, math.nan, -1.0, torch.zeros(7), torch.full((3, 2), math.nan)),
    *(torch.zeros(3, 1, dtype=dtype) for dtype in (torch.int64, torch.bool, torch.complex64)),
    torch.zeros(3, 1, device="meta"),
    torch.zeros(3, 1).to_sparse(),
]


@pytest.mark.parametrize("name", ["step", "exp_avg", "exp_avg_sq"])
def test_moments_that_are_missing_or_impossible_are_refused(name):
    model = network()
    good = trained_adam(model).state_dict()

    def refused(change):
        state = copy.deepcopy(good)
        change(state["state"])
        with pytest.raises(CheckpointError, match=r"a\.pth.*do_not_load_optimizer") as error:
            load_optimizer_state(torch.optim.Adam(network().parameters()), state, "a.pth")
        assert "\n" not in str(error.value) and len(str(error.value)) < 300

    refused(lambda state: state[1].pop(name))
    for value in WRONG_MOMENTS:
        refused(lambda state, value=value: state[1].update({name: value}))
        refused(lambda state, value=value: state.update({1: value}))
    if name != "exp_avg":
        refused(lambda state: state[1][name].fill_(-1))


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"state": {}, "param_groups": None},
        {"state": [], "param_groups": [{"params": [0, 1, 2, 3, 4]}]},
        {"state": {}, "param_groups": [3]},
        {"state": {}, "param_groups": [{"params": "01234"}]},
        {"state": {}, "param_groups": [{"params": [[], 1, 2, 3, 4]}]},
        {"state": {9: {}}, "param_groups": [{"params": [0, 1, 2, 3, 4]}]},
    ],
)
def test_states_of_no_optimizer_are_refused(state):
    with pytest.raises(CheckpointError, match="do_not_load_optimizer"):
        load_optimizer_state(torch.optim.Adam(network().parameters()), state, "a.pth")


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


def test_nobody_is_advised_to_run_the_code_in_a_file(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"model_state_dict": {}, "args": Path("x")}, path)
    objects = path.read_bytes()
    torch.save({"model_state_dict": {"w": torch.zeros(999)}}, path)
    good = path.read_bytes()
    torch.save(
        {"model_state_dict": {"w": torch.zeros(999)}}, path, _use_new_zipfile_serialization=False
    )
    old = path.read_bytes()
    broken = [objects, old[:-99], old[:99], b"\x80\x02\x00", good[: len(good) // 2], good[99:]]
    broken.append(good.replace(b"model_state_dict", b"model_state_d\xff\xff\xff"))
    for contents in broken:
        path.write_bytes(contents)
        with pytest.raises(CheckpointError, match=r"a\.pth") as error:
            load_checkpoint(path)
        message = str(error.value)
        assert "weights_only" not in message and "\n" not in message and len(message) < 300


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
    save_checkpoint(path, {"model_state_dict": {}, "epoch": 1})

    def full_disk(value, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(CheckpointError, match="the disk is full"):
        save_checkpoint(path, {"model_state_dict": {}, "epoch": 2})
    assert load_checkpoint(path)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_called_one(tmp_path, monkeypatch):
    real_open = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode="r": (
            real_open(Path("/dev/full"), "wb", 0) if mode == "wb" else real_open(path, mode)
        ),
    )
    with pytest.raises(CheckpointError, match=r"cannot save .*a\.pth: the disk is full$"):
        save_checkpoint(tmp_path / "a.pth", {"model_state_dict": {"w": torch.zeros(10**5)}})
    assert not list(tmp_path.iterdir())


def test_a_limit_on_the_size_of_files_is_named(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot save .*a\.pth: File too large"):
            save_checkpoint(tmp_path / "a.pth", {"model_state_dict": {"w": torch.zeros(10**5)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_names_without_a_suffix_can_be_saved(tmp_path):
    save_checkpoint(tmp_path / "weights", {"model_state_dict": {}, "epoch": 1})
    assert load_checkpoint(tmp_path / "weights")["epoch"] == 1


def test_averages_of_published_files_are_ignored():
    raw, average = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    published = {"model_state_dict": raw, "ema_state_dict": average}
    assert model_weights(published) is raw
    assert model_weights({**published, "format_version": 1}) is average


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


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_folders_and_pipes_are_not_read(kind, tmp_path):
    path = tmp_path / "a.pth"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"a\.pth is not a checkpoint, but"):
        load_checkpoint(resolve_checkpoint("a.pth", tmp_path))


def test_numpy_scalars_become_python_numbers(tmp_path):
    contents = {"test_loss_3x32x32": np.float64(2.5), "n": np.int64(3), "model_state_dict": {}}
    torch.save(contents, tmp_path / "a.pth")
    checkpoint = load_checkpoint(tmp_path / "a.pth")
    assert type(checkpoint["test_loss_3x32x32"]) is float
    assert type(checkpoint["n"]) is int
