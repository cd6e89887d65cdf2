"""A training step of the whole network: with our layer, dense convolutions, or the oracle.

    python benchmarks/network.py [--quick] [--repeats N] [--json FILE]

The network is an LMConv PixelCNN++ for images of MNIST's size (kernel 5, mixture likelihood,
realistic batch sizes, random images). A step is forward, loss, backward and Adam. The same network
is built three times: with ``LocallyMaskedConv2d``; with dense convolutions, which mask nothing; and
with ``patch_matrix_convolution``, which recomputes the patches in the backward pass, as the
published layer does, since storing them for all layers would take 10 GB. Times are medians of steps
taken in turn.

The oracle writes and reads blocks of 100 to 300 MB, which the operating system clears each time
they are allocated. That is part of its time, and a large part where pages are expensive.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from measure import interleaved_medians, peak_memory, print_table, start, write_rows
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lmconv.likelihoods import make_likelihood
from lmconv.pixel_values import to_grid
from locally_masked_convolution import LocallyMaskedConv2d, patch_matrix_convolution
from masking import get_generation_order_idx, get_masks
from model import ModelConfig, build_model

IMAGE_SIZE = 28


@dataclass(frozen=True)
class Case:
    """A network, the size of its batches and its order."""

    nr_resnet: int
    nr_filters: int
    batch: int
    order: str
    kernel_size: int = 5

    def __str__(self) -> str:
        return f"{self.nr_resnet} x {self.nr_filters} filters, batch {self.batch}"


CASES = [
    Case(*size, order) for size in ((2, 64, 32), (5, 160, 4)) for order in ("s_curve", "gilbert2d")
]
QUICK_CASES = [Case(1, 32, 4, order) for order in ("s_curve", "gilbert2d")]


class DenseConv2d(LocallyMaskedConv2d):
    """The convolution without its mask."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        padding = self.dilation * (self.kernel_size[0] // 2)
        return F.conv2d(x, self.weight, self.bias, padding=padding, dilation=self.dilation)


class PatchMatrixConv2d(LocallyMaskedConv2d):
    """The usual formula, without storing patches for the backward pass."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        arguments = (x, self.weight, self.bias, mask, self.dilation)
        return checkpoint(patch_matrix_convolution, *arguments, use_reentrant=False)


LAYERS = {"ours": LocallyMaskedConv2d, "dense": DenseConv2d, "oracle": PatchMatrixConv2d}


def training_step(
    case: Case,
    layer: type[LocallyMaskedConv2d],
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Callable[[], object]:
    """A function that trains for one step, with the network made of ``layer``.

    ``dtype`` is that of an autocast region, or None for no such region.
    """
    torch.manual_seed(0)
    likelihood = make_likelihood(num_channels=1)
    config = ModelConfig(
        "lmconv",
        input_channels=1,
        output_channels=likelihood.num_output_channels,
        nr_resnet=case.nr_resnet,
        nr_filters=case.nr_filters,
        kernel_size=case.kernel_size,
    )
    with patch("model.LocallyMaskedConv2d", layer):
        model = build_model(config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    shape = (case.batch, 1, IMAGE_SIZE, IMAGE_SIZE)
    images = to_grid(2 * torch.rand(shape, device=device) - 1, n_bits=8)
    order = get_generation_order_idx(case.order, IMAGE_SIZE, IMAGE_SIZE)
    masks = get_masks(order, IMAGE_SIZE, IMAGE_SIZE, case.kernel_size, config.max_dilation)
    masks = type(masks)(*(mask.to(device) for mask in masks))

    def step() -> None:
        with torch.autocast(device, dtype, enabled=dtype is not None):
            logits = model(images, masks)
        (-likelihood.log_prob(logits.float(), images).sum()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(
    case: Case, repeats: int, device: str = "cpu", dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """One row of the table."""
    steps = {name: training_step(case, layer, device, dtype) for name, layer in LAYERS.items()}
    for step in steps.values():
        step()  # in its first step, Adam allocates its averages
    memory = {name: peak_memory(step) for name, step in steps.items()}
    seconds = interleaved_medians(steps, repeats)
    return {
        "name": f"{case}, {case.order}",
        **asdict(case),
        "precision": "float32" if dtype is None else str(dtype).removeprefix("torch."),
        **{f"{name}_seconds": seconds[name] for name in steps},
        "ratio_to_dense": seconds["ours"] / seconds["dense"],
        "speedup_over_oracle": seconds["oracle"] / seconds["ours"],
        **{f"{name}_bytes": memory[name] for name in steps},
    }


HEADER = (
    "network",
    "order",
    "precision",
    "seconds: ours / dense / oracle",
    "time / dense",
    "oracle / time",
    "MB: ours / dense / oracle",
)


def table_row(row: dict[str, Any]) -> list[str]:
    """A row of the printed table."""
    return [
        row["name"].rsplit(", ", 1)[0],
        row["order"],
        row["precision"],
        " / ".join(f"{row[f'{name}_seconds']:.2f}" for name in LAYERS),
        f"{row['ratio_to_dense']:.2f}",
        f"{row['speedup_over_oracle']:.1f}x",
        " / ".join(f"{row[f'{name}_bytes'] / 2**20:.0f}" for name in LAYERS),
    ]


def main() -> None:
    """Measure every network, print the table and write its rows."""
    args = start(__doc__ or "", default_repeats=3)
    cases = QUICK_CASES if args.quick else CASES
    rows = print_table(HEADER, (measure(case, args.repeats) for case in cases), table_row)
    write_rows(args.json, rows)


if __name__ == "__main__":
    main()
