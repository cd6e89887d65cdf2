"""``--mode sample``: draw whole images or complete hidden boxes, and write the results."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmconv.data.image_files import suffix_for
from lmconv.file_names import printable
from lmconv.generation.sampler import pixel_noise
from lmconv.image_model import ImageModel
from lmconv.modes.regions import hidden_region
from lmconv.modes.results import ResultFiles, name_of_images, warn_of_fewer
from lmconv.modes.run import Run
from lmconv.pixel_values import ImageShape
from lmconv.plots import save_animation, save_completed_boxes, save_image, save_image_grid
from utils import ProgressBar

__all__ = ["Sampler", "check", "run"]

log = logging.getLogger(__name__)

# Their random numbers take more memory than the images.
_DRAWN_AT_ONCE = 1024


class Sampler:
    """Samples or completes images of one size in one of the orders, as the command line says.

    Args:
        run: the run.
        model: the run's model, or one with other weights.
        image_shape: (C, H, W).
        epoch: epoch of the weights; it chooses the order, together with the seed.
    """

    def __init__(self, run: Run, model: ImageModel, image_shape: ImageShape, epoch: int) -> None:
        self.run, self.model, self.image_shape = run, model, image_shape
        orders = model.orders(image_shape)
        self.order_index = int(
            np.random.default_rng([run.args.seed, max(epoch, 0)]).integers(len(orders))
        )
        self.order = orders[self.order_index]
        self.hidden = hidden_region(run.args, image_shape)  # H x W
        self._classes = run.classes_to_draw()

    def batches(self, number: int, bar: ProgressBar) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield originals and results, ``B x C x H x W``, in batches of ``--sample_batch_size``.

        Image i depends only on the seed and on i, not on the number of images and the batches
        (except for the rounding of sums, which the size of a batch can change).
        """
        done = 0
        for first, originals in self.originals(number):
            yield originals, self.generate(originals, first, bar)
            done += len(originals)
        warn_of_fewer(done, number)

    def grid(self, originals: Tensor, images: Tensor, path: Path, first: int) -> int:
        """Write a batch, which begins with image ``first``, as a picture.

        Completions show four tiles for each image: context, result, original, difference.

        Returns:
            The number of dots along the side of a pixel.
        """
        args = self.run.args
        if self.hidden.all():
            return save_image_grid(images, path, args.save_nrow, args.save_padding)
        return save_completed_boxes(
            self.hidden, originals, images, path, first, args.save_nrow, args.save_padding
        )

    def originals(self, number: int) -> Iterator[tuple[int, Tensor]]:
        """Images of the data set to complete, or zeros if all is to be drawn.

        They are this process's share of the batches, each with the number of its first image.
        """
        run, size = self.run, self.run.args.sample_batch_size
        if self.hidden.all():
            firsts = range(run.sharing.rank * size, number, run.sharing.number * size)
            shape = self.image_shape
            return ((first, torch.zeros(min(size, number - first), *shape)) for first in firsts)
        first, end = run.images.bounds(self.image_shape)
        end = first + number if end is None else min(first + number, end)
        return run.images.shared_batches(self.image_shape, run.sharing, first, end, size)

    def generate(self, originals: Tensor, first: int, bar: ProgressBar) -> Tensor:
        """Draw or complete a batch, which begins with image ``first``: ``B x C x H x W``."""
        _, height, width = self.image_shape
        drawn = []
        for part in originals.split(_DRAWN_AT_ONCE):
            noise = pixel_noise(
                self.model.likelihood, len(part), height, width, self.run.args.seed, first
            )
            numbers = range(first, first + len(part))
            label = None
            if classes := self._classes:
                label = self.model.label([classes[i % len(classes)] for i in numbers], len(part))
            drawn.append(
                self.model.draw(
                    *(part, self.hidden, self.order, noise),
                    *(self.run.sampling, bar.update, label),
                )
            )
            first += len(part)
        return torch.cat(drawn)


def check(run: Run) -> None:
    """Raise UserError if the hidden box, the classes or the test images do not fit the model."""
    run.classes_to_draw()
    for shape in run.image_shapes:
        if not hidden_region(run.args, shape).all():
            run.check_images()


