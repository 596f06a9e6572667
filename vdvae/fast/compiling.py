"""torch.compile, applied to parts of the model from outside."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vdvae.fast.arithmetic import Bottleneck, Seen, TopDown, Way, gelu, go_on, look, residual_block, top_down_block
from vdvae.fast.forwards import FastBlock, FastTopDownBlock, State
from vdvae.model.gaussian import DiagonalGaussian, Latent, Source
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
) -> tuple[Tensor | State, Latent]:
    seen, source, *_ = others
    if seen is None or source != "posterior":  # no step of training
        return top_down_block(weights, x, condition, activated, *others)
    activated = gelu(condition) if activated is None else activated
    x, activated, *latent = _compiled(_posterior_block_and_gelu)(weights, x, activated, *others)
    return State(x, activated), _CompiledLatent(*latent)


def _posterior_block_and_gelu(
    weights: TopDown,
    x: Tensor,
    activated: Tensor,
    seen: Seen,
    source: Source,
    noise: Tensor,
    temperature: float,
    residual: bool,
    way: Way,
) -> tuple[Tensor, ...]:
    """`top_down_block`, with the KL beside z, while prior and posterior are at hand."""
    p_features, q_features, hidden = look(weights, activated, seen, way)
    assert q_features is not None
    p, q = DiagonalGaussian.from_features(p_features), DiagonalGaussian.from_features(q_features)
    z = q.sample(noise, temperature)
    x = go_on(weights, x, hidden, z, residual, way)
    return x, gelu(x), q.kl(p).sum((1, 2, 3)), z, p_features, q_features


class _CompiledLatent(Latent):
    """A layer of a training step: its rate is known, and its Gaussians, of which that is made in fp32, are as the products
    left them, under autocast in less.
    """

    rate: Any = None  # in the place of a property

    def __new__(cls, rate: Tensor, z: Tensor, p_features: Tensor, q_features: Tensor) -> _CompiledLatent:
        gaussians = (DiagonalGaussian(*features.chunk(2, 1)) for features in (p_features, q_features))
        self = super().__new__(cls, z, *gaussians)
        self.rate = rate
        return self


class _CompiledMixture(Mixture):
    def log_prob(self, images: Tensor) -> Tensor:
        """See `Mixture.log_prob`."""
        return _compiled(Mixture.log_prob)(self, images)
