"""Activation checkpointing (Chen et al. 2016): the same gradients, for less memory and about 40 % more arithmetic.

Blocks keep only their inputs for the backward pass, which runs them again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vdvae.fast.forwards import FastBlock, FastTopDownBlock
from vdvae.model.vdvae import VDVAE, TopDownBlock

COMPUTING: dict[type[nn.Module], list[str]] = {FastBlock: ["compute"], FastTopDownBlock: ["compute", "compute_merged"]}
"""What computes a block of a prepared model, whose forward pass others look at; that of all others computes itself."""


def checkpoint_blocks(model: VDVAE, resolution: int) -> None:
    """Checkpoints the blocks of this resolution and above, and inside each top-down block its three bottlenecks too, so
    that the activations of only one of them exist at a time.
    """
    blocks = [*model.encoder.enc_blocks, *model.decoder.dec_blocks]
    resolutions = [*(spec.resolution for spec in model.config.encoder_specs), *model.resolutions]
    for block, its_resolution in zip(blocks, resolutions, strict=True):
        if its_resolution >= resolution:
            if isinstance(block, TopDownBlock):
                for bottleneck in (block.prior, block.enc, block.resnet):
                    _checkpoint(bottleneck)
            if isinstance(block, FastTopDownBlock):
                block.way = block.way._replace(inner=partial(_run, block.way.inner))
            _checkpoint(block)


def _checkpoint(module: nn.Module) -> None:
    for method in COMPUTING.get(type(module), ["forward"]):
        setattr(module, method, partial(_run, getattr(module, method)))


def _run(function: Any, *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)  # noise is among the inputs
