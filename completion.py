"""``--mode sample`` for holes of any shape: completions that see all that is visible, ranked."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation import log_likelihood_maps
from experiment import Experiment
from generation import pixel_noise, sample_cached, sample_naive
from masking import Masks
from order_choice import best_order, visible_first
from plots import save_completions, save_image
from regions import hidden_region
from sources import ImageShape
from utils import ProgressBar, nats_to_bpd, write_json

__all__ = ["Completer", "Completions", "complete"]


@dataclass(frozen=True)
class Completions:
    """The completions of a batch of images, the likeliest of each first.

    Attributes:
        images: ``B x N x C x H x W`` in [-1, 1].
        nats: ``B x N``, negative log-likelihood of the hidden pixels given the visible ones.
        order_indices: ``B x N``, the order that each was drawn and scored with.
        original_nats: ``B``, that of the hidden pixels as they were, in the first of the orders.
    """

    images: Tensor
    nats: Tensor
    order_indices: Tensor
    original_nats: Tensor


class Completer:
    """Completes images of one size under the orders that ``--order_choice`` gives.

    Args:
        experiment: the run, with the weights loaded.
        hidden: ``H x W``, bool.
    """

    def __init__(self, experiment: Experiment, hidden: Tensor) -> None:
        args = experiment.args
        self.experiment, self.hidden = experiment, hidden
        self.number = args.completions or 1
        shape = experiment.image_shapes[0]
        all_orders = experiment.orders(shape)
        self.indices = list(range(len(all_orders)))
        if args.order_choice == "best":
            self.indices = [best_order(all_orders, hidden, args.kernel_size)]
        elif args.order_choice != "each":
            self.indices = [0]
        self.orders = [visible_first(all_orders[index], hidden) for index in self.indices]
        self.masks = [experiment.masks_of(order, shape) for order in self.orders]

    @property
    def per_image(self) -> int:
        """Number of completions of an image."""
        return self.number * len(self.orders)

    def complete(self, originals: Tensor, first: int, bar: ProgressBar) -> Completions:
        """Complete ``B x C x H x W`` images; image i of the run depends on the seed and on i alone.

        Args:
            originals: the images; what their hidden pixels hold has no influence.
            first: number of the first of them in the run.
            bar: counts the pixels.
        """
        self.experiment.model.eval()
        repeated = originals.repeat_interleave(self.number, dim=0).to(self.experiment.device)
        images, nats = [], []
        for place in range(len(self.orders)):
            numbers = [
                ((first + index) * len(self.orders) + place) * self.number
                for index in range(len(originals))
            ]
            drawn = self._draw(repeated, numbers, place, bar)
            nats.append(self._nats(drawn, self.masks[place]).unflatten(0, (-1, self.number)))
            images.append(drawn.cpu().unflatten(0, (-1, self.number)))
        indices = torch.tensor(self.indices).repeat_interleave(self.number)
        ranked, places = torch.cat(nats, dim=1).sort(dim=1, stable=True)
        all_images = torch.cat(images, dim=1)
        return Completions(
            images=torch.stack([all_images[i, places[i]] for i in range(len(originals))]),
            nats=ranked,
            order_indices=indices[places],
            original_nats=self._nats(originals.to(self.experiment.device), self.masks[0]),
        )

    def _draw(self, images: Tensor, numbers: list[int], place: int, bar: ProgressBar) -> Tensor:
        args, likelihood = self.experiment.args, self.experiment.likelihood
        height, width = self.hidden.shape
        noise = torch.cat(
            [
                pixel_noise(likelihood, self.number, height, width, args.seed, number)
                for number in numbers
            ]
        )
        draw = sample_naive if args.sampler == "naive" else sample_cached
        with self.experiment.autocast():
            return draw(
                self.experiment.model,
                likelihood,
                self.orders[place],
                self.masks[place],
                images,
                self.hidden.to(images.device),
                noise.to(images.device),
                args.sample_mixture_temperature,
                args.sample_logistic_temperature,
                bar.update,
            )

    def _nats(self, images: Tensor, masks: Masks) -> Tensor:
        """Negative log-likelihood of the hidden pixels given the visible ones: B, float64."""
        experiment = self.experiment
        with experiment.autocast():
            (per_pixel,) = log_likelihood_maps(
                experiment.model, experiment.likelihood, images, [masks]
            )
        return -per_pixel[:, self.hidden.to(images.device)].double().sum(dim=1).cpu()


def complete(experiment: Experiment) -> None:
    """``--mode sample`` for ``--images``, ``--hole_mask``, ``--order_choice`` or ``--completions``.

    Writes a grid for each batch (context, completions from the likeliest on, the image as it was),
    each completion as a PNG, and a JSON with the nats and bits per hidden dimension of each. What
    is finished stays when the rest is interrupted.
    """
    args, run_dir, shape = experiment.args, experiment.run_dir, experiment.image_shapes[0]
    checkpoint, epoch = experiment.load_weights()
    completer = Completer(experiment, hidden_region(args, shape))
    num_hidden = int(completer.hidden.sum())
    name = f"complete_ep{epoch}_{args.order_choice or 'first'}_seed{args.seed}"
    number = len(args.images or ()) or args.num_samples or args.sample_batch_size
    record: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "epoch": epoch,
        "image_shape": list(shape),
        "num_hidden_pixels": num_hidden,
        "order_indices": completer.indices,
        "seconds": 0.0,
        "images": [],
        "args": vars(args),
    }
    begin, first = time.monotonic(), 0
    with ProgressBar("completing", number * completer.per_image, num_hidden) as bar:
        for names, originals in _batches(experiment, number, completer.per_image):
            results = completer.complete(originals, first, bar)
            last = first + len(names) - 1
            grid = run_dir / f"{name}_images{first}-{last}.png"
            save_completions(completer.hidden, originals, results.images, results.nats, names, grid)
            for index, image_name in enumerate(names):
                stem = run_dir / name / f"{first + index:05d}_{Path(image_name).stem}"
                entry = {"image": image_name, "grid": grid.name}
                record["images"].append(entry | _write(results, index, stem, shape, num_hidden))
            first, record["seconds"] = last + 1, time.monotonic() - begin
            write_json(run_dir / f"{name}.json", record)
            experiment.log.info("completions in %s", grid)
    _report(experiment, record, run_dir / f"{name}.json")


def _batches(
    experiment: Experiment, number: int, per_image: int
) -> Iterator[tuple[list[str], Tensor]]:
    """Names and images, ``B x C x H x W``, for ``--sample_batch_size`` completions at once."""
    names, data = experiment.open_images()
    images = itertools.chain.from_iterable(data.batches(experiment.image_shapes[0]))
    at_once = max(1, experiment.args.sample_batch_size // per_image)
    for first in range(0, number, at_once):
        batch = list(itertools.islice(images, min(at_once, number - first)))
        if batch:
            yield [names(first + index) for index in range(len(batch))], torch.stack(batch)


def _write(
    results: Completions, index: int, stem: Path, shape: ImageShape, num_hidden: int
) -> dict[str, Any]:
    """Write the completions of one image, and say what they are."""

    def likelihood(nats: Tensor) -> dict[str, float]:
        return {"nats": nats.item(), "bpd": nats_to_bpd(nats.item(), shape[0] * num_hidden)}

    completions = []
    for rank, image in enumerate(results.images[index]):
        path = stem.with_name(f"{stem.name}_{rank}.png")
        save_image(image, path)
        order_index = int(results.order_indices[index, rank])
        file = f"{path.parent.name}/{path.name}"
        nats = results.nats[index, rank]
        completions.append({"file": file, "order_index": order_index, **likelihood(nats)})
    return {"original": likelihood(results.original_nats[index]), "completions": completions}


def _report(experiment: Experiment, record: dict[str, Any], path: Path) -> None:
    best = [entry["completions"][0] for entry in record["images"]]
    if not best:
        experiment.log.warning("there were no images to complete")
        return
    experiment.log.info(
        "%d images of %d hidden pixels, %d completions of each in %.1f s; the likeliest: %.4f bits "
        "per hidden dimension = %.3f nats on average; the images as they were: %.4f = %.3f",
        *(len(best), record["num_hidden_pixels"], len(record["images"][0]["completions"])),
        record["seconds"],
        *_means(best),
        *_means([entry["original"] for entry in record["images"]]),
    )
    experiment.log.info("files and likelihoods in %s", path)


def _means(likelihoods: Sequence[dict[str, Any]]) -> tuple[float, float]:
    number = len(likelihoods)
    return sum(l["bpd"] for l in likelihoods) / number, sum(l["nats"] for l in likelihoods) / number
