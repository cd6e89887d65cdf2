"""Likelihoods of data sets: every image once, regions, ensembles, standard errors."""

import math

import pytest
import torch

from lmconv.modes.options import parse
from lmconv.modes.regions import Region, scored_region
from lmconv.modes.run import set_up
from lmconv.scoring import evaluate, log_likelihoods, summarize
from utils import UsageError, setup_logging

SMALL = ["-d", "digits", "--binarize", "-q", "1", "-n", "6"]


def experiment_of(*flags):
    return set_up(parse([*SMALL, *flags]), setup_logging(None))


class FixedData:
    """A test set of given images, in batches of a given size."""

    def __init__(self, images, batch_size, claimed=None):
        self.images, self.batch_size = images, batch_size
        self.num_images = len(images) if claimed is None else claimed

    def batches(self, image_shape):
        return self.images.split(self.batch_size) if len(self.images) else ()


def binary_images(number, size=8):
    return torch.randint(0, 2, (number, 1, size, size)) * 2.0 - 1


def test_summary_by_hand():
    values = torch.log(torch.tensor([[0.5, 0.1], [0.1, 0.3]], dtype=torch.float64))
    summary = summarize(values, [2, 5], num_dimensions=2)
    assert [order["index"] for order in summary["orders"]] == [2, 5]
    nats = -(math.log(0.5) + math.log(0.1)) / 2
    first = summary["orders"][0]
    assert first["nats"] == pytest.approx(nats)
    assert first["bpd"] == pytest.approx(nats / (2 * math.log(2)))
    assert first["nats_stderr"] == pytest.approx(abs(math.log(0.5) - math.log(0.1)) / 2)
    assert summary["ensemble"]["nats"] == pytest.approx(-(math.log(0.3) + math.log(0.2)) / 2)


def test_the_standard_error_of_one_image_is_unknown():
    assert summarize(torch.zeros(1, 1), [0], 4)["orders"][0]["nats_stderr"] is None


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_every_image_counts_once_at_any_batch_size(batch_size):
    experiment = experiment_of()
    data = FixedData(binary_images(7), batch_size)
    result = evaluate(experiment, experiment.model, data, (1, 8, 8))
    whole = evaluate(experiment, experiment.model, FixedData(data.images, 7), (1, 8, 8))
    assert result["num_images"] == 7
    assert result["ensemble"]["nats"] == pytest.approx(whole["ensemble"]["nats"], rel=1e-6)


def test_a_loader_that_loses_images_is_an_error():
    experiment = experiment_of()
    with pytest.raises(RuntimeError, match="scored 5 of 6"):
        evaluate(experiment, experiment.model, FixedData(binary_images(5), 2, 6), (1, 8, 8))


def test_an_empty_test_set_is_an_error():
    experiment = experiment_of()
    with pytest.raises(UsageError, match="empty"):
        evaluate(experiment, experiment.model, FixedData(torch.empty(0, 1, 8, 8), 2), (1, 8, 8))


def test_regions_add_up_to_the_whole_image():
    experiment = experiment_of()
    images, masks = binary_images(3), experiment.masks((1, 8, 8))
    model = experiment.model.eval()

    def scores(*box):
        return log_likelihoods(model, experiment.likelihood, images, masks, Region(*box))

    parts = scores(0, 3, 0, 8) + scores(3, 8, 0, 5) + scores(3, 8, 5, 8)
    torch.testing.assert_close(parts, scores(0, 8, 0, 8))


def test_test_masks_choose_orders_and_keep_their_indices():
    data = FixedData(binary_images(4), 4)
    every = experiment_of()
    some = experiment_of("--test_masks", "6", "1")
    some.model.load_state_dict(every.model.state_dict())
    expected = evaluate(every, every.model, data, (1, 8, 8))["orders"]
    got = evaluate(some, some.model, data, (1, 8, 8))["orders"]
    assert [order["index"] for order in got] == [6, 1]
    for order in got:
        assert order["nats"] == pytest.approx(expected[order["index"]]["nats"], rel=1e-6)


def test_the_ensemble_is_at_least_as_good_as_the_mean_order():
    experiment = experiment_of()
    result = evaluate(experiment, experiment.model, FixedData(binary_images(9), 4), (1, 8, 8))
    mean = sum(order["nats"] for order in result["orders"]) / 8
    assert result["ensemble"]["nats"] < mean


@pytest.mark.parametrize(
    ("flags", "box"),
    [
        ("", (0, 8, 0, 8)),
        ("--test_minh 2 --test_maxw 3", (2, 8, 0, 3)),
    ],
)
def test_custom_regions_default_to_the_image(flags, box):
    args = parse([*SMALL, "--test_region", "custom", *flags.split()])
    assert scored_region(args, (1, 8, 8)) == Region(*box)


@pytest.mark.parametrize("flags", ["--test_maxh 9", "--test_minw 4 --test_maxw 4"])
def test_regions_outside_the_image_are_refused(flags):
    args = parse([*SMALL, "--test_region", "custom", *flags.split()])
    with pytest.raises(UsageError, match="8x8"):
        scored_region(args, (1, 8, 8))
