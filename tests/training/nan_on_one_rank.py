"""Run by torchrun with 2 processes: the loss of rank 1 is NaN in one of three updates."""

from __future__ import annotations

import math

import torch

from tests.conftest import TINY
from vdvae import VDVAE, distributed
from vdvae.config import load_config
from vdvae.model.likelihood import Mixture
from vdvae.training.update import Update


def main() -> None:
    """Asserts that both ranks skip it, change nothing by it, and remain equal."""
    config = load_config(str(TINY), ["train.micro_batch=2"])
    world = distributed.start(torch.device("cpu"))
    torch.manual_seed(world.rank)  # DDP makes the weights equal
    update = Update(VDVAE(config.model), config.train, world)
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    log_prob = Mixture.log_prob
    states = []
    for step in range(3):
        if step == 1 and world.rank == 1:
            Mixture.log_prob = lambda self, images: log_prob(self, images) * math.nan  # type: ignore[method-assign]
        update(images, step)
        Mixture.log_prob = log_prob  # type: ignore[method-assign]
        states.append(torch.cat([p.detach().flatten() for p in update.model.parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])
    assert torch.equal(world.sum(states[2].clone()), 2 * states[2])
    report = update.metrics.report(world)
    assert (report.skipped, report.nonfinite) == (1, 1)
    assert math.isfinite(report.bits_per_dim)
    distributed.stop()


if __name__ == "__main__":
    main()
