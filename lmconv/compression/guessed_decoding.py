"""Decoding in windows: pixels are guessed, and the bits tell which guesses were right.

One step computes the probabilities of the next W pixels under a guess of their values. They are
decoded one after another as long as what comes out is what was guessed, since only then are the
next one's probabilities those that it was encoded with. The images of a batch go on together,
because their bits take turns.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from lmconv.compression.entropy_coding import Decoder
from lmconv.compression.pixel_coding import PixelDecoding
from lmconv.generation.feature_cache import FeatureCache
from lmconv.generation.guessing import Costs, Guessing, choose_guessing
from lmconv.generation.schedule import Schedule
from lmconv.generation.window_plan import WindowPlan, window_rows
from lmconv.likelihoods import Likelihood

__all__ = ["choose_windows", "decode_windows"]

# Measured with the shipped model, whose likeliest value is the right one with this probability.
_RIGHT = 0.935
# In double precision, with what decoding a pixel takes.
_SECONDS_OF_A_LAYER, _OPERATIONS = 40e-6, 35e9


def choose_windows(
    model: nn.Module, schedule: Schedule, batch: int, guess: int | None = None
) -> Guessing:
    """Choose how to guess in ``decode_windows``; not at all if steps have several pixels.

    Args:
        model: in double precision.
        schedule: of whole images.
        batch: number of images that are decoded together.
        guess: the number of pixels to guess at once; None for the fastest.
    """
    if len(schedule.steps) < len(schedule.steps.pixels):
        return Guessing(0)
    if guess is not None:
        return Guessing(guess)
    right = _RIGHT**batch  # for all images of the batch

    def kept(window: int, _: float) -> float:
        return (1 - right**window) / (1 - right)

    return choose_guessing(model, schedule, batch, Costs(_SECONDS_OF_A_LAYER, _OPERATIONS, kept))


def decode_windows(
    model: nn.Module,
    likelihood: Likelihood,
    schedule: Schedule,
    coded: np.ndarray,
    decoder: Decoder,
    guessing: Guessing,
    on_step: Callable[[int], object] = lambda pixels: None,
) -> bool:
    """Decode the pixels of images, the same ones as step by step. Call it in inference mode.

    Args:
        model, likelihood: as in ``code_images``.
        schedule: of whole images, in which each step is one pixel.
        coded: ``B x C x H*W``, uint8 or uint16; it is filled in.
        decoder: where the bits come from.
        guessing: with a window of at least one position.
        on_step: called after each step with the number of pixels decoded, over all images.

    Returns:
        Whether the pixels are decoded: False if too few guesses were right. Then some bits have
        been read in vain.

    Raises:
        CodingError: the bits do not encode any symbols.
    """
    parameter = next(model.parameters())
    batch, length = len(coded), len(schedule.steps.pixels)
    everything = np.ones(schedule.image_size, dtype=bool)
    rows = window_rows(schedule, guessing.window, batch)
    plan = WindowPlan(schedule, batch, guessing.window, everything, rows)
    with FeatureCache(model, plan) as cache:
        window = _Window(likelihood, schedule.steps.pixels, coded, decoder, plan, cache, parameter)

        def step() -> None:
            logits = model(cache.columns(window.values, plan.now.rows.new), plan.now.masks)
            cache.call(window.decode, logits)

        done = 0
        for number, _ in enumerate(cache.run(step), start=1):
            before, done = done, int(plan.place[0])
            on_step((done - before) * batch)
            if guessing.is_given_up(number, [done], length):
                on_step(-done * batch)
                return False
    return True


class _Window:
    """The pixels that one step is about, at the same places of all images.

    Attributes:
        values: the table of the values that the network sees: decoded ones, and guesses.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        sequence: np.ndarray,
        coded: np.ndarray,
        decoder: Decoder,
        plan: WindowPlan,
        cache: FeatureCache,
        like: Tensor,
    ) -> None:
        self._likelihood, self._decoder = likelihood, decoder
        self._sequence, self._coded = sequence, coded
        self._plan, self._cache = plan, cache
        height, width = plan.image_size
        images = like.new_zeros(len(coded), likelihood.num_channels, height, width)
        self.values = cache.table(images)
        plan.without_padding(self.values)[:] = plan.first_values(images)

    def decode(self, logits: Tensor) -> None:
        """Decode the pixels that were guessed rightly and the first other, and guess the next."""
        plan, cache = self._plan, self._cache
        place = int(plan.place[0])
        number = min(plan.window, plan.length - place)
        rows = plan.now.rows.current
        columns = cache.columns(self.values, rows).clone()
        guessed = columns[:, :, :number].double().cpu()
        logits = logits[:, :, :number].double().cpu()
        decoding = PixelDecoding(self._likelihood, logits, guessed, self._decoder)
        values, wanted = decoding.likeliest, guessed[..., 0].numpy()
        symbols = np.empty(values.shape[:2], dtype=self._coded.dtype)
        num_right = 0
        for column, pixel in enumerate(self._sequence[place : place + number].tolist()):
            values[:, :, column] = decoding.decode(column, symbols)
            self._coded[:, :, pixel] = symbols
            if (values[:, :, column] != wanted[:, :, column]).any():
                break
            num_right += 1
        columns[:, :, :number, 0] = torch.from_numpy(values).to(columns)
        cache.put(self.values, rows, columns)
        agrees = torch.arange(plan.window, device=rows.device) < num_right
        plan.keep(agrees.expand(plan.batch, -1), self.values)
