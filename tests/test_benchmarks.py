"""The benchmarks measure what they say, on cases that take no time."""

import argparse
import json
import sys

import pytest
import torch
from helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import coding
import gpu
import guessing
import layer
import loader
import measure
import network
import sampling
import training
from helpers.models import tiny_model
from helpers.problems import Problem

from lmconv.pixel_values import to_levels
from locally_masked_convolution import LocallyMaskedConv2d
from masking import raster_scan_idx

TINY_SAMPLING = sampling.Case(1, 4, images=2, size=5)
TINY_LAYER = layer.Case(2, 4, 6, 3, 2)
TINY_NETWORK = network.Case(1, 4, 2, "s_curve", kernel_size=3)


def test_what_is_compared_with_the_oracle_is_the_same_function():
    compared = layer.convolutions(TINY_LAYER)
    names = set(compared.calls)
    assert names == {"dense", "oracle", *layer.ORDERS}
    last_order = layer.ORDERS[-1]  # the oracle has its mask
    torch.testing.assert_close(compared.forward("oracle"), compared.forward(last_order))
    for got, expected in zip(
        compared.gradients(last_order), compared.gradients("oracle"), strict=True
    ):
        torch.testing.assert_close(got, expected)
    assert not torch.allclose(compared.forward("dense"), compared.forward(last_order))
    assert gpu.largest_error(TINY_LAYER, compared, last_order) < 1e-6


def test_the_networks_layers_differ_in_their_masks_alone():
    x, mask = torch.randn(2, 3, 4, 4), (torch.rand(1, 9, 16) < 0.5).float()
    torch.manual_seed(1)
    ours = LocallyMaskedConv2d(3, 2, 3, dilation=2)
    torch.manual_seed(1)
    oracle = network.PatchMatrixConv2d(3, 2, 3, dilation=2)
    torch.manual_seed(1)
    dense = network.DenseConv2d(3, 2, 3, dilation=2)
    torch.testing.assert_close(oracle(x, mask), ours(x, mask))
    torch.testing.assert_close(dense(x, mask), ours(x, torch.ones_like(mask)))


def test_memory_is_the_most_that_is_allocated_at_once():
    def allocate():
        for _ in range(3):
            torch.empty(2**20)
        both = torch.empty(2**20), torch.empty(2**20)
        del both

    if not torch.cuda.is_available():
        assert measure.peak_memory(allocate) == 2 * 4 * 2**20


def test_shares_add_up_and_a_product_is_arithmetic():
    matrix = torch.randn(256, 256)
    shares = measure.time_shares(lambda: [matrix @ matrix for _ in range(20)])
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["arithmetic"] > 0.5


@pytest.mark.parametrize(
    ("module", "tiny"),
    [
        (layer, {"cases": lambda quick: [TINY_LAYER]}),
        (network, {"QUICK_CASES": [TINY_NETWORK]}),
    ],
)
def test_benchmarks_print_a_table_and_write_its_rows(module, tiny, tmp_path, monkeypatch, capsys):
    for name, value in tiny.items():
        monkeypatch.setattr(module, name, value)
    path = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["", "--quick", "--repeats", "1", "--json", str(path)])
    module.main()
    rows = json.loads(path.read_text())
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert {line.count("|") for line in table} == {1 + len(module.HEADER)}
    for row in rows:
        assert row["ratio_to_dense"] > 0 and row["speedup_over_oracle"] > 0
        assert row["bytes" if module is layer else "ours_bytes"] > 0


def test_the_benchmark_of_sampling_counts_what_masks_leave_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sampling, "QUICK_CASES", [TINY_SAMPLING])
    path = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["", "--quick", "--repeats", "1", "--json", str(path)])
    sampling.main()
    rows = json.loads(path.read_text())
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 4 + len(rows)
    measured = [row for row in rows if "order" in row]
    assert [row["steps"] for row in measured] == [25, 25, 13]
    for row in measured:
        assert row["speedup_over_naive_oracle"] > 0 and row["bytes"] > 0
    assert rows[-1]["raster_scan"] < rows[-1]["s_curve"] == rows[-1]["pixels"]


