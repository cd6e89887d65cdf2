"""What browsers can ask for. Each task checks its request and calls the Python API."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lmconv.checkpoint_summary import summary_lines
from lmconv.checkpoints import load_checkpoint
from lmconv.completion import ORDER_CHOICES, complete
from lmconv.image_model import ImageModel, SamplingConfig, ensemble
from lmconv.orders import Order
from lmconv.training.metrics import Record, read_metrics
from lmconv.web.commands import command_line, order_flags, temperature_flags
from lmconv.web.examples import Examples
from lmconv.web.jobs import Job
from lmconv.web.models import ModelFile, Models
from lmconv.web.pictures import as_model_sees, encoded, picture_of, read_upload
from lmconv.web.requests import (
    MOST_PIXELS,
    SIDES,
    Request,
    checked_size,
    chosen_order,
)
from masking import ORDERS
from utils import UserError, nats_to_bpd

__all__ = ["TASKS", "Task", "Tasks"]

MOST_COMPLETIONS, MOST_SAMPLES, MOST_SCORED, _MOST_SEED = 16, 64, 12, 2**31
_MOST_DRAWN = 2**18  # pixels in one request: five minutes of a shipped model
_TEMPERATURES = 0.1, 3.0
_EXAMPLES = 24
_PARTS = 4  # in which samples appear
# An exact likelihood of an image takes about as long as drawing a pixel for each of so many.
_SCORED_PER_DRAWN = 30
_POINTS = 300  # of a learning curve

Result = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A kind of request.

    Attributes:
        run: computes the result of a request, and reports to its job.
        cost: about how much work a request is, in pixels drawn; it decides whose turn it is.
    """

    run: Callable[["Tasks", Request, Job], Result]
    cost: Callable[[Request], float] = lambda request: 0


