"""The discretised mixture of logistics: sums, gradients at the extremes, samples and means against enumeration."""

from __future__ import annotations

import itertools
import math

import mpmath as mp  # type: ignore[import-untyped]  # which comes with torch
import pytest
import torch
from torch import Tensor

from vdvae.model.likelihood import Binning, Mixture, _log_mass

CASES = [(bits, channels) for bits in range(1, 9) for channels in (1, 3)]


def random_parameters(channels: int, pixels: int, spread: float, mixtures: int = 4, seed: int = 0) -> Tensor:
    """[pixels, P, 1, 1]: one pixel per image, so that each gets all levels in turn."""
    count = Mixture.num_parameters(channels, mixtures)
    return spread * torch.randn(pixels, count, 1, 1, generator=torch.Generator().manual_seed(seed))


def pixel_values(binning: Binning) -> Tensor:
    """One uint8 value of each level, [K]."""
    return torch.arange(0, 256, 2 ** (8 - binning.bits), dtype=torch.uint8)


LOG_SCALES = [-7.0, -6.0, -4.0, -2.0, 0.0, 2.0, 2.1, 5.0, 8.0, 20.0, 60.0]
MEANS = [m for size in (0.0, 0.3, 0.95, 1.0, 1.5, 10.0, 1e3, 1e10, 1e25) for m in {size, -size}]
DIGITS = 400
"""Enough for the difference of two distribution functions of the widest logistic of these."""


def log_mass(level: int, mean: Tensor, log_scale: Tensor, bits: int) -> Tensor:
    """`_log_mass` of tensors that go together, in the form that it takes them."""
    return _log_mass(torch.tensor(float(level)), mean, log_scale, Binning.of(bits, "exact"))


def log_mass_to_many_digits(level: int, mean: float, log_scale: float, bits: int) -> mp.mpf:
    """log of F(u) - F(l), taken on the side where both are small."""
    spacing, scale = mp.mpf(2) / (2**bits - 1), mp.exp(mp.mpf(log_scale))
    lower = -mp.inf if level == 0 else ((level - mp.mpf(0.5)) * spacing - 1 - mean) / scale
    upper = mp.inf if level == 2**bits - 1 else ((level + mp.mpf(0.5)) * spacing - 1 - mean) / scale
    if lower + upper > 0:
        lower, upper = -upper, -lower
    return mp.log(1 / (1 + mp.exp(-upper)) - 1 / (1 + mp.exp(-lower)))


@pytest.mark.parametrize("bits", range(1, 9))
def test_log_mass_is_that_of_the_discretised_logistic(bits: int) -> None:
    """To what fp32 can tell: a rounded mean moves a bin's edges by a part of the scale."""
    top = 2**bits - 1
    for log_scale, mean in itertools.product(LOG_SCALES, MEANS):
        given = torch.tensor([mean, log_scale])
        for level in {0, 1, top // 2, top - 1, top}:
            with mp.workdps(DIGITS):
                expected = float(log_mass_to_many_digits(level, given[0].item(), given[1].item(), bits))
            found = log_mass(level, given[0], given[1], bits).item()
            allowed = 1e-6 * abs(expected) + 4e-7 * (1 + abs(mean)) * math.exp(-log_scale) + 1e-6
            assert abs(found - expected) <= allowed, (log_scale, mean, level, found, expected)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("log_scale", [-7.0, -5.0, -3.0, 0.0, 2.0])
def test_log_mass_has_no_jumps(bits: int, log_scale: float) -> None:
    """As the mean moves, log p follows by at most its way over the scale; also where a level is wildly unlikely."""
    means = torch.linspace(-4, 4, 200_001, dtype=torch.float64)
    for level in {0, 2**bits // 2, 2**bits - 1}:
        steps = log_mass(level, means, torch.tensor(log_scale, dtype=torch.float64), bits).diff()
        assert steps.abs().max() <= 8 / 200_000 * math.exp(-log_scale) + 1e-6


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_of_any_logistic_sum_to_one(bits: int) -> None:
    level = torch.arange(2.0**bits)[:, None, None]
    means, log_scales = torch.tensor(MEANS)[:, None], torch.tensor(LOG_SCALES)
    total = _log_mass(level, means, log_scales, Binning.of(bits, "exact")).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)


@pytest.mark.parametrize("spread", [0.3, 2.0, 6.0])
@pytest.mark.parametrize(("bits", "channels"), CASES)
def test_one_subpixel_sums_to_one(bits: int, channels: int, spread: float) -> None:
    """Over the first channel, and over the later ones given the earlier: every conditional sums to 1."""
    binning = Binning.of(bits, "exact")
    mixture = Mixture.from_parameters(random_parameters(channels, 200, spread), channels, binning)
    level = torch.arange(binning.levels).float().view(1, -1, 1, 1, 1)  # as if levels were channels: [1, K, 1, 1, 1]
    earlier = [torch.full((1, 1, 1, 1), x) for x in (-0.7, 0.4)]
    for c in range(channels):
        means = mixture._conditional_mean(c, earlier)[:, None]
        log_mass = _log_mass(level, means, mixture.log_scales[:, c : c + 1], binning)  # [pixels, K, M, 1, 1]
        per_logistic = log_mass.exp().sum(1)  # [pixels, M, 1, 1]
        torch.testing.assert_close(per_logistic, torch.ones_like(per_logistic), rtol=0, atol=1e-5)
        total = (log_mass + mixture.logits.log_softmax(1)[:, None]).exp().sum((1, 2))
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)


