"""Compression with the MNIST model that comes with the project: its speed, and what it depends on.

    python benchmarks/coding.py [--quick] [--repeats N] [--json FILE] [-i DATA_DIR] [speed]
        [guessing] [agreement] [margins]

The images are the example digits.

`speed`: images are compressed and decompressed in memory, in turn with decompression pixel by pixel
(which is how encoders worked once, too), with drawing as many (the cached sampler, which takes the
same steps) and with one forward pass of all images, which a decoder without the cache would need
for each pixel. Times are medians and include preparation. The share of the coder in decompression
step by step is for integer tables and range coding, and that of the probabilities is for making
them from the network's output. Memory is the peak during compression.

`guessing`: decompression in windows of W guessed pixels, against that pixel by pixel, in turn. The
window `auto` is what the codec chooses. `kept` is the mean number of pixels of a window that a step
decodes.

`agreement`: the logits of the same images, pixel by pixel as they are decoded, are computed again
in other processes: once more, with another number of threads, in another batch, and with other
instructions; and here, in the forward passes over whole images that an encoder makes. The table
says how far they are from those computed here, and how many would be rounded differently by a codec
that does not record how the close ones are rounded.

`margins`: the same for all test images of MNIST in DATA_DIR (10,000 take a quarter of an hour of a
core), between a decoder and an encoder in double precision.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measure import Part, interleaved_medians, measure_parts, peak_memory, start
from torch import Tensor, nn

import lmconv
from lmconv.compression import image_coding
from lmconv.compression.entropy_coding import Decoder, Encoder, EntropyCoder
from lmconv.compression.guessed_decoding import choose_windows, decode_windows
from lmconv.compression.image_coding import code_images
from lmconv.compression.pixel_coding import LOGIT_STEP
from lmconv.generation.guessing import Guessing
from lmconv.generation.sampler import generate, pixel_noise, sample_cached
from lmconv.generation.schedule import whole_image_schedule
from lmconv.image_model import ImageModel
from lmconv.likelihoods import Likelihood
from lmconv.pixel_values import to_levels
from masking import Masks

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = {"double": torch.float64, "single": torch.float32}
WINDOWS = (2, 4, 8, 16, 32)
IMAGES_AT_ONCE = 50
# Where logits are computed again: environment variables, and how many images at once.
SURROUNDINGS = {
    "once more": {},
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "one image at a time": {"IMAGES_AT_ONCE": "1"},
    "AVX2 instructions": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "no vector instructions beyond SSE4.2": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}


@dataclass(frozen=True)
class Codec:
    """The model, and images to code with it."""

    model: nn.Module
    likelihood: Likelihood
    order: np.ndarray
    masks: Masks
    levels: np.ndarray

    def code(self, coder: EntropyCoder, guess: int | None = None) -> np.ndarray:
        """Code the images, all at once."""
        schedule = whole_image_schedule(self.model, self.order, self.masks)
        arguments = self.model, self.likelihood, schedule, self.levels, coder, len(self.levels)
        return code_images(*arguments, guess=guess)

    def compress(self) -> bytes:
        """The images as compressed bits."""
        encoder = Encoder()
        self.code(encoder)
        return encoder.finish()

    def decompress(self, bits: bytes, guess: int | None = None) -> np.ndarray:
        """The images that the bits hold."""
        return self.code(Decoder(bits), guess)

    def steps(self, bits: bytes, window: int) -> int:
        """The number of steps of decompression in windows of this many pixels."""
        schedule = whole_image_schedule(self.model, self.order, self.masks)
        coded = np.empty_like(self.levels).reshape(*self.levels.shape[:2], -1)
        steps: list[int] = []
        arguments = self.model, self.likelihood, schedule, coded, Decoder(bits), Guessing(window)
        with torch.inference_mode():
            decode_windows(*arguments, steps.append)
        return len(steps)


def codec(precision: str, images: int) -> Codec:
    """The shipped model with the first example digits, in the order that `main.py` uses."""
    model = lmconv.load(ROOT / "pretrained" / "binary_mnist_small.pth", device="cpu")
    return codec_of(model, lmconv.read_mnist(ROOT / "examples", train=False)[:images], precision)


def codec_of(model: ImageModel, images: np.ndarray, precision: str = "double") -> Codec:
    """A model with images as ``lmconv.read_mnist`` returns them, in its first order."""
    digits, order = model.prepare(images), model.orders()[0]
    return Codec(
        model.network.to(PRECISIONS[precision]),
        model.likelihood,
        order.pixels,
        order.masks,
        to_levels(digits, model.likelihood.num_values).byte().numpy(),
    )


def measure_speed(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each number of images."""
    for images in (1,) if args.quick else (1, 64):
        each = codec("double", images)
        bits, pixels = each.compress(), each.levels[0].size
        runs: dict[str, Callable[[], object]] = {
            "compress": each.compress,
            "decompress": partial(each.decompress, bits),
            "step by step": partial(each.decompress, bits, 0),
            "draw": partial(draw, each),
            "forward": partial(forward, each),
        }
        seconds = interleaved_medians(runs, args.repeats)
        coder, probabilities = shares(each, bits)
        yield {
            "name": f"{images} images",
            "images": images,
            "is_lossless": np.array_equal(each.decompress(bits), each.levels),
            "bpd": 8 * len(bits) / each.levels.size,
            "seconds": seconds,
            "pixel_steps_per_second": images * pixels / seconds["step by step"],
            "naive_seconds": pixels * seconds["forward"],
            "coder_share": coder,
            "probabilities_share": probabilities,
            "bytes": peak_memory(each.compress),
        }


