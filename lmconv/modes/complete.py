"""``--mode sample`` with ``--images``, ``--hole_mask``, ``--order_choice`` or ``--completions``."""

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmconv.completion import Completer, Completions, check_hole
from lmconv.file_names import name_limit, printable, shorten
from lmconv.modes import UsageError
from lmconv.modes.regions import hidden_region
from lmconv.modes.results import ResultFiles, name_of_images
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
    args, shape = run.args, checked_one_size(run)
    if args.save_animation:
        raise UsageError("--save_animation cannot show completions: leave it out")
    hidden = hidden_region(args, shape)
    if hidden.all() and args.hole_mask is None:
        raise UsageError(
            "there are no visible pixels to complete the images from: hide only a part of them, "
            "with --hole_mask or --sample_region"
        )
    check_hole(run.model, hidden, shape)
    run.check_images()


def run(run: Run) -> None:
    """Complete holes of any shape given all visible pixels, and rank the completions.

    Writes a grid for each batch (context, completions from the likeliest on, original image), each
    completion as a PNG, and a JSON with the nats and bits per hidden dimension of each. What is
    finished is kept if the rest is interrupted.
    """
    args, shape = run.args, run.image_shapes[0]
    completer = Completer(
        run.model,
        hidden_region(args, shape),
        args.completions or 1,
        args.order_choice or "first",
        args.seed,
        run.sampling,
        args.sample_batch_size,
    )
    num_hidden = int(completer.hidden.sum())
    files = ResultFiles(run, name_of_images(run, run.weights.epoch, shape))
    number = len(args.images or ()) or args.num_samples or args.sample_batch_size
    record: dict[str, Any] = {
        "image_shape": list(shape),
        "num_hidden_pixels": num_hidden,
        "order_indices": completer.order_indices,
        "num_images": 0,
        "seconds": 0.0,
        "images": [],
    }
    files.write(record)
    begin, first = time.monotonic(), 0
    with ProgressBar("completing", number * completer.per_image, num_hidden) as bar:
        for names, originals in _batches(run, number, completer.per_image):
            results = completer.complete(originals, first, bar.update)
            for index, image_name in enumerate(names):
                stem = files.path("") / f"{first + index:05d}_{Path(image_name).stem}"
                entry = {"image": image_name, **_write(results, index, stem, shape, num_hidden)}
                record["images"].append(entry)
            record["num_images"] = len(record["images"])
            record["seconds"] = time.monotonic() - begin
            files.write(record)
            _draw_grids(completer.hidden, originals, results, names, first, files)
            first += len(names)
    _report(record, files.path(".json"))


def _batches(run: Run, number: int, per_image: int) -> Iterator[tuple[list[str], Tensor]]:
    """Names and images, ``B x C x H x W``, in batches for ``--sample_batch_size`` completions."""
    data, done = run.open_images(), 0
    images = itertools.chain.from_iterable(data.batches(run.image_shapes[0]))
    at_once = max(1, run.args.sample_batch_size // per_image)
    while batch := list(itertools.islice(images, min(at_once, number - done))):
        yield [data.name(done + index) for index in range(len(batch))], torch.stack(batch)
        done += len(batch)
    if done < number:
        log.warning("there are only %d images, not %d", done, number)


def _draw_grids(
    hidden: Tensor,
    originals: Tensor,
    results: Completions,
    names: Sequence[str],
    batch_first: int,
    files: ResultFiles,
) -> None:
    """Draw pictures of a batch, which begins with image ``batch_first`` of the run."""
    for start in range(0, len(names), _GRID_ROWS):
        part = slice(start, start + _GRID_ROWS)
        first = batch_first + start
        path = files.path(f"_images{first}-{first + len(names[part]) - 1}.png")
        images, nats = results.images[part, :_GRID_COLUMNS], results.nats[part, :_GRID_COLUMNS]
        save_completions(hidden, originals[part], images, nats, names[part], path)
        log.info("completions in %s", printable(path))


def _write(
    results: Completions, index: int, stem: Path, shape: ImageShape, num_hidden: int
) -> dict[str, Any]:
    """Write the completions of one image, and return their entry in the record."""

    def likelihood(nats: Tensor) -> dict[str, float]:
        return {"nats": nats.item(), "bpd": nats_to_bpd(nats.item(), shape[0] * num_hidden)}

    completions = []
    for rank, image in enumerate(results.images[index]):
        ending = f"_{rank}.png"
        path = stem.with_name(shorten(stem.name, name_limit(stem.parent) - len(ending)) + ending)
        save_image(image, path)
        order_index = int(results.order_indices[index, rank])
        file = f"{path.parent.name}/{path.name}"
        nats = results.nats[index, rank]
        completions.append({"file": file, "order_index": order_index, **likelihood(nats)})
    return {"original": likelihood(results.original_nats[index]), "completions": completions}


def _report(record: dict[str, Any], path: Path) -> None:
    best = [entry["completions"][0] for entry in record["images"]]
    if not best:
        log.warning("there were no images to complete")
        return
    log.info(
        "%d images with %d hidden pixels, %d completions of each in %.1f s; the likeliest: %.4f "
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
