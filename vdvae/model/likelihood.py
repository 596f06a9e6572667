"""The discretised mixture of logistics, p(x|z): log-probability, sample, mean (Salimans et al. 2017).

A sub-pixel has levels k = 0 ... K-1. A logistic with mean m and scale s gives level k the mass between the level's
two bin edges; the first and the last bin are open. Everything is computed in log space and in units of levels,
where the edges k - 1/2 and k + 1/2 are exact in floating point, so that neighbouring bins share an edge to the last
bit and the masses sum to 1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vdvae.model.blocks import conv
from vdvae.model.config import ModelConfig

MIN_LOG_SCALE = -7.0
LOG_NEGLIGIBLE = math.log(1e-7)
LARGEST = 1e25
"""Parameters are held below this so that none, however wild, makes a sum over an image overflow."""


class Binning(NamedTuple):
    """How b bits divide [-1, 1]: level k is centred at k * spacing - 1.

    `exact` has K = 2^b levels spaced 2/(K-1) with half bins of 1/(K-1), and both ends open. `released` with 5 bits
    is the arithmetic of the released code: centres 8/127.5 apart, half bins of 1/31, and a top bin that is closed.
    Its bins overlap by 2.8 %, so one sub-pixel's probabilities sum to up to 1.028 for typical scales (an optimism
    of up to 0.04 bits/dim) and to as little as 0.5 where mass lies above the top bin. It exists for parity with the
    published FFHQ-256 figure. With 8 bits the two differ in rounding only.
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
    """[B, C, M, H, W], on [-1, 1]."""
    log_scales: Tensor
    """[B, C, M, H, W], at least MIN_LOG_SCALE."""
    coefficients: Tensor
    """a, b, c in (-1, 1): [B, C(C-1)/2, M, H, W]."""
    binning: Binning

    @classmethod
    def from_parameters(cls, parameters: Tensor, channels: int, binning: Binning) -> Mixture:
        """Unpacks `[B, P, H, W]`, with P as in `num_parameters`, in the released order: logits, then per channel
        means, log scales and, with three channels, one coefficient.
        """
        logits, means, log_scales, coefficients = _Unpack.apply(parameters, channels)
        return cls(logits, means, log_scales, coefficients, binning)

    @staticmethod
    def num_parameters(channels: int, num_mixtures: int) -> int:
        """P: per logistic a weight, C means, C log scales and C(C-1)/2 coefficients."""
        return num_mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)

    def log_prob(self, images: Tensor) -> Tensor:
        """log p(x) of uint8 images `[B, C, H, W]`, in nats, `[B]`. Finite with finite gradients throughout."""
        if self.binning.is_released:
            return self.released_log_prob(images)
        level = self.binning.level(images)[:, :, None]  # [B, C, 1, H, W]
        log_prob: Tensor = _LogProb.apply(
            level, self.logits, self.means, self.log_scales, self.coefficients, self.binning
        )
        return log_prob

    def released_log_prob(self, images: Tensor) -> Tensor:
        """The same by the released code's arithmetic, whatever the binning's spacing."""
        x = self.binning.centre(self.binning.level(images))[:, :, None]  # [B, C, 1, H, W]
        earlier = list(x.unbind(1))
        means = torch.stack([self._conditional_mean(c, earlier) for c in range(len(earlier))], 1)  # [B, C, M, H, W]
        log_mass = _released_log_mass(x, means, self.log_scales, half_bin=1 / (self.binning.levels - 1))
        log_joint = log_mass.sum(1) + F.log_softmax(self.logits, dim=1)  # [B, M, H, W]
        return torch.logsumexp(log_joint, dim=1).sum((1, 2))  # [B]

    @torch.no_grad()
    def sample(self, generator: torch.Generator | None = None, copies: int = 1) -> Tensor:
        """Draws uint8 images `[B, C, H, W]`; each channel is conditioned on the levels drawn for those before it. With
        `copies` the batch consists of so many equal parts, which are drawn with the same noise.
        """
        gumbel = -torch.log(-torch.log(_uniform(self.logits.shape, self.logits.device, generator, copies)))
        chosen = (self.logits + gumbel).max(1, keepdim=True).indices  # [B, 1, H, W]; argmax is slow on CPUs
        u = _uniform(self.means[:, :, 0].shape, self.means.device, generator, copies)  # [B, C, H, W]
        logistic = torch.log(u) - torch.log1p(-u)
        levels: list[Tensor] = []
        for c in range(self.means.shape[1]):
            means = self._conditional_mean(c, [self.binning.centre(level) for level in levels])  # [B, M, H, W]
            scale = self.log_scales[:, c].gather(1, chosen).exp()  # [B, 1, H, W]
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


