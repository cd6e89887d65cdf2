"""The benchmarks measure what they say, on cases that take no time."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import gpu
import layer
import measure
import network

from locally_masked_convolution import LocallyMaskedConv2d

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_its_benchmark_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [""])
    assert gpu.main() == 2
    assert "no CUDA GPU" in capsys.readouterr().err
