"""Merged products against the plain top-down block, in fp64, where nothing but an error makes a difference."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from tests.conftest import TINY
from vdvae.config import load_config
from vdvae.fast.arithmetic import Way
from vdvae.fast.forwards import _top_down
from vdvae.fast.merged import RatedLatent, merge, sum_rates, top_down_block
from vdvae.model.gaussian import DiagonalGaussian
from vdvae.model.vdvae import TopDownBlock, channels_last

R, WIDTH = 7, 12


@pytest.fixture(params=[True, False], ids=["residual", "plain"])
def blocks(request: pytest.FixtureRequest) -> list[TopDownBlock]:
    """Three layers with no weight at 0."""
    overrides = ["model.width=12", f"model.topdown_residual={str(request.param).lower()}", "model.zdim=3"]
    config = load_config(str(TINY), overrides).model
    torch.manual_seed(0)
    made = [TopDownBlock(config, spec).double() for spec in config.decoder_specs if spec.resolution == R] * 3
    made = [copy.deepcopy(block) for block in made]
    for block in made:
        for weight in block.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    return made


def state(seed: int) -> Tensor:
    noise = torch.randn(2, WIDTH, R, R, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return channels_last(noise).requires_grad_()


def test_values_and_gradients(blocks: list[TopDownBlock]) -> None:
    """Gradients by state, condition, encoder's state and every weight, of the state and the KL of three layers."""
    noise = torch.randn(2, 3, R, R, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    found = []
    for merges in (False, True):
        x, condition, features = state(1), state(2), state(3)
        merged = list(merge(list(map(_top_down, blocks)), torch.nn.functional.gelu(features)))
        y, kls = x, []
        for block, weights in zip(blocks, merged, strict=True):
            if merges:
                way = Way(stream=torch.float64)
                y, latent, raw = top_down_block(
                    _top_down(block), weights, y, condition, None, noise, 0.7, block.resnet.residual, way
                )
                torch.testing.assert_close(raw.chunk(4, 1)[3], latent.posterior.log_std)  # type: ignore[union-attr]
            else:
                y, latent = block(y, condition, features, "posterior", noise, 0.7)
            kls.append(latent.kl.sum())
        parameters = [weight for block in blocks for weight in block.parameters()]
        loss = y.square().sum() + torch.stack(kls).sum()
        found.append([y, *kls, *torch.autograd.grad(loss, [x, condition, features, *parameters])])
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def test_products_take_rows_of_whole_multiples_of_16_bytes(blocks: list[TopDownBlock]) -> None:
    for weights in merge(list(map(_top_down, blocks)), state(3)):
        assert weights.last.shape[1] % 8 == 0
        middle = blocks[0].enc.c4.weight.shape[1]
        assert 0 < weights.last.shape[1] - (middle + 3) <= 8  # one for the bias, and what rounds up


def test_rates_of_layers_of_several_resolutions() -> None:
    """In fp32 under autocast too, and differentiable."""
    maps = [torch.rand(2, r, r).requires_grad_() for r in (1, 4, 4, 7)]
    latents = [RatedLatent(kl, torch.zeros(2, 1, 1, 1), torch.arange(4.0).view(1, 4, 1, 1)) for kl in maps]
    with torch.autocast("cpu", torch.bfloat16):
        sum_rates(latents)
    for latent, kl in zip(latents, maps, strict=True):
        torch.testing.assert_close(latent.rate, kl.sum((1, 2)))
    sum(latent.rate.sum() for latent in latents).backward()
    assert all(torch.equal(kl.grad, torch.ones_like(kl)) for kl in maps)  # type: ignore[arg-type]
    p, q = latents[0].prior, latents[0].posterior
    assert isinstance(q, DiagonalGaussian)
    assert [one.item() for one in (*p, *q)] == [0, 1, 2, 3]
