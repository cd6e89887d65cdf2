"""What training keeps of a directory that has been trained in, and what it refuses to mix."""

import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import refused, run
from helpers.paths import ROOT

from lmconv.checkpoints import load_checkpoint, save_checkpoint
from lmconv.modes.options import parse
from lmconv.modes.run import make_run
from lmconv.training.lock import locked
from main import main

TINY = (
    "-q 1 -n 4 --max_train_images 16 --max_test_images 4 -b 8 --disable_wandb --order_variants 0 "
    "--sample_batch_size 2 -tt 1 -ts 99 --run_dir run"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs, of which both checkpoints are kept."""
    folder = tmp_path_factory.mktemp("finished")
    command = shlex.split(TINY.replace("--run_dir run", f"-x 2 -t 1 --run_dir {folder / 'run'}"))
    assert main(command) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def _in_a_directory_with_the_run(tmp_path, monkeypatch, finished):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "run")


def checkpoints():
    return {path.name for path in Path("run").glob("*.pth")}


ALL = {"0_ep0.pth", "0_ep1.pth", "best.pth"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", ["already has checkpoints", "--load_last_params"]),
        ("-ID 1", ["already has checkpoints", "another run"]),
        ("--load_params other.pth", ["already has checkpoints", "another run"]),
        ("--load_params 0_ep0.pth", ["0_ep0.pth would replace", "0_ep1.pth"]),
        ("--load_params run/0_ep0.pth", ["0_ep0.pth would replace", "0_ep1.pth"]),
    ],
)
def test_a_finished_run_is_not_mixed_with_another(flags, words, capsys):
    shutil.copy("run/best.pth", "other.pth")
    refused(f"--mode train {TINY} -x 9 {flags}", capsys, *words)


def test_a_best_checkpoint_alone_is_not_replaced_either(capsys):
    for name in ALL - {"best.pth"}:
        os.remove(f"run/{name}")
    refused(f"--mode train {TINY} -x 3", capsys, "already has checkpoints")


def test_a_better_result_of_the_directory_stays_the_best(capsys):
    """It is known from the file, where the checkpoint to go on from is from before it."""
    os.rename("run/0_ep0.pth", "run/first.pth")
    os.remove("run/0_ep1.pth")
    best = load_checkpoint(Path("run/best.pth"))
    save_checkpoint(Path("run/best.pth"), {**best, "best_bpd": 0.001})
    before = Path("run/best.pth").read_bytes()
    run("--mode train --load_params first.pth --run_dir run -x 2")
    assert Path("run/best.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("-d mnist -i elsewhere", ["--dataset mnist", "which has digits"]),
        ("-b 4", ["--batch_size 4", "which has 8 images"]),
        ("-s 2", ["--seed 2", "which has 1"]),
        ("-s 0", ["--seed 0", "which has 1"]),
        ("-i elsewhere", ["--data_dir elsewhere", "which has data"]),
        ("--max_train_images 8", ["--max_train_images 8", "which has 16"]),
        ("--max_test_images 3", ["--max_test_images 3", "which has 4"]),
        ("--resize_sizes 6 8", ["--resize_sizes 6 8", "which has none"]),
        ("-af 2", ["--accum_freq 2", "which has 1"]),
        ("--order hilbert", ["--order hilbert", "which has s_curve"]),
        ("--order_file order.npy", ["--order_file order.npy"]),
        ("--train_masks 0", ["--train_masks 0", "which has none"]),
        ("--train_holes 0.5", ["--train_holes 0.5", "which has 0.0"]),
        ("--flip", ["--flip on", "which has off"]),
    ],
)
def test_other_data_orders_batches_or_seeds_have_to_be_asked_for(flags, words, capsys):
    np.save("order.npy", np.arange(64))
    if "mnist" in flags:
        flags = f"-d mnist -i {ROOT / 'examples'}"
    command = f"--mode train --load_last_params --run_dir run -x 3 {flags}"
    refused(command, capsys, *words, "0_ep1.pth", "--change_settings")


def test_the_file_to_go_on_from_may_be_named(capsys):
    refused("--mode train --load_params 0_ep1.pth --run_dir run -x 3 -b 4", capsys, "--batch_size")
    run("--mode train --load_params 0_ep1.pth --run_dir run -x 3")
    assert "0_ep2.pth" in checkpoints()


def test_changed_data_keep_what_was_good_before(capsys):
    flags = "--max_test_images 6 -b 4 --change_settings -t 99"
    run(f"--mode train --load_last_params --run_dir run -x 4 {flags}")
    assert checkpoints() == {*ALL, "best_until_epoch1.pth", "0_ep3.pth"}
    assert load_checkpoint(Path("run/best.pth"))["global_batch_size"] == 4
    assert load_checkpoint(Path("run/best_until_epoch1.pth"))["global_batch_size"] == 8
    out = capsys.readouterr().out
    assert "--batch_size 4 (was 8 images)" in out and "--max_test_images 6 (was 4)" in out


def test_settings_of_the_steps_may_change_and_are_said(capsys):
    run("--mode train --load_last_params --run_dir run -x 4 -t 99 -l 0.1 --clip 5")
    out = capsys.readouterr().out
    assert "going on with other settings: --clip 5.0 (was -1.0), --lr 0.1 (was 0.003)" in out
    assert checkpoints() == {*ALL, "0_ep3.pth"}


def test_a_run_goes_on_with_its_optimizer_unless_another_starts_afresh(capsys):
    run(f"--mode train {TINY.replace('run_dir run', 'run_dir muon')} -x 1 --optimizer muon")
    assert load_checkpoint(Path("muon/0_ep0.pth"))["args"]["lr"] == 0.02
    go_on = "--mode train --load_last_params --run_dir muon -x 2"
    refused(f"{go_on} --optimizer adam", capsys, "which has muon", "--do_not_load_optimizer")
    refused(
        "--mode train --load_params muon/0_ep0.pth --run_dir new --optimizer adam", capsys, "muon"
    )
    run(f"{go_on} -t 1")
    state = load_checkpoint(Path("muon/0_ep1.pth"))["optimizer_state_dict"]["state"]
    assert any("momentum" in moments for moments in state.values())
    run("--mode train --load_last_params --run_dir muon -x 3 --optimizer adam --do_not_load_optim")
    assert "--lr 0.003 (was 0.02), --max_epochs 3 (was 2), --optimizer adam (was muon)" in (
        capsys.readouterr().out
    )


def test_a_longer_run_keeps_the_newest_checkpoint_only(capsys):
    run("--mode train --load_last_params --run_dir run -x 4 -t 99")
    out = capsys.readouterr().out
    assert "other settings: --max_epochs 4 (was 2), --save_interval 99 (was 1)" in out
    assert checkpoints() == {"0_ep0.pth", "0_ep3.pth", "best.pth"}


def test_a_run_that_goes_on_unchanged_says_nothing_of_settings(capsys):
    run("--mode train --load_last_params --run_dir run -i ./data")
    assert "settings" not in capsys.readouterr().out


def test_changes_are_asked_for_where_a_run_goes_on_alone(capsys):
    refused("--mode train --change_settings", capsys, "--load_last_params")
    refused("--mode test --change_settings --run_dir run", capsys, "--mode train")


@pytest.mark.parametrize(
    ("replaces", "gone"),
    [
        ("0_ep0.pth", {"0_ep0.pth"}),
        ("0_ep1.pth", set()),
        ("1_ep0.pth", set()),
    ],
)
def test_a_checkpoint_replaces_only_checkpoints_of_its_run(replaces, gone):
    for name in ("precious.pth", "0_ep0.pth", "run/1_ep0.pth"):
        shutil.copy("run/0_ep0.pth", name)
    newest = Path("run/0_ep1.pth")
    save_checkpoint(newest, {**load_checkpoint(newest), "replaces": replaces})
    before = {path for path in Path().rglob("*") if path.suffix in (".pth", ".json")}
    run("--mode train --load_last_params --run_dir run")
    after = {path for path in Path().rglob("*") if path.suffix in (".pth", ".json")}
    assert before - after == {Path("run") / name for name in gone}


@pytest.mark.parametrize(
    "replaces", ["best.pth", "args.json", "../0_ep0.pth", "", 7, ["0_ep0.pth"]]
)
def test_a_checkpoint_that_replaces_other_files_is_refused(replaces, capsys):
    newest = Path("run/0_ep1.pth")
    save_checkpoint(newest, {**load_checkpoint(newest), "replaces": replaces})
    refused("--mode train --load_last_params --run_dir run", capsys, "0_ep1.pth", "replaces is")


def test_a_directory_that_is_trained_in_is_locked_and_can_be_tested(capsys):
    with locked(Path("run")):
        refused(
            "--mode train --load_last_params --run_dir run -x 3",
            capsys,
            f"process {os.getpid()} on ",
            "trains in run",
            "--run_dir",
        )
        run("--mode test --run_dir run")
    run("--mode train --load_last_params --run_dir run")
    assert not Path("run/train.lock").exists()


def test_the_default_directory_is_found_with_and_without_what_it_is_named_after(monkeypatch):
    def directory(command):
        return str(make_run(parse(shlex.split(command))).run_dir)

    base = "runs/00000_digits_lr0.00300_bs32_gc-1_k3_md2_pono"
    tiny = "-q 1 -n 4"
    assert directory("--mode train") == base
    assert directory(f"--mode train {tiny} -s 2") == f"{base}_n4_seed2"
    assert directory("--mode train -q 2 -n 48 -s 2 --exp_name x") == f"{base}_q2_n48_seed2+x"
    assert directory("--mode train --n_bits 5 --max_train_images 9") == f"{base}_bits5_images9"
    for folder in (f"{base}_n4_seed2", f"{base}_n4", base):
        shutil.copytree("run", folder)
    for mode in ("test", "sample", "train --load_last_params --change_settings"):
        assert directory(f"--mode {mode} {tiny} -s 2") == f"{base}_n4_seed2"
        assert directory(f"--mode {mode} {tiny} -s 3") == f"{base}_n4"
        assert directory(f"--mode {mode} -s 3") == base
    shutil.rmtree(f"{base}_n4")
    assert directory(f"--mode sample {tiny}") == base  # as an older run is named


def test_a_default_directory_without_checkpoints_names_those_alike(capsys):
    base = "runs/00000_digits_lr0.00300_bs32_gc-1_k3_md2_pono"
    shutil.copytree("run", f"{base}_q2")
    refused("--mode test", capsys, f"{base} has no checkpoint", f"there is {base}_q2)")
