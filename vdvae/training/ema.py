"""The exponential moving average (EMA) of the weights, which is what gets evaluated."""

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
        self._weights = [p.detach() for p in model.parameters()]
        self._ema_weights = [p.detach() for p in self.model.parameters()]

    @torch.no_grad()
    def update(self, applied: Tensor) -> None:
        """Moves towards the model's weights if `applied` is 1, not if it is 0: a number on the device."""
        ways = torch._foreach_sub(self._weights, self._ema_weights)
        torch._foreach_mul_(ways, applied * (1 - self.decay))
        torch._foreach_add_(self._ema_weights, ways)
