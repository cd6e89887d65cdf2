"""Generation of pixels along an order: the cached sampler, and the naive one that it equals.

The random numbers of a draw belong to the pixel and its image. So what is generated depends neither
on the schedule of steps nor on how images are split into batches.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from feature_cache import FeatureCache, masked_convolutions
from likelihoods import Likelihood
from locally_masked_convolution import LocallyMaskedConv2d
from masking import Masks
from schedule import generation_steps, map_rows, mask_reads
from steps import StepPlan

__all__ = ["MAP_BYTES", "pixel_noise", "sample_cached", "sample_naive"]

# Images are split into batches that take about so much memory.
MAP_BYTES = 2 * 2**30


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
    height, width = hidden.shape
    layers = masked_convolutions(model)
    if not layers:
        raise ValueError("the cached sampler needs a network of masked convolutions")
    dilation = max(layer.dilation for layer in layers)
    reads = mask_reads(masks, height, width, dilation)
    is_hidden = hidden.cpu().numpy()
    steps = generation_steps(order, reads, is_hidden, parallel)
    if not steps or not len(images):
        return images
    if uniform is None:
        uniform = images.is_cuda
    rows = map_rows(steps, reads)
    size = max(1, MAP_BYTES // _bytes_per_image(layers, rows, steps))
    draw = partial(
        likelihood.sample,
        mixture_temperature=mixture_temperature,
        logistic_temperature=logistic_temperature,
    )
    drawn = [int(is_hidden.flat[step].sum()) for step in steps]
    for batch, random in zip(images.split(size), noise.split(size), strict=True):
        plan = StepPlan(masks, reads, steps, rows, len(batch), uniform)
        with torch.cuda.device_of(batch), FeatureCache(model, plan) as cache:
            cache.prefill(batch, masks)
            pixels = cache.table(batch)
            step = _step_function(model, draw, cache, pixels, hidden, random)
            for number, _ in zip(drawn, cache.run(step), strict=True):
                on_step(number * len(batch))
            cache.write_back(pixels, batch)
    return images


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
