"""Training: what a step does, averages, resuming, and that a network learns."""

import json
import math
import shlex
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import ROOT

import lmconv
from lmconv.checkpoints import load_checkpoint
from lmconv.modes import train
from lmconv.modes.options import parse
from lmconv.modes.run import execute
from lmconv.training import trainer
from lmconv.training.optimization import Optimization
from lmconv.training.signals import Stopped
from lmconv.training.trainer import Trainer, TrainingError
from masking import generation_orders, move_to_end

TINY = shlex.split(
    "-q 1 -n 4 --max_train_images 40 --max_test_images 8 -b 8 --disable_wandb -x 2 "
    "--sample_interval 99 --sample_batch_size 2 --run_dir"
)


def run(run_dir, flags=""):
    """Train from the command line's settings."""
    execute(parse([*TINY, str(run_dir), *flags.split()]))


def metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def steady(lines):
    """Metrics without those that differ from run to run."""
    changing = ("time", "seconds", "per_second", "share", "memory")
    return [{k: v for k, v in line.items() if not k.endswith(changing)} for line in lines]


def same_checkpoints(one, other):
    one, other = load_checkpoint(one), load_checkpoint(other)
    assert one["global_step"] == other["global_step"]
    for name in ("model_state_dict", "ema_state_dict"):
        assert one.get(name, {}).keys() == other.get(name, {}).keys()
        for key, value in one.get(name, {}).items():
            assert torch.equal(other[name][key], value), key


def test_averages_are_saved_and_tested(tmp_path):
    run(tmp_path, "--ema 0.5 -x 1")
    checkpoint = load_checkpoint(tmp_path / "0_ep0.pth")
    raw, average = checkpoint["model_state_dict"], checkpoint["ema_state_dict"]
    assert raw.keys() == average.keys()
    assert not torch.equal(raw["u_init.weight"], average["u_init.weight"])
    loaded = lmconv.load(tmp_path / "best.pth").network.state_dict()
    assert torch.equal(loaded["u_init.weight"], average["u_init.weight"])


def test_training_lowers_the_test_loss(tmp_path):
    run(tmp_path, "-n 8 --max_train_images 400 -x 3 -tt 1 --binarize")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    bpd = [line["test/bpd_1x8x8"] for line in lines if "test/bpd_1x8x8" in line]
    assert len(bpd) == 3
    assert bpd[-1] < bpd[0] < 1
    assert load_checkpoint(tmp_path / "best.pth")["test_loss_1x8x8"] == pytest.approx(min(bpd))


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--ema 0.9 -dp 0.3",
        "--optimizer muon --input_positions --ema 0.9",
        "--resize_sizes 8 6",
        "--train_holes 0.5",
    ],
)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, flags):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, f"{flags} -x 3")
    run(parts, f"{flags} -x 1")
    run(parts, f"{flags} -x 3 --load_last_params")
    expected, got = (load_checkpoint(path / "0_ep2.pth") for path in (whole, parts))
    assert got["global_step"] == expected["global_step"] == 15
    for key in ("model_state_dict", *(["ema_state_dict"] if "ema" in flags else [])):
        for name, value in expected[key].items():
            assert torch.equal(got[key][name], value), name
    assert [path.name for path in sorted(parts.glob("0_ep*.pth"))] == ["0_ep2.pth"]


def test_the_learning_rate_decays_once_per_epoch_also_after_resuming(tmp_path):
    run(tmp_path, "-x 1 -e 0.5 -l 0.004")
    run(tmp_path, "-x 3 -e 0.5 -l 0.004 --load_last_params")
    group = load_checkpoint(tmp_path / "0_ep2.pth")["optimizer_state_dict"]["param_groups"][0]
    assert group["lr"] == pytest.approx(0.001)


def test_a_file_of_another_name_in_the_run_directory_stays(tmp_path):
    run(tmp_path, "-x 1")
    (tmp_path / "0_ep0.pth").rename(tmp_path / "published.pth")
    run(tmp_path, "-x 3 --load_params published.pth")
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {"published.pth", "0_ep2.pth", "best.pth"}


def test_a_run_without_a_checkpoint_starts_its_metrics_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1000}\n')
    run(tmp_path, "-x 1")
    assert max(line["step"] for line in metrics(tmp_path)) == 5


