"""torch.compile, applied to parts of the model from outside."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vdvae.fast.arithmetic import Bottleneck, TopDown, Way, gelu, residual_block, top_down_block
from vdvae.fast.forwards import FastBlock, FastTopDownBlock, State
from vdvae.model.gaussian import DiagonalGaussian, Latent
from vdvae.model.likelihood import Mixture, MixtureNet
from vdvae.model.vdvae import VDVAE

OPTIONS = {"layout_optimization": False}
"""The optimisation would turn states, whose channels are last already, before and after every convolution."""


def compile_blocks(model: VDVAE) -> None:
    """Compiles what a prepared model computes in each block, and the likelihood terms. Blocks of one shape share their
    code, so that compile time does not grow with depth. A block hands on its state with the GELU that the next one
    reads, so that sum and GELU are one pass over memory.
    """
    torch._dynamo.config.cache_size_limit = 256  # shapes of one function: those of all resolutions
    for block in model.modules():
        if isinstance(block, FastTopDownBlock):
            block.compute = _top_down_block
        elif isinstance(block, FastBlock):
            block.compute = _residual_block
    out_net = model.decoder.out_net
    if type(out_net) is MixtureNet:  # of another likelihood, nothing is known
        distribution = out_net.distribution
        out_net.distribution = lambda parameters: _CompiledMixture(*distribution(parameters))  # type: ignore[method-assign]


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False, options=OPTIONS)


def _residual_block(weights: Bottleneck, x: Tensor, activated: Tensor | None, residual: bool, way: Way) -> State:
    activated = gelu(x) if activated is None else activated
    return State(*_compiled(_residual_block_and_gelu)(weights, x, activated, residual, way))


def _residual_block_and_gelu(*arguments: Any) -> tuple[Tensor, Tensor]:
    x = residual_block(*arguments)
    return x, gelu(x)


def _top_down_block(
    weights: TopDown, x: Tensor, condition: Tensor, activated: Tensor | None, *others: Any
) -> tuple[State, Latent]:
    activated = gelu(condition) if activated is None else activated
    *state, latent = _compiled(_top_down_block_and_gelu)(weights, x, condition, activated, *others)
    return State(*state), _CompiledLatent(*latent)


def _top_down_block_and_gelu(*arguments: Any) -> tuple[Tensor, Tensor, Latent]:
    x, latent = top_down_block(*arguments)
    return x, gelu(x), latent


class _CompiledLatent(Latent):
    @property
    def rate(self) -> Tensor:
        """See `Latent.rate`."""
        return _compiled(_rate)(self.prior, self._known_posterior)


def _rate(prior: DiagonalGaussian, posterior: DiagonalGaussian) -> Tensor:
    return posterior.kl(prior).sum((1, 2, 3))


class _CompiledMixture(Mixture):
    def log_prob(self, images: Tensor) -> Tensor:
        """See `Mixture.log_prob`."""
        return _compiled(Mixture.log_prob)(self, images)
