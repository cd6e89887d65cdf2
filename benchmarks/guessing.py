"""Sampling in windows of guessed positions, against the cached sampler without guesses.

    python benchmarks/guessing.py [mnist] [untrained] [grey] [photographs] [steps] [--quick]
        [--repeats N] [--json FILE]

Binary images of 28 x 28 are drawn along an S-curve and in raster order, one, 16 and 64 at a time:
by a shipped model, and by the same network with untrained weights. The other shipped models draw
grey digits along an S-curve, and pieces of photographs, 3 x 32 x 32, in raster order, with values
of 8 bits, which are harder to guess. Each row has a window W as in
``--guess W``, or the choice of ``auto``, and is measured as a whole, preparation included. Runs are
taken in turn, and times are medians. ``kept`` is how many positions of an image a step keeps, on
average. All images are compared with those drawn without guesses.

``steps`` counts the steps of one image for windows of more sizes, without timing them. With
``--json``, a picture of the same name shows them as curves.
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from measure import Part, interleaved_medians, measure_parts, peak_memory, start

import lmconv
from lmconv.generation.guessing import Guessing, choose_guessing, draw_by_guessing
from lmconv.generation.sampler import pixel_noise, sample_cached
from lmconv.generation.schedule import whole_image_schedule
from lmconv.image_model import ImageModel
from lmconv.plots import save_figure

PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"
# The file of each part's model, and the orders to draw in.
MODELS = {
    "mnist": ("binary_mnist_small.pth", ("s_curve", "raster_scan")),
    "untrained": ("binary_mnist_small.pth", ("s_curve", "raster_scan")),
    "grey": ("grey_mnist.pth", ("s_curve",)),
    "photographs": ("photographs.pth", ("raster_scan",)),
}
WINDOWS = (2, 4, 8, 16, 32, 64)
NUMBERS = (1, 16, 64)


@dataclass(frozen=True)
class Case:
    """Images to draw with a model in its first order."""

    model: ImageModel
    images: int

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Network, likelihood, order, masks, images, hidden pixels and noise."""
        model, order = self.model, self.model.orders()[0]
        channels, height, width = model.description.image_shapes[0]
        noise = pixel_noise(model.likelihood, self.images, height, width, seed=1)
        return (
            *(model.network, model.likelihood, order.pixels, order.masks),
            torch.zeros(self.images, channels, height, width, device=model.device),
            torch.ones(height, width, dtype=torch.bool, device=model.device),
            noise.to(model.device),
        )

    def steps(self, guess: int | None) -> tuple[int, int | None]:
        """The window, and the number of steps; None if guessing is given up."""
        network, likelihood, order, masks, images, hidden, noise = self.arguments
        schedule = whole_image_schedule(network, order, masks)
        guessing = Guessing(guess or 0)
        if guess is None:
            guessing = choose_guessing(network, schedule, self.images)
        if not guessing.window:
            return 0, len(schedule.steps)
        with torch.inference_mode():
            draw = likelihood.sample
            steps = draw_by_guessing(network, draw, schedule, images, hidden, noise, guessing)
        return guessing.window, steps


def measure(
    name: str,
    model: ImageModel,
    orders: tuple[str, ...],
    numbers: tuple[int, ...],
    windows: tuple[int, ...],
    repeats: int,
) -> Iterator[dict[str, Any]]:
    """One row for each order, number of images and window."""
    guesses = {"0": 0, **{str(window): window for window in windows}, "auto": None}
    for family, number in itertools.product(orders, numbers):
        description = model.description.with_orders(lmconv.OrderConfig((family,)))
        case = Case(ImageModel(description, model.network), number)
        arguments = case.arguments
        num_pixels = arguments[5].numel()
        runs = {
            key: partial(sample_cached, *arguments, guess=guess) for key, guess in guesses.items()
        }
        expected = runs["0"]()
        same = {key: torch.equal(run(), expected) for key, run in runs.items()}
        memory = {key: peak_memory(run) for key, run in runs.items()}
        seconds = interleaved_medians(runs, repeats)
        for key, guess in guesses.items():
            window, steps = case.steps(guess)
            yield {
                "name": f"{name}, {family}, {number} images, guess {key}",
                "model": name,
                "order": family,
                "images": number,
                "guess": key,
                "window": window,
                "steps": steps,
                "kept": steps and num_pixels / steps,
                "seconds": seconds[key],
                "speedup": seconds["0"] / seconds[key],
                "bytes": memory[key],
                "same_images": same[key],
            }