def test_weights_without_the_optimizer_start_it_afresh(tmp_path):
    run(tmp_path / "a", "-x 1")
    weights = tmp_path / "a" / "0_ep0.pth"
    run(tmp_path / "b", f"--load_params {weights} --do_not_load_optimizer")
    checkpoint = load_checkpoint(tmp_path / "b" / "0_ep1.pth")
    steps = {int(s["step"]) for s in checkpoint["optimizer_state_dict"]["state"].values()}
    assert steps == {5}


def test_checkpoints_are_kept_at_the_save_interval(tmp_path):
    run(tmp_path, "-x 5 --save_interval 2 -tt 99 --max_train_images 8")
    assert sorted(path.name for path in Path(tmp_path).glob("0_ep*.pth")) == [
        "0_ep1.pth",
        "0_ep3.pth",
        "0_ep4.pth",
    ]


def test_only_the_train_masks_are_drawn(tmp_path, monkeypatch):
    orders = drawn_orders(monkeypatch)
    run(tmp_path, "--train_masks 2 7 -x 4 -tt 99")
    known = usual_orders()
    assert {order.tobytes() for order in orders} == {known[2].tobytes(), known[7].tobytes()}


def drawn_orders(monkeypatch):
    """A list that training fills with the order of each batch, ``H*W x 2``."""
    orders, original = [], Trainer._backward

    def spy(self, images, order, *others):
        orders.append(order.pixels)
        return original(self, images, order, *others)

    monkeypatch.setattr(Trainer, "_backward", spy)
    return orders


def usual_orders():
    return generation_orders(["s_curve"], (1, 8, 8), all_variants=True)


@pytest.mark.parametrize("share", [0.4, 1])
def test_a_share_of_the_batches_has_its_hidden_pixels_last(tmp_path, monkeypatch, share):
    holes, original = [], trainer.draw_hole

    def spy(*args):
        holes.append(original(*args))
        return holes[-1]

    monkeypatch.setattr(trainer, "draw_hole", spy)
    orders = drawn_orders(monkeypatch)
    run(tmp_path, f"--train_holes {share} -x 12 -tt 99 -b 2 --max_train_images 20 -n 2")
    usual = usual_orders()
    changed = [each for each in orders if not any((each == order).all() for order in usual)]
    assert len(orders) == 120
    assert len(holes) == pytest.approx(share * 120, abs=20)
    # Halves that come last in any case change nothing.
    assert 0.7 * len(holes) < len(changed) <= len(holes)
    for order in changed:
        made = [
            (order == move_to_end(each, np.argwhere(hole))).all()
            for hole in holes
            for each in usual
        ]
        assert any(made)
    assert len({hole.tobytes() for hole in holes}) > len(holes) / 2


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(tmp_path):
    run(tmp_path, "-x 1")
    before = (tmp_path / "0_ep0.pth").read_bytes()
    with pytest.raises(TrainingError, match=r"step \d+ with order \d and learning rate"):
        run(tmp_path, "-x 2 -l 1e30 --load_last_params")
    assert (tmp_path / "0_ep0.pth").read_bytes() == before


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_bad_numbers_are_skipped_and_counted_when_asked_to(tmp_path, monkeypatch, what):
    original, calls = Optimization.backward, []

    def sometimes_bad(self, *arguments):
        calls.append(None)
        nats = original(self, *arguments)
        if len(calls) in (2, 3):
            if what == "loss":
                return math.nan
            next(self.network.parameters()).grad.fill_(math.inf)
        return nats

    monkeypatch.setattr(Optimization, "backward", sometimes_bad)
    run(tmp_path, "-x 1 --nonfinite skip -p 1")
    checkpoint = load_checkpoint(tmp_path / "0_ep0.pth")
    assert (checkpoint["global_step"], checkpoint["skipped_steps"]) == (3, 2)
    assert all(torch.isfinite(value).all() for value in checkpoint["model_state_dict"].values())
    assert metrics(tmp_path)[-1]["step"] == 3
    lines = metrics(tmp_path)
    assert max(line.get("skipped_steps", 0) for line in lines) == 2
    assert all(line["train/epoch_bpd"] > 0 for line in lines if "train/epoch_bpd" in line)


def test_a_run_that_only_skips_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(Optimization, "backward", lambda *arguments: math.nan)
    with pytest.raises(TrainingError, match="loss is nan at step 0"):
        run(tmp_path, "-x 9 --nonfinite skip")