def run(run: Run) -> None:
    """Draw or complete images with a checkpoint, for each image size but those of empty buckets.

    Writes a grid for each batch, with ``--save_individual`` a file for each image, with
    ``--save_animation`` a GIF for each grid, and a JSON of the settings and results. What is
    finished is kept if the rest is interrupted.
    """
    for shape in run.image_shapes:
        sampler = Sampler(run, run.model, shape, run.weights.epoch)
        if sampler.hidden.all() or run.images.used([shape]):
            _write_samples(sampler, run.args.num_samples or run.args.sample_batch_size)


def _write_samples(sampler: Sampler, number: int) -> None:
    run_dir = sampler.run.run_dir
    name = name_of_images(sampler.run, sampler.run.weights.epoch, sampler.image_shape)
    files, processes = ResultFiles(sampler.run, name), sampler.run.processes
    num_hidden = int(sampler.hidden.sum())
    record: dict[str, Any] = {
        "order_index": sampler.order_index,
        "image_shape": list(sampler.image_shape),
        "num_hidden_pixels": num_hidden,
        "num_images": 0,
        "seconds": 0.0,
        "files": [],
    }
    files.write(record, is_finished=False)
    begin, done = time.monotonic(), 0
    with sampler.run.progress_bar("sampling", number, num_hidden) as bar:
        finished = processes.in_turn(
            sampler.originals(number), lambda batch: _draw(sampler, files, number, *batch, bar)
        )
        for first, count, dots, paths in finished:
            done += count
            record["dots_per_pixel"] = dots
            record["num_images"], record["seconds"] = done, time.monotonic() - begin
            record["files"] += [str(path.relative_to(run_dir)) for path in paths]
            files.write(record, is_finished=False)
            log.info(
                "images %d to %d, with %d dots along the side of a pixel, in %s",
                *(first, first + count - 1, dots, printable(paths[0])),
            )
    files.write(record)
    warn_of_fewer(done, number)
    seconds = max(record["seconds"], 1e-9)
    log.info(
        "%d images in %.1f s, files included: %.3g images/s, %.4g pixels/s; settings in %s",
        *(done, seconds, done / seconds, done * record["num_hidden_pixels"] / seconds),
        printable(files.path(".json")),
    )


def _draw(
    sampler: Sampler,
    files: ResultFiles,
    number: int,
    first: int,
    originals: Tensor,
    bar: ProgressBar,
) -> tuple[int, int, int, list[Path]]:
    """Draw a batch of a run's images, and write the files.

    Args:
        sampler: what draws.
        files: names for the files.
        number: number of images of the run.
        first: number of the first image.
        originals: the batch, as ``Sampler.originals`` yields it.
        bar: shows the progress.

    Returns:
        The number of the first image, how many there are, the dots along the side of a pixel in the
        grid, and the paths of the files, the grid first.
    """
    images = sampler.generate(originals, first, bar)
    is_only = number <= sampler.run.args.sample_batch_size
    part = "" if is_only else f"_images{first}-{first + len(images) - 1}"
    path = files.path(f"{part}.png")
    dots = sampler.grid(originals, images, path, first)
    return first, len(images), dots, [path, *_write_others(sampler, images, files, part, first)]


def _write_others(
    sampler: Sampler, images: Tensor, files: ResultFiles, part: str, first: int
) -> list[Path]:
    """Write the animation and the single images of a batch, if they are wanted.

    Args:
        sampler: what the images were made with.
        images: the batch.
        files: names for the files.
        part: what the name of the batch's animation ends with.
        first: number of the first image.

    Returns:
        The paths of the files.
    """
    args, paths = sampler.run.args, []
    if args.save_animation:
        paths.append(files.path(f"{part}.gif"))
        save_animation(
            images,
            sampler.hidden,
            sampler.order.pixels,
            paths[0],
            args.save_nrow,
            args.save_padding,
        )
    if args.save_individual:
        for index, image in enumerate(images, start=first):
            paths.append(files.path("") / f"{index:05d}{suffix_for(len(image))}")
            save_image(image, paths[-1], sampler.model.likelihood.num_values)
    return paths
