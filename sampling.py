"""Generation of whole images and completion of hidden regions, pixel by pixel along an order."""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data import ImageShape, load_test
from experiment import Experiment
from likelihoods import Likelihood
from masking import Masks
from plots import completion_tiles, save_image_grid
from utils import UsageError, progress

__all__ = ["hidden_region", "pixel_noise", "sample", "sample_grid", "sample_naive"]


def pixel_noise(
    likelihood: Likelihood, num_images: int, height: int, width: int, seed: int
) -> Tensor:
    """The random numbers of ``num_images`` images: ``B x N x H x W``, uniform in (0, 1).

    Those of image i depend on the seed and on i alone, so batches can be split at will.
    """
    noise = []
    for index in range(num_images):
        state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        noise.append(likelihood.draw_noise(1, height, width, generator))
    return torch.cat(noise)


@torch.inference_mode()
def sample_naive(
    model: nn.Module,
    likelihood: Likelihood,
    order: np.ndarray,
    masks: Masks,
    images: Tensor,
    hidden: Tensor,
    noise: Tensor,
    mixture_temperature: float = 1.0,
    logistic_temperature: float = 1.0,
) -> Tensor:
    """Generate the hidden pixels along an order, one full forward pass for each.

    A generated pixel sees what comes before it in the order, visible or generated.

    Args:
        model: a network in evaluation mode.
        likelihood: what its output means.
        order: ``(H*W) x 2``, the order that the masks are of.
        masks: of that order.
        images: ``B x C x H x W`` in [-1, 1]; hidden pixels may hold anything.
        hidden: ``H x W``, bool, the pixels to generate.
        noise: ``B x N x H x W`` from ``pixel_noise``.
        mixture_temperature: divides the mixture logits.
        logistic_temperature: multiplies the scales.

    Returns:
        ``B x C x H x W``; visible pixels are those of ``images``, bit for bit.
    """
    images = torch.where(hidden, torch.zeros_like(images), images)
    steps = [(row, col) for row, col in order.tolist() if hidden[row, col]]
    for row, col in progress(steps, desc="sampling pixels"):
        at = (slice(None), slice(None), slice(row, row + 1), slice(col, col + 1))
        logits = model(images, masks)[at]
        images[at] = likelihood.sample(
            logits,
            noise=noise[at],
            mixture_temperature=mixture_temperature,
            logistic_temperature=logistic_temperature,
        ).to(images.dtype)
    return images


def hidden_region(args: argparse.Namespace, image_shape: ImageShape) -> Tensor:
    """The pixels that ``--sample_region`` hides: ``H x W``, bool.

    A box starts at (H//2 + offset1, W//2 + offset2) and has sample_size_h x sample_size_w pixels.

    Raises:
        UsageError: the box is not inside the image.
    """
    _, height, width = image_shape
    if args.sample_region == "full":
        return torch.ones(height, width, dtype=torch.bool)
    rows, cols = args.sample_size_h, args.sample_size_w
    row_offset, col_offset = {
        "custom": (args.sample_offset1, args.sample_offset2),
        "top": (-(height // 2), -(width // 2)),
        "center": (-rows // 2, -cols // 2),
        "random_near_center": (-rows // 2, -cols // 2),
    }[args.sample_region]
    top, left = height // 2 + row_offset, width // 2 + col_offset
    if top < 0 or left < 0 or top + rows > height or left + cols > width:
        raise UsageError(
            f"--sample_region {args.sample_region}: rows {top}:{top + rows} and columns "
            f"{left}:{left + cols} are not inside the {height}x{width} image: change "
            "--sample_size_h/_w or --sample_offset1/2"
        )
    if args.sample_region == "random_near_center":
        random = np.random.default_rng(args.seed)
        top = _near(top, height // 8, height - rows, random)
        left = _near(left, width // 8, width - cols, random)
    hidden = torch.zeros(height, width, dtype=torch.bool)
    hidden[top : top + rows, left : left + cols] = True
    return hidden


def _near(start: int, distance: int, last: int, random: np.random.Generator) -> int:
    """A start at most ``distance`` away that keeps the box inside the image."""
    return int(np.clip(start + random.integers(-distance, distance + 1), 0, last))


def sample_grid(
    experiment: Experiment, model: nn.Module, image_shape: ImageShape, prefix: str, epoch: int
) -> Path:
    """Sample or complete ``--sample_batch_size`` images and write their grid; returns its path.

    Completions show four tiles for each image: context, result, original, difference.
    """
    args = experiment.args
    channels, height, width = image_shape
    orders = experiment.orders(image_shape)
    index = int(np.random.default_rng([args.seed, max(epoch, 0)]).integers(len(orders)))
    hidden = hidden_region(args, image_shape)
    if hidden.all():
        originals = torch.zeros(args.sample_batch_size, channels, height, width)
    else:
        originals = _test_images(experiment, image_shape)
    model.eval()
    with experiment.autocast():
        images = sample_naive(
            model,
            experiment.likelihood,
            orders[index],
            experiment.masks(image_shape)[index],
            originals.to(experiment.device),
            hidden.to(experiment.device),
            pixel_noise(experiment.likelihood, len(originals), height, width, args.seed).to(
                experiment.device
            ),
            args.sample_mixture_temperature,
            args.sample_logistic_temperature,
        ).cpu()
    tiles = images if hidden.all() else completion_tiles(hidden, originals, images)
    name = f"{prefix}_obs{channels}x{height}x{width}_order{index}"
    path = experiment.run_dir / f"{name}.png"
    save_image_grid(tiles, path, args.save_nrow, args.save_padding)
    return path


def _test_images(experiment: Experiment, image_shape: ImageShape) -> Tensor:
    """The first images of the test set."""
    wanted, batches = experiment.args.sample_batch_size, []
    for batch in load_test(experiment.data).batches(image_shape):
        batches.append(batch)
        if sum(map(len, batches)) >= wanted:
            break
    return torch.cat(batches)[:wanted]


def sample(experiment: Experiment) -> None:
    """``--mode sample``: draw or complete images with a checkpoint and write their grids."""
    args = experiment.args
    _, epoch = experiment.load_weights()
    for shape in experiment.image_shapes:
        box = ""
        if args.sample_region != "full":
            box = f"_{args.sample_size_h}x{args.sample_size_w}"
        if args.sample_region == "custom":
            box += f"_o1{args.sample_offset1}_o2{args.sample_offset2}"
        prefix = (
            f"sample_{args.sample_region}_ep{epoch}{box}_ltemp{args.sample_logistic_temperature:g}"
            f"_mtemp{args.sample_mixture_temperature:g}"
        )
        path = sample_grid(experiment, experiment.model, shape, prefix, epoch)
        experiment.log.info("images in %s", path)
