"""Cached sampling against one full forward pass for each pixel, and how many steps orders take.

    python benchmarks/sampling.py [--quick] [--repeats N] [--json FILE]

Sixteen images of 28 x 28 are drawn with the network of the MNIST commands (kernel 3, positional
normalisation, mixture likelihood). Its weights are untrained, since speed does not depend on them.
A cached run is measured as a whole, including its preparation. A naive run would take hours: its
time is that of one forward pass, after a warm-up, times H*W, once with the patch-matrix layer, as
published, and once with ours. Times are medians of runs taken in turn. Memory is the peak of a
whole run, or of one forward pass for naive.

Arithmetic is what masks leave on, at the pixels of a step and for all images. Its rate is compared
with that of multiplying two 2048 x 2048 matrices on the same machine. The bytes of kernels are
those of the taps that a step reads. Their rate is compared with that of summing 256 MB.

The second table counts the steps of whole images by order. Each dependency depth is one step.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measure import interleaved_medians, peak_memory, print_table, start, write_rows
from network import PatchMatrixConv2d
from torch import nn

from lmconv.generation.sampler import pixel_noise, sample_cached, sample_naive
from lmconv.generation.schedule import generation_steps, mask_reads
from lmconv.likelihoods import make_likelihood
from locally_masked_convolution import LocallyMaskedConv2d
from masking import Masks, get_generation_order_idx, get_masks
from model import ModelConfig, build_model

DILATION = 2
DEPTH_ORDERS = (
    "raster_scan",
    "s_curve",
    "gilbert2d",
    "s_curve_center_quarter_last",
    "diagonal",
    "spiral_in",
    "zipper",
    "random",
)


@dataclass(frozen=True)
class Case:
    """A network, and the images that it draws."""

    nr_resnet: int
    nr_filters: int
    images: int = 16
    size: int = 28
    kernel_size: int = 3
    channels: int = 1

    def __str__(self) -> str:
        return f"{self.nr_resnet} x {self.nr_filters} filters, {self.images} images"


CASES = [Case(2, 64), Case(5, 160)]
QUICK_CASES = [Case(1, 16, images=4, size=12)]
ORDERS = ("s_curve", "gilbert2d", "raster_scan")


def network(case: Case, layer: type[LocallyMaskedConv2d]) -> nn.Module:
    """The network made of ``layer``."""
    likelihood = make_likelihood(case.channels)
    config = ModelConfig(
        "lmconv",
        input_channels=case.channels,
        output_channels=likelihood.num_output_channels,
        nr_resnet=case.nr_resnet,
        nr_filters=case.nr_filters,
        kernel_size=case.kernel_size,
        max_dilation=DILATION,
        normalization="pono",
    )
    torch.manual_seed(0)
    with patch("model.LocallyMaskedConv2d", layer):
        return build_model(config).eval()


def measure(case: Case, repeats: int, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """One row for each order."""
    likelihood = make_likelihood(case.channels)
    models = {
        "ours": network(case, LocallyMaskedConv2d).to(device),
        "oracle": network(case, PatchMatrixConv2d).to(device),
    }
    images = torch.zeros(case.images, case.channels, case.size, case.size, device=device)
    hidden = torch.ones(case.size, case.size, dtype=torch.bool, device=device)
    noise = pixel_noise(likelihood, case.images, case.size, case.size, seed=0).to(device)
    orders = {name: get_generation_order_idx(name, case.size, case.size) for name in ORDERS}
    masks = {name: masks_of(case, order).to(device) for name, order in orders.items()}

    def forward(name: str) -> Callable[[], object]:
        def run() -> None:
            with torch.inference_mode():
                models[name](images, masks["s_curve"])

        return run

    def cached(name: str) -> Callable[[], object]:
        arguments = (orders[name], masks[name], images, hidden, noise)
        return lambda: sample_cached(models["ours"], likelihood, *arguments)

    runs = {name: forward(name) for name in models} | {name: cached(name) for name in ORDERS}
    memory = {name: peak_memory(run) for name, run in runs.items()}
    seconds = interleaved_medians(runs, repeats)
    product_rate, bandwidth = machine_rates(device)
    for name in ORDERS:
        steps, multiplications, read = work(case, models["ours"], orders[name], masks[name])
        step_seconds = seconds[name] / steps
        naive = {layer: seconds[layer] * case.size**2 for layer in models}
        yield {
            "name": f"{case}, {name}",
            **asdict(case),
            "order": name,
            "steps": steps,
            "seconds": seconds[name],
            "step_seconds": step_seconds,
            **{f"naive_{layer}_seconds": naive[layer] for layer in models},
            **{f"speedup_over_naive_{layer}": naive[layer] / seconds[name] for layer in models},
            "flops_per_second": 2 * multiplications / seconds[name],
            "share_of_product_rate": 2 * multiplications / seconds[name] / product_rate,
            "kernel_bytes_per_step": read / steps,
            "share_of_bandwidth": read / seconds[name] / bandwidth,
            "bytes": memory[name],
            **{f"naive_{layer}_bytes": memory[layer] for layer in models},
        }


def draws_the_same_images(device: str) -> bool:
    """Whether the cached and the naive sampler draw the same images in a small case."""
    case = Case(1, 8, images=4, size=8, channels=3)
    likelihood = make_likelihood(case.channels)
    model = network(case, LocallyMaskedConv2d).to(device, torch.float64)
    shape = (case.images, case.channels, case.size, case.size)
    images = torch.zeros(shape, dtype=torch.float64, device=device)
    hidden = torch.ones(case.size, case.size, dtype=torch.bool, device=device)
    noise = pixel_noise(likelihood, case.images, case.size, case.size, seed=0).to(device)
    for name in ORDERS:
        order = get_generation_order_idx(name, case.size, case.size)
        arguments = (order, masks_of(case, order).to(device), images, hidden, noise)
        cached = sample_cached(model, likelihood, *arguments)
        if not torch.equal(cached, sample_naive(model, likelihood, *arguments)):
            return False
    return True


def masks_of(case: Case, order: np.ndarray) -> Masks:
    """The masks of an order for a case."""
    return get_masks(order, case.size, case.size, case.kernel_size, DILATION)


def work(case: Case, model: nn.Module, order: np.ndarray, masks: Masks) -> tuple[int, int, int]:
    """Steps, multiplications, and bytes of kernels read, in a whole run."""
    reads = mask_reads(masks, case.size, case.size, DILATION)
    hidden = np.ones((case.size, case.size), dtype=bool)
    steps = generation_steps(order, reads, hidden)
    multiplications = weights = 0
    for module in model.modules():
        if isinstance(module, LocallyMaskedConv2d):
            table = reads.undilated if module.dilation == 1 else reads.dilated
            if module.in_channels == case.channels + 1:  # the image and a channel of ones
                table = reads.init
            size = module.in_channels * module.out_channels
            multiplications += size * int((table >= 0).sum()) * case.images
            weights += size * sum(int((table[step] >= 0).any(axis=0).sum()) for step in steps)
        elif isinstance(module, nn.Linear):
            size = module.in_features * module.out_features
            multiplications += size * len(order) * case.images
            weights += size * len(steps)
    return len(steps), multiplications, 4 * weights


def machine_rates(device: str) -> tuple[float, float]:
    """Arithmetic of a large product and bytes of a large sum, per second."""
    matrix = torch.randn(2048, 2048, device=device)
    values = torch.ones(2**26, device=device)
    seconds = interleaved_medians({"product": lambda: matrix @ matrix, "sum": values.sum}, 7)
    return 2 * 2048**3 / seconds["product"], 4 * len(values) / seconds["sum"]


HEADER = (
    "network",
    "order",
    "steps",
    "seconds",
    "naive / cached: oracle layer",
    "our layer",
    "ms a step",
    "GFLOP/s",
    "of the product rate",
    "MB of kernels a step",
    "of the bandwidth",
    "MB: cached / naive ours / oracle",
)


def table_row(row: dict[str, Any]) -> list[str]:
    """A row of the printed table."""
    megabytes = (row["bytes"], row["naive_ours_bytes"], row["naive_oracle_bytes"])
    return [
        row["name"].rsplit(", ", 1)[0],
        row["order"],
        str(row["steps"]),
        f"{row['seconds']:.2f}",
        f"{row['speedup_over_naive_oracle']:,.0f}x",
        f"{row['speedup_over_naive_ours']:,.0f}x",
        f"{1e3 * row['step_seconds']:.2f}",
        f"{row['flops_per_second'] / 1e9:.0f}",
        f"{row['share_of_product_rate']:.2f}",
        f"{row['kernel_bytes_per_step'] / 1e6:.0f}",
        f"{row['share_of_bandwidth']:.2f}",
        " / ".join(f"{number / 2**20:.0f}" for number in megabytes),
    ]


def depths(sizes: list[int], kernels: list[int]) -> Iterator[dict[str, Any]]:
    """How many steps whole images take."""
    for size in sizes:
        for kernel_size in kernels:
            row: dict[str, Any] = {"name": f"steps of {size} x {size}, kernel {kernel_size}"}
            row |= {"size": size, "kernel_size": kernel_size, "pixels": size**2}
            for name in DEPTH_ORDERS:
                order = get_generation_order_idx(name, size, size)
                masks = get_masks(order, size, size, kernel_size, DILATION)
                reads = mask_reads(masks, size, size, DILATION)
                row[name] = len(generation_steps(order, reads, np.ones((size, size), bool)))
            yield row


def depths_row(row: dict[str, Any]) -> list[object]:
    """A row of the printed table of steps."""
    size = f"{row['size']} x {row['size']}"
    return [size, row["kernel_size"], row["pixels"], *(row[name] for name in DEPTH_ORDERS)]


def main() -> None:
    """Measure every network, count the steps of orders, print both tables and write the rows."""
    args = start(__doc__ or "", default_repeats=3)
    cases = QUICK_CASES if args.quick else CASES
    measured = itertools.chain.from_iterable(measure(case, args.repeats) for case in cases)
    rows = print_table(HEADER, measured, table_row)
    print()
    header = ("image", "kernel", "pixels", *DEPTH_ORDERS)
    rows += print_table(header, depths([12] if args.quick else [28, 32], [3, 5]), depths_row)
    write_rows(args.json, rows)


if __name__ == "__main__":
    main()
