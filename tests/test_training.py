"""Training: what a step does, averages, resuming, and that a network learns."""

import json
import math
import shlex
from pathlib import Path

import pytest
import torch

from checkpoints import load_checkpoint
from data import load_train
from experiment import set_up
from options import parse
from training import Trainer, train
from utils import UsageError, setup_logging

TINY = shlex.split(
    "-q 1 -n 4 --max_train_images 40 --max_test_images 8 -b 8 --disable_wandb -x 2 "
    "--sample_interval 99 --sample_batch_size 2 --run_dir"
)


def run(run_dir, flags=""):
    """Train from the command line's settings; returns the experiment."""
    args = parse([*TINY, str(run_dir), *flags.split()])
    experiment = set_up(args, setup_logging(None))
    experiment.run_dir.mkdir(exist_ok=True)
    train(experiment)
    return experiment


def trainer_of(run_dir, flags=""):
    args = parse([*TINY, str(run_dir), *flags.split()])
    experiment = set_up(args, setup_logging(None))
    experiment.model.double()
    return Trainer(experiment, load_train(experiment.data))


def gradients(trainer, *batches):
    for images in batches:
        trainer._backward(images.double(), order_index=3)
    return [p.grad.clone() for p in trainer.model.parameters()]


def images_of(number):
    return torch.randint(0, 256, (number, 1, 8, 8)) * (2 / 255) - 1


def test_the_objective_is_the_sum_of_nats_over_the_batch(tmp_path):
    trainer = trainer_of(tmp_path)
    images = images_of(4).double()
    nats = trainer._backward(images, order_index=5)
    logits = trainer.model(images, trainer.masks[1, 8, 8][5])
    expected = -trainer.experiment.likelihood.log_prob(logits, images).sum()
    assert nats == pytest.approx(expected.item())
    wanted = torch.autograd.grad(expected, list(trainer.model.parameters()))
    for parameter, gradient in zip(trainer.model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_accumulated_gradients_equal_those_of_one_large_batch(tmp_path):
    images = images_of(6)
    whole = gradients(trainer_of(tmp_path), images)
    parts = gradients(trainer_of(tmp_path), images[:4], images[4:])
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)


def test_minimize_bpd_divides_the_gradient_by_images_and_dimensions(tmp_path):
    images = images_of(6)
    nats, bpd = trainer_of(tmp_path), trainer_of(tmp_path, "--minimize_bpd")
    norms = []
    for trainer in (nats, bpd):
        gradients(trainer, images[:4], images[4:])
        norms.append(trainer._step(6))
    assert norms[0] / norms[1] == pytest.approx(6 * 64 * math.log(2))


def test_clip_limits_the_gradient_norm(tmp_path):
    trainer = trainer_of(tmp_path, "--clip 0.5")
    gradients(trainer, images_of(4))
    seen = []
    trainer.optimizer.step = lambda: seen.append(
        torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm().item()
    )
    assert trainer._step(4) > 0.5
    assert seen == [pytest.approx(0.5, rel=1e-4)]


def test_the_average_moves_by_one_minus_its_decay(tmp_path):
    trainer = trainer_of(tmp_path, "--ema 0.9")
    name = "u_init.weight"
    values = []
    for _ in range(3):
        gradients(trainer, images_of(4))
        trainer._step(4)
        values.append(trainer.model.state_dict()[name].clone())
    expected = values[0]  # the average starts at the first weights
    for value in values[1:]:
        expected = 0.9 * expected + 0.1 * value
    torch.testing.assert_close(trainer.test_model.state_dict()[name], expected)


def test_averages_are_saved_and_tested(tmp_path):
    experiment = run(tmp_path, "--ema 0.5 -x 1")
    checkpoint = load_checkpoint(tmp_path / "0_ep0.pth")
    raw, average = checkpoint["model_state_dict"], checkpoint["ema_state_dict"]
    assert raw.keys() == average.keys()
    assert not torch.equal(raw["u_init.weight"], average["u_init.weight"])
    experiment.load_weights()
    assert torch.equal(experiment.model.state_dict()["u_init.weight"], average["u_init.weight"])


def test_training_lowers_the_test_loss(tmp_path):
    run(tmp_path, "-n 8 --max_train_images 400 -x 3 -tt 1 --binarize")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    bpd = [line["test/bpd_1x8x8"] for line in lines if "test/bpd_1x8x8" in line]
    assert len(bpd) == 3
    assert bpd[-1] < bpd[0] < 1
    assert load_checkpoint(tmp_path / "best.pth")["test_loss_1x8x8"] == pytest.approx(min(bpd))


@pytest.mark.parametrize("flags", ["", "--ema 0.9 -dp 0.3", "--resize_sizes 8 6"])
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


def test_weights_without_the_optimizer_start_it_afresh(tmp_path):
    run(tmp_path / "a", "-x 1")
    experiment = run(
        tmp_path / "b", f"--load_params {tmp_path / 'a' / '0_ep0.pth'} --do_not_load_optimizer"
    )
    checkpoint = load_checkpoint(tmp_path / "b" / "0_ep1.pth")
    steps = {int(s["step"]) for s in checkpoint["optimizer_state_dict"]["state"].values()}
    assert steps == {5}
    assert experiment.run_dir == tmp_path / "b"


def test_checkpoints_are_kept_at_the_save_interval(tmp_path):
    run(tmp_path, "-x 5 --save_interval 2 -tt 99 --max_train_images 8")
    assert sorted(path.name for path in Path(tmp_path).glob("0_ep*.pth")) == [
        "0_ep1.pth",
        "0_ep3.pth",
        "0_ep4.pth",
    ]


def test_only_the_train_masks_are_drawn(tmp_path, monkeypatch):
    drawn = set()
    original = Trainer._backward

    def spy(self, images, order_index):
        drawn.add(order_index)
        return original(self, images, order_index)

    monkeypatch.setattr(Trainer, "_backward", spy)
    run(tmp_path, "--train_masks 2 7 -x 4 -tt 99")
    assert drawn == {2, 7}


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(tmp_path):
    run(tmp_path, "-x 1")
    with pytest.raises(UsageError, match=r"step \d+ with order \d and learning rate"):
        run(tmp_path, "-x 2 -l 1e30 --load_last_params")
    assert (tmp_path / "0_ep0.pth").is_file()


def test_bfloat16_trains_and_reports_float32_numbers(tmp_path):
    experiment = run(tmp_path, "--amp_opt_level O1 -x 1")
    assert {p.dtype for p in experiment.model.parameters()} == {torch.float32}
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert all(math.isfinite(value) for line in lines for value in json.loads(line).values())


def test_the_baseline_trains_and_is_tested(tmp_path):
    run(tmp_path, "-d digits --model pixelcnnpp --binarize -x 1")
    assert "test_loss_1x8x8" in load_checkpoint(tmp_path / "0_ep0.pth")
