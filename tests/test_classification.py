"""Classes by Bayes: exact probabilities, and how they are summed up."""

import itertools
import math

import pytest
import torch
from helpers.models import tiny_model

import lmconv
from lmconv.classification import (
    calibration_bins,
    calibration_error,
    summarize_classification,
)

CLASSES = ("ant", "bee", "cow")
SIZE = (2, 3)


def small_model(**settings):
    settings = {"binarize": True, "classes": CLASSES, "orders": THREE_ORDERS} | settings
    settings["image_shape"] = (1, *SIZE)
    model = tiny_model(**settings)
    model.network.double()
    return model


THREE_ORDERS = lmconv.OrderConfig(all_variants=True, variants=(0, 3, 6))


EVERY_IMAGE = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6))).double()
EVERY_IMAGE = EVERY_IMAGE.view(-1, 1, *SIZE)

VISIBLE = {
    "all": [[1, 1, 1], [1, 1, 1]],
    "top": [[1, 1, 1], [0, 0, 0]],
    "scattered": [[0, 1, 0], [1, 0, 1]],
}


@pytest.mark.parametrize(
    ("orders", "prior"), [([0], None), ([2], [0.2, 0.5, 0.3]), (None, [0.2, 0.5, 0.3])]
)
@pytest.mark.parametrize("visible", VISIBLE)
def test_probabilities_of_classes_are_those_of_bayes_by_enumeration(visible, orders, prior):
    """The probability of visible pixels is a sum over all images that agree with them."""
    model, pixels = small_model(), torch.tensor(VISIBLE[visible]).bool()
    used = [order.visible_first(~pixels) for order in model.orders()]
    used = used if orders is None else [used[index] for index in orders]
    # K orders x images x classes
    joint = torch.stack(
        [
            torch.stack(
                [model.log_prob(EVERY_IMAGE, order=order, label=name).exp() for name in CLASSES],
                dim=1,
            )
            for order in used
        ]
    )
    torch.testing.assert_close(joint.sum(dim=1), torch.ones_like(joint[:, 0]))
    agree = (EVERY_IMAGE[:, None] == EVERY_IMAGE[None])[:, :, 0][..., pixels].all(dim=-1)
    marginal = (agree.double() @ joint).mean(dim=0)  # images x classes
    weighted = marginal * torch.tensor(prior or [1 / 3] * 3)
    expected = weighted / weighted.sum(dim=1, keepdim=True)
    found = model.classify(EVERY_IMAGE, pixels, orders, prior, batch_size=10)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (expected.std(dim=0) > 1e-3).all(), "the classes hardly differ"


def test_what_is_hidden_has_no_influence():
    model, pixels = small_model(), torch.tensor(VISIBLE["scattered"]).bool()
    images = EVERY_IMAGE[::9]
    other = torch.where(pixels, images, -images)
    assert torch.equal(model.classify(images, pixels), model.classify(other, pixels))


@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        ({"classes": ()}, {}, "knows no classes"),
        ({}, {"visible": torch.zeros(SIZE, dtype=torch.bool)}, "has no True pixels"),
        ({}, {"visible": torch.ones(SIZE)}, "bool"),
        ({}, {"prior": [0.5, 0.5]}, "3 probabilities"),
        ({}, {"prior": [0.5, 0.7, -0.2]}, "3 probabilities"),
    ],
)
def test_impossible_arguments_are_refused(settings, arguments, words):
    with pytest.raises(ValueError, match=words):
        small_model(**settings).classify(EVERY_IMAGE[:2], **arguments)


def test_the_baseline_classifies_whole_images_only():
    model = tiny_model(
        (1, 4, 4),
        binarize=True,
        classes=CLASSES,
        architecture="pixelcnnpp",
        orders=lmconv.OrderConfig(("raster_scan",)),
    )
    images = torch.randint(0, 2, (3, 1, 4, 4)) * 2.0 - 1
    found = model.classify(images)
    given = torch.stack([model.log_prob(images, label=index) for index in range(3)], dim=1)
    torch.testing.assert_close(found, given.softmax(dim=1))
    half = torch.ones(4, 4, dtype=torch.bool)
    half[2:] = False
    with pytest.raises(ValueError, match="only one order"):
        model.classify(images, half)


def test_calibration_compares_confidence_with_accuracy_bin_by_bin():
    probabilities = torch.tensor([[0.55, 0.45], [0.4, 0.6], [0.95, 0.05], [0.91, 0.09], [1.0, 0.0]])
    probabilities, labels = probabilities.double().round(decimals=2), torch.tensor([0, 0, 0, 1, 0])
    bins = calibration_bins(probabilities, labels)
    assert [each.num_images for each in bins] == [0, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    assert bins[5].confidence == pytest.approx(0.575) and bins[5].accuracy == 0.5
    assert bins[9].confidence == pytest.approx(2.86 / 3) and bins[9].accuracy == pytest.approx(
        2 / 3
    )
    assert bins[0].confidence is None and bins[0].accuracy is None
    assert (bins[5].lowest, bins[5].highest) == (0.5, 0.6)
    expected = 2 / 5 * 0.075 + 3 / 5 * (2.86 / 3 - 2 / 3)
    assert calibration_error(bins) == pytest.approx(expected)
    summary = summarize_classification(probabilities, labels)
    assert summary["accuracy"] == 3 / 5
    assert summary["calibration_error"] == pytest.approx(expected)
    nats = -sum(math.log(p) for p in (0.55, 0.4, 0.95, 0.09, 1.0)) / 5
    assert summary["nats"] == pytest.approx(nats)


def test_predictions_drawn_from_their_own_probabilities_are_calibrated():
    probabilities = torch.rand(20000, 4, dtype=torch.float64).pow(3)
    probabilities /= probabilities.sum(dim=1, keepdim=True)
    labels = probabilities.multinomial(1)[:, 0]
    assert calibration_error(calibration_bins(probabilities, labels)) < 0.02
    assert calibration_error(calibration_bins(probabilities, (labels + 1) % 4)) > 0.2
