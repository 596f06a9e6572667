"""The model and its step against the same in the plainest form, `vdvae.baseline`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.conftest import TINY
from vdvae import VDVAE, baseline
from vdvae.config import Config, load_config
from vdvae.distributed import World
from vdvae.training.update import Update

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture(params=["grey", "colour", "widths", "groups", "switches"])
def config(request: pytest.FixtureRequest) -> Config:
    colour = ["model.image_channels=3", "data.dataset=cifar10", "model.image_size=32", "model.num_mixtures=10"]
    blocks = ["model.enc_blocks=32d4,8x2,8d8,1x1", "model.dec_blocks=1x1,8m1,8x2,32m8,32x1"]
    widths = [*colour, *blocks, "model.custom_width_str=8:12"]
    overrides = {
        "grey": [],
        "colour": [*colour, *blocks],
        "widths": widths,
        "groups": [*widths, "model.stochastic_group=3"],
        "switches": [*widths, "model.residual_scaling=false", "model.unpool=conv", "model.topdown_residual=false"],
    }
    return load_config(str(TINY), overrides[request.param])


def random_images(config: Config, count: int = 6) -> Tensor:
    shape = (count, config.model.image_channels, config.model.image_size, config.model.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def live_model(config: Config) -> VDVAE:
    """With no weight at 0, as some are at first."""
    torch.manual_seed(0)
    model = VDVAE(config.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def test_terms_and_gradients(config: Config) -> None:
    model, images = live_model(config), random_images(config)
    results = []
    for terms in (model(images, noise()), baseline.terms(model, images, noise())):
        model.zero_grad()
        terms.nats_per_dim.mean().backward()
        results.append((terms, {name: p.grad for name, p in model.named_parameters()}))
    (fast, gradients), (plain, expected) = results
    torch.testing.assert_close(fast, plain, rtol=2e-5, atol=2e-6)
    for name, gradient in expected.items():
        assert gradient is not None
        torch.testing.assert_close(gradients[name], gradient, rtol=2e-3, atol=2e-4 * gradient.abs().max().item())


def test_samples(config: Config) -> None:
    """The same but for pixels that rounding takes to a neighbouring level."""
    model = live_model(config)
    for temperature in (1.0, 0.7):
        fast = model.sample(4, temperature, generator=noise())
        plain = baseline.sample(model, 4, temperature, noise())
        assert (fast == plain).float().mean() > 0.99


def test_updates(config: Config) -> None:
    """Ten of them, every other one with a gradient that is to be skipped: the same decisions, weights and averages."""
    settings = replace(config.train, batch_size=6, max_steps=100, skip_threshold=1e5, ema_decay=0.9)
    fast, plain = live_model(config), live_model(config)
    update, expected = Update(fast, settings, CPU), baseline.BaselineUpdate(plain, settings, CPU)
    factor = torch.ones(())
    for model in (fast, plain):
        model.decoder.gain.register_hook(lambda gradient: gradient * factor)
    for step in range(10):
        factor.fill_(1e9 if step % 2 else 1.0)
        before = plain.decoder.gain.clone()
        update(random_images(config), step)
        expected(random_images(config), step)
        assert update.report().skipped == torch.equal(before, plain.decoder.gain) == step % 2
    for model, other in ((fast, plain), (update.ema.model, expected.average)):
        for (name, a), b in zip(model.named_parameters(), other.named_parameters(), strict=True):
            torch.testing.assert_close(a, b[1], rtol=0, atol=0.05 * settings.lr, msg=name)
