"""Labels in Python: likelihoods, samples and completions given classes, and training with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import tiny_model

import lmconv
from lmconv.checkpoints import CheckpointError, published_state_dict

CLASSES = ("ant", "bee", "cow")
FOUR_ORDERS = lmconv.OrderConfig(all_variants=True, variants=(0, 3, 4, 6))


def small_model(**settings):
    settings = {"image_shape": (1, 5, 6), "n_bits": 3, "orders": FOUR_ORDERS} | settings
    return tiny_model(**({"classes": CLASSES} | settings))


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def images(model):
    return model.prepare(np.random.default_rng(0).integers(0, 256, (4, 1, 5, 6), dtype=np.uint8))


MIXED = ["bee", None, 0, "cow"]


def test_each_image_has_the_likelihood_given_its_own_class(model, images):
    by_class = torch.stack([model.log_prob(images, label=name) for name in CLASSES])
    mixed = model.log_prob(images, label=MIXED, batch_size=3)
    unknown = model.log_prob(images)
    expected = torch.stack([by_class[1, 0], unknown[1], by_class[0, 2], by_class[2, 3]])
    torch.testing.assert_close(mixed, expected)
    maps = model.log_prob_per_pixel(images, order=1, label=MIXED)
    sums = maps.double().sum(dim=(1, 2))
    torch.testing.assert_close(model.log_prob(images, order=1, label=MIXED), sums)
    for one, other in ((by_class[0], by_class[1]), (by_class[0], unknown)):
        assert not torch.allclose(one, other)
    indices = torch.tensor([2, 1, 0, 2])
    names = [CLASSES[index] for index in indices]
    assert torch.equal(model.log_prob(images, label=indices), model.log_prob(images, label=names))


@pytest.mark.parametrize("guess", [0, 4])
def test_samples_are_those_of_the_naive_sampler_given_the_same_classes(model, guess):
    expected = model.sample(4, label=MIXED, config=lmconv.SamplingConfig("naive"))
    cached = model.sample(4, label=MIXED, config=lmconv.SamplingConfig(guess=guess), batch_size=3)
    assert torch.equal(cached, expected)
    assert torch.equal(model.sample(4, label="bee")[0], expected[0])
    assert not torch.equal(model.sample(4), expected)


def test_completions_are_drawn_and_scored_given_the_class(model, images):
    hidden = torch.zeros(5, 6, dtype=torch.bool)
    hidden[2:, 1:4] = True
    result = lmconv.complete(model, images, hidden, number=2, order_choice="each", label=MIXED)
    numbers = [[1] * 8, [3] * 8, [0] * 8, [2] * 8]
    assert result.label.tolist() == numbers
    for index, name in enumerate(MIXED):
        orders = [order.visible_first(hidden) for order in model.orders()]
        for image, nats, order in zip(
            result.images[index], result.nats[index], result.order_indices[index], strict=True
        ):
            label = None if name is None else [name]
            score = model.log_prob(image[None], order=orders[order], pixels=hidden, label=label)
            assert -score.item() == pytest.approx(nats.item(), rel=1e-5)
        label = None if name is None else [name]
        score = model.log_prob(images[index : index + 1], orders[0], hidden, label=label)
        assert -score.item() == pytest.approx(result.original_nats[index].item(), rel=1e-5)
    assert lmconv.complete(model, images, hidden).label is None


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("dog", "'dog' is no class of the model: choose one of ant, bee, cow"),
        (3, "3 is no class"),
        (-1, "-1 is no class"),
        (["ant", "bee"], "one for each of 4 images, got 2"),
        (1.5, "one for each of 4 images, got float"),
        ([0, 1, 2, 1.5], "1.5 is no class"),
    ],
)
def test_labels_that_do_not_fit_are_refused(model, images, label, words):
    with pytest.raises(ValueError, match=words):
        model.log_prob(images, label=label)


def test_models_without_classes_take_no_labels(images):
    with pytest.raises(ValueError, match="knows no classes"):
        small_model(classes=()).log_prob(images, label=0)


def test_files_describe_the_classes(model, images, tmp_path):
    model.save(tmp_path / "model.pth")
    loaded = lmconv.load(tmp_path / "model.pth", device="cpu")
    assert loaded.description.classes == CLASSES and "3 classes" in repr(loaded)
    assert torch.equal(loaded.log_prob(images, label=MIXED), model.log_prob(images, label=MIXED))
    with pytest.raises(CheckpointError, match="3 classes, not none"):
        small_model(classes=()).load_weights(tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="3 classes, not 2"):
        small_model(classes=("a", "b")).load_weights(tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("a",), "only one class"),
        (("a", "a"), "two classes have the name 'a'"),
        (("a", ""), "1 to 100 characters"),
        (("a", "b" * 101), "1 to 100 characters"),
    ],
)
def test_impossible_names_of_classes_are_refused(classes, words):
    with pytest.raises(ValueError, match=words):
        small_model(classes=classes)


def test_compressed_files_do_not_depend_on_classes(model, images):
    data = lmconv.compress(model, images)
    assert torch.equal(lmconv.decompress(model, data), images)


# Training

CONFIG = lmconv.TrainingConfig(2, lmconv.OptimizationConfig(lr=0.03), sample_interval=9)


def striped(number=64, seed=0):
    """Images of class 0 are dark above, those of class 1 below."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, number)
    values = random.integers(0, 60, (number, 1, 5, 6))
    rows = np.arange(5)[None, None, :, None] < 3
    values += 190 * (rows == (labels[:, None, None, None] == 1))
    return values.astype(np.uint8), labels