def test_released_binning_fails_to_sum_to_one_by_what_its_docstring_says() -> None:
    binning = Binning.of(5, "released")
    values = torch.arange(0, 256, 8, dtype=torch.uint8).view(-1, 1, 1, 1)  # [32, 1, 1, 1]

    def total(mean: float, log_scale: float) -> float:
        parameters = torch.tensor([0.0, mean, log_scale]).view(1, 3, 1, 1).expand(32, -1, -1, -1)
        return Mixture.from_parameters(parameters, 1, binning).log_prob(values).exp().sum().item()

    assert total(0.0, -3.0) == pytest.approx(1.028, abs=1e-3)
    assert total(0.977, -3.0) < 0.75
    assert total(0.977, -7.0) == pytest.approx(0.5, abs=0.1)
    assert total(1.0, -7.0) < 1e-6


@pytest.mark.parametrize("binning_name", ["exact", "released"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [1, 5, 8])
def test_finite_for_any_parameters_and_any_image(bits: int, channels: int, binning_name: str) -> None:
    if binning_name == "released" and bits == 1:
        binning_name = "exact"
    binning = Binning.of(bits, binning_name)
    images = torch.tensor([0, 1, 127, 128, 254, 255], dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, channels, 4, 4)
    for scale in (0.0, 1.0, 1e2, 1e4, 1e8, 1e20, 1e38):
        for sign in (1, -1, None):
            parameters = torch.randn(6, Mixture.num_parameters(channels, 3), 4, 4).clamp(-3, 3) * scale
            if sign:
                parameters = parameters.abs() * sign
            parameters.requires_grad_()
            log_prob = Mixture.from_parameters(parameters, channels, binning).log_prob(images)
            log_prob.sum().backward()
            assert torch.isfinite(log_prob).all(), (scale, sign)
            assert parameters.grad is not None
            assert torch.isfinite(parameters.grad).all(), (scale, sign)


def joint_probabilities(parameters: Tensor, binning: Binning) -> Tensor:
    """p of every colour of one pixel, [K^3], from parameters [1, P, 1, 1], through `log_prob` alone."""
    values = pixel_values(binning)
    pixels = torch.cartesian_prod(values, values, values)[:, :, None, None]  # [K^3, 3, 1, 1]
    return Mixture.from_parameters(parameters.expand(len(pixels), -1, -1, -1), 3, binning).log_prob(pixels).exp()


def draw(parameters: Tensor, binning: Binning) -> Tensor:
    """40,000 colours of one pixel, uint8 [3, N]."""
    mixture = Mixture.from_parameters(parameters.expand(-1, -1, 200, 200), 3, binning)
    return mixture.sample(torch.Generator().manual_seed(0)).flatten(2)[0]


@pytest.mark.parametrize("bits", [1, 3])
def test_whole_pixel_sums_to_one(bits: int) -> None:
    """The joint over all three channels, enumerated."""
    for seed in range(5):
        total = joint_probabilities(random_parameters(3, 1, 2.0, seed=seed), Binning.of(bits, "exact")).sum()
        assert total.item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("bits", [1, 2])
def test_samples_follow_the_probabilities(bits: int) -> None:
    """Three channels with strong colour coefficients, against enumerated joint probabilities."""
    binning = Binning.of(bits, "exact")
    parameters = random_parameters(3, 1, 1.0, mixtures=2, seed=1)
    parameters[:, 2:] *= 1.5
    expected = joint_probabilities(parameters, binning)
    r, g, b = (draw(parameters, binning) >> (8 - bits)).long()  # each [N]
    seen = torch.bincount((r * binning.levels + g) * binning.levels + b, minlength=len(expected)) / len(r)
    sigma = (expected * (1 - expected) / len(r)).sqrt()
    assert ((seen - expected).abs() < 5 * sigma + 1e-4).all()


@pytest.mark.parametrize(("bits", "binning_name"), [(1, "exact"), (2, "exact"), (5, "released")])
def test_samples_are_at_the_centres_of_levels(bits: int, binning_name: str) -> None:
    binning = Binning.of(bits, binning_name)
    drawn = draw(random_parameters(3, 1, 1.5, mixtures=2, seed=1), binning)
    assert set(drawn.unique().tolist()) <= {round(v) for v in binning.pixel(torch.arange(2.0**bits)).tolist()}


def test_samples_are_levels_that_the_likelihood_reads_back() -> None:
    """Every level survives the trip to uint8 and back, for every bit depth."""
    for bits in range(1, 9):
        binning = Binning.of(bits, "exact")
        level = torch.arange(binning.levels).float()
        assert torch.equal(binning.level(binning.pixel(level).round().to(torch.uint8)), level)


def test_mean_of_one_channel() -> None:
    """Against the enumerated mean; differs by the rounding to levels alone."""
    binning = Binning.of(8, "exact")
    parameters = random_parameters(1, 100, 1.5)
    mixture = Mixture.from_parameters(parameters, 1, binning)
    levels = [value.expand(100, 1, 1, 1) for value in pixel_values(binning)]
    expected = torch.stack([mixture.log_prob(level).exp() for level in levels], 1) @ torch.arange(256.0)  # [100]
    mean = mixture.mean().flatten()
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.6)


