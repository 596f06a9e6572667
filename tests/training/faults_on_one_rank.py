"""Run by torchrun with 2 processes: what goes wrong on one is skipped by both, and training comes to its usual loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from tests.conftest import TINY
from vdvae import VDVAE
from vdvae.config import load_config
from vdvae.data.loader import BatchOrder, to_device
from vdvae.data.prepared import load_splits
from vdvae.model.vdvae import Terms
from vdvae.runtime import processes
from vdvae.runtime.processes import World
from vdvae.training.update import Update

STEPS = 240
FAULTS = {120: "NaN in a gradient", 130: "infinity in a gradient", 140: "gradients times 1e15", 150: "NaN in the loss"}
WHITE, NOISE = 160, 170
"""Batches of garbage: the gradient of white images is too large, that of noise is not, and is taken for an image's."""
CONFIG = load_config(str(TINY), ["train.skip_threshold=3", "train.replay=false", f"train.max_steps={STEPS}"])


@contextmanager
def fault(update: Update, kind: str) -> Iterator[None]:
    """Makes one update go wrong in this process."""
    if kind == "NaN in the loss":
        hook = update.model.register_forward_hook(lambda _model, _inputs, terms: Terms(*(t * math.nan for t in terms)))
        yield
        hook.remove()
        return
    parameters = list(update.model.parameters())
    factor = {"NaN in a gradient": math.nan, "infinity in a gradient": math.inf}.get(kind, 1e15)
    touched = parameters if factor == 1e15 else parameters[7:8]
    hooks = [parameter.register_hook(lambda gradient: gradient * factor) for parameter in touched]
    yield
    for hook in hooks:
        hook.remove()


def stored(update: Update) -> list[Tensor]:
    """Weights, average and Adam's state."""
    adam = [value for state in update.optimizer.state_dict()["state"].values() for value in state.values()]
    return [t.detach().clone() for t in (*update.model.parameters(), *update.ema.model.parameters(), *adam)]


def train(world: World, disturbed: bool) -> float:
    """The mean loss of the last updates; asserts that faults change nothing, in either process."""
    torch.manual_seed(0)
    update = Update(VDVAE(CONFIG.model), CONFIG.train.resolved(), world)
    images = load_splits(CONFIG.data, CONFIG.model).train
    order = BatchOrder(len(images), CONFIG.train.batch_size, seed=0)
    skipped = nonfinite = 0
    for step in range(STEPS):
        batch = to_device(images.read(order.positions(step, world.rank, world.size)), world.device)
        before = stored(update) if disturbed and (step in FAULTS or step == WHITE) else []
        if disturbed and step in (WHITE, NOISE):
            noise = torch.randint(0, 256, batch.shape, dtype=torch.uint8)
            batch = torch.full_like(batch, 255) if step == WHITE else noise
        if disturbed and step in FAULTS and world.rank == 1:
            with fault(update, FAULTS[step]):
                update(batch, step)
        else:
            update(batch, step)
        assert all(torch.equal(a, b) for a, b in zip(before, stored(update), strict=False))
        if step in (STEPS - 51, STEPS - 1):
            report = update.report()
            skipped, nonfinite = skipped + report.skipped, nonfinite + report.nonfinite
    assert (skipped, nonfinite) == ((len(FAULTS) + 1, 3) if disturbed else (0, 0)), (skipped, nonfinite)
    weights = torch.cat([p.detach().flatten() for p in update.model.parameters()])
    assert torch.equal(world.sum(weights.clone()), 2 * weights)  # both processes have the same
    return report.bits_per_dim


def main() -> None:
    """Trains twice, with and without faults."""
    world = processes.start(torch.device("cpu"))
    usual, disturbed = train(world, disturbed=False), train(world, disturbed=True)
    if world.is_main:
        print(f"loss without faults {usual:.4f}, with {disturbed:.4f}")
    assert np.isclose(usual, disturbed, rtol=0.02), (usual, disturbed)
    processes.stop()


if __name__ == "__main__":
    main()
