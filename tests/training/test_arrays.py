"""Training on images in memory: runs that are resumed, callbacks, the best weights."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import tiny_model

import lmconv
from lmconv.checkpoints import load_checkpoint, published_state_dict

CONFIG = lmconv.TrainingConfig(
    max_epochs=2,
    optimization=lmconv.OptimizationConfig(lr=0.01),
    print_every=2,
    sample_interval=1,
)


TWO_ORDERS = lmconv.OrderConfig(all_variants=True, variants=(0, 6))


def small_model(**settings):
    return tiny_model(**({"image_shape": (1, 4, 4), "n_bits": 3, "orders": TWO_ORDERS} | settings))


def pixels(number=20, seed=0):
    """Images that are dark above and bright below: there is something to learn."""
    values = np.random.default_rng(seed).integers(0, 100, (number, 1, 4, 4))
    values[:, :, 2:] += 150
    return values.astype(np.uint8)


def weights(model):
    return published_state_dict(model.network)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("ema", [1.0, 0.9], ids=["plain", "averaged"])
def test_a_run_that_is_resumed_ends_as_one_that_was_not_stopped(ema, tmp_path):
    optimization = replace(CONFIG.optimization, ema=ema)
    config = replace(CONFIG, optimization=optimization)
    model = small_model(dropout_prob=0.5)
    initial = {key: value.clone() for key, value in weights(model).items()}
    whole = lmconv.train(model, pixels(), tmp_path / "whole", config, batch_size=10)
    assert not same(weights(whole), initial)
    first = small_model(dropout_prob=0.5)
    first.load_weights({"model_state_dict": initial})
    parts = tmp_path / "parts"
    lmconv.train(first, pixels(), parts, replace(config, max_epochs=1), batch_size=10)
    torch.manual_seed(99)
    fresh = small_model(dropout_prob=0.5)
    resumed = lmconv.train(fresh, pixels(), parts, config, batch_size=10, resume=True)
    assert same(weights(resumed), weights(whole))
    assert same(weights(lmconv.load(parts / "0_ep1.pth", device="cpu")), weights(whole))
    logs = [(folder / "metrics.jsonl").read_text() for folder in (tmp_path / "whole", parts)]
    steps = [[json.loads(line)["step"] for line in log.splitlines()] for log in logs]
    assert steps[0] == steps[1]


def test_a_run_learns_and_its_model_is_ready_to_use(tmp_path):
    model = small_model(dropout_prob=0.1)
    before = model.log_prob(pixels(8, seed=1)).mean()
    trained = lmconv.train(model, torch.from_numpy(pixels()), tmp_path, CONFIG, batch_size=4)
    assert trained.network is model.network
    after = trained.log_prob(pixels(8, seed=1))
    assert after.mean() > before + 1
    assert torch.equal(trained.log_prob(pixels(8, seed=1)), after), "dropout is still on"


def test_the_model_that_comes_back_has_the_average_of_the_weights(tmp_path):
    config = replace(CONFIG, max_epochs=1, optimization=lmconv.OptimizationConfig(ema=0.5))
    model = small_model()
    trained = lmconv.train(model, pixels(), tmp_path, config, batch_size=5)
    assert not same(weights(trained), weights(model))
    checkpoint = load_checkpoint(tmp_path / "0_ep0.pth")
    assert same(weights(trained), checkpoint["ema_state_dict"])
    assert same(weights(model), checkpoint["model_state_dict"])
    assert same(weights(lmconv.load(tmp_path / "0_ep0.pth", device="cpu")), weights(trained))


def test_callbacks_are_told_of_steps_and_epochs(tmp_path):
    steps, epochs = [], []

    def on_epoch(model, epoch):
        epochs.append((epoch, model.network.training))
        assert torch.equal(model.log_prob(pixels(2)), model.log_prob(pixels(2)))

    config = replace(CONFIG, max_epochs=3, sample_interval=2)
    lmconv.train(
        small_model(dropout_prob=0.5),
        pixels(9),
        tmp_path,
        config,
        batch_size=3,
        on_metrics=lambda step, metrics: steps.append((step, metrics)),
        on_epoch=on_epoch,
    )
    assert epochs == [(1, False), (2, False)]  # every second, and the last
    # Three steps an epoch, recorded every two and at its end.
    assert [step for step, _ in steps] == [2, 3, 4, 6, 6, 8, 9]
    assert all(metrics["train/bpd"] > 0 for _, metrics in steps)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    for line, (step, metrics) in zip(map(json.loads, lines), steps, strict=True):
        assert line["step"] == step and line["train/bpd"] == metrics["train/bpd"]


def test_the_best_checkpoint_is_kept_where_there_are_images_to_test(tmp_path):
    tests = {}

    def on_metrics(step, metrics):
        if "test/nats_1x4x4" in metrics:
            tests[step] = metrics["test/nats_1x4x4"]

    config = replace(CONFIG, max_epochs=3)
    test_images = 255 - pixels(6, seed=1)  # the more is learnt, the less likely they are
    lmconv.train(
        small_model(),
        pixels(),
        tmp_path,
        config,
        test_images=test_images,
        batch_size=10,
        on_metrics=on_metrics,
    )
    assert list(tests) == [2, 4, 6] and min(tests.values()) < tests[6]
    best = lmconv.load(tmp_path / "best.pth", device="cpu")
    nats = -best.log_prob(test_images).mean().item()
    assert nats == pytest.approx(min(tests.values()), rel=1e-5)
    newest = lmconv.load(tmp_path / "0_ep2.pth", device="cpu")
    nats = -newest.log_prob(test_images).mean().item()
    assert nats == pytest.approx(tests[6], rel=1e-5)


def test_checkpoints_describe_their_model_and_replace_each_other(tmp_path):
    orders = lmconv.OrderConfig(("random",), seed=4)
    model = small_model(orders=orders)
    lmconv.train(model, pixels(), tmp_path / "run", CONFIG, batch_size=20)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"0_ep1.pth", "metrics.jsonl"}
    loaded = lmconv.load(tmp_path / "run" / "0_ep1.pth", device="cpu")
    assert loaded.description == model.description
    assert torch.equal(loaded.log_prob(pixels(2)), model.log_prob(pixels(2)))


def test_resuming_a_run_without_checkpoints_starts_it(tmp_path):
    config = replace(CONFIG, max_epochs=1)
    lmconv.train(small_model(), pixels(), tmp_path, config, batch_size=20, resume=True)
    assert (tmp_path / "0_ep0.pth").is_file()


def test_a_run_is_not_overwritten(tmp_path):
    config = replace(CONFIG, max_epochs=1)
    lmconv.train(small_model(), pixels(), tmp_path, config, batch_size=20)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    model = small_model()
    initial = {key: value.clone() for key, value in weights(model).items()}
    with pytest.raises(ValueError, match="resume=True"):
        lmconv.train(model, pixels(), tmp_path, config, batch_size=20)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert same(weights(model), initial)


def test_a_run_of_another_network_is_not_resumed(tmp_path):
    config = replace(CONFIG, max_epochs=1)
    lmconv.train(small_model(), pixels(), tmp_path, config, batch_size=20)
    other = small_model(nr_filters=6)
    with pytest.raises(lmconv.CheckpointError, match=r"0_ep0\.pth"):
        lmconv.train(other, pixels(), tmp_path, config, batch_size=20, resume=True)


@pytest.mark.parametrize(
    "images",
    [
        pixels().astype(np.float32),
        pixels()[0],
        pixels()[:, :, :2],
        pixels().repeat(3, axis=1),
        torch.from_numpy(pixels()).float(),
        pixels().tolist(),
    ],
    ids=["floats", "one", "size", "channels", "tensor", "list"],
)
def test_images_that_do_not_fit_are_refused(images, tmp_path):
    with pytest.raises(ValueError, match=r"uint8.*1x4x4"):
        lmconv.train(small_model(), images, tmp_path, CONFIG)
    with pytest.raises(ValueError, match=r"uint8.*1x4x4"):
        lmconv.train(small_model(), pixels(), tmp_path, CONFIG, test_images=images)
    assert not list(tmp_path.glob("*.pth"))


def test_a_run_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no images"):
        lmconv.train(small_model(), pixels(0), tmp_path, CONFIG)


def test_numbers_that_are_not_finite_end_a_run_with_what_to_do(tmp_path):
    model = small_model()
    with torch.no_grad():
        next(model.network.parameters()).fill_(float("nan"))
    with pytest.raises(lmconv.TrainingError, match="clip"):
        lmconv.train(model, pixels(), tmp_path, CONFIG)
    assert not model.network.training


def test_images_of_sixteen_bits_and_two_channels_are_learnt(tmp_path):
    """From training through the API to samples and compressed files, all of uint16 values."""
    model = small_model(image_shape=(2, 4, 4), n_bits=16, num_mixtures=2, local_prediction=True)
    random = np.random.default_rng(0)
    images = (20000 + random.integers(0, 500, (20, 2, 4, 4))).astype(np.uint16)
    before = model.log_prob(images).mean()
    trained = lmconv.train(model, images, tmp_path, CONFIG, test_images=images[:5], batch_size=5)
    assert trained.log_prob(images).mean() > before
    loaded = lmconv.load(tmp_path / "best.pth", device="cpu")
    returned = lmconv.decompress(loaded, lmconv.compress(loaded, images[:3]))
    assert torch.equal(returned, loaded.prepare(images[:3]))
    samples = loaded.sample(2, seed=1)
    assert samples.shape == (2, 2, 4, 4) and bool(loaded.log_prob(samples).isfinite().all())
    with pytest.raises(ValueError, match="must be a uint16 array of N x 2x4x4, got uint8"):
        lmconv.train(model, images.astype(np.uint8), tmp_path / "other", CONFIG)
