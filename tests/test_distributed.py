"""Many processes train and test as one does; a process that ends, ends the others."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from helpers.forked_runs import Forks
from helpers.paths import ROOT

from lmconv.checkpoints import load_checkpoint
from lmconv.distributed import Processes, join_processes
from main import main

HELPERS = ROOT / "tests" / "helpers"
TINY = (
    "-q 1 -n 4 --max_train_images 37 --max_test_images 13 --disable_wandb --sample_batch_size 2 "
    "--sample_interval 99 -p 1"
)


def torchrun(number, flags):
    script = str(HELPERS / "double_precision_main.py")
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    return [sys.executable, "-m", *launcher, script, *shlex.split(flags)]


def run(*runs):
    """Run command lines, each given as (number of processes, flags), and return what they say."""
    with Forks() as forks:
        code, out, errors = forks.run(*runs)
    assert code == 0, errors[-3000:]
    return out


def weights(path):
    return load_checkpoint(path)["model_state_dict"]


def bpd(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["train/bpd"] for line in lines if "train/bpd" in line]


def test_shares_are_a_partition_that_differs_by_one_at_most():
    for length in (0, 1, 5, 8, 13):
        for number in (1, 2, 3, 5):
            parts = [range(length)[Processes(rank, number).share(length)] for rank in range(number)]
            assert [i for part in parts for i in part] == list(range(length))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_is_by_itself(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with join_processes() as processes:
        assert processes.is_main and processes.number == 1
        assert processes.sum([1.0, 2.0]) == [1, 2]
        assert processes.gather("a") == ["a"]
        assert list(processes.in_turn(range(3), lambda item: item**2)) == [0, 1, 4]
        assert list(processes.in_turn([], str)) == []
        with pytest.raises(KeyError), processes.together():
            raise KeyError
        model = torch.nn.Linear(2, 2)
        assert processes.parallel(model) is model


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            dict.fromkeys(("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")),
            ["no RANK", "no WORLD_SIZE", "no MASTER_ADDR", "no MASTER_PORT"],
        ),
        ({"RANK": "one"}, ["RANK='one'"]),
        ({"RANK": "-1"}, ["RANK='-1'"]),
        ({"RANK": "2"}, ["RANK='2'", "WORLD_SIZE='2'"]),
        ({"RANK": "9" * 999}, ["RANK='999"]),
        ({"WORLD_SIZE": ""}, ["no WORLD_SIZE"]),
        ({"WORLD_SIZE": "0"}, ["WORLD_SIZE='0'"]),
        ({"LOCAL_RANK": "x"}, ["LOCAL_RANK='x'"]),
        ({"LOCAL_RANK": "1"}, ["LOCAL_RANK='1'", "RANK='0'"]),
        ({"MASTER_PORT": "http"}, ["MASTER_PORT='http'"]),
        ({"MASTER_PORT": "70000"}, ["MASTER_PORT='70000'"]),
        ({"MASTER_PORT": "0"}, ["MASTER_PORT='0'"]),
        ({"MASTER_ADDR": "no host"}, ["process 0", "MASTER_ADDR no host", "MASTER_PORT 29500"]),
    ],
)
def test_an_environment_that_describes_no_processes_is_one_line(
    changes, words, monkeypatch, capsys
):
    places = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in {**places, **meeting, **changes}.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, False)
    assert main(["--mode", "count_params", "-q", "1", "-n", "2"]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("main.py: error: ") and error.count("\n") == 1
    assert all(word in error for word in words), error


def test_a_port_that_another_program_has_is_named(monkeypatch, capsys):
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        places = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
        for name, value in {**places, "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        assert main(["--mode", "count_params", "-q", "1", "-n", "2"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"MASTER_PORT {port}" in error


@pytest.mark.slow
# 37 images: the last batch of 8 has 5, and that of 12 has 1, none for two of three processes.
@pytest.mark.parametrize(
    ("number", "flags"),
    [
        (2, "--clip 50 --ema 0.9 --class_conditional"),
        (3, "-af 2 --minimize_bpd --resize_sizes 8 6 --optimizer muon"),
    ],
)
def test_many_processes_train_as_one_with_their_images(tmp_path, number, flags):
    flags = f"{TINY} -x 2 {flags}"
    run(
        (1, f"{flags} -b {4 * number} --run_dir {tmp_path / 'one'}"),
        (number, f"{flags} -b 4 --run_dir {tmp_path / 'many'}"),
    )
    one, many = weights(tmp_path / "one" / "0_ep1.pth"), weights(tmp_path / "many" / "0_ep1.pth")
    for name, value in one.items():
        torch.testing.assert_close(
            many[name], value, rtol=1e-7, atol=1e-9
        )  # Adam divides rounding by rounding
    assert bpd(tmp_path / "many") == pytest.approx(bpd(tmp_path / "one"), rel=1e-9)
    states = load_checkpoint(tmp_path / "many" / "0_ep1.pth")["random_states"]
    assert len(states) == number
    assert len(list((tmp_path / "many").glob("train_*.log"))) == 1


@pytest.mark.slow
def test_each_test_image_counts_once_for_any_number_of_processes(tmp_path):
    trained = tmp_path / "trained"
    numbers = (1, 2, 3)
    tests = [
        (
            number,
            f"--mode test --load_params {trained / 'best.pth'} --run_dir {tmp_path / str(number)}",
        )
        for number in numbers
    ]
    flags = f"{TINY} -b 4 --binarize --class_conditional"
    run((1, f"{flags} -x 1 --run_dir {trained}"), *((n, f"{flags} {words}") for n, words in tests))
    results = [json.loads((tmp_path / str(number) / "test.json").read_text()) for number in numbers]
    for result in results:
        assert result["num_images"] == 13
        given, first_given = (each["with_label"]["orders"] for each in (result, results[0]))
        pairs = zip(result["orders"] + given, results[0]["orders"] + first_given, strict=True)
        for order, first in pairs:
            assert order["nats"] == pytest.approx(first["nats"], rel=1e-12)
            assert order["nats_stderr"] == pytest.approx(first["nats_stderr"], rel=1e-9)


def test_modes_that_one_process_runs_say_so(tmp_path):
    out = run((2, f"--mode count_params -q 1 -n 2 --run_dir {tmp_path}"))
    assert "--mode count_params runs in one of the 2 processes only" in out
    assert out.count("Total number of parameters") == 1


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_and_the_run_goes_on_in_all_processes(tmp_path):
    flags = f"{TINY} -x 2 -b 1 -dp 0.3 --run_dir"
    slow = os.environ | {"LMCONV_TEST_SECONDS_PER_STEP": "0.2"}
    launcher = subprocess.Popen(
        torchrun(3, f"{flags} {tmp_path / 'parts'}"), stderr=subprocess.PIPE, text=True, env=slow
    )
    metrics = tmp_path / "parts" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") > 4):
        assert launcher.poll() is None
        time.sleep(0.1)
    launcher.send_signal(signal.SIGTERM)
    _, error = launcher.communicate(timeout=60)
    assert "stopped by SIGTERM" in error and launcher.returncode != 0
    assert load_checkpoint(tmp_path / "parts" / "0_ep0.pth")["batches_done"] > 0
    run(
        (3, f"{flags} {tmp_path / 'whole'}"),
        (3, f"{flags} {tmp_path / 'parts'} --load_last_params"),
    )
    one, other = (weights(tmp_path / part / "0_ep1.pth") for part in ("whole", "parts"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_an_error(tmp_path):
    flags = f"{TINY} -x 2 -b 2 --run_dir {tmp_path}"
    died = os.environ | {"LMCONV_TEST_RANK_THAT_DIES": "1"}
    done = subprocess.run(torchrun(2, flags), capture_output=True, text=True, env=died, timeout=120)
    assert done.returncode != 0
    assert "process 0 has lost contact with the others" in done.stderr or "SIGTERM" in done.stderr
    assert not list(tmp_path.glob("*.pth"))
