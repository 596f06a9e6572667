"""Diagonal Gaussians against torch.distributions."""

from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from vdvae import DiagonalGaussian


def random_gaussian(seed: int) -> DiagonalGaussian:
    generator = torch.Generator().manual_seed(seed)
    return DiagonalGaussian(torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 3, 4, 4, generator=generator))


def test_kl_and_log_density() -> None:
    q, p = random_gaussian(0), random_gaussian(1)
    z = torch.randn(2, 3, 4, 4)
    normal_q, normal_p = Normal(q.mean, q.log_std.exp()), Normal(p.mean, p.log_std.exp())
    torch.testing.assert_close(q.kl(p), kl_divergence(normal_q, normal_p), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(q.log_density(z), normal_q.log_prob(z), rtol=1e-5, atol=1e-5)


def test_kl_of_a_gaussian_from_itself_is_zero() -> None:
    q = random_gaussian(0)
    assert torch.equal(q.kl(q), torch.zeros_like(q.mean))


def test_temperature_scales_the_standard_deviation() -> None:
    q, noise = random_gaussian(0), torch.randn(2, 3, 4, 4)
    assert torch.equal(q.sample(noise, 0.0), q.mean)
    torch.testing.assert_close(q.sample(noise, 0.5) - q.mean, 0.5 * (q.sample(noise) - q.mean))
