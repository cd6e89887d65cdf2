"""How well models fill holes of each kind: nats of the hidden pixels of MNIST test images.

    python benchmarks/holes.py FILE... [-i DATA_DIR] [--images N] [--json FILE]

All models meet the same holes: 20 of each kind that ``--train_holes`` draws, with a fixed seed,
each for a 20th of the images. The joint likelihoods of all orders of a model are averaged, with the
visible pixels first in each. ``whole`` are the nats of whole images, without holes. Standard errors
are those over the images.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

# The modules under test are in the parent directory of this one, in a checkout.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor

import lmconv
from lmconv.image_model import ImageModel
from lmconv.training.holes import HOLES, draw_hole
from utils import progress, write_json

HOLES_OF_A_KIND = 20
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="FILE", help="checkpoints")
    parser.add_argument("-i", "--data-dir", default="data", help="folder with MNIST")
    parser.add_argument("--images", type=int, default=1000, help="number of test images")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    if args.images < HOLES_OF_A_KIND:
        parser.error(f"--images must be at least {HOLES_OF_A_KIND}, got {args.images}")
    images = lmconv.read_mnist(args.data_dir, train=False)[: args.images]
    rows = []
    for path in args.models:
        model = lmconv.load(path)
        nats = {"whole": -model.log_prob(images)}
        nats |= {kind: torch.cat(list(hole_nats(model, images, kind))) for kind in HOLES}
        row: dict[str, str | float] = {"model": str(path)}
        for name, values in nats.items():
            row[name] = values.mean().item()
            row[f"{name}_error"] = (values.std() / len(values) ** 0.5).item()
        rows.append(row)
        numbers = (f"{kind} {row[kind]:.2f} ({row[f'{kind}_error']:.2f})" for kind in nats)
        print(f"{path}: {', '.join(numbers)}", flush=True)
    if args.json:
        write_json(args.json, rows)


def hole_nats(model: ImageModel, images: np.ndarray, kind: str) -> Iterator[Tensor]:
    """The nats of the hidden pixels of each image."""
    random = np.random.default_rng([SEED, sorted(HOLES).index(kind)])
    prepared = model.prepare(images)  # as a whole: an image's binarization depends on its number
    parts = prepared.tensor_split(HOLES_OF_A_KIND)
    for part in progress(parts, kind):
        hidden = torch.from_numpy(draw_hole(prepared.shape[2], prepared.shape[3], random, kind))
        orders = [order.visible_first(hidden) for order in model.orders()]
        yield -model.log_prob(part, orders, hidden)


if __name__ == "__main__":
    main()
