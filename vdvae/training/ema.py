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
        """Moves towards the model's weights if `applied` is 1, a number on the device. If it is 0, or if one of those
        weights is not finite, all stay as they are, to the bit.
        """
        ways = torch._foreach_sub(self._ema_weights, self._weights)
        stay = 1 - applied
        torch._amp_foreach_non_finite_check_and_unscale_(ways, stay, torch.ones_like(stay))
        # A step of SGD against the ways: of what works on many tensors at once, the one that `stay` can hold back.
        torch._fused_sgd_(
            self._ema_weights,
            ways,
            [],
            lr=1 - self.decay,
            momentum=0.0,
            weight_decay=0.0,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
            found_inf=stay,
        )
