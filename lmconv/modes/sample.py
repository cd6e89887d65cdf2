"""``--mode sample``: draw whole images or complete hidden regions, and write what comes out."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmconv.data.datasets import ImageShape, load_test
from lmconv.generation.sampler import pixel_noise, sample_cached, sample_naive
from lmconv.modes.regions import box_name, hidden_region
from lmconv.modes.run import Experiment
from lmconv.plots import completion_tiles, save_animation, save_image, save_image_grid
from masking import Masks
from utils import ProgressBar, write_json

__all__ = ["Sampler", "draw_hidden", "sample"]


class Sampler:
    """Samples or completes images of one size, under one of the orders and by the command line.

    Args:
        experiment: the run.
        model: the network; it is put into evaluation mode.
        image_shape: (C, H, W).
        epoch: of the weights; with the seed it chooses the order.
    """

    def __init__(
        self, experiment: Experiment, model: nn.Module, image_shape: ImageShape, epoch: int
    ) -> None:
        args = experiment.args
        self.experiment, self.model, self.image_shape = experiment, model.eval(), image_shape
        orders = experiment.orders(image_shape)
        self.order_index = int(
            np.random.default_rng([args.seed, max(epoch, 0)]).integers(len(orders))
        )
        self.order = orders[self.order_index]
        self.masks = experiment.masks(image_shape)[self.order_index]
        self.hidden = hidden_region(args, image_shape)  # H x W

    def batches(self, number: int, bar: ProgressBar) -> Iterator[tuple[Tensor, Tensor]]:
        """Originals and results, ``B x C x H x W``, in batches of ``--sample_batch_size``.

        Image i depends on the seed and on i alone, whatever the number and the batches (up to the
        rounding of sums, which the size of a batch can change).
        """
        first = 0
        for originals in self._originals(number):
            yield originals, self._generate(originals, first, bar)
            first += len(originals)

    def grid(self, originals: Tensor, images: Tensor, path: Path) -> None:
        """Write a batch as a picture.

        Completions show four tiles for each image: context, result, original, difference.
        """
        tiles = images
        if not self.hidden.all():
            tiles = completion_tiles(self.hidden, originals, images)
        args = self.experiment.args
        save_image_grid(tiles, path, args.save_nrow, args.save_padding)

    def _originals(self, number: int) -> Iterator[Tensor]:
        """What the hidden pixels belong to: the first test images, or nothing for whole images."""
        size = self.experiment.args.sample_batch_size
        if self.hidden.all():
            for first in range(0, number, size):
                yield torch.zeros(min(size, number - first), *self.image_shape)
            return
        images = itertools.chain.from_iterable(
            load_test(self.experiment.data).batches(self.image_shape)
        )
        for first in range(0, number, size):
            wanted = min(size, number - first)
            batch = list(itertools.islice(images, wanted))
            if batch:
                yield torch.stack(batch)
            if len(batch) < wanted:
                self.experiment.log.warning(
                    "the test set has %d images, not %d", first + len(batch), number
                )
                return

    def _generate(self, originals: Tensor, first: int, bar: ProgressBar) -> Tensor:
        _, height, width = self.image_shape
        seed, likelihood = self.experiment.args.seed, self.experiment.likelihood
        noise = pixel_noise(likelihood, len(originals), height, width, seed, first)
        return draw_hidden(
            self.experiment,
            self.model,
            self.order,
            self.masks,
            originals,
            self.hidden,
            noise,
            bar,
        )


def draw_hidden(
    experiment: Experiment,
    model: nn.Module,
    order: np.ndarray,
    masks: Masks,
    images: Tensor,
    hidden: Tensor,
    noise: Tensor,
    bar: ProgressBar,
) -> Tensor:
    """Generate hidden pixels with the sampler, precision and temperatures of the command line.

    Args:
        experiment: the run.
        model: the network, in evaluation mode.
        order, masks, images, hidden, noise: as in ``sample_naive``, on any device.
        bar: counts the pixels.

    Returns:
        ``B x C x H x W``, on the CPU.
    """
    args, device = experiment.args, experiment.device
    draw = sample_naive if args.sampler == "naive" else sample_cached
    with experiment.autocast():
        return draw(
            model,
            experiment.likelihood,
            order,
            masks,
            images.to(device),
            hidden.to(device),
            noise.to(device),
            args.sample_mixture_temperature,
            args.sample_logistic_temperature,
            bar.update,
        ).cpu()


def sample(experiment: Experiment) -> None:
    """``--mode sample``: draw or complete images with a checkpoint, for each image size.

    Writes a grid for each batch, with ``--save_individual`` a file for each image, with
    ``--save_animation`` a GIF for each grid, and a JSON of the settings and results. What is
    finished stays when the rest is interrupted.
    """
    checkpoint, epoch = experiment.load_weights()
    for shape in experiment.image_shapes:
        sampler = Sampler(experiment, experiment.model, shape, epoch)
        number = experiment.args.num_samples or experiment.args.sample_batch_size
        _write_samples(sampler, number, _name(sampler, epoch), checkpoint, epoch)


def _name(sampler: Sampler, epoch: int) -> str:
    """The name of a run's files: the published one, and the seed, so that runs do not mix."""
    args = sampler.experiment.args
    shape = "x".join(map(str, sampler.image_shape))
    return (
        f"sample_{args.sample_region}_ep{epoch}{box_name(args)}"
        f"_ltemp{args.sample_logistic_temperature:g}_mtemp{args.sample_mixture_temperature:g}_obs{shape}_order{sampler.order_index}"
        f"_seed{args.seed}"
    )


def _write_samples(sampler: Sampler, number: int, name: str, checkpoint: Path, epoch: int) -> None:
    experiment = sampler.experiment
    args, run_dir = experiment.args, experiment.run_dir
    record: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "epoch": epoch,
        "order_index": sampler.order_index,
        "image_shape": list(sampler.image_shape),
        "num_hidden_pixels": int(sampler.hidden.sum()),
        "num_images": 0,
        "seconds": 0.0,
        "files": [],
        "args": vars(args),
    }
    begin, done = time.monotonic(), 0
    with ProgressBar("sampling", number, record["num_hidden_pixels"]) as bar:
        for originals, images in sampler.batches(number, bar):
            last = done + len(images) - 1
            part = "" if number <= args.sample_batch_size else f"_images{done}-{last}"
            paths = [run_dir / f"{name}{part}.png"]
            sampler.grid(originals, images, paths[0])
            if args.save_animation:
                paths.append(paths[0].with_suffix(".gif"))
                save_animation(
                    images,
                    sampler.hidden,
                    sampler.order,
                    paths[1],
                    args.save_nrow,
                    args.save_padding,
                )
            if args.save_individual:
                for index, image in enumerate(images, start=done):
                    paths.append(run_dir / name / f"{index:05d}.png")
                    save_image(image, paths[-1])
            done = last + 1
            record["num_images"], record["seconds"] = done, time.monotonic() - begin
            record["files"] += [str(path.relative_to(run_dir)) for path in paths]
            write_json(run_dir / f"{name}.json", record)
            experiment.log.info("images %d to %d in %s", done - len(images), last, paths[0])
    seconds = max(record["seconds"], 1e-9)
    experiment.log.info(
        "%d images in %.1f s, files included: %.3g images/s, %.4g pixels/s; settings in %s",
        *(done, seconds, done / seconds, done * record["num_hidden_pixels"] / seconds),
        run_dir / f"{name}.json",
    )
