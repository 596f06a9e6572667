"""The discretised mixture of logistics, p(x|z): log-probability, sample, mean (Salimans et al. 2017).

A sub-pixel has levels k = 0 ... K-1. A logistic with mean m and scale s gives level k the mass between the level's
two bin edges; the first and the last bin are open. Everything is computed in log space and in units of levels,
where the edges k - 1/2 and k + 1/2 are exact in floating point, so that neighbouring bins share an edge to the last
bit and the masses sum to 1.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdvae.model import arguments
from vdvae.model.config import ModelConfig
from vdvae.model.gaussian import finite_exp, full_precision

MIN_LOG_SCALE = -7.0
LARGEST = 1e25
"""Parameters are held below this so that none, however wild, makes a sum over an image overflow."""
WIDEST = 7.0
"""Log scale from which a logistic's distribution function is straight on [-1, 1], to the last digit."""


class Likelihood(Protocol):
    """p(x|z) of a batch of images: what the model asks of a distribution over pixels."""

    def log_prob(self, images: Tensor) -> Tensor:
        """log p(x) of uint8 images `[B, C, H, W]`, in nats, `[B]`."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draws uint8 images `[B, C, H, W]`."""

    def mean(self) -> Tensor:
        """E[x] as floats on 0..255, `[B, C, H, W]`, differentiable."""


class Binning(NamedTuple):
    """How b bits divide [-1, 1]: level k is centred at k * spacing - 1.

    `exact` has K = 2^b levels spaced 2/(K-1) with half bins of 1/(K-1), and both ends open. `released` with 5 bits
    is the arithmetic of the released code: centres 8/127.5 apart, half bins of 1/31, and a top bin that is closed.
    Its bins overlap by 2.8 %, so one sub-pixel's probabilities sum to up to 1.028 for typical scales (an optimism
    of up to 0.04 bits/dim) and to anything down to 0 where mass lies above the top bin. It exists for parity with the
    published FFHQ-256 figure. With 8 bits the two differ in rounding and where a logistic gives a level a mass below
    1e-5: `released` takes the density at the centre there, which is up to 2.15 nats too low.
    """

    bits: int
    spacing: float
    """Distance between neighbouring centres, on [-1, 1]."""
    is_released: bool

    @classmethod
    def of(cls, bits: int, binning: str) -> Binning:
        """The binning that a model configuration names."""
        is_released = binning == "released"
        return cls(bits, 8 / 127.5 if is_released and bits == 5 else 2 / (2**bits - 1), is_released)

    @property
    def levels(self) -> int:
        """K, the number of values a sub-pixel can take."""
        return int(2**self.bits)

    def level(self, images: Tensor) -> Tensor:
        """uint8 images to levels 0 ... K-1, in fp32."""
        return (images >> (8 - self.bits)).float()

    def centre(self, level: Tensor) -> Tensor:
        """Levels to [-1, 1]."""
        return level * self.spacing - 1

    def pixel(self, level: Tensor) -> Tensor:
        """Levels to the 0..255 that a person sees, as floats."""
        return (self.centre(level) + 1) * 127.5


