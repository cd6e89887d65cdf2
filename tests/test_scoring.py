"""Likelihoods of data sets: every image once, regions, ensembles, standard errors."""

import math

import pytest
import torch
from helpers.models import tiny_model

from lmconv.data.pipeline import TestData
from lmconv.data.sources import DataError, MemorySource
from lmconv.pixel_values import Preparation
from lmconv.scoring import Summary, score_data_set, summarize


class FixedData(TestData):
    """A test set of given images, in batches of a given size."""

    def __init__(self, images, batch_size, claimed=None, labels=None):
        source = MemorySource(((images + 1) * 127.5).byte().numpy())
        if claimed is not None:
            source.num_images = claimed
        super().__init__(source, 1, Preparation(n_bits=1), batch_size)
        self.labels = labels
        self.images = images


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


@pytest.mark.parametrize("numbers", [(1, 1), (1, 5, 2), (4, 3)])
def test_summaries_of_parts_join_to_that_of_all_images(numbers):
    parts = [torch.randn(2, number, dtype=torch.float64) * 9 - 50 for number in numbers]
    summaries = [Summary([0, 3]) for _ in parts]
    for summary, part in zip(summaries, parts, strict=True):
        summary.add(part)
    joined = Summary.joined(summaries).result(5)
    whole = summarize(torch.cat(parts, dim=1), [0, 3], 5)
    for got, expected in zip(
        [*joined["orders"], joined["ensemble"]], [*whole["orders"], whole["ensemble"]], strict=True
    ):
        assert got == pytest.approx(expected)
    assert joined["num_images"] == whole["num_images"] == sum(numbers)


def binary_model():
    return tiny_model(binarize=True, nr_filters=6)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_every_image_counts_once_at_any_batch_size(batch_size):
    model = binary_model()
    data = FixedData(binary_images(7), batch_size)
    result = score_data_set(model, data)
    whole = score_data_set(model, FixedData(data.images, 7))
    assert result["num_images"] == 7 and result["image_shape"] == [1, 8, 8]
    assert result["ensemble"]["nats"] == pytest.approx(whole["ensemble"]["nats"], rel=1e-6)


def test_images_with_labels_are_scored_without_and_with_them():
    model = tiny_model(binarize=True, classes=("a", "b", "c"))
    images, labels = binary_images(7), torch.tensor([0, 2, 1, 1, 0, 2, 2])
    result = score_data_set(model, FixedData(images, 3, labels=labels), order_indices=[1, 4])
    plain = score_data_set(model, FixedData(images, 7), order_indices=[1, 4])
    with_label = result.pop("with_label")
    assert result["ensemble"]["nats"] == pytest.approx(plain["ensemble"]["nats"], rel=1e-6)
    given = -model.log_prob(images, [1, 4], label=labels).mean().item()
    assert with_label["ensemble"]["nats"] == pytest.approx(given, rel=1e-6)
    assert with_label["num_images"] == 7 and "with_label" not in plain
    assert given != pytest.approx(plain["ensemble"]["nats"], rel=1e-3)


def test_a_loader_that_loses_images_is_an_error():
    with pytest.raises(RuntimeError, match="scored 5 of 6"):
        score_data_set(binary_model(), FixedData(binary_images(5), 2, 6))


def test_an_empty_test_set_is_an_error():
    with pytest.raises(DataError, match="empty"):
        score_data_set(binary_model(), FixedData(torch.empty(0, 1, 8, 8), 2))


def test_regions_add_up_to_the_whole_image():
    model, images = binary_model(), binary_images(3)

    def scores(top, bottom, left, right):
        pixels = torch.zeros(8, 8, dtype=torch.bool)
        pixels[top:bottom, left:right] = True
        return model.log_likelihoods(images, model.orders(), pixels)

    parts = scores(0, 3, 0, 8) + scores(3, 8, 0, 5) + scores(3, 8, 5, 8)
    torch.testing.assert_close(parts, scores(0, 8, 0, 8))
    torch.testing.assert_close(parts, model.log_likelihoods(images, model.orders()))


def test_some_orders_are_scored_under_their_indices():
    data, model = FixedData(binary_images(4), 4), binary_model()
    expected = score_data_set(model, data)["orders"]
    got = score_data_set(model, data, order_indices=[6, 1])["orders"]
    assert [order["index"] for order in got] == [6, 1]
    for order in got:
        assert order["nats"] == pytest.approx(expected[order["index"]]["nats"], rel=1e-6)


def test_the_bits_of_a_region_are_those_of_its_dimensions():
    pixels = torch.zeros(8, 8, dtype=torch.bool)
    pixels[2:4, 1:6] = True
    result = score_data_set(binary_model(), FixedData(binary_images(4), 4), pixels=pixels)
    nats = result["ensemble"]["nats"]
    assert result["ensemble"]["bpd"] == pytest.approx(nats / (10 * math.log(2)))


def test_the_ensemble_is_at_least_as_good_as_the_mean_order():
    result = score_data_set(binary_model(), FixedData(binary_images(9), 4))
    mean = sum(order["nats"] for order in result["orders"]) / 8
    assert result["ensemble"]["nats"] < mean
