"""A model of images: a network, what its output means, its orders, and the images it is made for.

It is what a checkpoint describes, what a notebook works with, and what every mode runs on.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmconv.checkpoints import (
    CheckpointError,
    load_checkpoint,
    load_published_state_dict,
    model_weights,
    published_state_dict,
    save_checkpoint,
)
from lmconv.description import ModelDescription
from lmconv.generation.guessing import choose_guessing
from lmconv.generation.sampler import pixel_noise, sample_cached, sample_naive
from lmconv.generation.schedule import whole_image_schedule
from lmconv.memory import check_memory
from lmconv.orders import Order
from lmconv.pixel_values import ImageShape, check_grid, warn_of_levels
from lmconv.random_numbers import TEST_BINARIZATION, random_key
from lmconv.weight_checks import check_network, describe
from lmconv.windows import map_in_windows
from model import build_model, least_activations, least_parameters

__all__ = ["GenerationSteps", "ImageModel", "LabelChoice", "SamplingConfig", "ensemble", "load"]

OrderChoice = int | Order | Sequence[int | Order] | None
LabelChoice = int | str | Sequence[int | str | None] | np.ndarray | Tensor | None

# Number of images to score or draw at once, unless the caller says otherwise.
_BATCH = 64
# The orders of several image sizes are kept up to this number of pixels, each of which takes a
# hundred bytes of masks if kernels have 3x3 taps.
_KEPT_PIXELS = 2**22
# Number of classes that an error lists.
_SHOWN_CLASSES = 20


@dataclass(frozen=True)
class SamplingConfig:
    """How pixels are drawn.

    Attributes:
        sampler: ``cached`` computes each pixel's features once; ``naive`` runs the network on the
            whole image for each pixel. The images are the same up to rounding. The baseline
            supports only ``naive``.
        guess: number of positions that the cached sampler guesses and computes at once for each
            image, 0 for none, None to choose; the images are the same up to rounding.
        mixture_temperature: divides the logits of the mixture.
        logistic_temperature: multiplies the scales of the logistics.
    """

    sampler: str = "cached"
    guess: int | None = None
    mixture_temperature: float = 1.0
    logistic_temperature: float = 1.0


@dataclass(frozen=True)
class GenerationSteps:
    """The steps in which the cached sampler draws an image.

    Attributes:
        levels: the step of each pixel, ``H x W``, counted from 0: pixels of the same step do not
            depend on each other.
        number: number of steps without guessing.
        window: number of positions that are guessed and computed at once; 0 for none.
    """

    levels: np.ndarray
    number: int
    window: int


class ImageModel:
    """A network with everything that is needed to use it.

    ``lmconv.load`` makes one from a checkpoint; the constructor makes a new one, whose untrained
    weights are drawn from PyTorch's generator::

        >>> from lmconv import ImageModel, ModelDescription, OrderConfig, Preparation
        >>> description = ModelDescription.of(
        ...     ((1, 8, 8),), Preparation(binarize=True), OrderConfig(), architecture="lmconv",
        ...     nr_resnet=1, nr_filters=8, kernel_size=3, normalization="pono")
        >>> model = ImageModel(description)
        >>> model.sample(2, seed=1).shape
        torch.Size([2, 1, 8, 8])

    Args:
        description: what the model is.
        network: its network; by default a new one is made.
        device: device for the network; by default where a given network is, and for a new one the
            GPU, if there is one.

    Attributes:
        description: what the model is, as plain data.
        network: maps images and masks to the parameters of each pixel's distribution.
        likelihood: what these parameters mean.
    Raises:
        ValueError: no network fits the description, or none fits into memory.
    """

    def __init__(
        self,
        description: ModelDescription,
        network: nn.Module | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if device is None and network is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.description = description
        self.likelihood = description.make_likelihood()
        if network is None:
            config = description.network
            check_memory(
                4 * least_parameters(config),
                f"a network with `nr_resnet` {config.nr_resnet}, `nr_filters` {config.nr_filters} "
                f"and `kernel_size` {config.kernel_size}",
            )
            network = build_model(config)
        self.network = network.to(device).eval()
        self._precision = "fp32"
        self._orders: dict[ImageShape, list[Order]] = {}

    def __repr__(self) -> str:
        network, shape = self.description.network, "x".join(map(str, self.image_shape))
        number, classes = self.description.orders.number, len(self.description.classes)
        return (
            f"ImageModel({network.architecture}, {network.nr_resnet} x {network.nr_filters} "
            f"filters, images {shape}, {self.description.likelihood.name}, "
            f"{number} order{'s' * (number > 1)}{f', {classes} classes' * bool(classes)})"
        )

    @property
    def precision(self) -> str:
        """``fp32``, or ``bf16`` to multiply in half precision; likelihoods stay in float32."""
        return self._precision

    @precision.setter
    def precision(self, precision: str) -> None:
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"`precision` must be fp32 or bf16, got {precision!r}")
        self._precision = precision

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    @property
    def image_shape(self) -> ImageShape:
        """(C, H, W) of the images that the model is made for; the first, if there are several."""
        return self.description.image_shapes[0]

    def orders(self, image_shape: ImageShape | None = None) -> list[Order]:
        """The model's orders for one image size, by index.

        They and their masks are kept for the sizes that were used last.

        Raises:
            ValueError: an order does not exist at this size, or the masks do not fit into memory.
        """
        shape = image_shape or self.image_shape
        orders = self._orders.pop(shape, None)
        if orders is None:
            self._check_masks(shape)
            orders = [self.order(pixels) for pixels in self.description.orders.pixels(shape)]
        self._orders[shape] = orders  # the last now
        while len(self._orders) > 1 and self._kept_pixels() > _KEPT_PIXELS:
            del self._orders[next(iter(self._orders))]
        return orders

    def _kept_pixels(self) -> int:
        """The number of pixels of all orders that are kept."""
        return sum(len(order.pixels) for orders in self._orders.values() for order in orders)

    def _check_masks(self, image_shape: ImageShape) -> None:
        config, number = self.description.network, self.description.orders.number
        _, height, width = image_shape
        reach = config.max_dilation * (config.kernel_size // 2)
        padded = (height + 2 * reach) * (width + 2 * reach)  # while a mask is made
        each = height * width * (2 + 3 * config.kernel_size**2 / 2)
        check_memory(
            8 * (number * each + padded),
            f"the masks of {number} orders of {height}x{width} images with `kernel_size` "
            f"{config.kernel_size} and `max_dilation` {config.max_dilation}",
        )

    def check_batch(
        self, number: int, image_shape: ImageShape, name: str, trains: bool = False
    ) -> None:
        """Raise ValueError if a batch certainly does not fit into memory.

        The estimate is a lower bound, so a batch that passes may still not fit.

        Args:
            number: number of images that pass through the network at once.
            image_shape: (C, H, W).
            name: the parameter that chooses the number, for the error.
            trains: whether gradients are computed.
        """
        num_pixels = image_shape[1] * image_shape[2]
        numbers = number * least_activations(self.description.network, num_pixels, trains)
        check_memory(
            numbers * (4 if self.precision == "fp32" else 2),
            f"`{name}` {number} with images of {image_shape[1]}x{image_shape[2]}",
            self.device,
        )

    def order(self, pixels: np.ndarray) -> Order:
        """An order of your own for this model.

        Args:
            pixels: ``(H*W) x 2``, (row, column), the pixel that is generated first comes first.
        """
        config = self.description.network
        return Order(pixels, config.kernel_size, config.max_dilation, self.device)

    def with_network(self, network: nn.Module) -> "ImageModel":
        """The same model with the weights of another network, which has the same description."""
        other = copy.copy(self)
        other.network = network
        return other

    def autocast(self) -> AbstractContextManager[object]:
        """A context in which the network runs in the model's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def prepare(self, images: Tensor | np.ndarray, seed: int = 1, first: int = 0) -> Tensor:
        """Convert images to what the model sees.

        Args:
            images: tensor or array, ``B x C x H x W``. Pixels from 0 to 255 (uint8) or to 65535
                (uint16) are converted as in training; floats must already be on the model's grid in
                [-1, 1].
            seed: seed for binarizing pixels, if the model's images are binary.
            first: number of the first image; image i is binarized as number ``first + i``.

        Returns:
            ``B x C x H x W``, float, on the model's device.

        Raises:
            ValueError: the shape, type or range is not as above.
        """
        if isinstance(images, np.ndarray):
            if images.dtype not in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
                raise ValueError(f"images must be uint8, uint16 or floats, got {images.dtype}")
            # Read-only arrays are copied, since PyTorch warns about them.
            images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        if not isinstance(images, Tensor):
            kind = type(images).__name__
            raise ValueError(f"images must be a tensor or a NumPy array, got {kind}")
        channels = self.image_shape[0]
        if images.dim() != 4 or images.shape[1] != channels or 0 in images.shape[2:]:
            raise ValueError(
                f"images for this model must be B x {channels} x H x W, got {tuple(images.shape)}"
            )
        preparation = self.description.preparation
        if images.dtype in (torch.uint8, torch.uint16):
            indices = np.arange(first, first + len(images))
            key = random_key(seed, TEST_BINARIZATION)
            pixels = images.cpu().numpy()
            warn_of_levels(pixels, preparation.num_values)
            return preparation.apply(pixels, indices, key).to(self.device)
        if not images.is_floating_point():
            raise ValueError(f"images must be uint8, uint16 or floats, got {images.dtype}")
        check_grid(images, preparation.num_values)
        dtype = next(self.network.parameters()).dtype
        return images.to(self.device, dtype)

    def label(self, choice: LabelChoice, number: int) -> Tensor | None:
        """Labels as the network takes them.

        Args:
            choice: name or index of a class for all images, or a list of them, one for each image,
                where None stands for an unknown class; None for nothing.
            number: number of images.

        Returns:
            B, int64, on the model's device: the index of each image's class, or the number of
            classes where the class is unknown; None if ``choice`` is None.

        Raises:
            ValueError: the model has no such class, or there is not one label for each image.
        """
        if choice is None:
            return None
        if isinstance(choice, (np.ndarray, Tensor)):
            choice = choice.tolist()
        if isinstance(choice, (str, int, np.integer)):
            choice = [choice] * number
        if not isinstance(choice, Sequence) or len(choice) != number:
            got = len(choice) if isinstance(choice, Sequence) else type(choice).__name__
            raise ValueError(
                f"`label` must be one class, or one for each of {number} images, got {got}"
            )
        indices = [self._class_index(each) for each in choice]
        return torch.tensor(indices, dtype=torch.int64, device=self.device)

    def _class_index(self, choice: str | int | None) -> int:
        classes = self.description.classes
        if not classes:
            raise ValueError(
                f"`label` {choice}: the model knows no classes: leave it out, or train a model "
                "with `class_conditional`"
            )
        if choice is None:
            return len(classes)
        if isinstance(choice, str) and choice in classes:
            return classes.index(choice)
        if isinstance(choice, (int, np.integer)) and 0 <= choice < len(classes):
            return int(choice)
        names = ", ".join(classes[:_SHOWN_CLASSES]) + ", ..." * (len(classes) > _SHOWN_CLASSES)
        raise ValueError(
            f"`label` {choice!r} is no class of the model: choose one of {names}, or a number from "
            f"0 to {len(classes) - 1}"
        )

    @torch.inference_mode()
    def log_prob(
        self,
        images: Tensor | np.ndarray,
        order: OrderChoice = None,
        pixels: Tensor | np.ndarray | None = None,
        batch_size: int = _BATCH,
        label: LabelChoice = None,
    ) -> Tensor:
        """Exact log-likelihood of each image, or of a region of it given the pixels before it.

        ::

            >>> import lmconv
            >>> model = lmconv.load("pretrained/binary_mnist_small.pth")
            >>> digits = lmconv.read_mnist("examples", train=False)  # uint8, 100 x 1 x 28 x 28
            >>> nats = -model.log_prob(digits[:4])
            >>> nats.shape, bool((nats < 200).all())
            (torch.Size([4]), True)

        Args:
            images: as ``prepare`` takes them, ``B x C x H x W``.
            order: an index or an ``Order``, or several of them, whose joint likelihoods are
                averaged (paper, section 5); by default all orders of the model.
            pixels: the pixels to sum over, ``H x W``, bool; by default all. In an order that visits
                them last, all other pixels are their context.
            batch_size: number of images to score at once.
            label: the class of the images, or of each; see ``label``. By default it is unknown.

        Returns:
            Log-likelihoods in nats, B, float64; given the class, where there is a label.

        Raises:
            ValueError: the images, the order, the pixels or the label do not fit the model.
        """
        prepared = self.prepare(images)
        orders = self._chosen(order, prepared)
        region = self._region(pixels, prepared)
        parts = [
            ensemble(self._log_likelihoods(part, orders, region, own))
            for part, own in self._batches(prepared, self.label(label, len(prepared)), batch_size)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def _batches(
        self, images: Tensor, label: Tensor | None, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        for first in range(0, len(images), batch_size):
            part = slice(first, first + batch_size)
            yield images[part], None if label is None else label[part]

    @torch.inference_mode()
    def log_prob_per_pixel(
        self,
        images: Tensor | np.ndarray,
        order: int | Order = 0,
        batch_size: int = _BATCH,
        label: LabelChoice = None,
    ) -> Tensor:
        """Log-likelihood of each pixel given those before it in an order.

        ::

            >>> import lmconv
            >>> model = lmconv.load("pretrained/binary_mnist_small.pth")
            >>> digits = lmconv.read_mnist("examples", train=False)[:2]
            >>> model.log_prob_per_pixel(digits, order=0).shape
            torch.Size([2, 28, 28])

        Returns:
            Nats, ``B x H x W``, float32, or float64 if values have more than 8 bits; arguments are
            as in ``log_prob``.

        Raises:
            ValueError: as in ``log_prob``, or there is more than one order.
        """
        prepared = self.prepare(images)
        orders = self._chosen(order, prepared)
        if len(orders) > 1:
            raise ValueError(f"`order` must be a single one here, not {len(orders)}: choose one")
        maps = [
            self._map(part, orders[0], own).cpu()
            for part, own in self._batches(prepared, self.label(label, len(prepared)), batch_size)
        ]
        return torch.cat(maps) if maps else torch.zeros(0, *prepared.shape[2:])

    def classify(
        self,
        images: Tensor | np.ndarray,
        visible: Tensor | np.ndarray | None = None,
        order: OrderChoice = None,
        prior: Sequence[float] | None = None,
        batch_size: int = _BATCH,
    ) -> Tensor:
        """The exact probability of each class given an image, or its visible pixels, by Bayes.

        ::

            >>> import lmconv
            >>> description = lmconv.ModelDescription.of(
            ...     ((1, 8, 8),), lmconv.Preparation(binarize=True), lmconv.OrderConfig(),
            ...     classes=("cat", "dog"), nr_resnet=1, nr_filters=8, kernel_size=3,
            ...     normalization="pono")
            >>> model = lmconv.ImageModel(description)
            >>> model.classify(model.sample(3)).shape
            torch.Size([3, 2])

        Args:
            images: as ``prepare`` takes them, ``B x C x H x W``.
            visible: the pixels to look at, ``H x W``, bool; by default all. They are moved to the
                beginning of each order.
            order: as in ``log_prob``.
            prior: the probability of each class before an image is seen; by default equal ones.
            batch_size: number of images to score at once.

        Returns:
            Probabilities, ``B x K`` for K classes, float64.

        Raises:
            ValueError: the model knows no classes, or an argument does not fit it.
        """
        number = len(self.description.classes)
        if not number:
            raise ValueError("the model knows no classes: train one with `class_conditional`")
        before = torch.tensor([1 / number] * number if prior is None else prior).double()
        if before.shape != (number,) or (before < 0).any() or abs(before.sum() - 1) > 1e-6:
            raise ValueError(f"prior must be {number} probabilities that add up to 1, got {prior}")
        prepared = self.prepare(images)
        orders, region = self._chosen(order, prepared), self._region(visible, prepared)
        if region is not None and not region.all():
            if not region.any():
                raise ValueError("visible has no True pixels: mark the pixels to look at as True")
            if self.description.network.architecture == "pixelcnnpp":
                raise ValueError(
                    "the model pixelcnnpp has only one order, in which visible pixels are not "
                    "first: classify whole images"
                )
            orders = [each.visible_first(~region) for each in orders]
        parts = [
            (self.class_log_likelihoods(part, orders, region) + before.log()).softmax(dim=1)
            for part in prepared.split(batch_size)
        ]
        return torch.cat(parts) if parts else before.new_zeros(0, number)

    def class_log_likelihoods(
        self, images: Tensor, orders: Sequence[Order], visible: Tensor | None = None
    ) -> Tensor:
        """Log-likelihood of the visible pixels given each class: ``B x K``, float64.

        Args:
            images: as ``prepare`` returns them.
            orders: orders for the images' size, which have the visible pixels first; their
                likelihoods are averaged.
            visible: the pixels to sum over, ``H x W``, bool, on the CPU; by default all.
        """
        of_classes = []
        for index in range(len(self.description.classes)):
            label = torch.full((len(images),), index, device=self.device)
            of_classes.append(ensemble(self.log_likelihoods(images, orders, visible, label)))
        return torch.stack(of_classes, dim=1)

    def sample(
        self,
        number: int,
        seed: int = 1,
        shape: Sequence[int] | None = None,
        order: int | Order = 0,
        config: SamplingConfig | None = None,
        batch_size: int = _BATCH,
        first: int = 0,
        on_step: Callable[[int], object] = lambda pixels: None,
        label: LabelChoice = None,
    ) -> Tensor:
        """Draw images.

        ::

            >>> import lmconv
            >>> model = lmconv.load("pretrained/binary_mnist_small.pth")
            >>> model.sample(1, seed=1, shape=(1, 12, 20)).shape
            torch.Size([1, 1, 12, 20])

        Args:
            number: number of images; image i depends only on the seed and on ``first + i``.
            seed: seed of the random numbers.
            shape: (C, H, W), with any height and width; by default the model's own.
            order: the order to draw pixels in, as an index or an ``Order``.
            config: sampler and temperatures; by default the model's own.
            batch_size: number of images to draw at once.
            first: number of the first image, to draw some of a larger number of images.
            on_step: called after each step with the number of pixels that it drew; what it raises
                stops the drawing.
            label: the class of the images, or of each; see ``label``. By default it is unknown.

        Returns:
            ``number x C x H x W``, float, on the model's grid in [-1, 1], on the CPU.

        Raises:
            ValueError: the shape, the order or the label does not fit the model.
        """
        if number < 0:
            raise ValueError(f"number must be at least 0, got {number}")
        channels, height, width = self._checked_shape(shape)
        hidden = torch.ones(height, width, dtype=torch.bool)
        empty = torch.zeros(number, channels, height, width)
        (chosen,) = self._chosen(order, empty)
        drawn: list[Tensor] = []
        for part, own in self._batches(empty, self.label(label, number), batch_size):
            start = first + batch_size * len(drawn)
            noise = pixel_noise(self.likelihood, len(part), height, width, seed, start)
            config = config or self.sampling
            drawn.append(self.draw(part, hidden, chosen, noise, config, on_step, own))
        return torch.cat(drawn) if drawn else empty

    def steps(self, order: int | Order = 0, number: int = 1) -> "GenerationSteps":
        """The steps in which the cached sampler draws whole images along an order.

        Args:
            order: an index for images of the model's own size, or an ``Order`` for any size.
            number: number of images that are drawn at once, on which guessing depends.

        Raises:
            ValueError: the order does not fit the model, or its network cannot be cached.
        """
        size = order.size if isinstance(order, Order) else self.image_shape[1:]
        (chosen,) = self._chosen(order, torch.zeros(0, self.image_shape[0], *size))
        schedule = whole_image_schedule(self.network, chosen.pixels, chosen.masks)
        levels = np.empty(size, dtype=np.int64)
        levels.flat[schedule.steps.pixels] = schedule.steps.numbers
        window = choose_guessing(self.network, schedule, number).window
        return GenerationSteps(levels, len(schedule.steps), window)

    @property
    def sampling(self) -> SamplingConfig:
        """How the model draws by default: with the cache, if it supports that."""
        is_baseline = self.description.network.architecture == "pixelcnnpp"
        return SamplingConfig("naive" if is_baseline else "cached")

    def maps(
        self, images: Tensor, orders: Sequence[Order], label: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Compute the log-likelihood of each pixel given those before it, for each order.

        Args:
            images: as ``prepare`` returns them.
            orders: orders for the images' size.
            label: as ``label`` returns it.

        Returns:
            An iterator that computes ``B x H x W``, nats, for one order after another.

        Raises:
            ValueError: a pixel is not on the model's grid.
        """
        check_grid(images, self.likelihood.num_values, is_rounded=True)
        return (self._map(images, order, label) for order in orders)

    @torch.inference_mode()
    def _map(self, images: Tensor, order: Order, label: Tensor | None) -> Tensor:
        likelihood = partial(self.likelihood.log_prob_per_pixel, is_checked=True)
        with self.autocast():
            return map_in_windows(self.network, images, order.masks, likelihood, label)

    def log_likelihoods(
        self,
        images: Tensor,
        orders: Sequence[Order],
        pixels: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Log-likelihood of each image under each order, summed over pixels: ``K x B``, float64.

        Args:
            images: as ``prepare`` returns them.
            orders: K orders for the images' size.
            pixels: the pixels to sum over, ``H x W``, bool, on the CPU; by default all. Earlier
                pixels outside are conditioned on.
            label: as ``label`` returns it.

        Raises:
            ValueError: a pixel is not on the model's grid.
        """
        check_grid(images, self.likelihood.num_values, is_rounded=True)
        return self._log_likelihoods(images, orders, pixels, label)

    def _log_likelihoods(
        self,
        images: Tensor,
        orders: Sequence[Order],
        pixels: Tensor | None,
        label: Tensor | None,
    ) -> Tensor:
        region = slice(None) if pixels is None else pixels.flatten()
        return torch.stack(
            [
                self._map(images, order, label).cpu().flatten(1)[:, region].double().sum(dim=1)
                for order in orders
            ]
        )

    def draw(
        self,
        images: Tensor,
        hidden: Tensor,
        order: Order,
        noise: Tensor,
        config: SamplingConfig,
        on_step: Callable[[int], object] = lambda pixels: None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Generate hidden pixels; the others stay exactly as they are.

        Args:
            images: ``B x C x H x W`` in [-1, 1]; hidden pixels may have any value.
            hidden: the pixels to generate, ``H x W``, bool.
            order: order for the images' size; each pixel sees those before it.
            noise: ``B x N x H x W``, from ``pixel_noise``.
            config: sampler and temperatures.
            on_step: called after each step with the number of pixels drawn, over all images.
            label: as ``label`` returns it.

        Returns:
            ``B x C x H x W``, on the CPU.

        Raises:
            ValueError: the sampler is unknown, or a visible pixel is not on the model's grid.
        """
        visible = images[:, :, ~hidden.to(images.device)]
        check_grid(visible, self.likelihood.num_values, is_rounded=True)
        if config.sampler not in ("cached", "naive"):
            raise ValueError(f"sampler must be cached or naive, got {config.sampler!r}")
        is_naive = config.sampler == "naive"
        sample = sample_naive if is_naive else partial(sample_cached, guess=config.guess)
        with self.autocast():
            return sample(
                self.network.eval(),
                self.likelihood,
                order.pixels,
                order.masks,
                images.to(self.device),
                hidden.to(self.device),
                noise.to(self.device),
                config.mixture_temperature,
                config.logistic_temperature,
                on_step,
                label,
            ).cpu()

    def load_weights(
        self, checkpoint: Mapping[str, Any] | str | Path, source: str = "", averaged: bool = True
    ) -> None:
        """Load the weights of a checkpoint: the running average, if it has a valid one.

        Args:
            checkpoint: path of a file, or what ``load_checkpoint`` returns.
            source: name of the file, for errors; by default its path.
            averaged: whether to prefer the running average.

        Raises:
            CheckpointError: the file is not a checkpoint, or its weights are not finite or are
                those of another network.
        """
        if isinstance(checkpoint, (str, Path)):
            source = source or str(checkpoint)
            checkpoint = load_checkpoint(Path(checkpoint))
        weights = model_weights(checkpoint, averaged)
        source = source or "the checkpoint"
        check_network(self.description.network, weights, self.image_shape[0], source)
        load_published_state_dict(self.network, weights, source)

    def save(self, path: str | Path) -> None:
        """Write a checkpoint with only description and weights, for ``load`` and every mode.

        Raises:
            CheckpointError: the file cannot be written.
        """
        save_checkpoint(
            Path(path),
            {
                "epoch": -1,
                "model": self.description.as_plain_data(),
                "model_state_dict": published_state_dict(self.network),
            },
        )

    def _chosen(self, choice: OrderChoice, images: Tensor) -> list[Order]:
        """The orders that a caller chooses, for images of this size."""
        _, channels, height, width = images.shape
        if choice is None:
            return self.orders((channels, height, width))
        orders = []
        for each in choice if isinstance(choice, (list, tuple, range)) else [choice]:
            if isinstance(each, Order):
                if each.size != (height, width):
                    raise ValueError(
                        f"the order is for {each.size[0]}x{each.size[1]} images, but these are "
                        f"{height}x{width}"
                    )
                orders.append(each)
                continue
            if not isinstance(each, (int, np.integer)):
                kind = type(each).__name__
                raise ValueError(f"order must be an index, an Order or a list of them, got {kind}")
            own = self.orders((channels, height, width))
            if not 0 <= each < len(own):
                raise ValueError(
                    f"order {each} is out of range: the model has {len(own)}, 0 to {len(own) - 1}"
                )
            orders.append(own[each])
        if not orders:
            raise ValueError("order is an empty list: leave it out to use all orders")
        return orders

    def _region(self, pixels: Tensor | np.ndarray | None, images: Tensor) -> Tensor | None:
        if pixels is None:
            return None
        region = torch.as_tensor(pixels).cpu()
        if region.dtype != torch.bool or region.shape != images.shape[2:]:
            size = "x".join(map(str, images.shape[2:]))
            raise ValueError(
                f"pixels must be a bool array of size {size}, got {region.dtype} of shape "
                f"{tuple(region.shape)}"
            )
        return region

    def _checked_shape(self, shape: Sequence[int] | None) -> ImageShape:
        sizes = self.image_shape if shape is None else tuple(shape)
        if len(sizes) != 3 or sizes[0] != self.image_shape[0] or min(sizes) < 1:
            raise ValueError(f"an image's shape must be {self.image_shape[0]} x H x W, got {sizes}")
        return sizes[0], sizes[1], sizes[2]


def ensemble(log_likelihood: Tensor) -> Tensor:
    """Log of the mean joint likelihood over K orders, from ``K x B`` to B (paper, section 5)."""
    return torch.logsumexp(log_likelihood, dim=0) - math.log(len(log_likelihood))


def load(path: str | Path, device: torch.device | str | None = None) -> ImageModel:
    """Load the model that a checkpoint describes, ours or a published one, ready to use.

    ::

        >>> import lmconv
        >>> lmconv.load("pretrained/binary_mnist_small.pth")
        ImageModel(lmconv, 1 x 48 filters, images 1x28x28, bernoulli, 8 orders)

    Args:
        path: path of the file, which is read without running code from it.
        device: device for the network; by default the GPU, if there is one.

    Raises:
        CheckpointError: the file is missing or damaged, or does not describe its model.
    """
    checkpoint = load_checkpoint(Path(path))
    description = describe(checkpoint, str(path))
    if description is None:
        raise CheckpointError(
            f"{path} has only weights, without a description of their model: make an ImageModel "
            "from a ModelDescription, and pass the file to its load_weights"
        )
    try:
        model = ImageModel(description, device=device)
    except ValueError as error:
        raise CheckpointError(f"{path} has an invalid model description: {error}") from error
    model.load_weights(checkpoint, str(path))
    return model
