"""What happened since the last report: summed on the device, read by the host only when it is printed."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vdvae.model.vdvae import Terms
from vdvae.runtime.processes import World
from vdvae.training.gradient_skipping import SkipThreshold


class Report(NamedTuple):
    """Means over the updates since the last report, over all processes; those with a loss that is not finite
    count in `nonfinite` alone.
    """

    bits_per_dim: float
    rate: float
    """The KL of all layers, in bits/dim."""
    distortion: float
    """-log p(x|z), in bits/dim."""
    layer_rate: list[float]
    """The rate of each layer, top-down, in bits/dim."""
    grad_norm_max: float
    """The largest finite gradient norm before clipping (paper Figure 6)."""
    grad_norm_mean: float
    skipped: int
    """Updates that were skipped."""
    nonfinite: int
    """Updates that were skipped because the loss or the gradient was not finite."""
    skip_streak: int
    """Updates skipped in a row, up to now."""
    skip_threshold: float
    """The gradient norm from which on the next update is skipped."""
    learning_rate: float
    """The learning rate of the last update."""

    def streak_message(self, norms: list[float]) -> str:
        """Why a run ends that skips every update, and what to try (openai/vdvae #25), from `Metrics.recent_norms`."""
        shown = ", ".join(f"{norm:.4g}" for norm in norms if norm != -1)
        return (
            f"error: the last {self.skip_streak} updates were all skipped: train.skip_threshold is "
            f"{self.skip_threshold:g}, and the last gradient norms were {shown}. "
            "If these are the usual ones, set it to a larger number or to auto; if the loss has diverged, lower "
            "train.lr, and remove the checkpoints since then to go on from before"
        )


RECENT = 10
"""Norms that are remembered, for whoever has to find out why updates are skipped."""


class Metrics:
    """Running sums on the device. Adding costs no synchronisation."""

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self.losses = torch.zeros(3 + num_layers, device=device)  # finite losses, distortion, rate, rate per layer
        self.updates = torch.zeros(4, device=device)  # finite norms, their sum, skipped, not finite
        self.norm_max = torch.zeros((), device=device)
        self.skip_streak = torch.zeros((), device=device)
        self.recent_norms = torch.full((RECENT,), -1.0, device=device)  # -1: none yet

    @torch.no_grad()
    def add_losses(self, terms: Terms) -> None:
        """Counts one micro-batch, unless its loss is not finite."""
        values = torch.cat([terms.distortion[:, None], terms.rate[:, None], terms.layer_rate], 1)  # [B, 2 + L]
        values = torch.cat([torch.ones_like(values[:, :1]), values], 1)
        finite = torch.isfinite(terms.nats_per_dim).all()
        self.losses += torch.where(finite, values, torch.zeros_like(values)).sum(0)

    @torch.no_grad()
    def add_update(self, norm: Tensor, applied: Tensor) -> None:
        """Counts one update: its gradient norm, and whether it was applied (1 or 0)."""
        finite = torch.isfinite(norm)
        finite_norm = torch.where(finite, norm, torch.zeros_like(norm))
        self.updates += torch.stack([finite.float(), finite_norm, 1 - applied, (~finite).float()])
        self.norm_max = torch.maximum(self.norm_max, finite_norm)
        self.skip_streak = (self.skip_streak + 1) * (1 - applied)
        self.recent_norms = torch.cat([self.recent_norms[1:], norm[None]])

    def report(self, world: World, threshold: SkipThreshold, learning_rate: float) -> Report:
        """Reads the sums, over all processes, and starts anew."""
        count, *losses = world.sum(self.losses.clone()).tolist()
        distortion, rate, *layer_rate = (loss / max(count, 1) / math.log(2) for loss in losses)
        norms, norm_sum, skipped, nonfinite = self.updates.tolist()
        report = Report(
            distortion + rate if count else math.nan,
            rate,
            distortion,
            layer_rate,
            self.norm_max.item(),
            norm_sum / max(norms, 1),
            int(skipped),
            int(nonfinite),
            int(self.skip_streak.item()),
            threshold.value.item(),
            learning_rate,
        )
        self.losses.zero_()
        self.updates.zero_()
        self.norm_max.zero_()
        return report

    def state_dict(self, world: World) -> dict[str, Tensor]:
        """The sums, for a checkpoint between two reports; the losses are of all processes, and each must call this."""
        losses = self.losses.new_zeros(world.size, len(self.losses))
        losses[world.rank] = self.losses
        return {**vars(self), "losses": world.sum(losses)}  # [processes, 3 + L]

    def load_state_dict(self, state: dict[str, Tensor], world: World) -> None:
        """The inverse of `state_dict`; where the number of processes has changed, the first takes over all losses."""
        losses = state["losses"]
        if len(losses) != world.size:
            losses = torch.cat([losses.sum(0, keepdim=True), losses.new_zeros(world.size - 1, losses.shape[1])])
        for name, value in {**state, "losses": losses[world.rank]}.items():
            getattr(self, name).copy_(value)
