"""torch.compile, applied to parts of the model from outside."""

from __future__ import annotations

import torch

from vdvae.model.likelihood import Mixture, MixtureNet
from vdvae.model.vdvae import VDVAE


def compile_blocks(model: VDVAE) -> None:
    """Compiles each block, and the likelihood, on its own: blocks of one shape share their code, so that compile time
    does not grow with depth.
    """
    torch._dynamo.config.cache_size_limit = 256  # shapes of one function: those of all resolutions
    for block in [*model.encoder.enc_blocks, *model.decoder.dec_blocks]:
        block.compile(dynamic=False)
    out_net = model.decoder.out_net
    if type(out_net) is MixtureNet:  # of another likelihood, nothing is known
        distribution = out_net.distribution

        class CompiledMixture(Mixture):
            log_prob = torch.compile(Mixture.log_prob, dynamic=False)

        out_net.distribution = lambda parameters: CompiledMixture(*distribution(parameters))  # type: ignore[method-assign]