class Mixture(NamedTuple):
    """The distribution of a batch of images: M logistics per pixel, each over all C channels.

    A channel's mean depends on the channels before it: m_1 + a x_0 for the second, m_2 + b x_0 + c x_1 for the third.
    """

    logits: Tensor
    """Unnormalised log weights, [B, M, H, W]."""
    means: Tensor
    """Means of the logistics on [-1, 1], [B, C, M, H, W]."""
    log_scales: Tensor
    """Logarithms of their scales, [B, C, M, H, W], at least MIN_LOG_SCALE."""
    coefficients: Tensor
    """Coefficients a, b, c of the channels before, in (-1, 1), [B, C(C-1)/2, M, H, W]."""
    binning: Binning

    @classmethod
    def from_parameters(cls, parameters: Tensor, channels: int, binning: Binning) -> Mixture:
        """Unpacks `[B, P, H, W]`, with P as in `num_parameters`, in the released order: logits, then per channel
        means, log scales and, with three channels, one coefficient.
        """
        b, p, h, w = parameters.shape
        kinds = 2 if channels == 1 else 3
        m = p // (1 + kinds * channels)
        parameters = parameters.clamp(-LARGEST, LARGEST)
        per_channel = parameters[:, m:].reshape(b, channels, kinds, m, h, w)  # means, log scales, coefficients
        means, log_scales = per_channel[:, :, 0], per_channel[:, :, 1]  # [B, C, M, H, W]
        coefficients = per_channel[:, :, 2].tanh() if channels == 3 else means[:, :0]
        return cls(parameters[:, :m], means, log_scales.clamp(min=MIN_LOG_SCALE), coefficients, binning)

    @staticmethod
    def num_parameters(channels: int, num_mixtures: int) -> int:
        """P: per logistic a weight, C means, C log scales and C(C-1)/2 coefficients."""
        return num_mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)

    def log_prob(self, images: Tensor) -> Tensor:
        """log p(x) of uint8 images `[B, C, H, W]`, in nats, `[B]`. Finite with finite gradients throughout.

        Raises:
            ValueError: `images` are something else, or of another shape than the distribution.
        """
        b, c, _, h, w = self.means.shape
        arguments.check_pixels(images, (b, c, h, w))
        level = self.binning.level(images)[:, :, None]  # [B, C, 1, H, W]
        earlier = list(self.binning.centre(level).unbind(1))
        means = torch.stack([self._conditional_mean(c, earlier) for c in range(len(earlier))], 1)  # [B, C, M, H, W]
        log_mass = (_released_log_mass if self.binning.is_released else _log_mass)(
            level, means, self.log_scales, self.binning
        )
        log_joint = log_mass.sum(1) + F.log_softmax(self.logits, dim=1)  # [B, M, H, W]
        return torch.logsumexp(log_joint, dim=1).sum((1, 2))  # [B]

    @torch.no_grad()
    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draws uint8 images `[B, C, H, W]`; each channel is conditioned on the levels drawn for those before it.

        Raises:
            ValueError: `generator` is something else.
        """
        arguments.check_generator(generator)
        gumbel = -torch.log(-torch.log(_uniform(self.logits.shape, self.logits.device, generator)))
        chosen = (self.logits + gumbel).max(1, keepdim=True).indices  # [B, 1, H, W]; argmax is slow on CPUs
        u = _uniform(self.means[:, :, 0].shape, self.means.device, generator)  # [B, C, H, W]
        logistic = torch.log(u) - torch.log1p(-u)
        levels: list[Tensor] = []
        for c in range(self.means.shape[1]):
            means = self._conditional_mean(c, [self.binning.centre(level) for level in levels])  # [B, M, H, W]
            scale = finite_exp(self.log_scales[:, c].gather(1, chosen))  # [B, 1, H, W]
            x = means.gather(1, chosen) + scale * logistic[:, c : c + 1]
            levels.append(((x + 1) / self.binning.spacing).round().clamp(0, self.binning.levels - 1))
        return self.binning.pixel(torch.cat(levels, 1)).round().to(torch.uint8)

    def mean(self) -> Tensor:
        """E[x] as floats on 0..255, `[B, C, H, W]`; differentiable.

        Takes the mean of each logistic clipped to [-1, 1] in closed form, and conditions a channel on the means of
        the channels before it: exact but for rounding to levels and, with three channels, clipping.
        """
        expected: list[Tensor] = []  # each [B, M, H, W]
        for c in range(self.means.shape[1]):
            expected.append(_clipped_mean(self._conditional_mean(c, expected), self.log_scales[:, c]))
        weights = self.logits.softmax(1)[:, None]  # [B, 1, M, H, W]
        return ((torch.stack(expected, 1) * weights).sum(2) + 1) * 127.5

    def _conditional_mean(self, channel: int, earlier: list[Tensor]) -> Tensor:
        """Means of one channel `[B, M, H, W]`, given the channels before it on [-1, 1], each `[B, 1 or M, H, W]`."""
        mean = self.means[:, channel]
        first = channel * (channel - 1) // 2
        for c in range(channel):
            mean = mean + self.coefficients[:, first + c] * earlier[c]
        return mean


class MixtureNet(nn.Module):
    """The last layer, and the distribution that its output stands for.

    Another likelihood is a class with these two methods, in the place of `model.decoder.out_net`.
    """

    def __init__(self, out_conv: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.out_conv = out_conv
        self.channels = config.image_channels
        self.binning = Binning.of(config.bits, config.binning)

    def forward(self, x: Tensor) -> Tensor:
        """Maps the last state `[B, width, H, W]` to the mixture's parameters `[B, P, H, W]`, in fp32 always."""
        device = x.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            return self.out_conv(full_precision(x)).contiguous()  # each parameter as a plane, for vectors of pixels

    def distribution(self, parameters: Tensor) -> Mixture:
        """p(x|z) by the parameters that `forward` returned."""
        return Mixture.from_parameters(parameters, self.channels, self.binning)