HEADER = (
    *("model", "order", "images", "guess", "steps", "kept", "seconds", "faster than without"),
    *("MB", "same images"),
)


def table_row(row: dict[str, Any]) -> list[str]:
    """A row of the printed table."""
    guess = f"auto ({row['window']})" if row["guess"] == "auto" else row["guess"]
    return [
        row["model"],
        row["order"],
        str(row["images"]),
        guess,
        "given up" if row["steps"] is None else str(row["steps"]),
        "" if row["steps"] is None else f"{row['kept']:.1f}",
        f"{row['seconds']:.3f}",
        f"{row['speedup']:.2f}x",
        f"{row['bytes'] / 2**20:.0f}",
        "yes" if row["same_images"] else "no",
    ]


STEPS_HEADER = ("model", "order", "W", "steps", "kept")


def measure_steps(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each trained model, order and window."""
    for name in ("mnist", "grey", "photographs"):
        file, orders = MODELS[name]
        model = lmconv.load(PRETRAINED / file)
        model.network.eval()
        for family in orders:
            description = model.description.with_orders(lmconv.OrderConfig((family,)))
            case = Case(ImageModel(description, model.network), images=1)
            num_pixels = case.arguments[5].numel()
            for window in (0, 8) if args.quick else (0, *WINDOWS, 128, 256):
                steps = case.steps(window)[1]
                yield {
                    "name": f"{name}, {family}, steps of W = {window}",
                    "model": name,
                    "order": family,
                    "window": window,
                    "steps": steps,
                    "kept": steps and num_pixels / steps,
                }


def steps_row(row: dict[str, Any]) -> list[str]:
    """A row of the printed table."""
    kept = f"{row['kept']:.1f}"
    return [row["model"], row["order"], str(row["window"]), str(row["steps"]), kept]


def save_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw steps against the window."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for key, group in itertools.groupby(rows, key=lambda row: (row["model"], row["order"])):
        none, *points = [(row["window"], row["steps"]) for row in group]
        (line,) = axes.plot(*zip(*points, strict=True), marker="o", label=", ".join(key))
        axes.axhline(none[1], color=line.get_color(), linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("W: pixels guessed at once")
    axes.set_ylabel("steps of one image (dotted: without guesses)")
    axes.legend()
    save_figure(figure, path)


def guessing_part(name: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of a part: windows of one model, on the GPU, if there is one."""
    file, orders = MODELS[name]
    model = lmconv.load(PRETRAINED / file)
    if name == "untrained":
        torch.manual_seed(0)
        model = ImageModel(model.description, device=model.device)
    model.network.eval()
    numbers, windows = (NUMBERS[:1], WINDOWS[2:4]) if args.quick else (NUMBERS, WINDOWS)
    yield from measure(name, model, orders, numbers, windows, args.repeats)


def main() -> None:
    """Measure the shipped models and an untrained one."""
    parts = {name: Part(partial(guessing_part, name), HEADER, table_row) for name in MODELS}
    parts["steps"] = Part(measure_steps, STEPS_HEADER, steps_row)
    args = start(__doc__ or "", 5, list(parts))
    rows = measure_parts(args, parts)
    if args.json is not None and "steps" in args.parts:
        curves = [row for row in rows if "seconds" not in row]
        save_curves(curves, args.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
