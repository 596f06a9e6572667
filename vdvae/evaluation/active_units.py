"""Latent variables: how many a model has, and how many of them it uses."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from vdvae.model.config import ModelConfig
from vdvae.model.gaussian import Latent
from vdvae.model.vdvae import VDVAE
from vdvae.runtime.processes import World

ACTIVE = 0.01
"""Nats from which on a latent variable counts as active, the threshold of Burda et al. 2016."""


def latent_variables(config: ModelConfig) -> dict[int, int]:
    """The number of latent variables per resolution, lowest first."""
    specs = config.decoder_specs
    counts = dict.fromkeys(sorted({spec.resolution for spec in specs}), 0)
    for resolution, _ in specs:
        counts[resolution] += config.zdim * resolution**2
    return counts


class ActiveUnits:
    """Counts the active latent variables of a model from passes over some images.

    A variable is active if its KL(q||p), averaged over images, is above `ACTIVE` (Sønderby et al. 2016).

    Args:
        model: the model whose variables are counted.
    """

    def __init__(self, model: VDVAE) -> None:
        self.model = model
        self.sizes = [prod(shape) for shape in model.latent_shapes]
        self.nats = torch.zeros(sum(self.sizes), device=model.device)  # of each variable, summed over images
        self.images = torch.zeros((), device=model.device)

    @staticmethod
    def nats_of(latents: Sequence[Latent]) -> Tensor:
        """KL(q||p) of each variable, summed over the images of a pass, `[N]`, layers top-down."""
        return torch.cat([latent.kl.sum(0).flatten() for latent in latents])

    def add(self, nats: Tensor, images: int) -> None:
        """Counts a pass by what `nats_of` made of it."""
        self.nats += nats
        self.images += images

    def per_resolution(self, world: World) -> dict[int, int]:
        """The number of active variables per resolution, lowest first, over the passes of all processes, every one of
        which must call this.
        """
        active = world.sum(self.nats) / world.sum(self.images) > ACTIVE
        per_layer = [layer.sum().item() for layer in active.split(self.sizes)]
        return {resolution: int(number) for resolution, number in self.model.per_resolution(per_layer).items()}
