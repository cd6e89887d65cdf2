"""What checkpoints contain: every field with every wrong value, in every mode that reads it.

A value is refused in one line that names the file and the field, or the mode runs.
"""

import copy
import math
import shlex
from pathlib import Path

import pytest
import torch
from helpers.commands import refused, run
from helpers.models import tiny_model
from helpers.paths import REFERENCE, ROOT

from lmconv.checkpoint_contents import checked_contents, is_plain_tensor
from lmconv.checkpoints import load_checkpoint
from main import main

HUGE = 10**30
FLAGS = (
    "-q 1 -n 4 --max_train_images 16 --max_test_images 4 -b 8 --disable_wandb "
    "--sample_batch_size 2 --test_interval 9 --sample_interval 9 --test_masks 0 --run_dir run"
)
TRAIN = f"--mode train {FLAGS} --load_last_params -x 1"
WRONG = [
    *(None, "x", "", "../x", "a\nb", "--mode", "x" * 10**5, b"x", True, -1, 1, 10**18, HUGE, -HUGE),
    *(1.5, math.nan, math.inf, -math.inf, [], {}, (), [None], [[]], {"a": 1}, {1: 2}, {"a": [{}]}),
    *(
        torch.zeros(3),
        torch.zeros(0),
        torch.tensor(3.0),
        torch.tensor(3),
        torch.full((3,), math.inf),
    ),
    *(torch.zeros(3, dtype=dtype) for dtype in (torch.bool, torch.uint8, torch.complex64)),
    torch.zeros(3, device="meta"),
    torch.zeros(3, 3).to_sparse(),
    torch.zeros(1).expand(10**9),
]
# Fields of a training run, and values that some of them may not have though others may.
FIELDS = {
    "format_version": [0, 2],
    "epoch": [-2, 10**10],
    "global_step": [-2],
    "skipped_steps": [],
    "ema_steps": [],
    "batches_done": [10**8],
    "global_batch_size": [10**8],
    "is_closed": [0],
    "totals": [{"nats": HUGE}, {"seconds": math.inf}, {"images": "x"}, {"colour": 1.0}],
    "window": [{"nats": math.nan}, {"dimensions": None}],
    "best_bpd": [],
    "test_loss_1x8x8": [],
    "random_states": [
        [{}],
        [{"cpu": torch.zeros(16, dtype=torch.uint8)}],
        [{"cpu": torch.zeros(5056, dtype=torch.uint8)}],
        [{"cpu": torch.zeros(5056)}],
        [{"cpu": torch.get_rng_state(), "cuda": 3}],
    ],
    "metrics_size": [],
    "replaces": ["../0_ep0.pth", "/etc/passwd", "best.pth", "0_ep0.pth\n", "..", "a/0_ep1.pth"],
    "args": [
        {"nr_filters": torch.zeros(3)},
        {"nr_filters": HUGE},
        {"order": [["s_curve"]]},
        {3: 4},
        {"exp_name": "a\nb"},
        {"image_size": {}},
        {"image_size": [[8, 6], [6]]},
        {"image_size": [[8, 6], [6, "8"]]},
        {"crop": [[8, 6], [6, 8]]},
    ],
    "optimizer_state_dict": [],
    "model_state_dict": [],
    "ema_state_dict": [],
    "model": [],
}


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    flags = FLAGS.replace("--run_dir run", f"--run_dir {folder}")
    run(f"--mode train {flags} -x 1 --ema 0.9")
    # As if the run had been stopped after its first batch.
    position = {"epoch": -1, "batches_done": 1, "global_step": 1}
    return {**torch.load(folder / "0_ep0.pth", weights_only=True), **position}


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()


def test_every_field_is_among_those_that_are_tested(contents):
    assert contents.keys() <= FIELDS.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_with_a_wrong_value_is_refused_by_name_or_does_no_harm(name, contents, capsys):
    path, accepted = Path("run/0_ep0.pth"), []
    for value in [*WRONG, *FIELDS[name]]:
        try:
            checked_contents({**contents, name: value})
        except ValueError as error:
            message = str(error)
            assert name in message and "\n" not in message and len(message) < 300, message
        else:
            accepted.append(value)
    assert not any(value is each for value in accepted for each in FIELDS[name])
    torch.save({**contents, name: {"colour": [[3]]}}, path)
    if name not in ("model", "optimizer_state_dict"):  # their parts are checked later
        refused("--mode info --load_params run/0_ep0.pth", capsys, "0_ep0.pth", name)
    for value in accepted[-1:]:
        torch.save({**contents, name: value}, path)
        capsys.readouterr()
        code, error = main(shlex.split(TRAIN)), capsys.readouterr().err
        assert code == 0 or (code == 2 and error.count("\n") == 1), (value, error)


