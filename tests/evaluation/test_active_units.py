"""Active latent variables, where their divergences are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import random_model
from vdvae import VDVAE
from vdvae.config import Config, load_config
from vdvae.data.prepared import Split
from vdvae.data.storage import Pixels
from vdvae.evaluation import nll
from vdvae.evaluation.active_units import ACTIVE, latent_variables
from vdvae.runtime.noise import Purpose, generator
from vdvae.runtime.processes import World

ALONE = World(0, 1, torch.device("cpu"))


def active_units(model: VDVAE, split: Split, world: World, seed: int = 0) -> dict[int, int]:
    active = nll.evaluate(model, split, 2, world, seed, count_units=True).active_units_per_resolution
    assert active is not None
    return active


@pytest.fixture
def split() -> Split:
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28, 1), np.uint8)
    return Split(Pixels(images), np.array([6, 0, 3, 1, 5]))


@pytest.fixture
def far_posterior(tiny: Config) -> VDVAE:
    """A model of which some variables are active."""
    return random_model(tiny.model, std=0.07)


def test_latent_variables_of_the_presets() -> None:
    """FFHQ-256 has 16 channels in 2, 4, 5, 10, 22, 14, 8 and 1 layers."""
    layers = {1: 2, 4: 4, 8: 5, 16: 10, 32: 22, 64: 14, 128: 8, 256: 1}
    counts = latent_variables(load_config("ffhq256", []).model)
    assert counts == {r: 16 * n * r**2 for r, n in layers.items()}
    assert sum(counts.values()) == 4_470_816
    assert list(counts) == list(layers)


def test_divergences_that_are_set(tiny: Config, split: Split) -> None:
    """The prior is the standard normal, and KL half the square of the posterior's mean: 0.02 and 0.005 nats."""
    model = VDVAE(tiny.model)
    blocks: list[Any] = list(model.decoder.dec_blocks)
    with torch.no_grad():
        for block in blocks:
            block.enc.c4.weight.zero_()
    assert active_units(model, split, ALONE) == {1: 0, 7: 0, 28: 0}  # the posterior is the prior
    with torch.no_grad():
        for block, means in zip(blocks, ([0.2, -0.2], [0.1, 0.2], [0.1, -0.1]), strict=True):
            block.enc.c4.bias[:2] = torch.tensor(means)
    assert active_units(model, split, ALONE) == {1: 2, 7: 49, 28: 0}


def test_averages_over_the_first_batches(far_posterior: VDVAE, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a plain loop over batches of 2, 2 and 1, and over those that begin among the first three images."""
    for begin_among, most in ((1024, 5), (3, 4)):
        monkeypatch.setattr(nll, "UNIT_IMAGES", begin_among)
        sums = [torch.zeros(shape) for shape in far_posterior.latent_shapes]
        for b, first in enumerate(range(0, most, 2)):
            images = torch.from_numpy(split.read(np.arange(first, min(first + 2, most)))).permute(0, 3, 1, 2)
            noise = generator(ALONE.device, 5, Purpose.EVALUATION, b)
            with torch.no_grad():
                for layer, latent in zip(sums, far_posterior.encode(images, generator=noise), strict=True):
                    layer += latent.kl.sum(0)
        expected = [int((layer / most > ACTIVE).sum()) for layer in sums]
        assert any(0 < n < layer.numel() for n, layer in zip(expected, sums, strict=True))
        active = active_units(far_posterior, split, ALONE, seed=5)
        assert list(active.items()) == list(zip((1, 7, 28), expected, strict=True))


def test_processes_share_the_images(far_posterior: VDVAE, split: Split) -> None:
    """What two sum is what one has, up to rounding: NLL, nats of each variable, and images."""
    heard: list[list[Tensor]] = []

    class Listening(World):
        def sum(self, tensor: Tensor) -> Tensor:
            heard[-1].append(tensor.clone())
            return tensor

    for rank, size in ((0, 1), (0, 2), (1, 2)):
        heard.append([])
        active_units(far_posterior, split, Listening(rank, size, ALONE.device))
    for alone, first, second in zip(*heard, strict=True):
        assert first.any()
        assert second.any()
        torch.testing.assert_close(first + second, alone)
    assert heard[0][2] == 5


def test_units_are_counted_where_that_is_asked_for(far_posterior: VDVAE, split: Split) -> None:
    """In the pass that measures the NLL, which stays the same."""
    counted, plain = (nll.evaluate(far_posterior, split, 2, ALONE, count_units=count) for count in (True, False))
    assert plain.active_units_per_resolution is None
    assert counted._replace(active_units_per_resolution=None) == plain