def test_a_network_learns_to_tell_classes_from_either_half_and_without_labels(tmp_path):
    model = small_model(classes=("dark above", "dark below"))
    pixels, labels = striped()
    config = replace(CONFIG, max_epochs=16, optimization=lmconv.OptimizationConfig(lr=0.003))
    test_images, test_labels = striped(20, seed=1)
    trained = lmconv.train(
        *(model, pixels, tmp_path, config),
        labels=labels,
        test_images=test_images,
        test_labels=test_labels,
        batch_size=8,
    )
    upper = np.zeros((5, 6), dtype=bool)
    upper[:2] = True
    for visible in (None, upper, ~upper):
        probabilities = trained.classify(test_images, visible)
        assert (probabilities.argmax(dim=1).numpy() == test_labels).all()
    with_label = trained.log_prob(test_images, label=test_labels).mean()
    without = trained.log_prob(test_images).mean()
    wrong = trained.log_prob(test_images, label=1 - test_labels).mean()
    assert with_label > without > wrong + 5
    assert '"test/nats_1x5x6_given_class"' in (tmp_path / "metrics.jsonl").read_text()


def test_a_run_that_is_resumed_ends_with_the_same_weights(tmp_path):
    pixels, labels = striped(30)
    model = small_model(classes=("a", "b"))
    initial = {k: v.clone() for k, v in published_state_dict(model.network).items()}

    def train(folder, config, **options):
        fresh = small_model(classes=("a", "b"))
        fresh.load_weights({"model_state_dict": initial})
        run = lmconv.train(
            fresh, pixels, tmp_path / folder, config, labels=labels, batch_size=10, **options
        )
        return published_state_dict(run.network)

    whole = train("whole", CONFIG)
    train("parts", replace(CONFIG, max_epochs=1))
    resumed = train("parts", CONFIG, resume=True)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert not torch.equal(
        whole["up_layers.0.u_stream.0.classes"], initial["up_layers.0.u_stream.0.classes"]
    )


@pytest.mark.parametrize(
    ("classes", "labels", "words"),
    [
        (CLASSES, None, "pass the labels"),
        ((), [0] * 30, "knows no classes"),
        (CLASSES, [0] * 29, "30 whole numbers from 0 to 2"),
        (CLASSES, [3] * 30, "30 whole numbers from 0 to 2"),
        (CLASSES, [0.5] * 30, "30 whole numbers from 0 to 2"),
    ],
)
def test_labels_of_training_images_must_fit(classes, labels, words, tmp_path):
    pixels, _ = striped(30)
    with pytest.raises(ValueError, match=words):
        lmconv.train(small_model(classes=classes), pixels, tmp_path / "x", CONFIG, labels=labels)
    assert not (tmp_path / "x").exists()