def measure_guessing(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each number of images and each window."""
    for images in (1,) if args.quick else (1, 2, 4, 8, 16, 64):
        each = codec("double", images)
        bits, pixels = each.compress(), each.levels[0, 0].size
        schedule = whole_image_schedule(each.model, each.order, each.masks)
        chosen = choose_windows(each.model, schedule, images).window
        windows: dict[str, int | None] = {"none": 0, **{str(w): w for w in WINDOWS}, "auto": None}
        runs = {name: partial(each.decompress, bits, window) for name, window in windows.items()}
        seconds = interleaved_medians(runs, args.repeats)
        for name, window in windows.items():
            used = chosen if window is None else window
            steps = each.steps(bits, used) if used else pixels
            yield {
                "name": f"{images} images, window {name}",
                "images": images,
                "window": f"auto: {used}" if window is None else name,
                "steps": steps,
                "kept": pixels / steps,
                "seconds": seconds[name],
                "faster": seconds["none"] / seconds[name],
                "is_lossless": np.array_equal(each.decompress(bits, window), each.levels),
            }


def guessing_row(row: dict[str, Any]) -> list[object]:
    """A row of the printed table."""
    return [
        row["images"],
        row["window"],
        row["steps"],
        f"{row['kept']:.1f}",
        f"{row['seconds']:.3f}",
        f"{row['faster']:.2f}x",
        "yes" if row["is_lossless"] else "NO",
    ]


def draw(each: Codec) -> Tensor:
    """Draw as many images with the sampler."""
    height, width = each.levels.shape[2:]
    noise = pixel_noise(each.likelihood, len(each.levels), height, width, seed=0)
    images = torch.zeros(each.levels.shape, dtype=next(each.model.parameters()).dtype)
    hidden = torch.ones(height, width, dtype=torch.bool)
    return sample_cached(each.model, each.likelihood, each.order, each.masks, images, hidden, noise)


@torch.inference_mode()
def forward(each: Codec) -> Tensor:
    """One pass of the network over the whole images."""
    images = torch.from_numpy(each.levels).to(next(each.model.parameters())) * 2 - 1
    return each.model(images, each.masks)


def shares(each: Codec, bits: bytes) -> tuple[float, float]:
    """Shares of the decompression time: of the coder, and of the probabilities alone."""
    timed, spent = _TimedDecoder(bits), 0.0
    decode_pixels = image_coding.decode_pixels

    def timed_pixels(*arguments: Any) -> Tensor:
        nonlocal spent
        begin = time.perf_counter()
        values = decode_pixels(*arguments)
        spent += time.perf_counter() - begin
        return values

    begin = time.perf_counter()
    with patch.object(image_coding, "decode_pixels", timed_pixels):
        each.code(timed, guess=0)
    total = time.perf_counter() - begin
    return timed.seconds / total, (spent - timed.seconds) / total


class _TimedDecoder(Decoder):
    seconds = 0.0

    def code(self, symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        begin = time.perf_counter()
        symbols = super().code(symbols, probabilities)
        self.seconds += time.perf_counter() - begin
        return symbols


def measure_agreement(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each precision and each of the surroundings."""
    images = 4 if args.quick else 64
    for precision in PRECISIONS:
        here = logits_as_coded(codec(precision, images), images)
        for name, variables in SURROUNDINGS.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "logits.npy"
                at_once = variables.get("IMAGES_AT_ONCE", str(images))
                program = "import sys, coding; coding.save_logits(*sys.argv[1:])"
                subprocess.run(
                    [sys.executable, "-c", program, str(path), precision, str(images), at_once],
                    env={**os.environ, **variables},
                    cwd=Path(__file__).parent,
                    check=True,
                )
                there = np.load(path)
            yield agreement(precision, name, here, there)
        yield agreement(
            precision, "whole images", here, logits_of_whole_images(codec(precision, images))
        )


def measure_margins(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for all images."""
    model = lmconv.load(ROOT / "pretrained" / "binary_mnist_small.pth", device="cpu")
    images = lmconv.read_mnist(args.data_dir, train=False)[: 4 if args.quick else None]
    decoded, encoded = [], []
    for first in range(0, len(images), IMAGES_AT_ONCE):
        each = codec_of(model, images[first : first + IMAGES_AT_ONCE])
        decoded.append(logits_as_coded(each, len(each.levels)))
        encoded.append(logits_of_whole_images(each))
    name = f"encoder, {len(images):,} images"
    yield agreement("double", name, np.concatenate(decoded), np.concatenate(encoded))


def agreement(precision: str, name: str, here: np.ndarray, there: np.ndarray) -> dict[str, Any]:
    """How far logits are from those computed here."""
    difference = np.abs(here - there)
    rounded = [np.rint(logits / LOGIT_STEP) for logits in (here, there)]
    return {
        "name": f"{precision}, {name}",
        "precision": precision,
        "surroundings": name,
        "num_logits": here.size,
        "differing": float((difference > 0).mean()),
        "largest_difference": float(difference.max()),
        "differing_when_rounded": int((rounded[0] != rounded[1]).sum()),
    }


@torch.inference_mode()
def logits_of_whole_images(each: Codec) -> np.ndarray:
    """The network's output in one forward pass over the images: N x L x H*W, float64."""
    return forward(each).flatten(2).double().numpy()


@torch.inference_mode()
def logits_as_coded(each: Codec, at_once: int) -> np.ndarray:
    """The network's output for images as they are decoded: N x L x H*W, float64."""
    parameter = next(each.model.parameters())
    schedule, parts = whole_image_schedule(each.model, each.order, each.masks), []
    for part in np.array_split(each.levels, len(each.levels) // at_once):
        values = (torch.from_numpy(part).to(parameter) * 2 - 1).flatten(2)
        logits = torch.empty(len(part), each.likelihood.num_output_channels, values.shape[2])
        logits = logits.double()

        def choose(
            out: Tensor, pixels: np.ndarray, values: Tensor = values, logits: Tensor = logits
        ) -> Tensor:
            logits[:, :, pixels] = out[..., 0].double()
            return values[:, :, pixels, None]

        generate(each.model, schedule, torch.zeros(part.shape).to(parameter), choose)
        parts.append(logits.numpy())
    return np.concatenate(parts)


def save_logits(path: str, precision: str, images: str, at_once: str) -> None:
    """Write ``logits_as_coded`` to a file; this runs in a process of its own."""
    np.save(path, logits_as_coded(codec(precision, int(images)), int(at_once)))


def speed_row(row: dict[str, Any]) -> list[object]:
    """A row of the printed table."""
    seconds, by_steps = row["seconds"], row["seconds"]["step by step"]
    ways = ("compress", "decompress", "step by step")
    return [
        row["images"],
        " / ".join(f"{row['images'] / seconds[way]:.3g}" for way in ways),
        f"{by_steps / seconds['compress']:.1f}x / {by_steps / seconds['decompress']:.1f}x",
        f"{row['pixel_steps_per_second']:,.0f}",
        f"{by_steps / seconds['draw']:.2f}",
        f"{row['naive_seconds'] / by_steps:,.0f}x",
        f"{100 * row['coder_share']:.1f} / {100 * row['probabilities_share']:.1f}",
        f"{row['bpd']:.4f}",
        f"{row['bytes'] / 2**20:.0f}",
        "yes" if row["is_lossless"] else "NO",
    ]


def agreement_row(row: dict[str, Any]) -> list[object]:
    """A row of the printed table."""
    return [
        row["precision"],
        row["surroundings"],
        f"{row['num_logits']:,}",
        f"{100 * row['differing']:.1f}%",
        f"{row['largest_difference']:.1e}",
        f"{row['differing_when_rounded']:,}",
    ]


PARTS = {
    "speed": Part(
        measure_speed,
        (
            "images",
            "images/s: compress / decompress / step by step",
            "faster than step by step",
            "pixel steps/s",
            "step by step / draw",
            "naive / step by step",
            "%: coder / probabilities",
            "bits/dim",
            "MB",
            "lossless",
        ),
        speed_row,
    ),
    "guessing": Part(
        measure_guessing,
        ("images", "window", "steps", "kept", "seconds", "faster", "lossless"),
        guessing_row,
    ),
    "agreement": Part(
        measure_agreement,
        ("precision", "elsewhere", "logits", "differ", "at most by", "differ when rounded"),
        agreement_row,
    ),
    "margins": Part(
        measure_margins,
        ("precision", "elsewhere", "logits", "differ", "at most by", "differ when rounded"),
        agreement_row,
    ),
}


def main() -> None:
    """Measure the requested parts, print their tables and write the rows."""
    measure_parts(start(__doc__ or "", 5, tuple(PARTS), ROOT / "examples"), PARTS)


if __name__ == "__main__":
    main()
