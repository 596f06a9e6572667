"""The exact NLL: every image once, with the right averages and standard error."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from vdvae import VDVAE
from vdvae.config import Config
from vdvae.data.splits import Split
from vdvae.data.storage import Pixels
from vdvae.distributed import World
from vdvae.evaluation.nll import evaluate
from vdvae.evaluation.png import png_bits_per_dim
from vdvae.noise import Purpose, generator

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def split() -> Split:
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28, 1), np.uint8)
    return Split(Pixels(images), np.array([6, 0, 3, 1, 5]))


def test_every_image_once_with_the_last_batch_partial(tiny: Config, split: Split) -> None:
    """Against a plain loop over batches of 2, 2 and 1."""
    model = VDVAE(tiny.model)
    per_image = []
    for b in range(3):
        images = torch.from_numpy(split.read(np.arange(5)[2 * b : 2 * b + 2])).permute(0, 3, 1, 2)
        with torch.no_grad():
            per_image += model(images, generator(ALONE.device, 5, Purpose.EVALUATION, b)).nats_per_dim.tolist()
    expected = np.array(per_image) / math.log(2)
    nll = evaluate(model, split, 2, ALONE, seed=5)
    assert nll.num_images == 5
    assert nll.bits_per_dim == pytest.approx(expected.mean(), rel=1e-6)
    assert nll.standard_error == pytest.approx(expected.std(ddof=1) / math.sqrt(5), rel=1e-5)
    assert nll.nats_per_dim == pytest.approx(nll.bits_per_dim * math.log(2))
    assert nll.bits_per_dim == pytest.approx(nll.rate + nll.distortion)
    assert sum(nll.rate_per_resolution.values()) == pytest.approx(nll.rate)
    assert list(nll.rate_per_resolution) == [1, 7, 28]


def test_seeds_differ(tiny: Config, split: Split) -> None:
    torch.manual_seed(0)
    model = VDVAE(tiny.model)
    assert evaluate(model, split, 5, ALONE, seed=0) != evaluate(model, split, 5, ALONE, seed=1)
    assert evaluate(model, split, 5, ALONE, seed=0) == evaluate(model, split, 5, ALONE, seed=0)


def test_png_needs_more_than_8_bits_for_noise_and_next_to_nothing_for_black(split: Split) -> None:
    noise, taken = png_bits_per_dim(split)
    assert (noise > 8, taken) == (True, 5)
    black, taken = png_bits_per_dim(replace(split, storage=Pixels(np.zeros((7, 28, 28, 1), np.uint8))), most=3)
    assert (black < 1, taken) == (True, 3)
