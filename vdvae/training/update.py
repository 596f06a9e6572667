"""One training step: gradient of the global batch, clip, skip or apply, EMA (paper Section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vdvae import fast
from vdvae.config import TrainConfig
from vdvae.model.vdvae import VDVAE
from vdvae.runtime.flat import flat_like
from vdvae.runtime.noise import Purpose, generator
from vdvae.runtime.precision import AUTOCAST_TYPES, autocast, set_matmul_precision
from vdvae.runtime.processes import World
from vdvae.training.ema import EMA
from vdvae.training.gradient_skipping import SkipThreshold
from vdvae.training.loss_scale import LossScale
from vdvae.training.metrics import Metrics, Report
from vdvae.training.optimizer import adamw, learning_rate


class Update:
    """A model, its optimiser and its EMA, and the step that moves all three.

    Nothing in a step waits for the device. Whether an update is skipped is decided there, by a number that the fused
    optimiser and the EMA read. All processes decide alike, because a loss that is not finite makes its process's
    gradients NaN, and the all-reduce carries that to all others.

    Args:
        model: the model, on its device; updated in place.
        config: the `train` section.
        world: the processes that share the global batch.
    """

    def __init__(self, model: VDVAE, config: TrainConfig, world: World) -> None:
        if left := config.left_to_hardware():
            raise ValueError(f"train.{left[0]} is auto, which must be resolved before: see vdvae.run.auto.resolve")
        set_matmul_precision(config.precision)
        self.model = model
        self.config = config
        self.world = world
        if config.fast and (config.precision in AUTOCAST_TYPES or world.device.type == "cuda"):
            fast.lay_out_channels_last(model)
        self.ema = EMA(model, config.ema_decay)
        weights = list({**fast.convolutions(model), **dict(model.named_parameters())}.values())
        self.gradient, gradients = flat_like(
            weights
        )  # to zero it, to sum it and to take its norm is one operation each
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        self.optimizer = adamw(model.parameters(), config)
        self.threshold = SkipThreshold(config.skip_threshold, world.device)
        self.loss_scale = LossScale(config.precision == "fp16", world.device)
        self.metrics = Metrics(model.num_layers, world.device)
        self.low: fast.LowPrecisionWeights | None = None
        self.accumulate: Callable[[Tensor, int, torch.Generator], None] = self._accumulate
        if config.fast:
            self._make_fast()

    def __call__(self, images: Tensor, step: int) -> None:
        """Update number `step` on this process's part of the global batch, uint8 `[B, C, H, W]`.

        The noise of a micro-batch is a function of its place in the global batch, not of the process: where the
        micro-batches are the same ones, the loss is that of any number of processes.
        """
        pieces = -(-len(images) // self.config.images_at_once(len(images)))
        first = self.world.rank * len(images)
        self.gradient.zero_()
        if self.low:
            self.low.cast()
        for piece in images.tensor_split(pieces):
            noise = generator(self.world.device, self.config.seed, Purpose.TRAINING, first, step)
            self.accumulate(piece, self.world.size * len(images), noise)
            first += len(piece)
        self._apply(step)

    def _accumulate(self, images: Tensor, global_batch: int, noise: torch.Generator) -> None:
        """Adds the gradient of these images' part in the mean loss over the global batch."""
        with autocast(self.world.device, self.config.precision):
            terms = (self.low or self.model)(images, noise)
        loss = terms.nats_per_dim.sum() / global_batch
        loss.backward(torch.where(torch.isfinite(loss), self.loss_scale.value, torch.nan))
        if self.low:
            self.low.add_gradients()
        self.metrics.add_losses(terms)

    @torch.no_grad()
    def _apply(self, step: int) -> None:
        """Sums the gradient over all processes; clips it; skips the update, or takes it."""
        if self.config.compress_gradients:
            self.gradient.copy_(self.world.sum(self.gradient.bfloat16()))
        else:
            self.world.sum(self.gradient)
        norm = torch.linalg.vector_norm(self.gradient) / self.loss_scale.value
        applied = self.threshold.applied(norm)
        clip = (self.config.grad_clip / (norm + 1e-6)).clamp(max=1.0)
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.config, step)
        self.optimizer.grad_scale = self.loss_scale.value / clip  # type: ignore[attr-defined]  # what it divides by
        self.optimizer.found_inf = 1 - applied  # type: ignore[attr-defined]  # whether it leaves all as it is
        self.optimizer.step()
        self.ema.update(applied)
        self.metrics.add_update(norm, applied)
        self.threshold.add(norm, step)
        self.loss_scale.update(torch.isfinite(norm))

    def _make_fast(self) -> None:
        """Everything that `train.fast=false` does without; results stay the same but for rounding."""
        fast.prepare(self.ema.model)
        fast.prepare(self.model)
        if self.config.compile:
            fast.compile_blocks(self.model, autotune=self.config.compile == "autotune")
        if self.config.bf16_states:
            fast.keep_states_in(self.model, torch.bfloat16)
        if isinstance(self.config.recompute_from, int):
            fast.checkpoint_blocks(self.model, self.config.recompute_from)
        found, changed = [self.loss_scale.value], [self.gradient, self.metrics.losses]
        if self.config.precision in AUTOCAST_TYPES:
            self.low = fast.LowPrecisionWeights(self.model, AUTOCAST_TYPES[self.config.precision], self.gradient)
            changed += self.low.tensors
        on_gpu = self.world.device.type == "cuda"
        if self.config.cuda_graph if on_gpu else self.config.replay and not self.config.compile:
            self.accumulate = fast.recorded(self._accumulate, self.model, found, changed)

    def report(self) -> Report:
        """What happened since the last report. Every process must call this."""
        return self.metrics.report(self.world, self.threshold, self.optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on as if nothing had happened. Every process must call this."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "metrics": self.metrics.state_dict(self.world),
            "threshold": self.threshold.state_dict(),
            **self.loss_scale.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(with_own_steps(state["optimizer"], list(self.model.parameters())))
        self.metrics.load_state_dict(state["metrics"], self.world)
        self.threshold.load_state_dict(state["threshold"])
        self.loss_scale.load_state_dict(state)


def with_own_steps(optimizer: dict[str, Any], weights: Sequence[Tensor]) -> dict[str, Any]:
    """An AdamW state as an optimiser of these weights needs it: a step for each, which in a file may be one for all,
    and moments laid out in memory as the weights are, which in a file they may not be.
    """
    own = {
        i: {
            name: torch.empty_like(weights[i]).copy_(value) if value.dim() else value.clone()
            for name, value in of_one.items()
        }
        for i, of_one in optimizer["state"].items()
    }
    return {**optimizer, "state": own}
