"""Diagonal Gaussians against torch.distributions."""

from __future__ import annotations

import pytest
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


@pytest.mark.parametrize("log_std", [-1e4, -100.0, 100.0, 1e4])
def test_standard_deviations_beyond_fp32(log_std: float) -> None:
    """No product of 0 and infinity: at temperature 0, with noise of 0, at the mean, from itself."""
    q = DiagonalGaussian(torch.tensor([0.0, 0.7]), torch.full((2,), log_std))
    assert torch.equal(q.sample(torch.tensor([2.0, -1.0]), 0.0), q.mean)
    assert torch.equal(q.sample(torch.zeros(2)), q.mean)
    assert torch.equal(q.kl(q), torch.zeros(2))
    torch.testing.assert_close(q.log_density(q.mean), -0.9189385 - q.log_std)
    assert not q.kl(random_gaussian(1)._replace(mean=torch.ones(2), log_std=torch.zeros(2))).isnan().any()
