"""Diagonal Gaussians against torch.distributions."""

from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from vdvae import DiagonalGaussian
from vdvae.model.gaussian import sample_and_rate


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


def test_sample_and_rate_against_their_definitions() -> None:
    """Values, and gradients by finite differences."""
    generator = torch.Generator().manual_seed(0)
    q, p = (torch.randn(2, 3, 3, 8, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    noise = torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64)
    posterior, prior = (DiagonalGaussian(*x.permute(0, 3, 1, 2).chunk(2, 1)) for x in (q, p))
    z, rate = sample_and_rate(q, p, noise, 0.7)
    torch.testing.assert_close(z, posterior.sample(noise.permute(0, 3, 1, 2), 0.7).permute(0, 2, 3, 1))
    torch.testing.assert_close(rate, posterior.kl(prior).sum((1, 2, 3)))
    assert torch.autograd.gradcheck(lambda q, p: sample_and_rate(q, p, noise, 0.7), (q, p))
