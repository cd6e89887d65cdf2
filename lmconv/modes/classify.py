"""``--mode classify``: the probability of each class given an image, or a part of it, by Bayes."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmconv.classification import Bin, summarize_classification
from lmconv.completion import check_hole
from lmconv.data.datasets import check_files, load_test
from lmconv.data.pipeline import TestData
from lmconv.file_names import printable
from lmconv.modes import UsageError
from lmconv.modes.flags import VISIBLE_PARTS
from lmconv.modes.regions import hidden_region, hole_name
from lmconv.modes.results import ResultFiles
from lmconv.modes.run import Run, checked_one_size
from lmconv.pixel_values import ImageShape
from lmconv.plots import plot_reliability
from utils import progress, write_atomically

__all__ = ["check", "run"]

log = logging.getLogger(__name__)


def check(run: Run) -> None:
    """Raise UserError if the model knows no classes, or if a part or the images do not fit it."""
    args, shape = run.args, checked_one_size(run)
    if not run.model.description.classes:
        raise UsageError(
            f"{run.weights.path} knows no classes: give a model that was trained with "
            "--class_conditional"
        )
    has_hole = args.hole_mask is not None or args.sample_region != "full"
    if has_hole and args.visible:
        raise UsageError("--visible contradicts --hole_mask and --sample_region: give only one")
    for name, visible in _visible_parts(run).items():
        if not visible.any():
            flag = "the hole leaves" if has_hole else f"--visible {name} has"
            raise UsageError(f"{flag} no visible pixels in images of {shape[1]}x{shape[2]}")
        if not visible.all():
            check_hole(run.model, ~visible, shape)
    if args.images:
        if args.class_prior == "train":
            raise UsageError("--class_prior train needs a data set: leave it out with --images")
        run.check_images()
        return
    check_files(run.labelled_data, run.part)
    if args.class_prior == "train":
        check_files(run.labelled_data, "train")


def run(run: Run) -> None:
    """Classify images given all of their pixels, and given halves of them.

    ``classify.csv`` has a line for each image and visible part, with the probability of each class.
    ``classify.json`` has the settings and, if the images have labels, the accuracy and calibration
    for each part, which ``classify.png`` shows. The names for a hole end with its name, and those
    of other settings with a number.
    """
    args, shape, model, processes = run.args, run.image_shapes[0], run.model, run.processes
    classes, indices = model.description.classes, run.order_indices("test_masks")
    has_hole = args.hole_mask is not None or args.sample_region != "full"
    data = run.images if args.images else load_test(run.labelled_data, run.part, processes)
    files = ResultFiles(run, f"classify{hole_name(args) if has_hole else ''}")
    visible_parts, prior = _visible_parts(run), _prior(run)
    names, probabilities = _classify(run, data, visible_parts, indices, prior)
    if not processes.is_main:
        return
    entries: list[dict[str, Any]] = []
    for name, visible in visible_parts.items():
        entry: dict[str, Any] = {"visible": name, "num_pixels": int(visible.sum())}
        if data.labels is not None:
            entry |= summarize_classification(probabilities[name], data.labels)
        entries.append(entry)
    labels = None if data.labels is None else data.labels.tolist()
    path = files.path(".csv")
    rows = _rows(names, labels, classes, probabilities)
    write_atomically(path, lambda temporary: _write_csv(temporary, rows))
    files.write(
        {
            "dataset": args.dataset,
            "part": run.part,
            "image_shape": list(shape),
            "num_images": len(names),
            "classes": list(classes),
            "prior": prior.tolist(),
            "order_indices": indices,
            "visible_parts": entries,
            "file": path.name,
        }
    )
    _report(entries, len(names), shape, len(indices), args.class_prior)
    if labels is not None:
        curves = {each["visible"]: [Bin(**row) for row in each["calibration"]] for each in entries}
        plot_reliability(curves, files.path(".png"))
        log.info("calibration in %s", printable(files.path(".png")))
    log.info("probabilities in %s", printable(path))


def _visible_parts(run: Run) -> dict[str, Tensor]:
    """The visible pixels, ``H x W``, bool, of each part of images that is looked at, by name."""
    args, shape = run.args, run.image_shapes[0]
    if args.hole_mask is not None or args.sample_region != "full":
        return {f"outside{hole_name(args)}": ~hidden_region(args, shape)}
    # The baseline has one order, in which only the whole image is seen.
    default = ["all"] if args.model == "pixelcnnpp" else VISIBLE_PARTS
    return {name: _part(name, shape) for name in args.visible or default}


def _part(name: str, shape: ImageShape) -> Tensor:
    _, height, width = shape
    rows, cols = torch.arange(height)[:, None], torch.arange(width)[None]
    everything = torch.ones(height, width, dtype=torch.bool)
    return {
        "all": everything,
        "top": everything & (rows < height // 2),
        "bottom": everything & (rows >= height // 2),
        "left": everything & (cols < width // 2),
        "right": everything & (cols >= width // 2),
    }[name]


def _prior(run: Run) -> Tensor:
    """The probability of each class before an image is seen."""
    number = len(run.model.description.classes)
    if run.args.class_prior == "uniform":
        return torch.full((number,), 1 / number, dtype=torch.float64)
    labels = load_test(run.labelled_data, "train", run.processes).labels
    assert labels is not None
    counts = np.bincount(labels.numpy(), minlength=number)
    return torch.from_numpy(counts / counts.sum())


def _classify(
    run: Run,
    data: TestData,
    visible_parts: dict[str, Tensor],
    indices: Sequence[int],
    prior: Tensor,
) -> tuple[list[str], dict[str, Tensor]]:
    """Names of the images; their probabilities of classes, ``N x K``, for each visible part."""
    model, shape = run.model, run.image_shapes[0]
    orders = [model.orders(shape)[index] for index in indices]
    orders_of = {
        name: orders if part.all() else [order.visible_first(~part) for order in orders]
        for name, part in visible_parts.items()
    }

    def classify(numbered: tuple[int, Tensor]) -> Tensor:
        """The probabilities of a batch, ``B x K``, for each of P parts: ``P x B x K``."""
        images = numbered[1].to(model.device)
        likelihoods = [
            model.class_log_likelihoods(images, orders_of[name], visible)
            for name, visible in visible_parts.items()
        ]
        return (torch.stack(likelihoods) + prior.log()).softmax(dim=2)

    parts = run.processes.in_turn(run.batches_of(data), classify)
    is_main = run.processes.is_main
    shown = progress(parts, "classifying", data.num_batches(), is_on=is_main)
    found = torch.cat(list(shown), dim=1)  # P x N x K
    names = [data.name(index) for index in range(found.shape[1])]
    return names, dict(zip(visible_parts, found, strict=True))


def _rows(
    names: Sequence[str],
    labels: Sequence[int] | None,
    classes: Sequence[str],
    probabilities: dict[str, Tensor],
) -> list[list[Any]]:
    shown = [printable(name) for name in classes]
    rows: list[list[Any]] = [["image", "class", "visible", "predicted", *(f"p_{n}" for n in shown)]]
    for index, name in enumerate(names):
        label = "" if labels is None else shown[labels[index]]
        for part, of_classes in probabilities.items():
            own = of_classes[index]
            rows.append([printable(name), label, part, shown[int(own.argmax())], *own.tolist()])
    return rows


def _write_csv(path: Path, rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _report(
    entries: Sequence[dict[str, Any]], number: int, shape: ImageShape, orders: int, prior: str
) -> None:
    """Print the results as lines for people to read."""
    before = {"uniform": "all classes equally", "train": "classes as in the training images"}[prior]
    log.info(
        "%d images %dx%dx%d classified by %d order%s, with %s probable beforehand",
        *(number, *shape, orders, "s" * (orders > 1), before),
    )
    if "accuracy" not in entries[0]:
        return
    log.info("  %-10s %7s  %-18s %-8s calibration error", "visible", "pixels", "accuracy", "nats")
    for entry in entries:
        accuracy = f"{entry['accuracy']:.1%} (+- {entry['accuracy_stderr']:.1%})"
        log.info(
            "  %-10s %7d  %-18s %-8.3f %.3f",
            *(entry["visible"], entry["num_pixels"], accuracy),
            *(entry["nats"], entry["calibration_error"]),
        )
