"""The exponential moving average of the weights, which is what gets evaluated."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from vdvae.model.vdvae import VDVAE


class EMA:
    """A second model whose weights follow those of the first.

    Args:
        model: the model that trains.
        decay: weight of the past at each update: 1 - the paper's "EMA rate" (Table 4).
    """

    def __init__(self, model: VDVAE, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._followed: list[Tensor] = list(model.parameters())
        self._averages: list[Tensor] = list(self.model.parameters())

    @torch.no_grad()
    def update(self, applied: Tensor) -> None:
        """Moves towards the model's weights; `applied` (1 or 0, on the device) says whether they were updated."""
        change = torch._foreach_sub(self._followed, self._averages)
        torch._foreach_mul_(change, applied * (1 - self.decay))
        torch._foreach_add_(self._averages, list(change))