class MixtureHead(nn.Module):
    """Gain and bias of each channel of the last top-down state, then the 1x1 convolution to the parameters."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width_at(config.image_size)
        self.out_conv = conv(width, Mixture.num_parameters(config.image_channels, config.num_mixtures))

    def forward(self, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        """Maps `[B, H, W, width]` to `[B, P, H, W]`: each parameter of a mixture as a plane, for vectors of pixels."""
        b, h, w, c = x.shape
        assert self.out_conv.bias is not None
        weight = self.out_conv.weight.flatten(1)  # [P, width]; gain and bias of the state go into those of the product
        bias = torch.addmv(self.out_conv.bias, weight, bias)[:, None]  # [P, 1]
        weight = (weight * gain).expand(b, -1, -1)
        return torch.baddbmm(bias, weight, x.reshape(b, h * w, c).mT).view(b, -1, h, w)


class _Unpack(torch.autograd.Function):
    """Logits, means, log scales and coefficients of `[B, P, H, W]`, whose gradients go back to their places at once."""

    @staticmethod
    def forward(ctx: Any, parameters: Tensor, channels: int) -> tuple[Tensor, ...]:
        parameters = parameters.clamp(-LARGEST, LARGEST)
        logits, means, log_scales, coefficients = _parts(parameters, channels)
        coefficients.tanh_()
        ctx.channels = channels
        ctx.save_for_backward(log_scales >= MIN_LOG_SCALE, coefficients)
        log_scales.clamp_(min=MIN_LOG_SCALE)
        return logits, means, log_scales, coefficients

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        is_free, coefficients = ctx.saved_tensors
        logits, means, log_scales, raw = gradients
        log_scales = log_scales * is_free
        raw = raw * (1 - coefficients.square())
        kinds = [means, log_scales] if ctx.channels == 1 else [means, log_scales, raw]
        return torch.cat([logits, torch.stack(kinds, 2).flatten(1, 3)], 1), None


def _parts(parameters: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of `[B, P, H, W]`, in the released order: see `Mixture.from_parameters`."""
    b, p, h, w = parameters.shape
    kinds = 2 if channels == 1 else 3
    m = p // (1 + kinds * channels)
    means, log_scales, *rest = parameters[:, m:].view(b, channels, kinds, m, h, w).unbind(2)  # [B, C, M, H, W]
    return parameters[:, :m], means, log_scales, rest[0] if rest else means[:, :0]