def test_health_is_in_the_metrics(tmp_path):
    run(tmp_path, "-x 2 -p 2 --warmup_steps 10 -l 0.01 -e 1")
    lines = [line for line in metrics(tmp_path) if "gradient_norm" in line]
    for line in lines:
        assert line["gradient_norm"] > 0 and line["images_per_second"] > 0
        assert line["epoch_seconds"] > 0 and line["peak_memory"] > 2**20
        assert 0 <= line["loader_share"] <= 1 and line["remaining_seconds"] >= 0
    assert lines[-1]["remaining_seconds"] == 0
    steps = {line["step"]: line["lr"] for line in lines}
    assert steps[2] == pytest.approx(0.002) and steps[10] == pytest.approx(0.01)


def test_pictures_are_in_tensorboard(tmp_path):
    run(tmp_path, "-x 1")
    events = import_module(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["images"]) == {"samples", "train_orderings_obs1x8x8"}
    assert {"train/epoch_bpd", "gradient_norm", "test/bpd_1x8x8"} <= set(events.Tags()["scalars"])


def test_checkpoints_inside_epochs_go_on_at_the_same_batch(tmp_path, monkeypatch, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = "-x 2 --save_minutes 1e-9 -dp 0.3 --ema 0.9 -af 2 -b 4"
    run(whole, flags)
    original, steps = Optimization.step, []

    def ends_after_three(self, num_images, rate):
        if len(steps) == 3:
            raise RuntimeError("the end")
        steps.append(num_images)
        return original(self, num_images, rate)

    monkeypatch.setattr(Optimization, "step", ends_after_three)
    with pytest.raises(RuntimeError, match="the end"):
        run(parts, flags)
    checkpoint = load_checkpoint(parts / "0_ep0.pth")
    assert (checkpoint["epoch"], checkpoint["batches_done"]) == (-1, 6)
    monkeypatch.undo()
    run(parts, f"{flags} --load_last_params")
    assert f"going on after 6 batches, from {parts / '0_ep0.pth'}" in capsys.readouterr().out
    same_checkpoints(whole / "0_ep1.pth", parts / "0_ep1.pth")
    assert steady(metrics(whole)) == steady(metrics(parts))
    assert sorted(path.name for path in parts.glob("*.pth")) == ["0_ep1.pth", "best.pth"]
    run(parts, f"{flags} --load_last_params")
    assert "nothing to do: 2 epochs are done and max_epochs is 2" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU"])
def test_a_signal_saves_between_steps_and_ends_the_run(tmp_path, monkeypatch, name):
    number = getattr(signal, name, signal.SIGTERM)  # Windows lacks some
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, "-x 2 -dp 0.2")
    original, steps = Optimization.step, []

    def with_signal(self, num_images, rate):
        steps.append(None)
        if len(steps) == 8:
            signal.raise_signal(number)
        return original(self, num_images, rate)

    monkeypatch.setattr(Optimization, "step", with_signal)
    with pytest.raises(Stopped, match=rf"{number.name}.*0_ep1.pth is saved") as stopped:
        run(parts, "-x 2 -dp 0.2")
    assert stopped.value.signum == number
    assert load_checkpoint(parts / "0_ep1.pth")["batches_done"] == 3
    monkeypatch.undo()
    run(parts, "-x 2 -dp 0.2 --load_last_params")
    same_checkpoints(whole / "0_ep1.pth", parts / "0_ep1.pth")


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows lacks the signal")
def test_the_warning_of_a_scheduler_saves_between_steps_and_the_run_goes_on(tmp_path, monkeypatch):
    original, positions = Optimization.step, {}

    def with_signal(self, num_images, rate):
        if self.global_step == 2:
            signal.raise_signal(signal.SIGUSR1)
        for path in tmp_path.glob("*.pth"):
            positions[self.global_step] = load_checkpoint(path)["batches_done"]
        return original(self, num_images, rate)

    monkeypatch.setattr(Optimization, "step", with_signal)
    run(tmp_path, "-x 1")
    assert positions == {3: 3, 4: 3}  # saved once, after the step
    assert load_checkpoint(tmp_path / "0_ep0.pth")["global_step"] == 5


