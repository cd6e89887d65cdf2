"""``--mode sample`` with images, a hole, ``--order_choice``, ``--completions`` or own sizes."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmconv.completion import Completer, Completions, check_hole
from lmconv.data.image_files import suffix_for
from lmconv.data.pipeline import TestData
from lmconv.file_names import name_limit, printable, shorten
from lmconv.modes import UsageError
from lmconv.modes.regions import hidden_region
from lmconv.modes.results import ResultFiles, name_of_images, warn_of_fewer
from lmconv.modes.run import Run, checked_one_size
from lmconv.pixel_values import ImageShape
from lmconv.plots import save_completions, save_image
from utils import ProgressBar, nats_to_bpd

__all__ = ["check", "run"]

log = logging.getLogger(__name__)

# The most that a grid shows: images, and the likeliest completions of each.
_GRID_ROWS, _GRID_COLUMNS = 25, 10


def check(run: Run) -> None:
    """Raise UserError if there is no hole, or if the images or the model do not fit it."""
    checked_one_size(run)
    if run.args.save_animation:
        raise UsageError("--save_animation cannot show completions: leave it out")
    run.classes_to_draw()
    run.check_images(partial(_check_size, run))


def _check_size(run: Run, shape: ImageShape) -> None:
    """Raise UserError or ValueError if images of a size have no such hole or orders."""
    hidden = hidden_region(run.args, shape)
    if hidden.all() and run.args.hole_mask is None:
        raise UsageError(
            "there are no visible pixels to complete the images from: hide only a part of them, "
            "with --hole_mask or --sample_region"
        )
    check_hole(run.model, hidden, shape)
    run.model.orders(shape)


def run(run: Run) -> None:
    """Complete holes of any shape given all visible pixels, and rank the completions.

    Writes a grid for each batch (context, completions from the likeliest on, original image), each
    completion as a PNG, and a JSON with the nats and bits per hidden dimension of each. What is
    finished is kept if the rest is interrupted.
    """
    args, processes = run.args, run.processes
    data, per_image = run.images, _per_image(run)
    shape = None if data.own_shapes else run.image_shapes[0]
    files = ResultFiles(run, name_of_images(run, run.weights.epoch, shape))
    number = len(args.images or ()) or args.num_samples or args.sample_batch_size
    entries: list[dict[str, Any]] = []
    record: dict[str, Any] = {"num_images": 0, "seconds": 0.0, "images": entries}
    files.write(record, is_finished=False)
    begin = time.monotonic()
    at_once = max(1, args.sample_batch_size // per_image)
    mean_hidden = _mean_hidden(run, data, number)
    with run.progress_bar("completing", number * per_image, mean_hidden) as bar:
        batches, completions = run.batches_of(data, 0, number, at_once), _Files(run, data, files)
        finished = processes.in_turn(batches, lambda batch: completions.write(*batch, bar))
        for batch in finished:
            entries += batch.entries
            record = {
                **_common(entries),
                "order_indices": batch.order_indices,
                "num_images": len(entries),
                "seconds": time.monotonic() - begin,
                "images": entries,
            }
            files.write(record, is_finished=False)
            for path in batch.pictures:
                log.info("completions in %s", printable(path))
    files.write(record)
    warn_of_fewer(len(entries), number)
    _report(record, files.path(".json"))


class _Batch(NamedTuple):
    """A batch of images that is completed.

    Attributes:
        entries: what the record has of each image.
        order_indices: indices of the orders that its images were completed in.
        pictures: paths of the grids.
    """

    entries: list[dict[str, Any]]
    order_indices: list[int]
    pictures: list[Path]


class _Files:
    """Completes batches of images, each of one size, and writes their files."""

    def __init__(self, run: Run, data: TestData, files: ResultFiles) -> None:
        self._run, self._data, self._files = run, data, files
        self._completer: Completer | None = None

    def write(self, first: int, originals: Tensor, bar: ProgressBar) -> _Batch:
        """Complete a batch, ``B x C x H x W``, which begins with image ``first`` of the run."""
        completer = self._completer
        if completer is None or completer.hidden.shape != originals.shape[2:]:
            completer = self._completer = _completer(self._run, originals)
        label = _labels(self._run, len(originals))
        results = completer.complete(originals, first, bar.update, label)
        names = [self._data.name(first + index) for index in range(len(originals))]
        entries = []
        for index, image_name in enumerate(names):
            stem = self._files.path("") / f"{first + index:05d}_{Path(image_name).stem}"
            entry = _write(self._run, results, index, stem, completer.hidden)
            entries.append({"image": image_name, **entry})
        grids = (completer.hidden, originals, results, names, first, self._files)
        pictures = _draw_grids(self._run, *grids)
        return _Batch(entries, completer.order_indices, pictures)


def _per_image(run: Run) -> int:
    """The number of completions of each image."""
    number = run.model.description.orders.number if run.args.order_choice == "each" else 1
    return number * _per_order(run)


def _per_order(run: Run) -> int:
    """The number of completions of each image in an order: by default one of each class."""
    return run.args.completions or max(1, len(run.classes_to_draw()))


def _mean_hidden(run: Run, data: TestData, number: int) -> float:
    """The mean number of hidden pixels of the first images."""
    shapes = Counter(data.own_shapes[:number] or run.image_shapes[:1])
    hidden = sum(count * int(hidden_region(run.args, s).sum()) for s, count in shapes.items())
    return hidden / shapes.total()


def _completer(run: Run, images: Tensor) -> Completer:
    """What completes images of the size of these, ``B x C x H x W``."""
    args, (_, channels, height, width) = run.args, images.shape
    return Completer(
        run.model,
        hidden_region(args, (channels, height, width)),
        _per_order(run),
        args.order_choice or "first",
        args.seed,
        run.sampling,
        args.sample_batch_size,
    )


def _common(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """What images that are of one size have in common; None and the mean for different ones."""
    shapes = [entry["image_shape"] for entry in entries]
    numbers = [entry["num_hidden_pixels"] for entry in entries]
    is_common = all(shape == shapes[0] for shape in shapes)
    return {
        "image_shape": shapes[0] if is_common else None,
        "num_hidden_pixels": numbers[0] if is_common else sum(numbers) / len(numbers),
    }


def _labels(run: Run, number: int) -> Tensor | None:
    """The classes of the completions of so many images, which take turns; None if unknown."""
    if not (classes := run.classes_to_draw()):
        return None
    each = [classes[index % len(classes)] for index in range(_per_order(run))]
    return torch.tensor(each).expand(number, -1)


def _class_names(run: Run, results: Completions, index: int) -> list[str]:
    """The class of each completion of an image; none if they are unknown."""
    if results.label is None:
        return []
    return [run.model.description.classes[label] for label in results.label[index].tolist()]


def _draw_grids(
    run: Run,
    hidden: Tensor,
    originals: Tensor,
    results: Completions,
    names: Sequence[str],
    batch_first: int,
    files: ResultFiles,
) -> list[Path]:
    """Draw pictures of a batch, which begins with image ``batch_first``; return their paths."""
    paths = []
    for start in range(0, len(names), _GRID_ROWS):
        part = slice(start, start + _GRID_ROWS)
        first = batch_first + start
        path = files.path(f"_images{first}-{first + len(names[part]) - 1}.png")
        images, nats = results.images[part, :_GRID_COLUMNS], results.nats[part, :_GRID_COLUMNS]
        classes = [_class_names(run, results, index) for index in range(len(names))[part]]
        save_completions(hidden, originals[part], images, nats, names[part], path, classes)
        paths.append(path)
    return paths


def _write(
    run: Run, results: Completions, index: int, stem: Path, hidden: Tensor
) -> dict[str, Any]:
    """Write the completions of one image, and return their entry in the record."""
    shape, num_hidden = results.images.shape[2:], int(hidden.sum())

    def likelihood(nats: Tensor) -> dict[str, float]:
        return {"nats": nats.item(), "bpd": nats_to_bpd(nats.item(), shape[0] * num_hidden)}

    completions, classes = [], _class_names(run, results, index)
    for rank, image in enumerate(results.images[index]):
        ending = f"_{rank}{suffix_for(shape[0])}"
        path = stem.with_name(shorten(stem.name, name_limit(stem.parent) - len(ending)) + ending)
        save_image(image, path, run.model.likelihood.num_values)
        order_index = int(results.order_indices[index, rank])
        file = f"{path.parent.name}/{path.name}"
        nats = results.nats[index, rank]
        completions.append({"file": file, "order_index": order_index, **likelihood(nats)})
        if classes:
            completions[-1]["class"] = classes[rank]
    return {
        "image_shape": list(shape),
        "num_hidden_pixels": num_hidden,
        "original": likelihood(results.original_nats[index]),
        "completions": completions,
    }


def _report(record: dict[str, Any], path: Path) -> None:
    best = [entry["completions"][0] for entry in record["images"]]
    if not best:
        log.warning("there were no images to complete")
        return
    log.info(
        "%d images with %.10g hidden pixels, %d completions of each in %.1f s; the likeliest: %.4f "
        "bits per hidden dimension = %.3f nats on average; the originals: %.4f = %.3f",
        *(len(best), record["num_hidden_pixels"], len(record["images"][0]["completions"])),
        record["seconds"],
        *_means(best),
        *_means([entry["original"] for entry in record["images"]]),
    )
    log.info("files and likelihoods in %s", printable(path))


def _means(likelihoods: Sequence[dict[str, Any]]) -> tuple[float, float]:
    number = len(likelihoods)
    return sum(l["bpd"] for l in likelihoods) / number, sum(l["nats"] for l in likelihoods) / number
