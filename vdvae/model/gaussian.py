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

    def sample(self, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """mean + temperature * std * noise: reparameterised, so gradients reach both parameters."""
        return torch.addcmul(self.mean, self.log_std.exp(), noise, value=temperature)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self || other) of each latent variable in nats, shape as the mean."""
        kl: Tensor = _KL.apply(self.mean, self.log_std, other.mean, other.log_std)  # type: ignore[no-untyped-call]
        return kl

    def log_density(self, z: Tensor) -> Tensor:
        """log N(z) of each latent variable in nats, shape as the mean."""
        standardised = (z - self.mean) * torch.exp(-self.log_std)
        return -0.5 * (standardised.square() + LOG_2PI) - self.log_std


class _KL(torch.autograd.Function):
    """The KL divergence with its gradient written out: a third of the passes over memory that autograd takes."""

    @staticmethod
    def forward(ctx: Any, q_mean: Tensor, q_log_std: Tensor, p_mean: Tensor, p_log_std: Tensor) -> Tensor:
        inverse_std = p_log_std.neg().exp_()
        difference = (q_mean - p_mean).mul_(inverse_std)
        log_ratio = q_log_std - p_log_std
        ratio_squared = (2 * log_ratio).exp_()
        excess = difference.square().add_(ratio_squared).sub_(1)
        ctx.save_for_backward(difference, inverse_std, ratio_squared, excess)
        return (0.5 * excess).sub_(log_ratio)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        difference, inverse_std, ratio_squared, excess = ctx.saved_tensors
        mean = (difference * inverse_std).mul_(gradient)
        return mean, (ratio_squared - 1).mul_(gradient), -mean, excess.neg().mul_(gradient)
