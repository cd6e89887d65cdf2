"""A training step: the objective, accumulation, clipping, the schedule, averages, bad numbers."""

import math

import pytest
import torch
from helpers.models import tiny_model

from lmconv.checkpoints import load_checkpoint, save_checkpoint
from lmconv.training.optimization import Optimization, OptimizationConfig


def optimization_of(seed=0, **settings):
    torch.manual_seed(seed)
    model = tiny_model()
    model.network.double()
    return Optimization(model, OptimizationConfig(**settings)), model


def gradients(optimization, model, *batches):
    for images in batches:
        optimization.backward(images.double(), model.orders()[3])
    return [p.grad.clone() for p in optimization.network.parameters()]


def images_of(number):
    return torch.randint(0, 256, (number, 1, 8, 8)) * (2 / 255) - 1


def parameters(optimization):
    return [p.detach().clone() for p in optimization.network.parameters()]


def test_the_objective_is_the_sum_of_nats_over_the_batch():
    optimization, model = optimization_of()
    images = images_of(4).double()
    nats = optimization.backward(images, model.orders()[5])
    logits = optimization.network(images, model.orders()[5].masks)
    expected = -model.likelihood.log_prob(logits, images).sum()
    assert nats == pytest.approx(expected.item())
    wanted = torch.autograd.grad(expected, list(optimization.network.parameters()))
    for parameter, gradient in zip(optimization.network.parameters(), wanted, strict=True):
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
    optimization, model = optimization_of()
    assert optimization.backward(images[:0].double(), model.orders()[3]) == 0
    for one, other in zip(whole, gradients(optimization, model, images), strict=True):
        torch.testing.assert_close(one, other)


def test_minimize_bpd_divides_the_gradient_by_images_and_dimensions():
    images = images_of(6)
    norms = []
    for minimizes_bpd in (False, True):
        optimization, model = optimization_of(minimize_bpd=minimizes_bpd)
        gradients(optimization, model, images[:4], images[4:])
        norms.append(optimization.step(6, 1e-3))
    assert norms[0] / norms[1] == pytest.approx(6 * 64 * math.log(2))


def test_clip_limits_the_gradient_norm():
    optimization, model = optimization_of(clip=0.5)
    gradients(optimization, model, images_of(4))
    seen = []
    optimization.optimizer.step = lambda: seen.append(
        torch.stack([p.grad.norm() for p in optimization.network.parameters()]).norm().item()
    )
    assert optimization.step(4, 1e-3) > 0.5
    assert seen == [pytest.approx(0.5, rel=1e-4)]


def test_fused_adam_takes_the_steps_of_the_plain_one():
    optimization, model = optimization_of(weight_decay=0.01)
    plain = optimization_of(weight_decay=0.01)[0].network
    plain.load_state_dict(optimization.network.state_dict())
    assert optimization.optimizer.defaults["fused"]
    adam = torch.optim.Adam(plain.parameters(), lr=1e-3, weight_decay=0.01, foreach=False)
    for _ in range(3):
        for parameter, gradient in zip(
            plain.parameters(), gradients(optimization, model, images_of(4)), strict=True
        ):
            parameter.grad = gradient
        optimization.step(4, 1e-3)
        adam.step()
    for one, other in zip(parameters(optimization), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach())


@pytest.mark.parametrize("decay", [0.9, 0.15])
def test_the_average_forgets_at_most_by_its_decay(decay):
    optimization, model = optimization_of(ema=decay)
    name, values = "u_init.weight", []
    for _ in range(4):
        gradients(optimization, model, images_of(4))
        optimization.step(4, 1e-3)
        values.append(optimization.network.state_dict()[name].clone())
    expected = values[0]  # the average starts at the first weights
    for steps, value in enumerate(values[1:], start=1):
        kept = min(decay, (1 + steps) / (10 + steps))
        expected = kept * expected + (1 - kept) * value
    torch.testing.assert_close(optimization.test_model.network.state_dict()[name], expected)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="unknown optimizer 'sgd': choose adam or muon"):
        optimization_of(optimizer="sgd")


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("clip", [-1, 1])
def test_a_step_over_bad_gradients_changes_nothing(clip, optimizer):
    optimization, model = optimization_of(ema=0.5, clip=clip, optimizer=optimizer)
    before = parameters(optimization)
    gradients(optimization, model, images_of(2))
    next(optimization.network.parameters()).grad[0] = math.nan
    assert not math.isfinite(optimization.step(2, 1e-3))
    assert (optimization.global_step, optimization.skipped_steps) == (0, 1)
    assert all(p.grad is None for p in optimization.network.parameters())
    assert all(map(torch.equal, before, parameters(optimization)))
    assert not optimization.optimizer.state


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_state_goes_on_where_it_was_saved(tmp_path, optimizer):
    one, model = optimization_of(ema=0.9, optimizer=optimizer)
    other, _ = optimization_of(seed=5, ema=0.9, optimizer=optimizer)
    batches = [images_of(4) for _ in range(6)]
    for number, images in enumerate(batches):
        if number == 3:
            save_checkpoint(tmp_path / "state.pth", one.state())
            other.load(load_checkpoint(tmp_path / "state.pth"), "a test")
        for optimization in (one, other)[: 1 + (number >= 3)]:
            gradients(optimization, model if optimization is one else _, images)
            optimization.step(4, 1e-2)
    assert all(map(torch.equal, parameters(one), parameters(other)))
    averages = (each.test_model.network.parameters() for each in (one, other))
    assert all(map(torch.equal, *averages))
    assert one.global_step == other.global_step == 6


def test_learning_rates_by_hand():
    def rate(step, epochs, lr_decay=0.5, **settings):
        config = OptimizationConfig(lr=0.1, lr_decay=lr_decay, **settings)
        return config.learning_rate(step, epochs, max_epochs=4)

    assert [rate(0, epochs) for epochs in (0, 0.9, 1, 2.5)] == [0.1, 0.1, 0.05, 0.025]
    warm = [rate(step, 0, warmup_steps=4) for step in range(6)]
    assert warm == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    cosine = [rate(9, epochs, 1, lr_schedule="cosine") for epochs in (0, 1, 2, 4, 5)]
    assert cosine == pytest.approx([0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, 0, 0])


@pytest.mark.slow
def test_a_compiled_network_has_the_same_gradients_and_checkpoints():
    images = images_of(3)
    plain, compiled = optimization_of(), optimization_of(compile=True)
    for one, other in zip(gradients(*plain, images), gradients(*compiled, images), strict=True):
        torch.testing.assert_close(one, other)
    assert (
        plain[0].state()["model_state_dict"].keys()
        == compiled[0].state()["model_state_dict"].keys()
    )
