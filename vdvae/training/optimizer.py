"""AdamW, and the learning rate of every step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from vdvae.config import TrainConfig


def adamw(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW as in the released code: decay on every parameter, epsilon 1e-8. Fused, because only then
    can a number on the device make it skip a step.
    """
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=betas, eps=1e-8, weight_decay=config.weight_decay, fused=True
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of update `step` (from 0): linear warm-up, constant, linear cool-down to 0 at the end of the run."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    cooldown = min(1.0, (config.max_steps - step) / max(1, config.cooldown_steps))
    return config.lr * min(warmup, cooldown)
