"""The exact NLL of a split: every image once, however many processes share the work."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from vdvae.data.loader import read_ahead
from vdvae.data.splits import Split
from vdvae.distributed import World
from vdvae.model.vdvae import VDVAE
from vdvae.noise import Purpose, generator


class NLL(NamedTuple):
    """The negative ELBO, an upper bound on the negative log-likelihood, with one posterior sample per image."""

    bits_per_dim: float
    nats_per_dim: float
    rate: float
    """bits/dim"""
    distortion: float
    """bits/dim"""
    rate_per_resolution: dict[int, float]
    """bits/dim, lowest resolution first"""
    num_images: int
    standard_error: float
    """of bits_per_dim, over images"""


@torch.no_grad()
def evaluate(
    model: VDVAE, split: Split, batch_size: int, world: World, seed: int = 0, show_progress: bool = False
) -> NLL:
    """Measures `model` on all images of a split.

    Noise depends on (seed, index of the batch) alone and images are summed in their order, so the result is the
    same to the last digit for any number of processes; another `batch_size` draws other noise.

    Args:
        model: on `world.device`.
        split: the images.
        batch_size: images at once.
        world: the processes among which the batches are dealt out. Every one must call this.
        seed: of the noise.
        show_progress: whether the main process shows a bar on a terminal.
    """
    starts = range(0, len(split), batch_size)
    mine = range(world.rank, len(starts), world.size)
    positions = [np.arange(starts[b], min(starts[b] + batch_size, len(split))) for b in mine]
    per_image = torch.zeros(len(split), 1 + model.num_layers, dtype=torch.float64)  # distortion, rate per layer
    hidden = None if show_progress and world.is_main else True  # None: hidden unless on a terminal
    bar = tqdm(mine, "evaluating", unit="batch", leave=False, disable=hidden)
    for b, rows, images in zip(bar, positions, read_ahead(split, positions, world.device), strict=True):
        terms = model(images, generator(world.device, seed, Purpose.EVALUATION, b))
        per_image[rows] = torch.cat([terms.distortion[:, None], terms.layer_rate], 1).cpu().double()
    per_image = world.sum(per_image.to(world.device)).cpu() / math.log(2)  # [N, 1 + L], bits/dim
    means = per_image.mean(0).tolist()
    bits_per_dim = per_image.sum(1)  # [N]
    return NLL(
        bits_per_dim=bits_per_dim.mean().item(),
        nats_per_dim=bits_per_dim.mean().item() * math.log(2),
        rate=sum(means[1:]),
        distortion=means[0],
        rate_per_resolution=model.per_resolution(means[1:]),
        num_images=len(split),
        standard_error=bits_per_dim.std().item() / math.sqrt(len(split)),
    )
