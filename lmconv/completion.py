"""Complete a hole of any shape given all visible pixels, and rank completions by likelihood."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmconv.generation.sampler import pixel_noise
from lmconv.image_model import ImageModel, LabelChoice, SamplingConfig
from lmconv.orders import Order, best_order
from lmconv.pixel_values import ImageShape
from lmconv.windows import network_in, window_around

__all__ = ["ORDER_CHOICES", "Completer", "Completions", "complete"]

ORDER_CHOICES = ("first", "best", "each")


@dataclass(frozen=True)
class Completions:
    """The N completions of each image of a batch, from the likeliest on.

    Attributes:
        images: ``B x N x C x H x W`` in [-1, 1].
        nats: ``B x N``, negative log-likelihood of the hidden pixels given the visible ones.
        order_indices: ``B x N``, index of the order that each was drawn and scored with.
        original_nats: ``B``, negative log-likelihood of the original's hidden pixels, in the first
            of the orders; given the class, if all completions of the image have the same.
        label: ``B x N``, the class that each was drawn and scored with, or the number of classes
            where it was unknown; None if it always was.
    """

    images: Tensor
    nats: Tensor
    order_indices: Tensor
    original_nats: Tensor
    label: Tensor | None = None


class Completer:
    """Completes the same hole in images of one size, with the visible pixels first in every order.

    Of large images, only the window that the hidden pixels depend on is worked on.

    Args:
        model: the model to complete with.
        hidden: the pixels to complete, ``H x W``, bool.
        number: number of completions of each image and order.
        order_choice: ``first`` to use the first of the model's orders, ``best`` the one in which
            the visible pixels have most influence on the hole, ``each`` all of them.
        seed: seed of the random numbers.
        config: sampler and temperatures; by default the model's own.
        batch_size: number of completions to draw at once.
    """

    def __init__(
        self,
        model: ImageModel,
        hidden: Tensor,
        number: int = 1,
        order_choice: str = "first",
        seed: int = 1,
        config: SamplingConfig | None = None,
        batch_size: int = 25,
    ) -> None:
        self.hidden, self.number, self.seed = hidden, number, seed
        self._config, self._batch_size = config or model.sampling, batch_size
        self._window = window_around(hidden, model.network)
        self._model = model.with_network(network_in(model.network, self._window, _size(hidden)))
        all_orders = [
            order.within(self._window)
            for order in model.orders((model.image_shape[0], *_size(hidden)))
        ]
        self._hole = self._window.of(hidden)
        self.order_indices = list(range(len(all_orders)))
        if order_choice == "best":
            self.order_indices = [best_order(all_orders, self._hole)]
        elif order_choice == "first":
            self.order_indices = [0]
        self._orders = [all_orders[index].visible_first(self._hole) for index in self.order_indices]

    @property
    def per_image(self) -> int:
        """The number of completions of each image."""
        return self.number * len(self._orders)

    def complete(
        self,
        originals: Tensor,
        first: int = 0,
        on_step: Callable[[int], object] = lambda pixels: None,
        label: Tensor | None = None,
    ) -> Completions:
        """Complete ``B x C x H x W`` images.

        The random numbers of image i of a run depend only on the seed, on i, and on the numbers of
        orders and of completions.

        Args:
            originals: the images; the values of their hidden pixels do not influence completions.
            first: index of the first of them in the run.
            on_step: called after each step with the number of pixels that it drew.
            label: ``B x number``, the class of each completion, in each order; by default unknown.
        """
        parts = self._window.of(originals)
        repeated = parts.repeat_interleave(self.number, dim=0)
        own_label = None if label is None else label.flatten().to(self._model.device)
        images, nats = [], []
        for place, order in enumerate(self._orders):
            numbers = torch.arange(first, first + len(originals)) * len(self._orders) + place
            numbers = (numbers[:, None] * self.number + torch.arange(self.number)).flatten()
            drawn, drawn_nats = [], []
            for start in range(0, len(repeated), self._batch_size):
                part = slice(start, start + self._batch_size)
                known = None if own_label is None else own_label[part]
                drawn.append(
                    self._draw(repeated[part], numbers[part].tolist(), order, on_step, known)
                )
                drawn_nats.append(self._nats(drawn[-1], order, known))
            images.append(torch.cat(drawn).unflatten(0, (-1, self.number)))
            nats.append(torch.cat(drawn_nats).unflatten(0, (-1, self.number)))
        indices = torch.tensor(self.order_indices).repeat_interleave(self.number)
        ranked, places = torch.cat(nats, dim=1).sort(dim=1, stable=True)
        all_parts = torch.cat(images, dim=1)
        completed = originals[:, None].repeat(1, all_parts.shape[1], 1, 1, 1)
        for i in range(len(originals)):
            self._window.of(completed[i]).copy_(all_parts[i, places[i]])
        shared = None
        if label is not None:
            unknown = len(self._model.description.classes)
            is_shared = (label == label[:, :1]).all(dim=1)
            shared = torch.where(is_shared, label[:, 0], unknown).to(self._model.device)
            label = label.repeat(1, len(self._orders)).gather(1, places)
        return Completions(
            images=completed,
            nats=ranked,
            order_indices=indices[places],
            original_nats=self._nats(parts, self._orders[0], shared),
            label=label,
        )

    def _draw(
        self,
        images: Tensor,
        numbers: list[int],
        order: Order,
        on_step: Callable[[int], object],
        label: Tensor | None,
    ) -> Tensor:
        """Complete windows of B images in an order, each with the noise of its number."""
        noise = torch.cat(
            [
                self._window.of(
                    pixel_noise(self._model.likelihood, 1, *_size(self.hidden), self.seed, number)
                )
                for number in numbers
            ]
        )
        return self._model.draw(images, self._hole, order, noise, self._config, on_step, label)

    def _nats(self, images: Tensor, order: Order, label: Tensor | None) -> Tensor:
        """Negative log-likelihood of the hidden pixels of B windows: B, float64."""
        images = images.to(self._model.device)
        return -self._model.log_likelihoods(images, [order], self._hole, label)[0]


def complete(
    model: ImageModel,
    images: Tensor | np.ndarray,
    hidden: Tensor | np.ndarray,
    number: int = 1,
    order_choice: str = "first",
    seed: int = 1,
    config: SamplingConfig | None = None,
    on_step: Callable[[int], object] = lambda pixels: None,
    label: LabelChoice = None,
) -> Completions:
    """Complete the hidden pixels of images several times, with all visible ones as context.

    ::

        >>> import lmconv
        >>> import numpy as np
        >>> model = lmconv.load("pretrained/binary_mnist_small.pth")
        >>> digits = lmconv.read_mnist("examples", train=False)[:2]
        >>> hidden = np.zeros((28, 28), dtype=bool)
        >>> hidden[20:] = True
        >>> result = lmconv.complete(model, digits, hidden, number=3)
        >>> result.images.shape, result.nats.shape
        (torch.Size([2, 3, 1, 28, 28]), torch.Size([2, 3]))

    Args:
        model: the model to complete with; not the baseline, which has only one order.
        images: ``B x C x H x W``, as ``ImageModel.prepare`` takes them.
        hidden: the pixels to complete, ``H x W``, bool.
        number: number of completions of each image and order, drawn independently.
        order_choice: as for ``Completer``.
        seed: seed of the random numbers; those of image i depend on it, on i and on ``number``.
        config: sampler and temperatures; by default the model's own.
        on_step: called after each step with the number of pixels that it drew; what it raises
            stops the drawing.
        label: the class of the images, or of each; see ``ImageModel.label``. By default unknown.

    Returns:
        The completions, ranked, with their nats.

    Raises:
        ValueError: the arguments do not fit the model or each other.
    """
    prepared = model.prepare(images, seed)
    hole = torch.as_tensor(hidden).cpu()
    check_hole(model, hole, (prepared.shape[1], prepared.shape[2], prepared.shape[3]))
    if number < 1:
        raise ValueError(f"number must be at least 1, got {number}")
    if order_choice not in ORDER_CHOICES:
        choices = ", ".join(ORDER_CHOICES)
        raise ValueError(f"order_choice must be one of {choices}, got {order_choice!r}")
    if len(prepared) == 0:
        raise ValueError("there are no images to complete")
    own = model.label(label, len(prepared))
    each = None if own is None else own.cpu()[:, None].expand(-1, number)
    completer = Completer(model, hole, number, order_choice, seed, config)
    return completer.complete(prepared.cpu(), on_step=on_step, label=each)


def check_hole(model: ImageModel, hidden: Tensor, image_shape: ImageShape) -> None:
    """Raise ValueError if a model cannot complete a hole."""
    if model.description.network.architecture == "pixelcnnpp":
        raise ValueError(
            "the model pixelcnnpp has only one order, in which a hole does not see the pixels "
            "after it: use lmconv"
        )
    if hidden.dtype != torch.bool or hidden.shape != image_shape[1:]:
        size = f"{image_shape[1]}x{image_shape[2]}"
        got = f"{hidden.dtype} of shape {tuple(hidden.shape)}"
        raise ValueError(f"hidden must be a bool array of size {size}, got {got}")
    if hidden.all() or not hidden.any():
        what = "leaves nothing visible" if hidden.all() else "hides nothing"
        raise ValueError(f"hidden {what}: True pixels are completed, all others are the context")


def _size(hidden: Tensor) -> tuple[int, int]:
    height, width = hidden.shape
    return height, width
