"""Diagonal Gaussians, and the latent layer that two of them make: prior and posterior (paper Section 2.2)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

LOG_2PI = 1.8378770664093453
LARGEST_EXPONENT = 80.0
"""exp of it, 5.5e34, is finite in fp32, and so are products of it with the numbers that noise and pixels are."""


class DiagonalGaussian(NamedTuple):
    """Independent normals; both tensors share a shape, usually `[B, zdim, r, r]`, in fp32."""

    mean: Tensor
    log_std: Tensor

    @classmethod
    def from_features(cls, features: Tensor) -> DiagonalGaussian:
        """Splits `[B, 2*zdim, r, r]` into means and log standard deviations, in fp32 whatever autocast does."""
        mean, log_std = full_precision(features).chunk(2, 1)  # each [B, zdim, r, r]
        return cls(mean, log_std)

    def sample(self, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """mean + temperature * std * noise: reparameterised, so that gradients reach both parameters."""
        return torch.addcmul(self.mean, finite_exp(self.log_std), noise, value=temperature)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self || other) of each latent variable in nats, shape as the mean."""
        difference = (self.mean - other.mean) * finite_exp(-other.log_std)
        log_ratio = self.log_std - other.log_std
        return 0.5 * (torch.exp(2 * log_ratio) + difference.square() - 1) - log_ratio

    def log_density(self, z: Tensor) -> Tensor:
        """log N(z) of each latent variable in nats, shape as the mean."""
        standardised = (z - self.mean) * finite_exp(-self.log_std)
        return -0.5 * (standardised.square() + LOG_2PI) - self.log_std


def finite_exp(x: Tensor) -> Tensor:
    """exp(x), but never infinite, which times 0 is NaN."""
    return torch.exp(x.clamp(max=LARGEST_EXPONENT))


def full_precision(x: Tensor) -> Tensor:
    """`x` in fp32, or in fp64 as it is: for what autocast must not touch."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


Source = Tensor | Literal["posterior", "prior"]
"""Where a layer's z comes from: given as a tensor, `[B, zdim, r, r]`, or drawn from one of its two distributions."""


class Latent(NamedTuple):
    """One latent layer of a pass; every tensor is `[B, zdim, r, r]`."""

    z: Tensor
    prior: DiagonalGaussian
    """The prior p(z_i | z_<i)."""
    posterior: DiagonalGaussian | None
    """The posterior q(z_i | z_<i, x); None where no image was given, or z is drawn from the prior."""

    @property
    def kl(self) -> Tensor:
        """KL(q || p) of each latent variable, in nats."""
        return self._known_posterior.kl(self.prior)

    @property
    def rate(self) -> Tensor:
        """KL(q || p) of the layer for each image, in nats, `[B]`."""
        return self.kl.sum((1, 2, 3))

    @property
    def log_prior(self) -> Tensor:
        """log p(z_i | z_<i) of each latent variable, in nats; whatever temperature z was drawn at."""
        return self.prior.log_density(self.z)

    @property
    def log_posterior(self) -> Tensor:
        """log q(z_i | z_<i, x) of each latent variable, in nats; whatever temperature z was drawn at."""
        return self._known_posterior.log_density(self.z)

    @property
    def _known_posterior(self) -> DiagonalGaussian:
        if self.posterior is None:
            raise ValueError("this layer has no posterior: no image was given, or z came from the prior")
        return self.posterior
