"""Gradient skipping: which updates are applied, by the norm of their gradient (paper Section 4, Figure 6)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

WINDOW = 1000
"""Updates that "auto" looks back on."""
FIRST = 100
"""Finite norms before which "auto" skips nothing."""
QUANTILE = 0.9
FACTOR = 10.0
"""The threshold over the quantile. The demo's largest norm after the warm-up is 5.4 times the quantile, and the paper
skips less than 0.01 % of all updates."""


class SkipThreshold:
    """The threshold: a given number, or, if "auto", `FACTOR` times the 90 % quantile of the last `WINDOW` norms.

    All on the device. "auto" counts a norm above the threshold as the threshold itself, so that a few huge norms in a
    row do not raise it. It still follows a lasting change of the usual norm: by up to `FACTOR` in
    (1 - QUANTILE) * WINDOW updates.
    """

    def __init__(self, setting: float | Literal["auto"], device: torch.device) -> None:
        self.is_auto = setting == "auto"
        self.value = torch.tensor(torch.inf if setting == "auto" else setting, device=device)
        """An update is skipped if its norm is this or more."""
        self.recent = torch.full((WINDOW if self.is_auto else 0,), torch.nan, device=device)
        """Finite norms, in a ring; NaN elsewhere."""

    def applied(self, norm: Tensor) -> Tensor:
        """1 for an update with this gradient norm that is applied, 0 for one that is skipped, as for a norm of NaN."""
        return (norm < self.value).float()

    @torch.no_grad()
    def add(self, norm: Tensor, step: int) -> None:
        """Takes in the norm of update `step`, for the next."""
        if self.is_auto:
            seen = torch.where(torch.isfinite(norm), torch.minimum(norm, self.value), torch.nan)
            self.recent[step % WINDOW] = seen
            enough = torch.isfinite(self.recent).sum() >= FIRST
            self.value = torch.where(enough, FACTOR * self.recent.nanquantile(QUANTILE), torch.inf)

    def state_dict(self) -> dict[str, Tensor]:
        """The threshold and its window, for a checkpoint."""
        return {"value": self.value, "recent": self.recent}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`; a run that had a number or "auto" may go on with the other."""
        if self.is_auto and len(state["recent"]):
            self.value.copy_(state["value"])
            self.recent.copy_(state["recent"])