class _LogProb(torch.autograd.Function):
    """log p(x) of each image, [B], with its gradient written out: a third of the passes over memory."""

    @staticmethod
    def forward(
        ctx: Any,
        level: Tensor,
        logits: Tensor,
        means: Tensor,
        log_scales: Tensor,
        coefficients: Tensor,
        binning: Binning,
    ) -> Tensor:
        x = binning.centre(level)  # [B, C, 1, H, W]
        dependencies = [(c, earlier) for c in range(level.shape[1]) for earlier in range(c)]  # one coefficient each
        means = means.clone()  # [B, C, M, H, W]
        for i, (c, earlier) in enumerate(dependencies):
            means[:, c].addcmul_(coefficients[:, i], x[:, earlier])
        log_mass, by_means, by_log_scales = _log_mass(level, means, log_scales, binning)
        log_joint = log_mass.sum(1).add_(F.log_softmax(logits, 1))  # [B, M, H, W]
        log_pixel = torch.logsumexp(log_joint, 1, keepdim=True)  # [B, 1, H, W]

        share = log_joint.sub_(log_pixel).exp_()  # [B, M, H, W], of each logistic in its pixel
        by_means.mul_(share[:, None])
        by_log_scales.mul_(share[:, None])
        by_coefficients = [by_means[:, c] * x[:, earlier] for c, earlier in dependencies]
        ctx.save_for_backward(
            share - logits.softmax(1),
            by_means,
            by_log_scales,
            torch.stack(by_coefficients, 1) if dependencies else coefficients,
        )
        return log_pixel.sum((1, 2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        per_image = [gradient.view(-1, *[1] * (saved.dim() - 1)) * saved for saved in ctx.saved_tensors]
        return None, *per_image, None


def _log_mass(level: Tensor, means: Tensor, log_scales: Tensor, binning: Binning) -> tuple[Tensor, Tensor, Tensor]:
    """log of a logistic's mass in the bin of `level`, and its derivatives by the mean and by the log scale.

    With F the logistic function, lower edge l and upper edge u in units of the scale, and w = u - l,
        F(u) - F(l) = F(u) F(-l) (1 - exp(-w)),
    three factors without cancellation. An open end drops its factor and the last one. Of a bin too far out to
    matter, the released code takes the density at the centre times w, which is F(u) F(-l) w exp(-w/2) there; so do
    we, below a mass that shows in no sum, to give its figures for wildly unlikely pixels too.
    """
    log_width = math.log(binning.spacing) - log_scales
    width = log_width.exp()
    distance = level - (means + 1).div_(binning.spacing)
    not_bottom, not_top = (level > 0).float(), (level < binning.levels - 1).float()
    inner = not_bottom * not_top

    upper, lower = (distance + 0.5).mul_(width), (0.5 - distance).mul_(width)  # u and -l
    edges = F.softplus(-upper).mul_(-not_top).sub_(F.softplus(-lower).mul_(not_bottom))  # log F(u) + log F(-l)
    minus_last = torch.expm1(-width.clamp(min=1e-3))  # exp(-w) - 1
    last = torch.log(-minus_last)
    use_series = (width < 1e-3) | (edges + last < LOG_NEGLIGIBLE)
    series = torch.sub(log_width, width, alpha=0.5)  # of log(1 - exp(-w)), to a relative error of w^2/24
    log_mass = edges.addcmul_(torch.where(use_series, series, last), inner)

    beyond_upper = torch.sigmoid(-upper).mul_(not_top)
    beyond_lower = torch.sigmoid(-lower).mul_(not_bottom)
    by_mean = (beyond_lower - beyond_upper).mul_(width).div_(binning.spacing)
    by_log_width = torch.where(use_series, 1 - 0.5 * width, width * (-1 - 1 / minus_last)).mul_(inner)
    by_log_width.addcmul_(upper, beyond_upper).addcmul_(lower, beyond_lower)
    return log_mass, by_mean, by_log_width.neg_()


def _released_log_mass(x: Tensor, means: Tensor, log_scales: Tensor, half_bin: float) -> Tensor:
    """The same by the released code's arithmetic, on [-1, 1]: a difference of two distribution functions in fp32,
    and the density at the centre times the bin's width where that is 1e-5 or less.
    """
    inverse_scale = torch.exp(-log_scales)
    distance = x - means
    upper, lower = inverse_scale * (distance + half_bin), inverse_scale * (distance - half_bin)
    mass = torch.sigmoid(upper) - torch.sigmoid(lower)
    middle = inverse_scale * distance
    log_density = middle - log_scales - 2 * F.softplus(middle)
    inside = torch.where(mass > 1e-5, mass.clamp(min=1e-12).log(), log_density + math.log(2 * half_bin))
    return torch.where(x < -0.999, F.logsigmoid(upper), torch.where(x > 0.999, F.logsigmoid(-lower), inside))


def _clipped_mean(mean: Tensor, log_scale: Tensor) -> Tensor:
    """E[clip(X, -1, 1)] for X logistic: 1 minus the integral of its distribution function over [-1, 1]."""
    scale = log_scale.exp()
    return 1 - scale * (F.softplus((1 - mean) / scale) - F.softplus((-1 - mean) / scale))


def _uniform(shape: torch.Size, device: torch.device, generator: torch.Generator | None, copies: int) -> Tensor:
    """Uniform draws inside (0, 1), made on the generator's device."""
    batch, *rest = shape
    u = torch.rand(batch // copies, *rest, generator=generator, device=generator.device if generator else device)
    return u.clamp(1e-7, 1 - 1e-7).to(device).repeat(copies, 1, 1, 1)
