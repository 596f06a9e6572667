"""The presets are the paper's models: counts from FACTS of the released code, to the unit."""

from __future__ import annotations

import pytest
import torch

from vdvae import VDVAE
from vdvae.config import load_config

COUNTS = {  # parameters, latent layers, latent variables
    "cifar10": (39_145_700, 43, 412_432),
    "imagenet32": (119_280_868, 78, 765_216),
    "imagenet64": (125_005_860, 75, 1_451_040),
    "ffhq256": (114_874_852, 66, 4_470_816),
    "ffhq1024": (109_366_904, 70, 27_588_640),
}
TABLE_4 = {  # batch, learning rate, skip threshold, weight decay, EMA rate, iterations
    "cifar10": (32, 2e-4, 400, 0.01, 2e-4, 1_100_000),
    "imagenet32": (256, 1.5e-4, 300, 0.0, 1.5e-4, 1_700_000),
    "imagenet64": (128, 1.5e-4, 380, 0.0, 1.5e-4, 1_600_000),
    "ffhq256": (32, 1.5e-4, 180, 0.0, 1.5e-4, 1_700_000),
    "ffhq1024": (32, 7e-5, 500, 0.0, 1.5e-4, 1_700_000),
}


@pytest.mark.parametrize("name", COUNTS)
def test_size_of_the_model(name: str) -> None:
    with torch.device("meta"):
        model = VDVAE(load_config(name, []).model)
    variables = sum(zdim * r * r for zdim, r, _ in model.latent_shapes)
    assert (sum(p.numel() for p in model.parameters()), model.num_layers, variables) == COUNTS[name]


def test_the_first_31_layers_of_imagenet64_are_the_numbers_of_the_brain_decoding_literature() -> None:
    with torch.device("meta"):
        model = VDVAE(load_config("imagenet64", []).model)
    z = [torch.zeros(1, *shape, device="meta") for shape in model.latent_shapes[:31]]
    assert sum(latent.numel() for latent in z) == 91_168
    assert model.resolutions[:31] == [1] * 2 + [4] * 4 + [8] * 8 + [16] * 16 + [32]


@pytest.mark.parametrize("name", TABLE_4)
def test_optimisation_of_table_4(name: str) -> None:
    train = load_config(name, []).train
    batch, lr, skip_threshold, weight_decay, ema_rate, iterations = TABLE_4[name]
    assert (train.batch_size, train.lr, train.skip_threshold) == (batch, lr, skip_threshold)
    assert (train.weight_decay, train.max_steps) == (weight_decay, iterations)
    assert 1 - train.ema_decay == pytest.approx(ema_rate)
    assert train.cooldown_steps == 0


@pytest.mark.parametrize(
    ("name", "shift", "scale"),
    [
        ("cifar10", -120.63838, 1 / 64.16736),
        ("imagenet32", -116.2373, 1 / 69.37404),
        ("imagenet64", -115.92961967, 1 / 69.37404),
        ("ffhq256", -112.8666757481, 1 / 69.84780273),
        ("ffhq1024", -0.4387 * 255, 1 / 0.2743 / 255),
    ],
)
def test_input_scaling(name: str, shift: float, scale: float) -> None:
    model = load_config(name, []).model
    assert model.input_shift == pytest.approx(shift, rel=1e-9)
    assert model.input_scale == pytest.approx(scale, rel=1e-9)
