"""Generation of pixels along an order: the cached sampler, and the naive one that it equals.

Random numbers belong to a pixel of an image. So the result depends neither on how pixels are
grouped into steps nor on how images are split into batches.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from lmconv.generation.feature_cache import FeatureCache
from lmconv.generation.guessing import Guessing, choose_guessing, draw_by_guessing
from lmconv.generation.schedule import Schedule, make_schedule
from lmconv.generation.step_plan import StepPlan
from lmconv.likelihoods import Likelihood
from masking import Masks

__all__ = ["generate", "pixel_noise", "sample_cached", "sample_naive"]


def pixel_noise(
    likelihood: Likelihood, num_images: int, height: int, width: int, seed: int, first: int = 0
) -> Tensor:
    """The random numbers of ``num_images`` images: ``B x N x H x W``, uniform in (0, 1).

    Images are counted from ``first``. The numbers of image i depend only on the seed and i.
    """
    noise = []
    for index in range(first, first + num_images):
        state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        noise.append(likelihood.draw_noise(1, height, width, generator))
    return torch.cat(noise)


@torch.inference_mode()
def sample_naive(
    network: nn.Module,
    likelihood: Likelihood,
    order: np.ndarray,
    masks: Masks,
    images: Tensor,
    hidden: Tensor,
    noise: Tensor,
    mixture_temperature: float = 1.0,
    logistic_temperature: float = 1.0,
    on_step: Callable[[int], object] = lambda pixels: None,
    label: Tensor | None = None,
) -> Tensor:
    """Generate the hidden pixels along an order, with a full forward pass for each.

    A generated pixel sees all pixels before it in the order, visible or generated. This works with
    any network, and is what the cached sampler is tested against.

    Args:
        network: in evaluation mode.
        likelihood: what the network's output means.
        order: ``(H*W) x 2``, the order that the masks were made for.
        masks: the network's masks for the order.
        images: ``B x C x H x W`` in [-1, 1]; hidden pixels may hold anything.
        hidden: ``H x W``, bool, the pixels to generate.
        noise: ``B x N x H x W`` from ``pixel_noise``.
        mixture_temperature: divides the mixture logits.
        logistic_temperature: multiplies the scales.
        on_step: called after each step with the number of pixels that it drew in all images.
        label: what the network is told of each image, B, int64; by default nothing.

    Returns:
        ``B x C x H x W``; visible pixels are those of ``images``, bit for bit.
    """
    images = torch.where(hidden, torch.zeros_like(images), images)
    for row, col in order.tolist():
        if not hidden[row, col]:
            continue
        at = (slice(None), slice(None), slice(row, row + 1), slice(col, col + 1))
        logits = network(images, masks, label=label)[at]
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
    network: nn.Module,
    likelihood: Likelihood,
    order: np.ndarray,
    masks: Masks,
    images: Tensor,
    hidden: Tensor,
    noise: Tensor,
    mixture_temperature: float = 1.0,
    logistic_temperature: float = 1.0,
    on_step: Callable[[int], object] = lambda pixels: None,
    label: Tensor | None = None,
    *,
    parallel: bool = True,
    uniform: bool | None = None,
    guess: int | None = 0,
) -> Tensor:
    """Generate the hidden pixels along an order, computing the features of each pixel once.

    The features of visible pixels are computed in one forward pass. After that, only the hidden
    pixels are stepped through, and those visible ones whose features depend on them. The draws are
    those of ``sample_naive`` up to rounding errors in sums, which in half precision can change a
    pixel and all that depends on it.

    Args:
        network: in evaluation mode; its positions interact in masked convolutions only, and it
            passes them the masks that it is called with, unchanged.
        likelihood, order, masks, images, hidden, noise: as in ``sample_naive``.
        mixture_temperature, logistic_temperature, on_step, label: likewise.
        parallel: compute all pixels of the same dependency depth in one step, not one by one.
        uniform: pad all steps to one size, for a single CUDA graph; by default only on a GPU.
        guess: number of positions that are guessed and computed at once for each image
            (``guessing.py``); 0 to compute only what is known not to depend on each other; None
            to choose.

    Returns:
        ``B x C x H x W``; visible pixels are those of ``images``, bit for bit.

    Raises:
        ValueError: the network has no masked convolutions, or the masks do not fit them or the
            order.
    """
    images = torch.where(hidden, torch.zeros_like(images), images).contiguous()
    is_hidden = hidden.cpu().numpy()
    schedule = make_schedule(network, order, masks, is_hidden, parallel)
    if not schedule.steps or not len(images):
        return images
    if uniform is None:
        uniform = images.is_cuda
    draw = partial(
        likelihood.sample,
        mixture_temperature=mixture_temperature,
        logistic_temperature=logistic_temperature,
    )
    guessing = Guessing(guess or 0)
    if guess is None:
        guessing = choose_guessing(network, schedule, len(images))
    if guessing.window and (
        draw_by_guessing(network, draw, schedule, images, hidden, noise, guessing, on_step, label)
    ):
        return images
    is_drawn = is_hidden.flat[schedule.steps.pixels].astype(int)
    drawn = np.add.reduceat(is_drawn, schedule.steps.starts).tolist()
    size = schedule.images_at_once
    for first in range(0, len(images), size):
        part = slice(first, first + size)
        batch, own = images[part], None if label is None else label[part]
        with _filled_cache(network, schedule, batch, uniform, own) as (cache, pixels):
            step = _step_function(network, draw, cache, pixels, hidden, noise[part], own)
            for number, _ in zip(drawn, cache.run(step), strict=True):
                on_step(number * len(batch))
    return images


@torch.inference_mode()
def generate(
    network: nn.Module,
    schedule: Schedule,
    images: Tensor,
    choose: Callable[[Tensor, np.ndarray], Tensor],
) -> None:
    """Generate whole images along an order, with pixels that a function of their logits chooses.

    Steps are those of ``sample_cached``. Operations and shapes do not depend on what is chosen, so
    a second run in which the same pixels are chosen has the same logits, up to rounding errors in
    sums.

    Args:
        network: as in ``sample_cached``.
        schedule: ``whole_image_schedule`` of this network.
        images: ``B x C x H x W``, contiguous, in the network's dtype; they are filled in.
        choose: called in each step with the logits, ``B x L x P x 1``, whose memory the next step
            overwrites, and with the P pixels, numbered row by row; returns their values,
            ``B x C x P x 1``.
    """
    steps = iter(schedule.steps)
    with _filled_cache(network, schedule, images, uniform=False) as (cache, pixels):

        def put(logits: Tensor) -> None:
            step_pixels = next(steps)
            number = len(step_pixels)  # the columns after these are padding
            values = choose(logits[:, :, :number], step_pixels)
            rows = cache.now.rows.current.view(len(images), -1)[:, :number]
            cache.put(pixels, rows.flatten(), values)

        def step() -> None:
            now = cache.now
            cache.call(put, network(cache.columns(pixels, now.rows.new), now.masks))

        for _ in cache.run(step):
            pass


@contextmanager
def _filled_cache(
    network: nn.Module,
    schedule: Schedule,
    images: Tensor,
    uniform: bool,
    label: Tensor | None = None,
) -> Iterator[tuple[FeatureCache, Tensor]]:
    """A cache filled from the visible pixels, and the table of the pixels to step through.

    At the end the table is written back to ``images``, which must be contiguous.
    """
    plan = StepPlan(schedule, len(images), uniform)
    with torch.cuda.device_of(images), FeatureCache(network, plan) as cache:
        cache.prefill(images, schedule.masks, label)
        pixels = cache.table(images)
        yield cache, pixels
        cache.write_back(pixels, images)


def _step_function(
    network: nn.Module,
    draw: Callable[..., Tensor],
    cache: FeatureCache,
    pixels: Tensor,
    hidden: Tensor,
    noise: Tensor,
    label: Tensor | None,
) -> Callable[[], None]:
    """The function that computes a step for ``FeatureCache.run``, and draws its hidden pixels.

    Args:
        network: as in ``sample_cached``.
        draw: ``Likelihood.sample`` with the temperatures.
        cache: of the network.
        pixels: the table that the drawn values are put into.
        hidden: ``H x W``, bool, the pixels to generate.
        noise: ``B x N x H x W``, the random numbers of the images in the cache.
        label: of these images, B.
    """
    random = cache.table(noise)
    is_hidden = cache.table(hidden.expand(len(noise), 1, -1, -1))

    def step() -> None:
        now = cache.now
        logits = network(cache.columns(pixels, now.rows.new), now.masks, label=label)
        drawn = draw(logits, noise=cache.columns(random, now.rows.current)).to(pixels.dtype)
        known = cache.columns(pixels, now.rows.current)
        values = torch.where(cache.columns(is_hidden, now.rows.current), drawn, known)
        cache.put(pixels, now.rows.current, values)

    return step