def test_mean_of_three_channels() -> None:
    """Against the average of many draws, where no channel is near the ends of its range."""
    binning = Binning.of(8, "exact")
    parameters = 0.3 * random_parameters(3, 1, 1.0, mixtures=3)
    parameters[:, 3:].view(1, 3, 3, 3)[:, :, 1] -= 3  # log scales
    mean = Mixture.from_parameters(parameters, 3, binning).mean().flatten()
    torch.testing.assert_close(mean, draw(parameters, binning).float().mean(1), rtol=0, atol=1.0)


def test_mean_is_differentiable_where_a_logistic_is_narrow() -> None:
    parameters = torch.tensor([0.0, 0.9, -7.0]).view(1, 3, 1, 1).requires_grad_()
    mean = Mixture.from_parameters(parameters, 1, Binning.of(8, "exact")).mean()
    assert mean.item() == pytest.approx((0.9 + 1) * 127.5, abs=0.01)
    mean.sum().backward()
    assert parameters.grad is not None
    assert parameters.grad[0, 1].item() == pytest.approx(127.5, rel=1e-4)


def clipped_mean_to_many_digits(mean: float, log_scale: float) -> tuple[mp.mpf, mp.mpf]:
    """E[clip(X, -1, 1)], and how it changes with the mean."""
    scale = mp.exp(mp.mpf(log_scale))
    upper, lower = (1 - mp.mpf(mean)) / scale, (-1 - mp.mpf(mean)) / scale
    softplus = [max(x, mp.mpf(0)) + mp.log1p(mp.exp(-abs(x))) for x in (upper, lower)]
    return 1 - scale * (softplus[0] - softplus[1]), 1 / (1 + mp.exp(-upper)) - 1 / (1 + mp.exp(-lower))


@pytest.mark.parametrize("log_scale", [*LOG_SCALES, 6.9, 7.1, 90.0, 1e25])
def test_mean_of_any_logistic(log_scale: float) -> None:
    """The closed form to what fp32 can tell, with its gradient, by the mixture of one."""
    for mean in MEANS:
        parameters = torch.tensor([0.0, mean, log_scale]).view(1, 3, 1, 1).requires_grad_()
        found = Mixture.from_parameters(parameters, 1, Binning.of(8, "exact")).mean()
        found.backward()
        assert parameters.grad is not None and parameters.grad.isfinite().all()
        with mp.workdps(DIGITS):
            expected, slope = clipped_mean_to_many_digits(parameters[0, 1].item(), min(log_scale, 100.0))
        assert found.item() == pytest.approx(127.5 * (1 + float(expected)), abs=1e-4), mean
        assert parameters.grad[0, 1].item() == pytest.approx(127.5 * float(slope), abs=2e-3), mean


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_parameters(channels: int) -> None:
    """Means between 0 and 255, and levels drawn on the side where the mean is, even where noise is exactly 0."""
    for spread in (1.0, 20.0, 90.0, 1e4, 1e20, 1e38):
        mixture = Mixture.from_parameters(random_parameters(channels, 100, spread), channels, Binning.of(8, "exact"))
        assert mixture.mean().isfinite().all()
        assert mixture.mean().min() >= -1e-3 and mixture.mean().max() <= 255.001


@pytest.mark.parametrize("log_scale", [-7.0, 0.0, 90.0, 1e25])
def test_the_median_is_drawn_by_noise_of_0(log_scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdvae.model.likelihood._uniform", lambda shape, *_: torch.full(shape, 0.5))
    for mean, level in ((-1e25, 0), (-1.0, 0), (0.6, 204), (1.0, 255), (1e25, 255)):
        parameters = torch.tensor([0.0, mean, log_scale]).view(1, 3, 1, 1)
        assert Mixture.from_parameters(parameters, 1, Binning.of(8, "exact")).sample().item() == level


@pytest.mark.parametrize("spread", [0.5, 4.0])
@pytest.mark.parametrize(("bits", "channels"), [(8, 3), (5, 3), (8, 1)])
def test_gradient_against_finite_differences(bits: int, channels: int, spread: float) -> None:
    parameters = random_parameters(channels, 6, spread).double().requires_grad_()
    images = torch.tensor([0, 255, 3, 128, 200, 77], dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, channels, -1, -1)
    binning = Binning.of(bits, "exact")

    def log_prob(p: Tensor) -> Tensor:
        return Mixture.from_parameters(p, channels, binning).log_prob(images)

    assert torch.autograd.gradcheck(log_prob, parameters)
