"""What a network's output means: the distribution of each pixel given those before it.

Every likelihood scores images (``log_prob``) and draws from the same output (``sample``). Scores
are exact, apart from the published approximation of bins that hold less than 1e-5, which
``Likelihood.probabilities`` describes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lmconv.pixel_values import MOST_BITS, MOST_CHANNELS, check_grid, to_grid, to_levels

__all__ = [
    "Bernoulli",
    "DiscretizedMixtureLogistics",
    "Likelihood",
    "make_likelihood",
    "parameters_per_component",
]

MIN_LOG_SCALE = -7.0
MIN_BIN_MASS = 1e-5
_LARGEST_BOUND = 16
# Values of more than a byte are coded in two digits, of which the lower one is a byte.
_BYTE = 256
# ln 2 in two parts, of which the upper one times a small whole number is exact; and the number of
# terms of a Taylor series of exp that is exact to float64 up to 0.35.
_LN2_UPPER, _LN2_LOWER, _TERMS = 0.693147180369123816490, 1.90821492927058770002e-10, 15


class Likelihood(ABC):
    """A distribution of images ``B x C x H x W`` in [-1, 1], pixel by pixel.

    Attributes:
        num_channels: C, the number of channels of the images.
        num_values: V, the number of values that a channel of a pixel can have.
        num_output_channels: L, the number of channels that a network must output.
        num_noise_channels: N, the number of uniform random numbers that drawing a pixel takes.
        rounding_error: how much sums of ``probabilities`` may differ between machines whose
            elementary functions differ in their last digits; see ``rounding_errors``.
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
        logits = self._widened(logits)
        return self._log_prob(logits, self._exact(images, logits.dtype))

    def log_prob(self, logits: Tensor, images: Tensor, is_checked: bool = False) -> Tensor:
        """Log-likelihood of each image in nats, B; arguments as in ``log_prob_per_pixel``."""
        return self.log_prob_per_pixel(logits, images, is_checked).sum(dim=(1, 2))

    def probabilities(self, logits: Tensor, known: Tensor, is_checked: bool = False) -> Tensor:
        """Probability of each value of a channel, given the pixel's earlier channels.

        The product over the channels is the likelihood that ``log_prob`` computes (except for bins
        with a mass below 1e-5, where ``log_prob`` is approximate, as published, for grey and colour
        images of up to 8 bits).

        Args:
            logits: network output, ``B x L x H x W``, float64.
            known: the c earlier channels, ``B x c x H x W`` in [-1, 1].
            is_checked: as in ``log_prob_per_pixel``, for the known channels.

        Returns:
            ``B x V x H x W``, float64; at each pixel they add up to 1.

        Raises:
            ValueError: a shape is wrong, all channels are known, or one is not on the grid.
        """
        bounds = torch.arange(self.num_values + 1, device=logits.device)[:, None, None]
        return self._between(logits, known, bounds, is_checked)

    @property
    def digit_sizes(self) -> tuple[int, ...]:
        """The number of values of each digit that a value is coded in, the upper digit first.

        A value of up to 8 bits is one digit. A longer one is two, its upper bits and its lower
        byte, so that no table of probabilities has more than 256 entries.
        """
        return (self.num_values // _BYTE, _BYTE) if self._is_fine else (self.num_values,)

    def digit_probabilities(
        self,
        logits: Tensor,
        known: Tensor,
        upper: Tensor | None = None,
        is_checked: bool = False,
    ) -> Tensor:
        """Probability of each value of a digit of a channel, given all that comes before it.

        Args:
            logits, known, is_checked: as in ``probabilities``.
            upper: the channel's upper digit, ``B x H x W``, whole numbers, for the probabilities of
                the lower one; by default those of the upper one are computed.

        Returns:
            ``B x D x H x W``, float64, for a digit of D values; at each pixel they add up to 1.

        Raises:
            ValueError: as ``probabilities`` raises it.
        """
        if upper is None:
            size = self.digit_sizes[0]
            bounds = torch.arange(size + 1, device=logits.device) * (self.num_values // size)
            return self._between(logits, known, bounds[:, None, None], is_checked)
        bounds = torch.arange(-1, _BYTE + 2, device=logits.device)[:, None, None]
        bounds = bounds + _BYTE * upper.long().unsqueeze(1)  # B x 259 x H x W
        bounds[:, 0], bounds[:, -1] = 0, self.num_values
        masses = self._between(logits, known, bounds, is_checked)[:, 1:-1]
        total = masses.sum(dim=1, keepdim=True)
        return torch.where(total > 0, masses / total, 1 / _BYTE)

    def rounding_errors(self, logits: Tensor, known: Tensor) -> Tensor:
        """How much sums of a channel's ``probabilities`` may differ between machines.

        Args:
            logits, known: as in ``probabilities``.

        Returns:
            ``B x H x W``, float64.
        """
        return torch.full_like(logits[:, 0], self.rounding_error, dtype=torch.float64)

    def _between(self, logits: Tensor, known: Tensor, bounds: Tensor, is_checked: bool) -> Tensor:
        """Check arguments of ``probabilities``, and compute those of the values between bounds."""
        self._check_logits(logits)
        expected = (logits.shape[0], min(known.shape[1], self.num_channels - 1), *logits.shape[2:])
        if tuple(known.shape) != expected:
            got = tuple(known.shape)
            raise ValueError(f"known channels must be {expected} for these logits, got {got}")
        if not is_checked:
            check_grid(known, self.num_values, is_rounded=True)
        return self._probabilities(logits.double(), self._exact(known, torch.float64), bounds)

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
        logits = self._widened(logits)
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

    @property
    def _is_fine(self) -> bool:
        """Whether values lie too close together to be subtracted in float32: at over 8 bits."""
        return self.num_values > _BYTE

    def _widened(self, values: Tensor) -> Tensor:
        """Values in float32 or better, or in float64 if the grid is fine."""
        wide = torch.float64 if self._is_fine else torch.float32
        return values.to(wide) if values.dtype.itemsize < wide.itemsize else values

    def _exact(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """The pixel values to compute with; on a fine grid without the rounding of float32 data."""
        if not self._is_fine:
            return images.to(dtype)
        return 2 * to_levels(images.double(), self.num_values).double() / (self.num_values - 1) - 1

    @abstractmethod
    def _log_prob(self, logits: Tensor, images: Tensor) -> Tensor: ...

    @abstractmethod
    def _probabilities(self, logits: Tensor, known: Tensor, bounds: Tensor) -> Tensor:
        """Probability of the values from each bound to below the next: ``B x K x H x W``.

        The K + 1 bounds rise from 0 to V; they are ``K+1 x 1 x 1`` or ``B x K+1 x H x W``.
        """

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

    def _probabilities(self, logits: Tensor, known: Tensor, bounds: Tensor) -> Tensor:
        return torch.softmax(logits, dim=1)

    def _sample(
        self, logits: Tensor, noise: Tensor, mixture_temperature: float, logistic_temperature: float
    ) -> Tensor:
        positive = torch.sigmoid((logits[:, 1:] - logits[:, :1]) / mixture_temperature)
        return torch.where(noise < positive, 1.0, -1.0).to(logits.dtype)


class DiscretizedMixtureLogistics(Likelihood):
    """A mixture of logistics, integrated over the bins of the pixel values (PixelCNN++).

    The output channels are M mixture logits and then, for each channel of the images, M means, M
    log-scales, and coefficients, M numbers each, by which channels shift the means of later ones.
    Coefficient 0 is that of the second channel by the first; 1 and 2 are those of the third by the
    first and by the second; and so on. They are dealt out in turn: number i stands after the
    log-scales of channel i modulo C. If C is even, there are C / 2 left in the end, which stand
    after all channels. For three channels that is the published order. One component is chosen for
    all channels of a pixel.

    If it ``is_relative``, the last C output channels are a prediction of the pixel. Then the means
    are offsets from it, and a channel shifts later ones by its difference from it, not its value.

    A coefficient is ``coefficient_bound * tanh(output / coefficient_bound)``; the published bound
    is 1. Where channels change unequally, as in coloured surfaces, a larger bound takes fewer bits.

    The least log-scale is -7, as published. At more than 8 bits it is lower, so that the least
    scale is as many bins as at 8 bits.

    Raises:
        ValueError: the channels are not 1 to 8, there are no components, the bits are not 1 to 16,
            or the bound is not 1 to 16, or not 1 for a single channel.
    """

    # At the smallest scale, an error in a mean is 1,100 times as large in units of the scale, and
    # the components' log-probabilities of a surprising channel have few correct digits left.
    rounding_error = 2.0**-41

    def __init__(
        self,
        num_channels: int,
        num_mixtures: int,
        n_bits: int = 8,
        is_relative: bool = False,
        coefficient_bound: float = 1.0,
    ) -> None:
        if not 1 <= num_channels <= MOST_CHANNELS:
            raise ValueError(
                f"mixtures of logistics take 1 to {MOST_CHANNELS} channels, got {num_channels}"
            )
        if num_mixtures < 1:
            raise ValueError(f"a mixture needs at least one component, got {num_mixtures}")
        if not 1 <= n_bits <= MOST_BITS:
            raise ValueError(f"`n_bits` must be 1 to {MOST_BITS}, got {n_bits}")
        if not 1 <= coefficient_bound <= _LARGEST_BOUND:
            raise ValueError(
                f"`coefficient_bound` must be 1 to {_LARGEST_BOUND}, got {coefficient_bound}"
            )
        if num_channels == 1 and coefficient_bound != 1:
            raise ValueError(
                "`coefficient_bound` has no meaning for images of one channel: leave it out"
            )
        self.num_channels = num_channels
        self.num_mixtures = num_mixtures
        self.n_bits, self.num_values = n_bits, 2**n_bits
        self.is_relative, self.coefficient_bound = is_relative, coefficient_bound
        predicted = num_channels if is_relative else 0
        self.num_output_channels = parameters_per_component(num_channels) * num_mixtures + predicted
        self.num_noise_channels = num_mixtures + num_channels
        # Published: masses below 1e-5 are approximate. On a fine grid that would be most of them.
        self._is_approximate = num_channels in (1, 3) and not self._is_fine
        self._min_log_scale = MIN_LOG_SCALE
        if self._is_fine:
            self._min_log_scale -= math.log((self.num_values - 1) / (_BYTE - 1))
            self.rounding_error = 2.0**-47  # times what ``rounding_errors`` adds up

    def _parameters(
        self, logits: Tensor, tanh: Callable[[Tensor], Tensor] = torch.tanh
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Mixture logits ``B x M x H x W``; means, log-scales ``B x C x M x H x W``; coefficients.

        The last are ``B x C(C-1)/2 x M x H x W``, or None for a single channel.
        """
        channels, mixtures = self.num_channels, self.num_mixtures
        end = -channels if self.is_relative else None
        mixture_logits, rest = logits[:, :mixtures], logits[:, mixtures:end]
        each = 2 + (channels - 1) // 2  # kinds of parameters that every channel has
        groups = rest[:, : channels * each * mixtures].unflatten(1, (channels, each, mixtures))
        means = groups[:, :, 0]
        if self.is_relative:
            means = means + logits[:, end:].unsqueeze(2)
        coefficients = None
        if channels > 1:
            dealt = groups[:, :, 2:].transpose(1, 2).flatten(1, 2)
            if channels % 2 == 0:
                left = rest[:, channels * each * mixtures :].unflatten(1, (-1, mixtures))
                dealt = torch.cat([dealt, left], dim=1)
            coefficients = self.coefficient_bound * tanh(dealt / self.coefficient_bound)
        raw = groups[:, :, 1]
        # Not clamp: releases of PyTorch differ in whether it passes the gradient at the very limit.
        log_scales = torch.where(raw < self._min_log_scale, self._min_log_scale, raw)
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
        first = channel * (channel - 1) // 2
        shift = coefficients[:, first] * pixels[0]
        for earlier in range(1, channel):
            shift = shift + coefficients[:, first + earlier] * pixels[earlier]
        return shift

    def _log_prob(self, logits: Tensor, images: Tensor) -> Tensor:
        return torch.logsumexp(self._log_joint(logits, images), dim=1)

    def _log_joint(
        self, logits: Tensor, channels: Tensor, tanh: Callable[[Tensor], Tensor] = torch.tanh
    ) -> Tensor:
        """Joint log-probability of each component and the first channels: ``B x M x H x W``."""
        mixture_logits, means, log_scales, coefficients = self._parameters(logits, tanh)
        pixels = [channel.unsqueeze(1) for channel in channels.unbind(1)]
        total = F.log_softmax(mixture_logits, dim=1)
        for channel, pixel in enumerate(pixels):
            shifted = means[:, channel] + self._shift(channel, coefficients, pixels, logits)
            total = total + self._log_bin_mass(pixel - shifted, log_scales[:, channel], pixel)
        return total

    def _probabilities(self, logits: Tensor, known: Tensor, bounds: Tensor) -> Tensor:
        # On a fine grid scales can be so small that the last digit of a mean matters.
        tanh = _reproducible_tanh if self._is_fine else torch.tanh
        weights = torch.softmax(self._log_joint(logits, known, tanh), dim=1)  # given those known
        _, means, log_scales, coefficients = self._parameters(logits, tanh)
        pixels = [channel.unsqueeze(1) for channel in known.unbind(1)]
        channel = len(pixels)
        means = means[:, channel] + self._shift(channel, coefficients, pixels, logits)
        inverse_scales = torch.exp(-log_scales[:, channel])
        inner = bounds[..., 1:-1, :, :]
        between = (2 * inner.to(logits.dtype) - 1) / (self.num_values - 1) - 1  # between the bins
        below = logits.new_zeros(len(logits), bounds.shape[-3], *logits.shape[2:])
        # One component at a time takes less memory and makes the sums the same everywhere.
        for weight, mean, inverse_scale in zip(
            *(values.split(1, dim=1) for values in (weights, means, inverse_scales)), strict=True
        ):
            below[:, 1:-1] += weight * torch.sigmoid((between - mean) * inverse_scale)
        # The first and the last bin are open.
        below = torch.where(bounds == 0, 0.0, torch.where(bounds == self.num_values, 1.0, below))
        if self._is_fine:  # where last digits fall, what a clamp of differences adds would add up
            below = below.cummax(dim=1).values
        return below.diff(dim=1).clamp(min=0)

    def rounding_errors(self, logits: Tensor, known: Tensor) -> Tensor:
        if not self._is_fine:
            return super().rounding_errors(logits, known)
        # A known channel that is many scales from a mean leaves fewer right digits of its
        # log-probability, unless it is in an open bin on that side, where this is close to 0.
        logits, known = logits.double(), self._exact(known, torch.float64)
        joint, means, log_scales, coefficients = self._parameters(logits)
        pixels = [channel.unsqueeze(1) for channel in known.unbind(1)]
        errors = torch.ones_like(joint)
        for channel, pixel in enumerate(pixels):
            shift = self._shift(channel, coefficients, pixels, logits)
            centered, log_scale = pixel - means[:, channel] - shift, log_scales[:, channel]
            log_mass = self._log_bin_mass(centered, log_scale, pixel)
            joint = joint + log_mass
            errors = errors + torch.minimum(centered.abs() * torch.exp(-log_scale), -log_mass)
        return self.rounding_error * (torch.softmax(joint, dim=1) * errors).sum(dim=1)

    def _log_bin_mass(self, centered: Tensor, log_scale: Tensor, pixel: Tensor) -> Tensor:
        """Log-probability of a pixel's bin under logistics; the first and last bins are open.

        For masses below 1e-5, it is the logarithm of the density at the bin's centre times the
        bin's width where that is published, for grey and colour images of up to 8 bits.
        """
        half_bin = 1 / (self.num_values - 1)
        inverse_scale = torch.exp(-log_scale)
        upper = inverse_scale * (centered + half_bin)
        lower = inverse_scale * (centered - half_bin)
        # sigmoid(u) - sigmoid(l) as sigmoid(u) sigmoid(-l) (1 - exp(l - u)) cancels no digits.
        width = (2 * half_bin * inverse_scale).clamp(min=torch.finfo(upper.dtype).tiny)
        log_mass = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-width))
        if self._is_approximate:
            middle = inverse_scale * centered
            log_density = F.logsigmoid(middle) + F.logsigmoid(-middle) - log_scale
            log_mass = torch.where(
                log_mass > math.log(MIN_BIN_MASS), log_mass, log_density + math.log(2 * half_bin)
            )
        last = max(0.999, 1 - half_bin)  # published: 0.999
        below_top = torch.where(pixel > last, F.logsigmoid(-lower), log_mass)
        return torch.where(pixel < -last, F.logsigmoid(upper), below_top)

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
            drawn = to_grid(mean + scales[:, channel] * standard, self.n_bits)
            pixels.append(self._exact(drawn, drawn.dtype))
        return to_grid(torch.cat(pixels, dim=1), self.n_bits)


def make_likelihood(
    num_channels: int,
    num_mixtures: int = 10,
    n_bits: int = 8,
    binarize: bool = False,
    local_prediction: bool = False,
    coefficient_bound: float = 1.0,
) -> Likelihood:
    """Make the likelihood for a data set's images and a network with or without local prediction.

    Raises:
        ValueError: images with more than one channel are to be binary, binary ones are to be
            predicted or given coefficients, or a number is out of the range that
            ``DiscretizedMixtureLogistics`` names.
    """
    if not binarize:
        return DiscretizedMixtureLogistics(
            num_channels, num_mixtures, n_bits, local_prediction, coefficient_bound
        )
    if local_prediction or coefficient_bound != 1:
        name = "local_prediction" if local_prediction else "coefficient_bound"
        raise ValueError(f"`{name}` has no meaning for binarized images: leave it out")
    if num_channels != 1:
        raise ValueError(f"`binarize` needs a one-channel data set, got {num_channels} channels")
    return Bernoulli()


def parameters_per_component(num_channels: int) -> int:
    """The number of parameters of a component of a mixture, with its own logit."""
    return 1 + 2 * num_channels + num_channels * (num_channels - 1) // 2


def _reproducible_tanh(values: Tensor) -> Tensor:
    """Tanh in float64, the same on every machine: it takes only sums, products and quotients.

    With a = exp(-2 |x|), tanh |x| is (1 - a) / (1 + a). Its error is below 1e-15.
    """
    exponent = -2 * values.abs().clamp(max=20)
    halvings = (exponent / -math.log(2)).round()
    rest = exponent + halvings * _LN2_UPPER + halvings * _LN2_LOWER
    power = torch.ones_like(rest)
    for term in range(_TERMS, 0, -1):
        power = 1 + rest * power / term
    halves = power.new_tensor([2.0**-number for number in range(60)])
    power = power * halves[halvings.long()]
    return torch.sign(values) * ((1 - power) / (1 + power))


def _inside_unit_interval(noise: Tensor) -> Tensor:
    epsilon = torch.finfo(noise.dtype).eps
    return noise.clamp(epsilon, 1 - epsilon)
