"""What a network's output means: the distribution of each pixel given those before it.

Every likelihood scores images exactly (``log_prob``) and draws from the same output (``sample``).
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from lmconv.pixel_values import check_grid, to_grid

__all__ = [
    "Bernoulli",
    "DiscretizedMixtureLogistics",
    "Likelihood",
    "make_likelihood",
]

MIN_LOG_SCALE = -7.0
MIN_BIN_MASS = 1e-5


class Likelihood(ABC):
    """A distribution of images ``B x C x H x W`` in [-1, 1], pixel by pixel.

    Attributes:
        num_channels: C, the number of channels of the images.
        num_values: V, the number of values that a channel of a pixel can have.
        num_output_channels: L, the number of channels that a network must output.
        num_noise_channels: N, the number of uniform random numbers that drawing a pixel takes.
        rounding_error: how much sums of ``probabilities`` may differ between machines whose
            elementary functions differ in their last digits.
    """

    num_channels: int
    num_values: int
    num_output_channels: int
    num_noise_channels: int
    rounding_error: float

    def log_prob_per_pixel(
        self, logits: Tensor, images: Tensor, is_checked: bool = False
    ) -> Tensor:
        """Log-probability of each pixel, summed over its channels.

        Args:
            logits: network output, ``B x L x H x W``, any floating dtype.
            images: ``B x C x H x W`` in [-1, 1], on the data grid.
            is_checked: whether the images are known to be on the grid, for loops that must not
                wait for a GPU.

        Returns:
            ``B x H x W``, nats, in float32 or better.

        Raises:
            ValueError: a shape is wrong, or a pixel is not on the grid.
        """
        self._check_logits(logits)
        expected = (logits.shape[0], self.num_channels, *logits.shape[2:])
        if tuple(images.shape) != expected:
            got = tuple(images.shape)
            raise ValueError(f"images must be {expected} for these logits, got {got}")
        if not is_checked:
            check_grid(images, self.num_values, is_rounded=True)
        logits = _at_least_float32(logits)
        return self._log_prob(logits, images.to(logits.dtype))

    def log_prob(self, logits: Tensor, images: Tensor, is_checked: bool = False) -> Tensor:
        """Log-likelihood of each image in nats, B; arguments as in ``log_prob_per_pixel``."""
        return self.log_prob_per_pixel(logits, images, is_checked).sum(dim=(1, 2))

    def probabilities(self, logits: Tensor, known: Tensor, is_checked: bool = False) -> Tensor:
        """Probability of each value of a channel, given the pixel's earlier channels.

        The product over the channels is the likelihood that ``log_prob`` computes (except for bins
        with a mass below 1e-5, where ``log_prob`` is approximate, as published).

        Args:
            logits: network output, ``B x L x H x W``, float64.
            known: the c earlier channels, ``B x c x H x W`` in [-1, 1].
            is_checked: as in ``log_prob_per_pixel``, for the known channels.

        Returns:
            ``B x V x H x W``, float64; at each pixel they add up to 1.

        Raises:
            ValueError: a shape is wrong, all channels are known, or one is not on the grid.
        """
        self._check_logits(logits)
        expected = (logits.shape[0], min(known.shape[1], self.num_channels - 1), *logits.shape[2:])
        if tuple(known.shape) != expected:
            got = tuple(known.shape)
            raise ValueError(f"known channels must be {expected} for these logits, got {got}")
        if not is_checked:
            check_grid(known, self.num_values, is_rounded=True)
        return self._probabilities(logits.double(), known.double())

    def draw_noise(
        self,
        batch: int,
        height: int,
        width: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Random numbers for a draw: ``B x N x H x W``, uniform in the open interval (0, 1).

        They are drawn on the generator's device, then moved to ``device``: with a generator on the
        CPU, the numbers are the same for every device.
        """
        shape = (batch, self.num_noise_channels, height, width)
        origin = device if generator is None else generator.device
        noise = torch.rand(shape, generator=generator, device=origin, dtype=dtype)
        return _inside_unit_interval(noise).to(device)

    @torch.no_grad()
    def sample(
        self,
        logits: Tensor,
        generator: torch.Generator | None = None,
        *,
        noise: Tensor | None = None,
        mixture_temperature: float = 1.0,
        logistic_temperature: float = 1.0,
    ) -> Tensor:
        """Draw a pixel at each position, on the data grid, without tracking gradients.

        The draw is a function of the logits and the noise, position by position.

        Args:
            logits: network output, ``B x L x H x W``, any floating dtype.
            generator: generator for the noise, if ``noise`` is not given.
            noise: ``B x N x H x W`` from ``draw_noise``.
            mixture_temperature: divides the logits of the mixture (of the two values, for
                Bernoulli).
            logistic_temperature: multiplies the scales; Bernoulli has none.

        Returns:
            ``B x C x H x W`` in [-1, 1], in float32 or better, with the float32 values of the data.

        Raises:
            ValueError: a shape is wrong or a temperature is not positive and finite.
        """
        self._check_logits(logits)
        for name, value in (("mixture", mixture_temperature), ("logistic", logistic_temperature)):
            if not 0 < value < math.inf:
                raise ValueError(f"the {name} temperature must be above 0 and finite, got {value}")
        logits = _at_least_float32(logits)
        if noise is None:
            batch, _, height, width = logits.shape
            noise = self.draw_noise(batch, height, width, generator, logits.device, logits.dtype)
        expected = (logits.shape[0], self.num_noise_channels, *logits.shape[2:])
        if tuple(noise.shape) != expected:
            got = tuple(noise.shape)
            raise ValueError(f"noise must be {expected} for these logits, got {got}")
        # Clamp again: float64 noise close to 1 becomes 1 in float32.
        noise = _inside_unit_interval(noise.to(logits.dtype))
        return self._sample(logits, noise, mixture_temperature, logistic_temperature)

    def _check_logits(self, logits: Tensor) -> None:
        if logits.dim() != 4 or logits.shape[1] != self.num_output_channels:
            raise ValueError(
                f"logits must be B x {self.num_output_channels} x H x W, got {tuple(logits.shape)}"
            )

    @abstractmethod
    def _log_prob(self, logits: Tensor, images: Tensor) -> Tensor: ...

    @abstractmethod
    def _probabilities(self, logits: Tensor, known: Tensor) -> Tensor: ...

    @abstractmethod
    def _sample(
        self, logits: Tensor, noise: Tensor, mixture_temperature: float, logistic_temperature: float
    ) -> Tensor: ...


