"""The factor on the loss that keeps the gradients of fp16 inside its range; 1 with every other precision."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST = 2.0**16
SMALLEST = 2.0**-24
"""Below, there would be no way back from 0."""
GROWTH_INTERVAL = 2000


class LossScale:
    """The factor: halved after an overflow, doubled after many updates without one, all on the device.

    Args:
        adapts: whether the factor adapts; if not, it is 1.
        device: the device of the factor.
    """

    def __init__(self, adapts: bool, device: torch.device) -> None:
        self.adapts = adapts
        self.value = torch.full((), FIRST if adapts else 1.0, device=device)
        self.good_updates = torch.zeros((), device=device)

    def update(self, finite: Tensor) -> None:
        """Takes in whether the gradient norm of an update was finite."""
        if self.adapts:
            self.good_updates += 1
            self.good_updates *= finite
            grow = self.good_updates >= GROWTH_INTERVAL
            self.value *= torch.where(finite, 1.0 + grow.float(), 0.5)
            self.value.clamp_(min=SMALLEST)
            self.good_updates *= ~grow

    def state_dict(self) -> dict[str, Tensor]:
        """The factor and its history, for a checkpoint."""
        return {"loss_scale": self.value, "good_updates": self.good_updates}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`, from any dictionary that has its keys. Between fp16 and another precision, on
        which a run may go on with other hardware, each begins anew: the others' factor is 1.
        """
        if self.adapts != bool(state["loss_scale"] != 1):
            return
        self.value.copy_(state["loss_scale"])
        self.good_updates.copy_(state["good_updates"])
