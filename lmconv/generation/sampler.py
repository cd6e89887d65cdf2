"""Generation of pixels along an order: the cached sampler, and the naive one that it equals.

The random numbers of a draw belong to the pixel and its image. So what is generated depends neither
on the schedule of steps nor on how images are split into batches.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lmconv.generation.feature_cache import FeatureCache, masked_convolutions
from lmconv.generation.schedule import Reads, generation_steps, map_rows, mask_reads
from lmconv.generation.step_plan import StepPlan
from lmconv.likelihoods import Likelihood
from locally_masked_convolution import LocallyMaskedConv2d
from masking import Masks

__all__ = [
    "MAP_BYTES",
    "Schedule",
    "generate",
    "pixel_noise",
    "sample_cached",
    "sample_naive",
    "whole_image_schedule",
]

# Images are split into batches that take about so much memory.
MAP_BYTES = 2 * 2**30


class Schedule(NamedTuple):
    """The steps of a generation, and what they need; ``images_at_once`` fit into ``MAP_BYTES``."""

    masks: Masks
    reads: Reads
    steps: list[np.ndarray]
    rows: np.ndarray
    images_at_once: int


def pixel_noise(
    likelihood: Likelihood, num_images: int, height: int, width: int, seed: int, first: int = 0
) -> Tensor:
    """The random numbers of ``num_images`` images: ``B x N x H x W``, uniform in (0, 1).

    Those of image i, counted from ``first``, depend on the seed and on i alone.
    """
    noise = []
    for index in range(first, first + num_images):
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
    on_step: Callable[[int], object] = lambda pixels: None,
) -> Tensor:
    """Generate the hidden pixels along an order, one full forward pass for each.

    A generated pixel sees what comes before it in the order, visible or generated. Works with any
    network; it is what the cached sampler is tested against.

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
        on_step: told after each step how many pixels it drew, those of all images together.

    Returns:
        ``B x C x H x W``; visible pixels are those of ``images``, bit for bit.
    """
    images = torch.where(hidden, torch.zeros_like(images), images)
    for row, col in order.tolist():
        if not hidden[row, col]:
            continue
        at = (slice(None), slice(None), slice(row, row + 1), slice(col, col + 1))
        logits = model(images, masks)[at]
        images[at] = likelihood.sample(
            logits,
            noise=noise[at],
            mixture_temperature=mixture_temperature,
            logistic_temperature=logistic_temperature,
        ).to(images.dtype)
        on_step(len(images))
    return images


@torch.inference_mode()
def sample_cached(
    model: nn.Module,
    likelihood: Likelihood,
    order: np.ndarray,
    masks: Masks,
    images: Tensor,
    hidden: Tensor,
    noise: Tensor,
    mixture_temperature: float = 1.0,
    logistic_temperature: float = 1.0,
    on_step: Callable[[int], object] = lambda pixels: None,
    *,
    parallel: bool = True,
    uniform: bool | None = None,
) -> Tensor:
    """Generate the hidden pixels along an order, computing the features of each pixel once.

    Visible pixels are computed in one forward pass; then only the hidden ones are stepped through,
    with the visible ones whose features depend on them. The draws are those of ``sample_naive``, up
    to the rounding of sums, which in half precision can change a pixel and what follows it.

    Args:
        model: a network in evaluation mode whose positions interact in masked convolutions alone,
            under the three masks as they are given to it.
        likelihood, order, masks, images, hidden, noise: as in ``sample_naive``.
        mixture_temperature, logistic_temperature, on_step: likewise.
        parallel: compute all pixels of a dependency depth in one step, not one by one.
        uniform: make all steps one size, for one CUDA graph; by default on a GPU alone.

    Returns:
        ``B x C x H x W``; visible pixels are those of ``images``, bit for bit.

    Raises:
        ValueError: the network has no masked convolutions, or others than the masks are for, or the
            masks are not of the order.
    """
    images = torch.where(hidden, torch.zeros_like(images), images).contiguous()
    is_hidden = hidden.cpu().numpy()
    schedule = _schedule(model, order, masks, is_hidden, parallel)
    if not schedule.steps or not len(images):
        return images
    if uniform is None:
        uniform = images.is_cuda
    size = schedule.images_at_once
    draw = partial(
        likelihood.sample,
        mixture_temperature=mixture_temperature,
        logistic_temperature=logistic_temperature,
    )
    drawn = [int(is_hidden.flat[step].sum()) for step in schedule.steps]
    for batch, random in zip(images.split(size), noise.split(size), strict=True):
        with _cache(model, schedule, batch, uniform) as (cache, pixels):
            step = _step_function(model, draw, cache, pixels, hidden, random)
            for number, _ in zip(drawn, cache.run(step), strict=True):
                on_step(number * len(batch))
    return images


@torch.inference_mode()
def generate(
    model: nn.Module,
    schedule: Schedule,
    images: Tensor,
    choose: Callable[[Tensor, np.ndarray], Tensor],
) -> None:
    """Generate whole images along an order, the pixels chosen by a function of their logits.

    Steps are those of ``sample_cached``. All is computed in the same operations on the same shapes
    whatever is chosen, so a second run that is given the same pixels has the same logits, up to the
    rounding of sums.

    Args:
        model: as in ``sample_cached``.
        schedule: from ``whole_image_schedule`` of this network.
        images: ``B x C x H x W``, contiguous, in the network's dtype; they are filled in.
        choose: called for each step with the logits, ``B x L x P x 1``, whose memory the next step
            uses again, and the numbers of these P pixels, row by row; returns their values,
            ``B x C x P x 1``.
    """
    steps = iter(schedule.steps)
    with _cache(model, schedule, images, uniform=False) as (cache, pixels):

        def put(logits: Tensor) -> None:
            step_pixels = next(steps)
            number = len(step_pixels)  # what comes after only fills up the step
            values = choose(logits[:, :, :number], step_pixels)
            rows = cache.now.rows.current.view(len(images), -1)[:, :number]
            pixels.index_copy_(0, rows.flatten(), values.permute(0, 2, 3, 1).flatten(0, 2))

        def step() -> None:
            now = cache.now
            cache.call(put, model(cache.columns(pixels, now.rows.new), now.masks))

        for _ in cache.run(step):
            pass


def whole_image_schedule(model: nn.Module, order: np.ndarray, masks: Masks) -> Schedule:
    """How whole images are generated along an order.

    Raises:
        ValueError: as ``sample_cached``.
    """
    rows, cols = order.max(axis=0) + 1
    return _schedule(model, order, masks, np.ones((rows, cols), dtype=bool), parallel=True)


def _schedule(
    model: nn.Module, order: np.ndarray, masks: Masks, is_hidden: np.ndarray, parallel: bool
) -> Schedule:
    layers = masked_convolutions(model)
    if not layers:
        raise ValueError("the cached sampler needs a network of masked convolutions")
    height, width = is_hidden.shape
    reads = mask_reads(masks, height, width, max(layer.dilation for layer in layers))
    steps = generation_steps(order, reads, is_hidden, parallel)
    rows = map_rows(steps, reads)
    at_once = max(1, MAP_BYTES // max(1, _bytes_per_image(layers, rows, steps)))
    return Schedule(masks, reads, steps, rows, at_once)


@contextmanager
def _cache(
    model: nn.Module, schedule: Schedule, images: Tensor, uniform: bool
) -> Iterator[tuple[FeatureCache, Tensor]]:
    """A cache that knows the visible pixels, and the table of those to generate.

    ``images``, contiguous, are filled in at the end.
    """
    masks, reads, steps, rows, _ = schedule
    plan = StepPlan(masks, reads, steps, rows, len(images), uniform)
    with torch.cuda.device_of(images), FeatureCache(model, plan) as cache:
        cache.prefill(images, masks)
        pixels = cache.table(images)
        yield cache, pixels
        cache.write_back(pixels, images)


def _step_function(
    model: nn.Module,
    draw: Callable[..., Tensor],
    cache: FeatureCache,
    pixels: Tensor,
    hidden: Tensor,
    noise: Tensor,
) -> Callable[[], None]:
    """What computes the step at hand and puts the hidden pixels of it into their table."""
    random = cache.table(noise)
    is_hidden = cache.table(hidden.expand(len(noise), 1, -1, -1))

    def step() -> None:
        now = cache.now
        logits = model(cache.columns(pixels, now.rows.new), now.masks)
        drawn = draw(logits, noise=cache.columns(random, now.rows.current)).to(pixels.dtype)
        known = cache.columns(pixels, now.rows.current)
        values = torch.where(cache.columns(is_hidden, now.rows.current), drawn, known)
        pixels.index_copy_(0, now.rows.current, values.permute(0, 2, 3, 1).flatten(0, 2))

    return step


def _bytes_per_image(
    layers: Sequence[LocallyMaskedConv2d], rows: np.ndarray, steps: Sequence[np.ndarray]
) -> int:
    """About the memory of the maps for each image; of a forward pass that fills them, at most."""
    has_visible = (rows >= 0).sum() > sum(map(len, steps))
    num_rows = len(rows) if has_visible else int(rows.max()) + 1
    return num_rows * sum(layer.in_channels * layer.weight.element_size() for layer in layers)