class Bernoulli(Likelihood):
    """Binary pixels in {-1, 1}; the two output channels are the logits of -1 and of 1.

    The mixture temperature of a draw divides both logits; the logistic temperature has no effect.
    """

    num_channels = 1
    num_values = 2
    num_output_channels = 2
    num_noise_channels = 1
    rounding_error = 2.0**-44

    def _log_prob(self, logits: Tensor, images: Tensor) -> Tensor:
        classes = (images > 0).long()
        return F.log_softmax(logits, dim=1).gather(1, classes).squeeze(1)

    def _probabilities(self, logits: Tensor, known: Tensor) -> Tensor:
        return torch.softmax(logits, dim=1)

    def _sample(
        self, logits: Tensor, noise: Tensor, mixture_temperature: float, logistic_temperature: float
    ) -> Tensor:
        positive = torch.sigmoid((logits[:, 1:] - logits[:, :1]) / mixture_temperature)
        return torch.where(noise < positive, 1.0, -1.0).to(logits.dtype)


class DiscretizedMixtureLogistics(Likelihood):
    """A mixture of logistics, integrated over the bins of the pixel values (PixelCNN++).

    The output channels are M mixture logits and then, for each channel of the images, M means and
    M log-scales, followed by M coefficients if there are three. The coefficients stored with red
    shift green by red, those stored with green shift blue by red, and those stored with blue shift
    blue by green. One component is chosen for all channels of a pixel.

    If it ``is_relative``, the last C output channels are a prediction of the pixel. Then the means
    and the channels that shift others are differences from it.

    Raises:
        ValueError: the channels are not 1 or 3, there are no components, or the bits are not 1
            to 8.
    """

    # At the smallest scale, an error in a mean is 1,100 times as large in units of the scale, and
    # the components' log-probabilities of a surprising channel have few correct digits left.
    rounding_error = 2.0**-41

    def __init__(
        self, num_channels: int, num_mixtures: int, n_bits: int = 8, is_relative: bool = False
    ) -> None:
        if num_channels not in (1, 3):
            raise ValueError(f"mixtures of logistics take 1 or 3 channels, got {num_channels}")
        if num_mixtures < 1:
            raise ValueError(f"a mixture needs at least one component, got {num_mixtures}")
        if not 1 <= n_bits <= 8:
            raise ValueError(f"`n_bits` must be 1 to 8, got {n_bits}")
        self.num_channels = num_channels
        self.num_mixtures = num_mixtures
        self.n_bits, self.num_values = n_bits, 2**n_bits
        self.is_relative = is_relative
        predicted = num_channels if is_relative else 0
        self.num_output_channels = (10 if num_channels == 3 else 3) * num_mixtures + predicted
        self.num_noise_channels = num_mixtures + num_channels

    def _parameters(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Mixture logits ``B x M x H x W``; means, log-scales, coefficients ``B x C x M x H x W``.

        With a single channel, there are no coefficients.
        """
        mixtures = self.num_mixtures
        end = -self.num_channels if self.is_relative else None
        mixture_logits, rest = logits[:, :mixtures], logits[:, mixtures:end]
        groups = rest.unflatten(1, (self.num_channels, -1, mixtures))
        means = groups[:, :, 0]
        if self.is_relative:
            means = means + logits[:, end:].unsqueeze(2)
        coefficients = torch.tanh(groups[:, :, 2]) if self.num_channels == 3 else None
        raw = groups[:, :, 1]
        # Not clamp: releases of PyTorch differ in whether it passes the gradient at the very limit.
        log_scales = torch.where(raw < MIN_LOG_SCALE, MIN_LOG_SCALE, raw)
        return mixture_logits, means, log_scales, coefficients

    def _shift(
        self, channel: int, coefficients: Tensor | None, pixels: list[Tensor], logits: Tensor
    ) -> Tensor | float:
        """What the earlier channels add to a channel's means; pixels are ``B x ... x H x W``."""
        if coefficients is None or channel == 0:
            return 0.0
        if self.is_relative:
            predicted = logits[:, -self.num_channels :].split(1, dim=1)
            pixels = [pixel - each for pixel, each in zip(pixels, predicted, strict=False)]
        if channel == 1:
            return coefficients[:, 0] * pixels[0]
        return coefficients[:, 1] * pixels[0] + coefficients[:, 2] * pixels[1]

    def _log_prob(self, logits: Tensor, images: Tensor) -> Tensor:
        return torch.logsumexp(self._log_joint(logits, images), dim=1)

    def _log_joint(self, logits: Tensor, channels: Tensor) -> Tensor:
        """Joint log-probability of each component and the first channels: ``B x M x H x W``."""
        mixture_logits, means, log_scales, coefficients = self._parameters(logits)
        pixels = [channel.unsqueeze(1) for channel in channels.unbind(1)]
        total = F.log_softmax(mixture_logits, dim=1)
        for channel, pixel in enumerate(pixels):
            shifted = means[:, channel] + self._shift(channel, coefficients, pixels, logits)
            total = total + self._log_bin_mass(pixel - shifted, log_scales[:, channel], pixel)
        return total

    def _probabilities(self, logits: Tensor, known: Tensor) -> Tensor:
        weights = torch.softmax(self._log_joint(logits, known), dim=1)  # given the known channels
        _, means, log_scales, coefficients = self._parameters(logits)
        pixels = [channel.unsqueeze(1) for channel in known.unbind(1)]
        channel = len(pixels)
        means = means[:, channel] + self._shift(channel, coefficients, pixels, logits)
        inverse_scales = torch.exp(-log_scales[:, channel])
        top = self.num_values - 1
        between = torch.arange(1, top + 1, dtype=logits.dtype, device=logits.device)
        between = ((2 * between - 1) / top - 1)[:, None, None]  # between the bins
        below = torch.zeros_like(logits[:, :1]).repeat(1, top + 2, 1, 1)
        # One component at a time takes less memory and makes the sums the same everywhere.
        for weight, mean, inverse_scale in zip(
            *(values.split(1, dim=1) for values in (weights, means, inverse_scales)), strict=True
        ):
            below[:, 1:-1] += weight * torch.sigmoid((between - mean) * inverse_scale)
        below[:, -1] = 1
        return below.diff(dim=1).clamp(min=0)

    def _log_bin_mass(self, centered: Tensor, log_scale: Tensor, pixel: Tensor) -> Tensor:
        """Log-probability of a pixel's bin under logistics; the first and last bins are open.

        For masses below 1e-5, it is the logarithm of the density at the bin's centre times the
        bin's width, as published.
        """
        half_bin = 1 / (self.num_values - 1)
        inverse_scale = torch.exp(-log_scale)
        upper = inverse_scale * (centered + half_bin)
        lower = inverse_scale * (centered - half_bin)
        # sigmoid(u) - sigmoid(l) as sigmoid(u) sigmoid(-l) (1 - exp(l - u)) cancels no digits.
        width = (2 * half_bin * inverse_scale).clamp(min=torch.finfo(upper.dtype).tiny)
        log_mass = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-width))
        middle = inverse_scale * centered
        log_density = F.logsigmoid(middle) + F.logsigmoid(-middle) - log_scale
        inner = torch.where(
            log_mass > math.log(MIN_BIN_MASS), log_mass, log_density + math.log(2 * half_bin)
        )
        below_top = torch.where(pixel > 0.999, F.logsigmoid(-lower), inner)
        return torch.where(pixel < -0.999, F.logsigmoid(upper), below_top)

    def _sample(
        self, logits: Tensor, noise: Tensor, mixture_temperature: float, logistic_temperature: float
    ) -> Tensor:
        mixture_logits, means, log_scales, coefficients = self._parameters(logits)
        gumbel = -torch.log(-torch.log(noise[:, : self.num_mixtures]))
        chosen = (mixture_logits / mixture_temperature + gumbel).argmax(dim=1, keepdim=True)

        def component(values: Tensor) -> Tensor:
            """Select the chosen component: ``B x C x M x H x W`` to ``B x C x 1 x H x W``."""
            index = chosen.unsqueeze(1).expand(-1, values.shape[1], -1, -1, -1)
            return values.gather(2, index)

        means, scales = component(means), torch.exp(component(log_scales)) * logistic_temperature
        coefficients = None if coefficients is None else component(coefficients)
        pixels: list[Tensor] = []
        for channel in range(self.num_channels):
            standard = torch.logit(noise[:, self.num_mixtures + channel]).unsqueeze(1)
            mean = means[:, channel] + self._shift(channel, coefficients, pixels, logits)
            pixels.append(to_grid(mean + scales[:, channel] * standard, self.n_bits))
        return torch.cat(pixels, dim=1)


def make_likelihood(
    num_channels: int,
    num_mixtures: int = 10,
    n_bits: int = 8,
    binarize: bool = False,
    local_prediction: bool = False,
) -> Likelihood:
    """Make the likelihood for a data set's images and a network with or without local prediction.

    Raises:
        ValueError: images with more than one channel are to be binary, binary ones are to be
            predicted, or a number is out of the range that ``DiscretizedMixtureLogistics`` names.
    """
    if not binarize:
        return DiscretizedMixtureLogistics(num_channels, num_mixtures, n_bits, local_prediction)
    if local_prediction:
        raise ValueError("`local_prediction` has no meaning for binarized images: leave it out")
    if num_channels != 1:
        raise ValueError(f"`binarize` needs a one-channel data set, got {num_channels} channels")
    return Bernoulli()


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _inside_unit_interval(noise: Tensor) -> Tensor:
    epsilon = torch.finfo(noise.dtype).eps
    return noise.clamp(epsilon, 1 - epsilon)