def test_the_last_record_of_an_epoch_has_its_mean_and_that_of_the_last_steps(tmp_path):
    run(tmp_path, "-x 2 -p 2 -l 0.03")  # 5 steps in an epoch
    lines = [line for line in metrics(tmp_path) if "train/bpd" in line]
    assert [line["step"] for line in lines] == [2, 4, 5, 6, 8, 10, 10]
    bpd = [line["train/bpd"] for line in lines]
    means = [line["train/epoch_bpd"] for line in lines if "train/epoch_bpd" in line]
    assert means[0] == pytest.approx((2 * bpd[0] + 2 * bpd[1] + bpd[2]) / 5)
    assert bpd[-1] == bpd[-2] != means[1]
    assert ["train/epoch_bpd" in line for line in lines] == [
        *(False, False, True),
        *(False, False, False, True),
    ]


@pytest.mark.parametrize(("num_threads", "says"), [(2, True), (1, False)])
def test_a_run_on_a_busy_machine_says_what_helps(num_threads, says, tmp_path, monkeypatch, capsys):
    """As if a step took hours, in which the main thread does not run."""
    now = time.monotonic
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    monkeypatch.setattr(time, "monotonic", lambda: 1e5 * now())
    monkeypatch.setattr(time, "thread_time", lambda: 0.0)
    run(tmp_path, "-x 2 -tt 99")
    assert capsys.readouterr().out.count("--threads 1 ") == says


def stopped_test(*arguments, **options):
    signal.raise_signal(signal.SIGTERM)


def test_a_signal_in_a_test_ends_it_at_once_and_it_is_done_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "score_sizes", stopped_test)
    with pytest.raises(Stopped, match=r"0_ep0\.pth is saved"):
        run(tmp_path, "-x 1")
    assert "test_loss_1x8x8" not in load_checkpoint(tmp_path / "0_ep0.pth")
    monkeypatch.undo()
    run(tmp_path, "-x 1 --load_last_params")
    assert "test_loss_1x8x8" in load_checkpoint(tmp_path / "0_ep0.pth")
    assert (tmp_path / "best.pth").is_file()


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_parameters(tmp_path):
    flags = (
        "-q 1 -n 4 --max_train_images 120 --max_test_images 8 -b 8 --disable_wandb -x 3 -dp 0.2 "
        "--ema 0.9 --save_minutes 0.0005 --sample_interval 2 --sample_batch_size 2 --run_dir"
    )
    script = ROOT / "tests" / "helpers" / "killed_runs.py"
    command = [sys.executable, str(script), str(tmp_path), *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    kills = json.loads(done.stdout.splitlines()[-1])
    assert kills["anywhere"] + kills["in a save"] >= 20 and kills["in a save"] >= 3
    whole = tmp_path / "whole"
    for number in range(kills["rounds"]):
        parts = tmp_path / f"parts{number}"
        same_checkpoints(whole / "0_ep2.pth", parts / "0_ep2.pth")
        same_checkpoints(whole / "best.pth", parts / "best.pth")
        assert steady(metrics(whole)) == steady(metrics(parts))
        assert {path.name for path in parts.glob("*.pth")} == {"0_ep2.pth", "best.pth"}
        assert not list(parts.glob(".*"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_stops_the_run_and_leaves_the_previous_checkpoint(tmp_path):
    run(tmp_path, "-x 1")
    before = (tmp_path / "0_ep0.pth").read_bytes()
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2},) * 2); "
        "import main; sys.exit(main.main(sys.argv[1:]))"
    )
    flags = [*TINY, str(tmp_path), "--load_last_params"]
    command = [sys.executable, "-c", code, *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert "cannot save" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert (tmp_path / "0_ep0.pth").read_bytes() == before
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("0_ep1.pth"))


def test_bfloat16_trains_and_reports_float32_numbers(tmp_path):
    run(tmp_path, "--amp_opt_level O1 -x 1")
    weights = load_checkpoint(tmp_path / "0_ep0.pth")["model_state_dict"]
    assert {value.dtype for value in weights.values()} == {torch.float32}
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert all(math.isfinite(value) for line in lines for value in json.loads(line).values())


def test_the_baseline_trains_and_is_tested(tmp_path):
    run(tmp_path, "-d digits --model pixelcnnpp --binarize -x 1")
    assert "test_loss_1x8x8" in load_checkpoint(tmp_path / "0_ep0.pth")
