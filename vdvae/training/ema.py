"""The exponential moving average of the weights, which is what gets evaluated."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from vdvae.model.vdvae import VDVAE
from vdvae.training.flat import flatten_parameters


class EMA:
    """A second model whose weights follow those of the first.

    Args:
        model: the model that trains.
        decay: weight of the past at each update: 1 - the paper's "EMA rate" (Table 4).
    """

    def __init__(self, model: VDVAE, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.flat, _ = flatten_parameters(self.model)

    @torch.no_grad()
    def update(self, weights: Tensor, applied: Tensor) -> None:
        """Moves towards the model's weights, flat; `applied` (1 or 0, on the device) says whether they were updated."""
        self.flat.lerp_(weights, applied * (1 - self.decay))