@pytest.mark.parametrize(
    "path",
    [
        ("optimizer_state_dict", "state"),
        ("optimizer_state_dict", "param_groups"),
        ("optimizer_state_dict", "state", 0),
        ("optimizer_state_dict", "state", 0, "exp_avg"),
        ("optimizer_state_dict", "param_groups", 0, "params"),
        ("optimizer_state_dict", "param_groups", 0, "betas"),
    ],
    ids=str,
)
def test_optimizers_with_a_wrong_part_are_refused_by_name(path, contents, capsys):
    for value in (None, torch.zeros(3)):
        lie = copy.deepcopy(contents)
        *names, last = path
        place = lie
        for name in names:
            place = place[name]
        place[last] = value
        torch.save(lie, "run/0_ep0.pth")
        capsys.readouterr()
        assert main(shlex.split(TRAIN)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "0_ep0.pth" in error, error
        assert "--do_not_load_optimizer" in error


@pytest.mark.parametrize("name", ["model_state_dict", "ema_state_dict"])
def test_weights_must_be_ordinary_tensors_of_floating_point(name, contents):
    for value in WRONG:
        if is_plain_tensor(value) and value.numel() < 10:
            continue  # of another shape, or not finite: refused where it meets the network
        with pytest.raises(ValueError, match=rf"{name}(: u_init.weight is| claims)"):
            checked_contents({**contents, name: {**contents[name], "u_init.weight": value}})
    for key in (3, ("a",), "a\nb", "x" * 300):
        with pytest.raises(ValueError, match=name):
            checked_contents({**contents, name: {key: torch.zeros(1)}})


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_weights_of_another_kind_of_number_are_refused(dtype, contents, capsys):
    weights = {key: value.to(dtype) for key, value in contents["model_state_dict"].items()}
    torch.save({**contents, "model_state_dict": weights}, "run/0_ep0.pth")
    kind = str(dtype).removeprefix("torch.")
    refused(f"--mode test {FLAGS}", capsys, "0_ep0.pth", "model_state_dict", kind, "floating")


def test_two_weights_of_one_name_are_refused():
    weights = {"w": torch.zeros(1), "module.w": torch.ones(1)}
    with pytest.raises(ValueError, match="w twice"):
        checked_contents({"model_state_dict": weights})


@pytest.mark.parametrize(
    "value", [{}, {"epoch": 3}, {"state_dict": {}}, {"w": 3}, {3: 4}, {"test_loss_\n": "x"}]
)
def test_dictionaries_without_a_networks_weights_are_refused(value):
    with pytest.raises(ValueError, match=r"model_state_dict|impossible field"):
        checked_contents(value)


def test_settings_in_a_checkpoint_add_no_flags(contents, capsys):
    for words in (["s_curve", "--run_dir", "elsewhere"], ["s_curve", "--help"], ["-x", "9"]):
        lie = {**contents, "args": {**contents["args"], "train_masks": words}}
        torch.save(lie, "run/0_ep0.pth")
        refused(TRAIN, capsys, "0_ep0.pth", "train_masks")


def test_a_renamed_checkpoint_does_not_remove_itself(contents):
    torch.save({**contents, "replaces": "0_ep7.pth", "epoch": 0}, "run/0_ep7.pth")
    run(TRAIN)
    assert Path("run/0_ep7.pth").exists()


def test_more_batches_than_an_epoch_has_do_not_hold_up_a_run(contents):
    lie = {**contents, "batches_done": 10**6, "global_batch_size": 8, "epoch": -1}
    torch.save(lie, "run/0_ep0.pth")
    run(TRAIN)


def test_a_bare_state_dictionary_is_used_with_explicit_flags(tmp_path, capsys):
    model = tiny_model(binarize=True)
    weights = {f"module._orig_mod.{k}": v for k, v in model.network.state_dict().items()}
    torch.save(weights, "bare.pth")
    assert (
        "not described" in (run("--mode info --load_params bare.pth"), capsys.readouterr())[1].out
    )
    config = model.description.network
    run(
        f"--mode test --load_params bare.pth --binarize -q {config.nr_resnet} "
        f"-n {config.nr_filters} -k {config.kernel_size} -nm {config.normalization} "
        f"-dp {config.dropout_prob} --max_test_images 4 --run_dir run"
    )


@pytest.mark.parametrize(
    "path", [*REFERENCE.rglob("*.pth"), *ROOT.glob("pretrained/*.pth")], ids=lambda path: path.stem
)
def test_published_and_older_checkpoints_load(path):
    assert load_checkpoint(path)["model_state_dict"]