def test_the_benchmark_of_guessing_counts_steps_and_compares_images():
    orders = ("s_curve", "raster_scan")
    rows = list(guessing.measure("tiny", tiny_model(), orders, (1, 2), (4,), repeats=1))
    assert [(row["order"], row["images"], row["guess"]) for row in rows[:6]] == [
        ("s_curve", number, guess) for number in (1, 2) for guess in ("0", "4", "auto")
    ]
    for row in rows:
        assert row["same_images"] and row["seconds"] > 0 and row["bytes"] > 0
        assert len(guessing.table_row(row)) == len(guessing.HEADER)
    assert rows[0]["steps"] == 64 and 16 <= rows[1]["steps"] < 64
    assert rows[1]["kept"] == 64 / rows[1]["steps"]


def test_the_steps_of_the_shipped_models_are_drawn_as_curves(tmp_path):
    rows = list(guessing.measure_steps(argparse.Namespace(quick=True)))
    assert len(rows) == 8 and rows[0]["steps"] == 784 and rows[1]["steps"] < 200
    guessing.save_curves(rows, tmp_path / "steps.png")
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")
    assert all(len(guessing.steps_row(row)) == len(guessing.STEPS_HEADER) for row in rows)


def tiny_codec(precision, images):
    problem = Problem(images=images, dtype=coding.PRECISIONS[precision])
    levels = to_levels(problem.images, 2).byte().numpy()
    return coding.Codec(problem.model, problem.likelihood, problem.order, problem.masks, levels)


def test_the_benchmark_of_coding_measures_both_ways_and_step_by_step(monkeypatch):
    monkeypatch.setattr(coding, "codec", tiny_codec)
    rows = list(coding.measure_speed(argparse.Namespace(quick=True, repeats=1)))
    assert [row["images"] for row in rows] == [1]
    for row in rows:
        assert row["is_lossless"] and row["bytes"] > 0
        assert 0 < row["coder_share"] < 1 and 0 < row["probabilities_share"] < 1
        steps = 30 / row["seconds"]["step by step"]
        assert row["pixel_steps_per_second"] == pytest.approx(steps)
        assert len(coding.speed_row(row)) == len(coding.PARTS["speed"].header)


def test_the_benchmark_of_coding_decodes_in_windows(monkeypatch):
    monkeypatch.setattr(coding, "codec", tiny_codec)
    rows = list(coding.measure_guessing(argparse.Namespace(quick=True, repeats=1)))
    assert [row["window"] for row in rows[:-1]] == ["none", "2", "4", "8", "16", "32"]
    assert rows[0]["steps"] == 30 > rows[1]["steps"] >= 15
    for row in rows:
        assert row["is_lossless"] and row["seconds"] > 0 and row["kept"] == 30 / row["steps"]
        assert len(coding.guessing_row(row)) == len(coding.PARTS["guessing"].header)


def test_logits_elsewhere_are_computed_by_another_process(monkeypatch):
    monkeypatch.setattr(coding, "SURROUNDINGS", {"alone": {"IMAGES_AT_ONCE": "1"}})
    monkeypatch.setattr(coding, "PRECISIONS", {"double": torch.float64})
    rows = list(coding.measure_agreement(argparse.Namespace(quick=True)))
    assert [row["surroundings"] for row in rows] == ["alone", "whole images"]
    for row in rows:
        assert row["num_logits"] == 4 * 2 * 784
        assert 0 < row["largest_difference"] < 1e-12 and row["differing_when_rounded"] == 0
        assert len(coding.agreement_row(row)) == len(coding.PARTS["agreement"].header)


def test_encoder_and_decoder_are_compared_over_a_test_set(monkeypatch):
    monkeypatch.setattr(coding, "IMAGES_AT_ONCE", 3)
    (row,) = coding.measure_margins(argparse.Namespace(quick=True, data_dir=ROOT / "examples"))
    assert row["num_logits"] == 4 * 2 * 784 and row["largest_difference"] < 1e-12