def _log_mass(level: Tensor, means: Tensor, log_scales: Tensor, binning: Binning) -> Tensor:
    """log of a logistic's mass in the bin of `level`.

    With F the logistic function, lower edge l and upper edge u in units of the scale, and w = u - l,
        F(u) - F(l) = F(u) F(-l) (1 - exp(-w)),
    three factors without cancellation. An open end drops its factor and the last one.
    """
    log_width = math.log(binning.spacing) - log_scales
    width = log_width.exp()
    distance = level - (means + 1) / binning.spacing
    not_bottom, not_top = (level > 0).float(), (level < binning.levels - 1).float()

    upper, lower = (distance + 0.5) * width, (0.5 - distance) * width  # u and -l
    edges = -not_top * F.softplus(-upper) - not_bottom * F.softplus(-lower)  # log F(u) + log F(-l)
    held = log_width.clamp(min=-30.0)  # below, log(1 - exp(-w)) is log w to more digits than there are
    last = torch.log(-torch.expm1(-held.exp())) + (log_width - held)  # log(1 - exp(-w))
    return edges + not_bottom * not_top * last


def _released_log_mass(level: Tensor, means: Tensor, log_scales: Tensor, binning: Binning) -> Tensor:
    """As `_log_mass`, by the released code's arithmetic on [-1, 1]: a difference of two distribution functions in fp32,
    and the density at the centre times the bin's width where that is 1e-5 or less.
    """
    x, half_bin = binning.centre(level), 1 / (binning.levels - 1)
    inverse_scale = torch.exp(-log_scales)
    distance = x - means
    upper, lower = inverse_scale * (distance + half_bin), inverse_scale * (distance - half_bin)
    mass = torch.sigmoid(upper) - torch.sigmoid(lower)
    middle = inverse_scale * distance
    log_density = middle - log_scales - 2 * F.softplus(middle)
    inside = torch.where(mass > 1e-5, mass.clamp(min=1e-12).log(), log_density + math.log(2 * half_bin))
    return torch.where(x < -0.999, F.logsigmoid(upper), torch.where(x > 0.999, F.logsigmoid(-lower), inside))


def _clipped_mean(mean: Tensor, log_scale: Tensor) -> Tensor:
    """E[clip(X, -1, 1)] for X logistic with mean m and scale s.

    Of a positive mean it is s log(1 + R), with R = (1 - exp(-1/s)) (1 - exp(-m/s)) exp(1/s - log(1 + exp((1-m)/s))), a
    product without cancellation; of a negative one, the negative of that. A logistic wider than `WIDEST` covers
    [-1, 1] with a straight line, of which m/s is all that counts.
    """
    scale = log_scale.clamp(max=WIDEST)
    mean = mean * torch.exp(scale - log_scale)
    inverse = torch.exp(-scale)  # 1/s
    size = torch.where(mean < 0, -mean, mean)  # with a slope at 0, unlike abs
    exponent = inverse - F.softplus((1 - size) * inverse)
    held = exponent.clamp(max=30.0)  # above, log(1 + R) is the exponent to more digits than there are
    ratio = torch.expm1(-inverse) * torch.expm1(-size * inverse) * held.exp()  # R
    expected = scale.exp() * (ratio.log1p() + (exponent - held))
    return torch.where(mean < 0, -expected, expected)


def _uniform(shape: torch.Size, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Uniform draws inside (0, 1), made on the generator's device."""
    u = torch.rand(shape, generator=generator, device=generator.device if generator else device)
    return u.clamp(1e-7, 1 - 1e-7).to(device)
