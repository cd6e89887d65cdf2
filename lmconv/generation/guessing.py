"""Sampling in windows: draw the next positions under a guess, and keep what came out right."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmconv.generation.feature_cache import FeatureCache
from lmconv.generation.schedule import Schedule, masked_convolutions
from lmconv.generation.window_plan import WindowPlan, window_rows

__all__ = ["DRAWING", "Costs", "Guessing", "choose_guessing", "draw_by_guessing"]

_WINDOWS = (2, 4, 8, 16, 32, 64)
# About this part of the taps is on.
_SHARE_OF_TAPS = 0.6
# A window reads the taps that are on anywhere, not only those of one position.
_MORE_TAPS = 1.2
# The part of the time without guessing that may pass before guessing must have proved its worth.
_TRIAL_SHARE = 0.05
_FEWEST_TRIAL_STEPS = 4


class Guessing(NamedTuple):
    """How to guess.

    Attributes:
        window: number of positions that are computed at once for each image; 0 for no guessing.
        trial_steps: number of steps after which guessing is given up if too few are kept.
        least_kept: positions of an image that a step must keep then, on average.
    """

    window: int
    trial_steps: int = 0
    least_kept: float = 0.0

    def is_given_up(self, steps: int, places: Sequence[int], length: int) -> bool:
        """Whether the trial ends now, with no image finished and too few positions kept.

        Args:
            steps: number of steps so far.
            places: for each image, the number of positions that are done, of ``length``.
            length: number of positions of an image.
        """
        is_over = steps == self.trial_steps and max(places) < length
        return is_over and sum(places) < self.least_kept * steps * len(places)


class Costs(NamedTuple):
    """What decides which window is fastest, measured with the shipped model on one thread.

    Only the ratio of the first two matters. With two threads, both were about twice as high.

    Attributes:
        seconds_of_a_layer: what a step takes for each masked convolution, whatever its size.
        operations: in a second.
        kept: how many positions of a window are kept on average, given their number and the mean
            number of positions that do not depend on each other.
    """

    seconds_of_a_layer: float
    operations: float
    kept: Callable[[int, float], float]


def _kept_in_drawing(window: int, level: float) -> float:
    return window / (1 + window / (40 + 4 * (level - 1)))  # docs/sampling.md


DRAWING = Costs(17e-6, 60e9, _kept_in_drawing)


def choose_guessing(
    network: nn.Module, schedule: Schedule, batch: int, costs: Costs = DRAWING
) -> Guessing:
    """Choose the window that makes generation fastest, if as many positions are kept as usual.

    Args:
        network: as in ``sample_cached``.
        schedule: of at least one step.
        batch: number of images that are generated at once.
        costs: those of drawing, or of what else is done with the network's outputs.
    """
    layers = masked_convolutions(network)
    operations = 2 * sum(parameter.numel() for parameter in network.parameters())
    per_layer, rate, kept_of = costs
    if layers[0].weight.is_cuda:
        return Guessing(0)  # these costs are not known there
    if (threads := torch.get_num_threads()) > 1:
        per_layer, rate = 2 * per_layer, math.sqrt(2 * threads) * rate

    def seconds(columns: float) -> float:
        return per_layer * len(layers) + columns * operations * _SHARE_OF_TAPS / rate

    length, steps = len(schedule.steps.pixels), len(schedule.steps)
    level = length / steps
    plain = steps * seconds(batch * level)
    best, least = Guessing(0), plain
    for window in _WINDOWS:
        step = seconds(batch * window * _MORE_TAPS)
        trial = int(_TRIAL_SHARE * plain / step)
        kept = kept_of(window, level)
        total = length / kept * step
        if trial >= _FEWEST_TRIAL_STEPS and window < length and total < least:
            best, least = Guessing(window, trial, step / seconds(batch * level) * level), total
    return best


def draw_by_guessing(
    network: nn.Module,
    draw: Callable[..., Tensor],
    schedule: Schedule,
    images: Tensor,
    hidden: Tensor,
    noise: Tensor,
    guessing: Guessing,
    on_step: Callable[[int], object] = lambda pixels: None,
    label: Tensor | None = None,
) -> int | None:
    """Draw hidden pixels, the same ones as one by one, in windows of guessed positions.

    An image that is finished makes room for the next one. Call it in inference mode.

    Args:
        network: as in ``sample_cached``.
        draw: ``Likelihood.sample`` with its temperatures.
        schedule: of the hidden pixels, with at least one step.
        images: ``B x C x H x W``, contiguous; the hidden pixels are filled in.
        hidden: ``H x W``, bool.
        noise: ``B x N x H x W``, the random numbers of the images.
        guessing: with a window of at least one position.
        on_step: called after each step with the number of pixels drawn, over all images.
        label: what the network is told of each image, B, int64; by default nothing.

    Returns:
        The number of steps; None if guessing was given up, after which ``images`` are as before.
    """
    rows = window_rows(schedule, guessing.window, len(images))
    number = min(len(images), schedule.images_at_once_with(rows))
    plan = WindowPlan(schedule, number, guessing.window, hidden.cpu().numpy(), rows)
    in_rooms: list[int | None] = list(range(number))
    waiting = iter(range(number, len(images)))
    places, steps = [0] * number, 0
    with torch.cuda.device_of(images), FeatureCache(network, plan) as cache:
        own = None if label is None else label[:number]
        cache.prefill(images[:number], schedule.masks, own)
        tables = _Tables(plan, cache, images[:number], hidden, noise[:number], own)
        for _ in cache.run(lambda: _step(network, draw, plan, cache, tables)):
            steps += 1
            before, places = places, plan.place.tolist()
            if guessing.is_given_up(steps, places, plan.length):
                on_step(-sum(plan.hidden_before[before]))
                return None
            on_step(sum(plan.hidden_before[places] - plan.hidden_before[before]))
            for room, image in enumerate(in_rooms):
                if image is None or places[room] < plan.length:
                    continue
                tables.write_back(room, images[image])
                in_rooms[room] = following = next(waiting, None)
                if following is not None:
                    next_image = slice(following, following + 1)
                    own = None if label is None else label[next_image]
                    cache.refill(room, images[next_image], schedule.masks, own)
                    tables.fill(room, images[following], noise[following], own)
                    plan.begin(room)
                    places[room] = 0
    return steps


def _step(
    network: nn.Module,
    draw: Callable[..., Tensor],
    plan: WindowPlan,
    cache: FeatureCache,
    tables: "_Tables",
) -> None:
    """Draw the current windows, and move to the next ones."""
    rows = plan.now.rows
    logits = network(cache.columns(tables.pixels, rows.new), plan.now.masks, label=tables.label)
    drawn = draw(logits, noise=cache.columns(tables.noise, rows.current))
    guessed = cache.columns(tables.pixels, rows.current)
    is_hidden = cache.columns(tables.is_hidden, rows.current)
    values = torch.where(is_hidden, drawn.to(guessed.dtype), guessed)
    cache.put(tables.pixels, rows.current, values)
    plan.keep((values == guessed).all(dim=1).squeeze(2), tables.pixels)


class _Tables:
    """What a batch of images is drawn from and into, for the pixels that are stepped through."""

    def __init__(
        self,
        plan: WindowPlan,
        cache: FeatureCache,
        images: Tensor,
        hidden: Tensor,
        noise: Tensor,
        label: Tensor | None,
    ) -> None:
        self._plan = plan
        self.label = None if label is None else label.clone()  # recorded steps read this memory
        self.pixels, self.noise = cache.table(images), cache.table(noise)
        self.is_hidden = cache.table(hidden.expand(len(images), 1, -1, -1))
        plan.without_padding(self.pixels)[:] = plan.first_values(images)

    def fill(self, room: int, image: Tensor, noise: Tensor, label: Tensor | None) -> None:
        """Put an image, ``C x H x W``, its noise and its label into a room of the batch."""
        if self.label is not None and label is not None:
            self.label[room] = label[0]
        self._plan.without_padding(self.pixels)[:, room] = self._plan.first_values(image[None])[
            :, 0
        ]
        self._plan.without_padding(self.noise)[:, room] = noise.flatten(1)[
            :, self._plan.stepped
        ].t()

    def write_back(self, room: int, image: Tensor) -> None:
        """Copy what was drawn in a room into an image, ``C x H x W``, contiguous."""
        image.flatten(1)[:, self._plan.stepped] = self._plan.without_padding(self.pixels)[
            :, room
        ].t()