def test_what_is_measured_on_a_gpu_is_checked(monkeypatch, capsys):
    assert sampling.draws_the_same_images("cpu")
    rows = [{"name": "a", "error": 1.0, "precision": "tf32"}, {"name": "b", "same_images": False}]
    assert [fault.split()[0].strip(":") for fault in gpu.faults(rows)] == ["a", "b"]
    assert not list(gpu.faults([{"name": "c", "same_images": True}, {"name": "d"}]))
    monkeypatch.setattr(sys, "argv", ["", "samplin"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "no part 'samplin'" in capsys.readouterr().err


def test_work_of_a_run_is_that_of_its_active_taps():
    model = sampling.network(TINY_SAMPLING, LocallyMaskedConv2d)
    order = raster_scan_idx(5, 5)
    masks = sampling.masks_of(TINY_SAMPLING, order)
    steps, multiplications, read = sampling.work(TINY_SAMPLING, model, order, masks)
    on = {"init": 0, "undilated": 0, "dilated": 0}
    for row in range(5):
        for col in range(5):
            for down, right in ((-1, -1), (-1, 0), (-1, 1), (0, -1)):
                for name, dilation in (("init", 1), ("dilated", 2)):
                    r, c = row + down * dilation, col + right * dilation
                    on[name] += 0 <= r < 5 and 0 <= c < 5
    on["undilated"] = on["init"] + 25
    on["dilated"] += 25
    # u_init; nine blocks of two convolutions; four dilated; six skips and the output.
    blocks = 3 + 5
    expected = on["init"] * 2 * 4 + on["undilated"] * blocks * (8 * 4 + 8 * 8)
    expected += on["dilated"] * 4 * 4 * 4 + 25 * (5 * 8 * 4 + 4 * 30)
    assert (steps, multiplications) == (13, 2 * expected)
    assert read % 4 == 0 and read > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_its_benchmark_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [""])
    assert gpu.main() == 2
    assert "no CUDA GPU" in capsys.readouterr().err


def test_rows_of_training_compare_time_and_memory():
    case = training.Case(1, 8, batch_size=8)
    rows = {row["variant"]: row for row in training.measure_steps(case, repeats=1)}
    assert {"fp32", "bf16", "rematerialize", "accum_freq 4", "oracle layer"} <= rows.keys()
    assert rows["fp32"]["memory_ratio"] == rows["oracle layer"]["speedup_over_oracle"] == 1
    assert rows["rematerialize"]["memory_ratio"] < 0.6
    assert rows["accum_freq 4"]["memory_ratio"] < 0.5
    assert rows["bf16"]["memory_ratio"] < 0.9
    for row in rows.values():
        assert row["images_per_second"] == pytest.approx(8 / row["seconds"])
        assert len(training.steps_row(row)) == len(training.STEPS_HEADER)


def test_the_cost_of_new_masks_is_a_share_of_a_step():
    (row,) = training.measure_holes(argparse.Namespace(quick=True, repeats=1))
    new = row["making_seconds"] + row["new_seconds"]
    assert row["share"] == pytest.approx(1 - row["known_seconds"] / new)
    assert row["curve_seconds"] > 0
    assert len(training.holes_row(row)) == len(training.HOLES_HEADER)


def test_the_rate_of_training_is_a_share_of_that_of_products():
    rows = list(training.measure_rates(argparse.Namespace(quick=True, repeats=1)))
    assert [row["variant"] for row in rows] == ["1 x 8, fp32", "1 x 8, bf16"]
    for row in rows:
        assert 0 < row["share"] < 1 and row["optimizer_seconds"] > 0
        assert row["rate"] == pytest.approx(row["operations"] / row["seconds"])
        assert len(training.rate_row(row)) == len(training.RATE_HEADER)


def test_operations_are_counted_as_the_definition_says():
    model = training.preset_model(4)
    masks, positions = model.orders()[0].masks, 28 * 28
    inside = torch.nn.functional.unfold(torch.ones(1, 1, 28, 28), 3, padding=1)
    farther = torch.nn.functional.unfold(torch.ones(1, 1, 28, 28), 3, dilation=6, padding=6)
    init, near, far = (
        int((mask * part).sum())
        for mask, part in zip(masks, (inside, inside, farther), strict=True)
    )
    blocks, skips = 3 + 5, 5
    convolutions = blocks * near * (8 * 4 + 8 * 8) + 4 * far * 4 * 4
    products = 3 * (convolutions + positions * (skips * 8 * 4 + 4 * 2)) + 2 * init * 2 * 4
    assert training.count_operations(model, 3) == 2 * 3 * products


@pytest.mark.parametrize("dataset", loader.LOADERS)
def test_rows_of_the_loader_tell_its_share(dataset):
    if dataset == "celebahq":
        pytest.importorskip("tensorflow")
    row = loader.measure(dataset, training.Case(1, 2), num_batches=5)
    assert row["batches"] == 5
    assert 0 <= row["share"] < 1 and 0 < row["share_without_thread"] < 1
    assert len(loader.table_row(row)) == len(loader.HEADER)
