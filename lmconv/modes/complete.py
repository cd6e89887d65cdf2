"""``--mode sample`` for holes of any shape: completions that see all that is visible, ranked."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmconv.generation.sampler import pixel_noise
from lmconv.modes.regions import hidden_region, hole_name
from lmconv.modes.run import Experiment
from lmconv.modes.sample import draw_hidden
from lmconv.orders import best_order, visible_first
from lmconv.plots import save_completions, save_image
from lmconv.scoring import log_likelihood_maps
from masking import Masks
from sources import ImageShape
from utils import ProgressBar, nats_to_bpd, write_json

# What a grid shows at most: images, and the likeliest completions of each.
_GRID_ROWS, _GRID_COLUMNS = 25, 10

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
        """Complete ``B x C x H x W`` images.

        What image i of the run becomes depends on the seed, on i, and on the numbers of orders and
        of completions alone.

        Args:
            originals: the images; what their hidden pixels hold has no influence.
            first: number of the first of them in the run.
            bar: counts the pixels.
        """
        self.experiment.model.eval()
        size = self.experiment.args.sample_batch_size
        repeated = originals.repeat_interleave(self.number, dim=0)
        images, nats = [], []
        for place in range(len(self.orders)):
            numbers = torch.arange(first, first + len(originals)) * len(self.orders) + place
            numbers = (numbers[:, None] * self.number + torch.arange(self.number)).flatten()
            drawn, drawn_nats = [], []
            for part, part_numbers in zip(repeated.split(size), numbers.split(size), strict=True):
                drawn.append(self._draw(part, part_numbers.tolist(), place, bar))
                drawn_nats.append(self._nats(drawn[-1], self.masks[place]))
            images.append(torch.cat(drawn).unflatten(0, (-1, self.number)))
            nats.append(torch.cat(drawn_nats).unflatten(0, (-1, self.number)))
        indices = torch.tensor(self.indices).repeat_interleave(self.number)
        ranked, places = torch.cat(nats, dim=1).sort(dim=1, stable=True)
        all_images = torch.cat(images, dim=1)
        return Completions(
            images=torch.stack([all_images[i, places[i]] for i in range(len(originals))]),
            nats=ranked,
            order_indices=indices[places],
            original_nats=self._nats(originals, self.masks[0]),
        )

    def _draw(self, images: Tensor, numbers: list[int], place: int, bar: ProgressBar) -> Tensor:
        """Complete ``B x C x H x W`` images in an order, each with the noise of its number."""
        experiment, (height, width) = self.experiment, self.hidden.shape
        noise = torch.cat(
            [
                pixel_noise(experiment.likelihood, 1, height, width, experiment.args.seed, number)
                for number in numbers
            ]
        )
        order, masks = self.orders[place], self.masks[place]
        return draw_hidden(
            experiment, experiment.model, order, masks, images, self.hidden, noise, bar
        )

    def _nats(self, images: Tensor, masks: Masks) -> Tensor:
        """Negative log-likelihood of the hidden pixels given the visible ones: B, float64."""
        experiment = self.experiment
        with experiment.autocast():
            (per_pixel,) = log_likelihood_maps(
                experiment.model, experiment.likelihood, images.to(experiment.device), [masks]
            )
        return -per_pixel.cpu()[:, self.hidden].double().sum(dim=1)


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
    choice = f"{args.order_choice or 'first'}_x{completer.number}"
    name = f"complete_ep{epoch}{hole_name(args)}_{choice}_seed{args.seed}"
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
            for index, image_name in enumerate(names):
                stem = run_dir / name / f"{first + index:05d}_{Path(image_name).stem}"
                entry = {"image": image_name, **_write(results, index, stem, shape, num_hidden)}
                record["images"].append(entry)
            first, record["seconds"] = first + len(names), time.monotonic() - begin
            write_json(run_dir / f"{name}.json", record)
            _draw_grids(experiment, completer.hidden, originals, results, names, first, name)
    _report(experiment, record, run_dir / f"{name}.json")


def _batches(
    experiment: Experiment, number: int, per_image: int
) -> Iterator[tuple[list[str], Tensor]]:
    """Names and images, ``B x C x H x W``, for ``--sample_batch_size`` completions at once."""
    data, done = experiment.open_images(), 0
    images = itertools.chain.from_iterable(data.batches(experiment.image_shapes[0]))
    at_once = max(1, experiment.args.sample_batch_size // per_image)
    while batch := list(itertools.islice(images, min(at_once, number - done))):
        yield [data.name(done + index) for index in range(len(batch))], torch.stack(batch)
        done += len(batch)
    if done < number:
        experiment.log.warning("the test set has %d images, not %d", done, number)


def _draw_grids(
    experiment: Experiment,
    hidden: Tensor,
    originals: Tensor,
    results: Completions,
    names: Sequence[str],
    end: int,
    name: str,
) -> None:
    """Pictures of a batch, which ends before image ``end`` of the run."""
    for start in range(0, len(names), _GRID_ROWS):
        part = slice(start, start + _GRID_ROWS)
        first = end - len(names) + start
        path = experiment.run_dir / f"{name}_images{first}-{first + len(names[part]) - 1}.png"
        images, nats = results.images[part, :_GRID_COLUMNS], results.nats[part, :_GRID_COLUMNS]
        save_completions(hidden, originals[part], images, nats, names[part], path)
        experiment.log.info("completions in %s", path)


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
