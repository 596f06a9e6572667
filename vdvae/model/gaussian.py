"""Diagonal Gaussians: the prior and posterior of every latent layer. In fp32 whatever autocast does."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG_2PI = 1.8378770664093453


class DiagonalGaussian(NamedTuple):
    """Independent normals. Means and log standard deviations share a shape, usually [B, zdim, r, r]."""

    mean: Tensor
    log_std: Tensor

    @classmethod
    def from_channels(cls, features: Tensor) -> DiagonalGaussian:
        """Splits `[B, r, r, 2*zdim]` into means and log standard deviations."""
        mean, log_std = features.float().permute(0, 3, 1, 2).chunk(2, dim=1)  # each [B, zdim, r, r]
        return cls(mean, log_std)

    def sample(self, noise: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """mean + temperature * std * noise: reparameterised, so gradients reach both parameters."""
        if isinstance(temperature, Tensor):
            return torch.addcmul(self.mean, self.log_std.exp() * temperature, noise)
        return torch.addcmul(self.mean, self.log_std.exp(), noise, value=temperature)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self || other) of each latent variable in nats, shape as the mean."""
        difference = (self.mean - other.mean) * torch.exp(-other.log_std)
        log_ratio = self.log_std - other.log_std
        return 0.5 * (torch.exp(2 * log_ratio) + difference.square() - 1) - log_ratio

    def log_density(self, z: Tensor) -> Tensor:
        """log N(z) of each latent variable in nats, shape as the mean."""
        standardised = (z - self.mean) * torch.exp(-self.log_std)
        return -0.5 * (standardised.square() + LOG_2PI) - self.log_std


def sample_and_rate(
    posterior: Tensor, prior: Tensor, noise: Tensor, temperature: float | Tensor = 1.0
) -> tuple[Tensor, Tensor]:
    """A sample of the posterior, and its KL divergence from the prior: what training wants of a layer, in few passes.

    Args:
        posterior: means and log standard deviations, `[B, r, r, 2*zdim]`.
        prior: the same of the prior.
        noise: standard normal, `[B, r, r, zdim]`.
        temperature: factor on the standard deviation, a number or [B, 1, 1, 1].

    Returns:
        z `[B, r, r, zdim]`, and the divergence of each image's layer in nats, `[B]`.
    """
    result: tuple[Tensor, Tensor] = _SampleAndRate.apply(posterior, prior, noise, temperature)
    return result


class _SampleAndRate(torch.autograd.Function):
    """With the gradient written out: half of the operations that autograd takes, none of them on scattered memory."""

    @staticmethod
    def forward(
        ctx: Any, posterior: Tensor, prior: Tensor, noise: Tensor, temperature: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        q_mean, q_log_std = posterior.chunk(2, -1)
        _, p_log_std = prior.chunk(2, -1)
        deviation = q_log_std.clone(memory_format=torch.contiguous_format).exp_().mul_(noise)
        if isinstance(temperature, Tensor) or temperature != 1:
            deviation.mul_(temperature)
        difference, log_ratio = (posterior - prior).chunk(2, -1)
        inverse_std = p_log_std.neg().exp_()
        standardised = difference * inverse_std
        growth = (2 * log_ratio).exp_().sub_(1)  # of the variance, from prior to posterior
        twice = standardised.square().add_(growth)
        rate = torch.sub(twice, log_ratio, alpha=2).sum((1, 2, 3)).mul_(0.5)
        ctx.save_for_backward(deviation, standardised.mul_(inverse_std), growth, twice)
        return q_mean + deviation, rate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, z: Tensor, rate: Tensor) -> tuple[Tensor | None, ...]:
        deviation, slope, growth, twice = ctx.saved_tensors
        rate = rate.view(-1, 1, 1, 1)
        mean = slope * rate
        by_posterior = torch.cat([z + mean, torch.addcmul(growth * rate, z, deviation)], -1)
        by_prior = torch.cat([-mean, twice * -rate], -1)
        return by_posterior, by_prior, None, None
