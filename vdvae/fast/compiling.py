"""torch.compile, applied to parts of the model from outside."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from vdvae.fast import merged
from vdvae.fast.arithmetic import Bottleneck, TopDown, Way, gelu, residual_block
from vdvae.fast.forwards import FastBlock, FastDecoder, FastEncoder, FastTopDownBlock, State
from vdvae.model.gaussian import Latent
from vdvae.model.likelihood import Mixture, MixtureNet
from vdvae.model.vdvae import VDVAE

OPTIONS: dict[str, Any] = {"layout_optimization": False}
"""The optimisation would turn states, whose channels are last already, before and after every convolution."""
AUTOTUNE: dict[str, Any] = {"max_autotune_gemm": True, "max_autotune_conv_backends": "ATEN"}
"""Products are timed on the GPU when they are compiled: the library's, and kernels that do in one pass what follows the
product too. Convolutions stay the library's."""

MEMORY_BUDGET = 0.9
"""The share of activations that is kept for the backward pass: below 1, what costs no product, as GELU does, is
computed again there."""


def compile_blocks(model: VDVAE, autotune: bool = False) -> None:
    """Compiles what a prepared model computes in each block, and the likelihood terms. Blocks of one shape share their
    code, so that compile time does not grow with depth. A block hands on its state with the GELU that the next one
    reads, so that sum and GELU are one pass over memory.

    Args:
        model: a prepared model.
        autotune: whether the kernel of each product is chosen by trial, on a GPU.
    """
    torch._dynamo.config.cache_size_limit = 256  # shapes of one function: those of all resolutions
    torch._functorch.config.activation_memory_budget = MEMORY_BUDGET
    for module in model.modules():
        if isinstance(module, FastTopDownBlock):
            module.compute_merged = partial(_top_down_block, autotune)
        elif isinstance(module, FastBlock):
            module.compute = partial(_residual_block, autotune)
        elif isinstance(module, (FastEncoder, FastDecoder)):
            module.is_compiled = True
    if type(model.decoder.out_net) is MixtureNet:  # of another likelihood, nothing is known
        model.decoder.out_net.__class__ = _CompiledMixtureNet


@cache
def _compiled(function: Callable[..., Any], autotune: bool = False) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False, options=OPTIONS | (AUTOTUNE if autotune else {}))


def _residual_block(
    autotune: bool, weights: Bottleneck, x: Tensor, activated: Tensor | None, residual: bool, way: Way
) -> State:
    activated = gelu(x) if activated is None else activated
    return State(*_compiled(_residual_block_and_gelu, autotune)(weights, x, activated, residual, way))


def _residual_block_and_gelu(*arguments: Any) -> tuple[Tensor, Tensor]:
    x = residual_block(*arguments)
    return x, gelu(x)


def _top_down_block(
    autotune: bool,
    weights: TopDown,
    also: merged.Merged,
    x: Tensor,
    condition: Tensor,
    activated: Tensor | None,
    *others: Any,
) -> tuple[State, Latent]:
    activated = gelu(condition) if activated is None else activated
    x, activated, *latent = _compiled(_top_down_block_and_gelu, autotune)(
        weights, also, x, activated, activated, *others
    )
    return State(x, activated), merged.RatedLatent(*latent)


def _top_down_block_and_gelu(*arguments: Any) -> tuple[Tensor, ...]:
    x, latent, features = merged.top_down_block(*arguments)
    return x, gelu(x), latent.kl.sum(1), latent.z.detach(), features.detach()


class _CompiledMixtureNet(MixtureNet):
    def distribution(self, parameters: Tensor) -> Mixture:
        """See `MixtureNet.distribution`."""
        return _CompiledMixture(*super().distribution(parameters))


class _CompiledMixture(Mixture):
    def log_prob(self, images: Tensor) -> Tensor:
        """See `Mixture.log_prob`."""
        return _compiled(Mixture.log_prob)(self, images)
