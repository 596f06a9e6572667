"""Activations that fp16 cannot hold, above 65,504: the update is skipped, or is that of fp32; never silently wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.training.test_update import ALONE, random_images, snapshot
from vdvae import VDVAE
from vdvae.config import Config
from vdvae.training.update import Update

PLACES = {
    "the encoder's first state": "encoder.in_conv.bias",
    "its last block": "encoder.enc_blocks.3.c4.bias",
    "the decoder's first state": "decoder.bias_xs.0",
    "what a latent adds": "decoder.dec_blocks.0.z_proj.bias",
    "a prior": "decoder.dec_blocks.1.prior.c4.bias",
    "a posterior": "decoder.dec_blocks.1.enc.c4.bias",
    "the last state": "decoder.dec_blocks.2.resnet.c4.bias",
    "the mixture": "decoder.out_net.out_conv.bias",
}
"""What to make too large, by the name of a bias that does it."""


def one_step(config: Config, place: str, value: float, **settings: object) -> Update:
    torch.manual_seed(0)
    train = replace(config.train, skip_threshold=1e30, grad_clip=1e30, **settings)  # type: ignore[arg-type]
    update = Update(VDVAE(config.model), train, ALONE)
    with torch.no_grad():
        update.model.get_parameter(PLACES[place]).fill_(value)
    return update


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("value", [7e4, -7e4])
@pytest.mark.parametrize("place", PLACES)
def test_states_beyond_fp16(place: str, value: float, fast: bool, tiny: Config) -> None:
    full, half = (one_step(tiny, place, value, fast=fast, precision=precision) for precision in ("fp32", "fp16"))
    before = snapshot(half)
    full(random_images(), 0)
    half(random_images(), 0)
    expected, report = full.report(), half.report()
    if report.skipped:
        assert (report.nonfinite, half.loss_scale.value.item()) == (1, 2**15)
        assert all(torch.equal(a, b) for a, b in zip(before, snapshot(half), strict=False))  # Adam has no moments yet
    else:
        assert report.bits_per_dim == pytest.approx(expected.bits_per_dim, rel=1e-3)
        assert report.grad_norm_max == pytest.approx(expected.grad_norm_max, rel=1e-2)


def test_an_overflow_is_not_for_ever(tiny: Config) -> None:
    """When the state is back in its range, training goes on from the weights that it had."""
    update = one_step(tiny, "the encoder's first state", 7e4, precision="fp16")
    for step in range(3):
        update(random_images(), step)
    assert (update.report().skip_streak, update.loss_scale.value.item()) == (3, 2**13)
    with torch.no_grad():
        update.model.get_parameter(PLACES["the encoder's first state"]).zero_()
    update(random_images(), 3)
    report = update.report()
    assert (report.skipped, report.nonfinite, report.skip_streak) == (0, 0, 0)
