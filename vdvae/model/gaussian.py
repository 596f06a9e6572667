"""Diagonal Gaussians: the prior and posterior of every latent layer. In fp32 whatever autocast does."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LOG_2PI = 1.8378770664093453


class DiagonalGaussian(NamedTuple):
    """Independent normals. Means and log standard deviations share a shape, usually [B, zdim, r, r]."""

    mean: Tensor
    log_std: Tensor

    @classmethod
    def from_channels(cls, features: Tensor) -> DiagonalGaussian:
        """Splits `[B, 2*zdim, r, r]` into means and log standard deviations."""
        mean, log_std = features.float().chunk(2, dim=1)  # each [B, zdim, r, r]
        return cls(mean, log_std)

    def sample(self, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """mean + temperature * std * noise: reparameterised, so gradients reach both parameters."""
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
