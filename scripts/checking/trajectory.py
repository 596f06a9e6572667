"""A few updates of a model, and what is compared of them: losses, norms, skipped updates, weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vdvae.config import Config
from vdvae.data.loader import BatchOrder, to_device
from vdvae.data.prepared import load_splits
from vdvae.model.vdvae import VDVAE
from vdvae.runtime.processes import World
from vdvae.training.update import Update

Batches = Callable[[int], Tensor]
"""From a step's number to a process's share of its images, uint8 [B, C, H, W]."""


class Trajectory(NamedTuple):
    """What became of a model in some updates."""

    bits_per_dim: list[float]
    """The loss of each update, before it; NaN where it was not finite."""
    norms: list[float]
    """The gradient's norm, before clipping; 0 where it was not finite."""
    skipped: list[int]
    """1 for each update that was skipped."""
    moved: Tensor
    """How far every weight moved, [parameters], on the CPU."""

    def distance(self, other: Trajectory) -> float:
        """The distance between where both ended, over how far this one went."""
        return ((self.moved - other.moved).norm() / self.moved.norm()).item()

    def loss_difference(self, other: Trajectory) -> float:
        """The largest difference between the losses of an update, relative to the loss; NaN where one is."""
        losses, others = np.array(self.bits_per_dim), np.array(other.bits_per_dim)
        return float(np.abs((others - losses) / losses).max())


def travel(config: Config, batches: Batches, steps: Iterable[int], world: World) -> Trajectory:
    """Trains from the initial weights of a run. Every process must call this."""
    torch.manual_seed(config.train.seed)
    model = VDVAE(config.model).to(world.device)
    start = weights(model)
    update = Update(model, config.train, world)
    reports = []
    for step in steps:
        update(batches(step), step)
        reports.append(update.report())
    return Trajectory(
        [report.bits_per_dim for report in reports],
        [report.grad_norm_max for report in reports],
        [report.skipped for report in reports],
        weights(model) - start,
    )


def weights(model: VDVAE) -> Tensor:
    """All weights, [parameters], on the CPU."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).cpu()


def demo_batches(config: Config, world: World, white_every: int | None = None) -> Batches:
    """The training images of a preset in the order of a run.

    Args:
        config: the preset.
        world: the processes that share a batch.
        white_every: every so many batches, from the second on, are white images, whose gradient is far too large.
    """
    images = load_splits(config.data, config.model).train
    order = BatchOrder(len(images), config.train.batch_size, config.train.seed)

    def batch(step: int) -> Tensor:
        found = to_device(images.read(order.positions(step, world.rank, world.size)), world.device)
        return torch.full_like(found, 255) if white_every and step % white_every == 1 else found

    return batch
