"""Latent variables: how many a model has, and how many of them it uses."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from vdvae.data.splits import Split
from vdvae.distributed import World
from vdvae.evaluation.batches import measured
from vdvae.model.config import ModelConfig
from vdvae.model.vdvae import VDVAE

ACTIVE = 0.01
"""Nats from which on a latent variable counts as active, the threshold of Burda et al. 2016."""


def latent_variables(config: ModelConfig) -> dict[int, int]:
    """The number of latent variables per resolution, lowest first."""
    specs = config.decoder_specs
    counts = dict.fromkeys(sorted({spec.resolution for spec in specs}), 0)
    for resolution, _ in specs:
        counts[resolution] += config.zdim * resolution**2
    return counts


@torch.no_grad()
def active_units(
    model: VDVAE, split: Split, batch_size: int, world: World, seed: int = 0, most: int = 1024
) -> dict[int, int]:
    """The number of active latent variables per resolution, lowest first.

    A variable is active if its KL(q||p), averaged over images, is above `ACTIVE` (Sønderby et al. 2016). Noise depends
    on (seed, index of the batch) alone, so the average is the same up to rounding for any number of processes.

    Args:
        model: on `world.device`.
        split: the images, of which the first `most` are taken, each once.
        batch_size: images at once.
        world: the processes among which the batches are dealt out. Every one must call this.
        seed: of the noise.
        most: the most images.
    """
    count = min(len(split), most)
    sizes = [prod(shape) for shape in model.latent_shapes]

    def measure(images: Tensor, noise: torch.Generator) -> Tensor:
        return torch.cat([latent.kl.sum(0).flatten() for latent in model.encode(images, generator=noise)])

    total = torch.zeros(sum(sizes), device=world.device)  # nats of each variable, summed over images
    for _, nats in measured(split, count, batch_size, world, seed, measure):
        total += nats
    active = world.sum(total) / count > ACTIVE
    per_layer = [layer.sum().item() for layer in active.split(sizes)]
    return {resolution: int(number) for resolution, number in model.per_resolution(per_layer).items()}
