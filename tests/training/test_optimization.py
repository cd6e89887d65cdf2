"""A training step: the objective, accumulation, clipping, the schedule, averages, bad numbers."""

import math
import shlex

import pytest
import torch

from lmconv.checkpoints import load_checkpoint, save_checkpoint
from lmconv.modes.options import parse
from lmconv.modes.run import set_up
from lmconv.training.optimization import Optimization, learning_rate
from utils import setup_logging


def optimization_of(flags=""):
    args = parse(shlex.split(f"-q 1 -n 4 --disable_wandb {flags}"))
    experiment = set_up(args, setup_logging(None))
    experiment.model.double()
    return Optimization(experiment), experiment


def masks_of(experiment, order_index=3):
    return experiment.masks((1, 8, 8))[order_index]


def gradients(optimization, experiment, *batches):
    for images in batches:
        optimization.backward(images.double(), masks_of(experiment))
    return [p.grad.clone() for p in optimization.model.parameters()]


def images_of(number):
    return torch.randint(0, 256, (number, 1, 8, 8)) * (2 / 255) - 1


def parameters(optimization):
    return [p.detach().clone() for p in optimization.model.parameters()]


def test_the_objective_is_the_sum_of_nats_over_the_batch():
    optimization, experiment = optimization_of()
    images = images_of(4).double()
    nats = optimization.backward(images, masks_of(experiment, 5))
    logits = optimization.model(images, masks_of(experiment, 5))
    expected = -experiment.likelihood.log_prob(logits, images).sum()
    assert nats == pytest.approx(expected.item())
    wanted = torch.autograd.grad(expected, list(optimization.model.parameters()))
    for parameter, gradient in zip(optimization.model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_accumulated_gradients_equal_those_of_one_large_batch():
    images = images_of(6)
    whole = gradients(*optimization_of(), images)
    parts = gradients(*optimization_of(), images[:4], images[4:])
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)


def test_an_empty_share_adds_nothing():
    images = images_of(3)
    whole = gradients(*optimization_of(), images)
    optimization, experiment = optimization_of()
    assert optimization.backward(images[:0].double(), masks_of(experiment)) == 0
    for one, other in zip(whole, gradients(optimization, experiment, images), strict=True):
        torch.testing.assert_close(one, other)


def test_minimize_bpd_divides_the_gradient_by_images_and_dimensions():
    images = images_of(6)
    norms = []
    for flags in ("", "--minimize_bpd"):
        optimization, experiment = optimization_of(flags)
        gradients(optimization, experiment, images[:4], images[4:])
        norms.append(optimization.step(6, 1e-3))
    assert norms[0] / norms[1] == pytest.approx(6 * 64 * math.log(2))


def test_clip_limits_the_gradient_norm():
    optimization, experiment = optimization_of("--clip 0.5")
    gradients(optimization, experiment, images_of(4))
    seen = []
    optimization.optimizer.step = lambda: seen.append(
        torch.stack([p.grad.norm() for p in optimization.model.parameters()]).norm().item()
    )
    assert optimization.step(4, 1e-3) > 0.5
    assert seen == [pytest.approx(0.5, rel=1e-4)]


def test_fused_adam_takes_the_steps_of_the_plain_one():
    optimization, experiment = optimization_of("-wd 0.01")
    plain = optimization_of("-wd 0.01")[0].model
    plain.load_state_dict(optimization.model.state_dict())
    assert optimization.optimizer.defaults["fused"]
    adam = torch.optim.Adam(plain.parameters(), lr=1e-3, weight_decay=0.01, foreach=False)
    for _ in range(3):
        for parameter, gradient in zip(
            plain.parameters(), gradients(optimization, experiment, images_of(4)), strict=True
        ):
            parameter.grad = gradient
        optimization.step(4, 1e-3)
        adam.step()
    for one, other in zip(parameters(optimization), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach())


@pytest.mark.parametrize("decay", [0.9, 0.15])
def test_the_average_forgets_at_most_by_its_decay(decay):
    optimization, experiment = optimization_of(f"--ema {decay}")
    name, values = "u_init.weight", []
    for _ in range(4):
        gradients(optimization, experiment, images_of(4))
        optimization.step(4, 1e-3)
        values.append(optimization.model.state_dict()[name].clone())
    expected = values[0]  # the average starts at the first weights
    for steps, value in enumerate(values[1:], start=1):
        kept = min(decay, (1 + steps) / (10 + steps))
        expected = kept * expected + (1 - kept) * value
    torch.testing.assert_close(optimization.test_model.state_dict()[name], expected)


@pytest.mark.parametrize("flags", ["", "--clip 1"])
def test_a_step_over_bad_gradients_changes_nothing(flags):
    optimization, experiment = optimization_of(f"--ema 0.5 {flags}")
    before = parameters(optimization)
    gradients(optimization, experiment, images_of(2))
    next(optimization.model.parameters()).grad[0] = math.nan
    assert not math.isfinite(optimization.step(2, 1e-3))
    assert (optimization.global_step, optimization.skipped_steps) == (0, 1)
    assert all(p.grad is None for p in optimization.model.parameters())
    assert all(map(torch.equal, before, parameters(optimization)))
    assert not optimization.optimizer.state


def test_a_state_goes_on_where_it_was_saved(tmp_path):
    one, experiment = optimization_of("--ema 0.9")
    other, _ = optimization_of("--ema 0.9 -s 5")
    batches = [images_of(4) for _ in range(6)]
    for number, images in enumerate(batches):
        if number == 3:
            save_checkpoint(tmp_path / "state.pth", one.state())
            other.load(load_checkpoint(tmp_path / "state.pth"), "a test")
        for optimization in (one, other)[: 1 + (number >= 3)]:
            gradients(optimization, experiment if optimization is one else _, images)
            optimization.step(4, 1e-2)
    assert all(map(torch.equal, parameters(one), parameters(other)))
    assert all(map(torch.equal, one.test_model.parameters(), other.test_model.parameters()))
    assert one.global_step == other.global_step == 6


def test_learning_rates_by_hand():
    def rate(step, epochs, flags):
        return learning_rate(parse(shlex.split(f"-l 0.1 -e 0.5 -x 4 {flags}")), step, epochs)

    assert [rate(0, epochs, "") for epochs in (0, 0.9, 1, 2.5)] == [0.1, 0.1, 0.05, 0.025]
    warm = [rate(step, 0, "--warmup_steps 4") for step in range(6)]
    assert warm == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    cosine = [rate(9, epochs, "-e 1 --lr_schedule cosine") for epochs in (0, 1, 2, 4, 5)]
    assert cosine == pytest.approx([0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, 0, 0])


def test_a_compiled_network_has_the_same_gradients_and_checkpoints():
    images = images_of(3)
    plain, compiled = optimization_of(), optimization_of("--compile")
    for one, other in zip(gradients(*plain, images), gradients(*compiled, images), strict=True):
        torch.testing.assert_close(one, other)
    assert (
        plain[0].state()["model_state_dict"].keys()
        == compiled[0].state()["model_state_dict"].keys()
    )