class Tasks:
    """Everything that browsers can ask for.

    Args:
        models: the models to choose from.
        examples: pictures to begin with.
    """

    def __init__(self, models: Models, examples: Examples) -> None:
        self.models, self.examples = models, examples

    def describe(self, request: Request, job: Job) -> Result:
        """What a model is, what can be done with it, and how its training went."""
        model, file = self._model(request, job), self._file(request)
        contents = load_checkpoint(file.path)
        description = model.description
        channels, height, width = model.image_shape
        sizes = {*(shape[1:] for shape in description.image_shapes), *((s, s) for s in SIDES)}
        try:
            records = read_metrics(file.run_dir)
        except UserError:  # it was not trained here
            records = []
        return {
            "path": str(file.path),
            "megabytes": file.path.stat().st_size / 1e6,
            "lines": summary_lines(contents, description),
            "card": file.card(),
            "curves": _curves(records),
            "channels": channels,
            "height": height,
            "width": width,
            "sizes": sorted(sizes),
            "num_orders": description.orders.number,
            "families": list(ORDERS),
            "can_complete": description.network.architecture != "pixelcnnpp",
            "classes": list(description.classes),
        }

    def show_examples(self, request: Request, job: Job) -> Result:
        """Pictures to begin with, as a model sees them."""
        model = self._model(request, job)
        shape = checked_size(request, model)
        first = request.whole("first", 0, 10**6)
        images, total, source = self.examples.choose(
            model.description.dataset, shape, first, _EXAMPLES
        )
        pictures = as_model_sees(model, images) if len(images) else []
        return {"pictures": pictures, "total": total, "source": source}

    def decode(self, request: Request, job: Job) -> Result:
        """An uploaded file, as a model sees it."""
        model = self._model(request, job)
        pixels = read_upload(request.file, checked_size(request, model))
        return {"picture": as_model_sees(model, pixels[None])[0]}

    def complete(self, request: Request, job: Job) -> Result:
        """Completions of the hidden pixels of a picture, ranked by their likelihood."""
        model = self._model(request, job)
        pixels = request.part("picture").picture()
        shape = _fitting(model, pixels)
        hidden = request.part("picture").hidden((shape[1], shape[2]))
        number = request.whole("number", 1, MOST_COMPLETIONS)
        choice = request.choice("order", ORDER_CHOICES)
        seed, config, drawing = _sampling(model, request)
        orders = len(model.orders(shape)) if choice == "each" else 1
        num_hidden = int(hidden.sum())
        total = _checked_amount(number * orders * num_hidden)
        begin = time.monotonic()
        results = complete(
            model,
            pixels[None],
            hidden,
            number,
            choice,
            seed,
            config,
            on_step=lambda drawn: job.advance(drawn, total),
        )
        indices = results.order_indices[0].tolist()
        ranked = zip(results.images[0], results.nats[0].tolist(), indices, strict=True)
        dimensions = shape[0] * num_hidden
        flags = ["--images", "picture.png", "--hole_mask", "hole.png"]
        flags += ["--completions", str(number), "--order_choice", choice, *drawing]
        return {
            "original": {
                "picture": picture_of(model, model.prepare(pixels[None], seed)[0]),
                **_likelihood(results.original_nats[0].item(), dimensions),
            },
            "completions": [
                {
                    "picture": picture_of(model, image),
                    "order": index,
                    **_likelihood(nats, dimensions),
                }
                for image, nats, index in ranked
            ],
            "sequences": {
                index: _sequence(
                    model.orders(shape)[index].visible_first(torch.from_numpy(hidden)), hidden
                )
                for index in set(indices)
            },
            "seconds": time.monotonic() - begin,
            "command": command_line("sample", self._file(request), model, shape, flags),
        }

    def score(self, request: Request, job: Job) -> Result:
        """Exact likelihoods of pictures under each order and their ensemble, pixel by pixel."""
        model = self._model(request, job)
        pictures = [part.picture() for part in request.parts("pictures", MOST_SCORED)]
        shape = _fitting(model, pictures[0])
        if any(pixels.shape != shape for pixels in pictures):
            raise ValueError("Pictures that are compared must have one size.")
        spec = request.part("order") if request.has("order") else None
        orders = [chosen_order(spec, model, shape)] if spec else model.orders(shape)
        flags = ["--images", *(f"picture{number}.png" for number in range(len(pictures)))]
        flags += [*(order_flags(spec, model) if spec else ()), "--likelihood_map"]
        scores = []
        for number, pixels in enumerate(pictures):
            prepared = model.prepare(pixels[None], first=number)
            maps = []
            for nats in model.maps(prepared, orders):
                maps.append(-nats[0].cpu())
                job.advance(1, len(pictures) * len(orders))
            per_pixel = torch.stack(maps)  # K x H x W
            joint = per_pixel.flatten(1).double().sum(dim=1)
            dimensions = math.prod(shape)
            scores.append(
                {
                    "picture": picture_of(model, prepared[0]),
                    "ensemble": _likelihood(-ensemble(-joint[:, None]).item(), dimensions),
                    "orders": [_likelihood(nats, dimensions) for nats in joint.tolist()],
                    "bits": encoded((per_pixel.mean(dim=0) / math.log(2)).float().numpy()),
                }
            )
        return {
            "scores": scores,
            "command": command_line("score", self._file(request), model, shape, flags),
        }

    def classify(self, request: Request, job: Job) -> Result:
        """The probability of each class given a picture, or its visible pixels."""
        model = self._model(request, job)
        part = request.part("picture")
        pixels = part.picture()
        _, height, width = shape = _fitting(model, pixels)
        visible = part.bytes("hidden", (height, width)) == 0
        if not visible.any():
            raise ValueError("Everything is hidden: leave some pixels to tell the class from.")
        flags = ["--images", "picture.png"]
        if not visible.all():
            flags += ["--hole_mask", "hole.png"]
        return {
            "probabilities": model.classify(pixels[None], visible)[0].tolist(),
            "command": command_line("classify", self._file(request), model, shape, flags),
        }

    def sample(self, request: Request, job: Job) -> Result:
        """New images, sent as they are finished."""
        model = self._model(request, job)
        shape = checked_size(request, model)
        number = request.whole("number", 1, MOST_SAMPLES)
        seed, config, drawing = _sampling(model, request)
        spec = request.part("order")
        order = chosen_order(spec, model, shape)
        total = _checked_amount(number * shape[1] * shape[2])
        begin, steps = time.monotonic(), 0

        def on_step(drawn: int) -> None:
            nonlocal steps
            steps += 1
            job.advance(drawn, total)

        at_once = -(-number // _PARTS)
        flags = ["--num_samples", str(number), "--sample_batch_size", str(at_once)]
        flags += ["--save_individual", "--save_animation", *drawing, *order_flags(spec, model)]
        label = request.choice("class", model.description.classes) if request.has("class") else None
        flags += [] if label is None else ["--sample_class", label]
        for first in range(0, number, at_once):
            images = model.sample(
                min(at_once, number - first),
                seed,
                shape,
                order,
                config,
                first=first,
                on_step=on_step,
                label=label,
            )
            job.show({"pictures": [picture_of(model, image) for image in images]})
        return {
            "sequence": _sequence(order, np.ones(shape[1:], dtype=bool)),
            "steps": steps,
            "seconds": time.monotonic() - begin,
            "command": command_line("sample", self._file(request), model, shape, flags),
        }

    def show_order(self, request: Request, job: Job) -> Result:
        """An order, with its masks at each pixel and the steps in which it is generated."""
        model = self._model(request, job)
        shape = checked_size(request, model)
        order = chosen_order(request.part("order"), model, shape)
        steps, network = model.steps(order), model.description.network
        return {
            "sequence": _sequence(order, np.ones(shape[1:], dtype=bool)),
            "levels": steps.levels.flatten().tolist(),
            "num_levels": steps.number,
            "window": steps.window,
            "kernel": network.kernel_size,
            "masks": [
                {"name": name, "dilation": dilation, "taps": encoded(_taps(mask))}
                for name, dilation, mask in zip(
                    ("first layer", "further layers", "dilated layers"),
                    (1, 1, network.max_dilation),
                    order.masks,
                    strict=True,
                )
            ],
        }

    def _model(self, request: Request, job: Job) -> ImageModel:
        return self.models.open(request.whole("model", 0, 2**16), job.is_nested)

    def _file(self, request: Request) -> ModelFile:
        return self.models.file(request.whole("model", 0, 2**16))


def _pixels(request: Request) -> int:
    return request.whole("height", 1, MOST_PIXELS) * request.whole("width", 1, MOST_PIXELS)


def _cost_of_samples(request: Request) -> float:
    return request.whole("number", 1, MOST_SAMPLES) * _pixels(request)


def _cost_of_completions(request: Request) -> float:
    orders = 8 if request.choice("order", ORDER_CHOICES) == "each" else 1
    number = request.whole("number", 1, MOST_COMPLETIONS)
    return number * orders * _pixels(request.part("picture")) / 2  # about a half is hidden


def _cost_of_classes(request: Request) -> float:
    return 10 * 8 * _pixels(request.part("picture")) / _SCORED_PER_DRAWN  # ten classes


def _cost_of_scores(request: Request) -> float:
    pixels = sum(map(_pixels, request.parts("pictures", MOST_SCORED)))
    return (1 if request.has("order") else 8) * pixels / _SCORED_PER_DRAWN


TASKS = {
    "describe": Task(Tasks.describe),
    "examples": Task(Tasks.show_examples),
    "decode": Task(Tasks.decode),
    "complete": Task(Tasks.complete, _cost_of_completions),
    "score": Task(Tasks.score, _cost_of_scores),
    "classify": Task(Tasks.classify, _cost_of_classes),
    "sample": Task(Tasks.sample, _cost_of_samples),
    "order": Task(Tasks.show_order),
}


def _fitting(model: ImageModel, pixels: np.ndarray) -> tuple[int, int, int]:
    """(C, H, W) of a picture, which must be one that the model takes."""
    channels, height, width = pixels.shape
    checked_size(Request({"height": height, "width": width}), model)
    if channels != model.image_shape[0]:
        raise ValueError(
            f"The picture has {channels} channels, but the model's have {model.image_shape[0]}: "
            "choose the picture again."
        )
    return channels, height, width


def _sampling(model: ImageModel, request: Request) -> tuple[int, SamplingConfig, list[str]]:
    """The seed and the temperature to draw with, and the flags of both."""
    seed = request.whole("seed", 0, _MOST_SEED)
    temperature = request.number("temperature", *_TEMPERATURES)
    config = SamplingConfig(model.sampling.sampler, None, temperature, temperature)
    return seed, config, ["--seed", str(seed), *temperature_flags(temperature)]


def _checked_amount(pixels: int) -> int:
    if pixels > _MOST_DRAWN:
        raise ValueError(
            f"These are {pixels:,} pixels to draw, and {_MOST_DRAWN:,} is the most: ask for fewer "
            "or smaller images."
        )
    return pixels


def _likelihood(nats: float, dimensions: int) -> dict[str, float]:
    return {"nats": nats, "bpd": nats_to_bpd(nats, dimensions)}


def _sequence(order: Order, hidden: np.ndarray) -> list[int]:
    """The numbers of the hidden pixels, row by row, in the order of generation."""
    numbers = order.pixels @ [hidden.shape[1], 1]
    return [int(number) for number in numbers if hidden.flat[number]]


def _taps(mask: torch.Tensor) -> np.ndarray:
    """Which taps are on at each pixel: ``(H*W) x k*k``, uint8, from ``1 x k*k x (H*W)``."""
    return (mask[0].t() > 0).cpu().numpy().astype(np.uint8)


def _curves(records: list[Record]) -> list[dict[str, Any]]:
    """What was measured in training, as points (optimizer step, value), thinned out."""
    tests = sorted(
        {n for r in records for n in r if n.startswith("test/bpd_") and "_order" not in n}
    )
    names = {"train/bpd": "training", **dict.fromkeys(tests, "test, ensemble of the orders")}
    names |= {"gradient_norm": "gradient norm", "lr": "learning rate"}
    curves = []
    for name, title in names.items():
        points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
        if points:
            kept = points[:: -(-len(points) // _POINTS)]
            unit = "bits per dimension" if "bpd" in name else ""
            curves.append({"title": title, "unit": unit, "points": kept})
    return curves
