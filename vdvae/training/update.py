"""One training step: gradient of the global batch, clip, skip or apply, average (paper Section 4)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from vdvae.allocator import give_back_freed_memory
from vdvae.distributed import World
from vdvae.model.vdvae import VDVAE
from vdvae.noise import Purpose, generator, generator_seed
from vdvae.precision import autocast, set_matmul_precision
from vdvae.replay import Replay
from vdvae.training.config import TrainConfig
from vdvae.training.cuda_graph import Graphed
from vdvae.training.ema import EMA
from vdvae.training.flat import flatten_parameters
from vdvae.training.metrics import Metrics, Report
from vdvae.training.optimizer import FlatAdamW, learning_rate
from vdvae.training.threshold import SkipThreshold

FP16_FIRST_SCALE = 2.0**16
FP16_GROWTH_INTERVAL = 2000


class Update:
    """A model, its optimiser and its average, and the step that moves all three.

    Nothing in a step waits for the device: whether an update is skipped is decided there, by a number that the
    fused optimiser and the average read. All processes decide alike, because a loss that is not finite poisons its
    process's gradients with NaN, and the all-reduce carries that to every other.

    Args:
        model: on its device; updated in place.
        config: the `train` section.
        world: the processes that share the global batch.
    """

    def __init__(self, model: VDVAE, config: TrainConfig, world: World) -> None:
        set_matmul_precision(config.precision)
        self.model = model
        self.config = config
        self.world = world
        self.ema = EMA(model, config.ema_decay)
        self.weights, layout = flatten_parameters(model)
        self.optimizer = FlatAdamW(self.weights, layout, config)
        self.threshold = SkipThreshold(config.skip_threshold, world.device)
        self.metrics = Metrics(model.num_layers, world.device)
        self.share = config.batch_size // world.size
        self.loss_scale = torch.ones((), device=world.device)
        self.good_updates = torch.zeros((), device=world.device)
        if config.precision == "fp16":
            self.loss_scale.fill_(FP16_FIRST_SCALE)
        if config.recompute_from is not None:
            model.recompute_from(config.recompute_from)
        if config.compile:  # after the average was copied, which is evaluated as written
            model.compile_blocks()
        self.parallel: Any = model
        if world.size == 1:
            for parameter, gradient in zip(model.parameters(), self.optimizer.gradients, strict=True):
                parameter.grad = gradient  # where the optimiser wants it
        else:
            # Of gradients [1, width, 1, 1], whose dimensions of size 1 have any stride: nothing is lost by it.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            accumulates = config.micro_batch is not None and config.micro_batch < config.batch_per_process(world.size)
            self.parallel = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=not accumulates)
            if config.compress_gradients:
                self.parallel.register_comm_hook(None, bf16_compress_hook)
        self.backward: Callable[[Tensor, torch.Generator], object] = self._backward
        if config.replay and world.size == 1 and not config.compile:
            self.backward = Replay(self._backward)
        self.graphed: Graphed | None = None
        if config.cuda_graph:
            self.graphed = Graphed(self._backward, [self.optimizer.gradient, self.metrics.losses], world.device)
        give_back_freed_memory()  # where the weights were before they lay side by side

    def __call__(self, images: Tensor, step: int) -> None:
        """Update number `step` on this process's share of the global batch, uint8 [B, C, H, W].

        The noise of a micro-batch is a function of its place in the global batch, not of the process: where the
        micro-batches are the same ones, the loss is that of any number of processes.
        """
        pieces = -(-len(images) // (self.config.micro_batch or len(images)))
        first = self.world.rank * len(images)
        self.share = len(images)
        self.optimizer.gradient.zero_()
        for i, piece in enumerate(images.tensor_split(pieces)):
            is_last = i == pieces - 1
            key = (self.config.seed, Purpose.TRAINING, first, step)
            if self.graphed:
                self.graphed(piece, generator_seed(*key))
            else:
                with nullcontext() if is_last or self.world.size == 1 else self.parallel.no_sync():
                    self.backward(piece, generator(self.world.device, *key))
            first += len(piece)
        self._apply(step)

    def _backward(self, images: Tensor, noise: torch.Generator) -> None:
        """Adds the gradient of some images' part of the mean over this process's share."""
        with autocast(self.world.device, self.config.precision):
            terms = self.parallel(images, noise)
        loss = terms.nats_per_dim.sum() / self.share
        loss.backward(torch.where(torch.isfinite(loss), self.loss_scale, torch.nan))
        self.metrics.add_losses(terms)

    @torch.no_grad()
    def _apply(self, step: int) -> None:
        if self.world.size > 1:
            self._gather_gradients()
        norm = torch.linalg.vector_norm(self.optimizer.gradient) / self.loss_scale
        applied = (norm < self.threshold.value).float()  # false for NaN
        clip = (self.config.grad_clip / (norm + 1e-6)).clamp(max=1.0)
        self.optimizer.step(learning_rate(self.config, step), self.loss_scale / clip, 1 - applied)
        self.ema.update(self.weights, applied)
        self.metrics.add_update(norm, applied)
        self.threshold.add(norm, step)
        if self.config.precision == "fp16":
            self._adapt_loss_scale(torch.isfinite(norm))

    def _gather_gradients(self) -> None:
        """Copies the gradients from where DistributedDataParallel has them to where the optimiser wants them."""
        both = zip(self.model.parameters(), self.optimizer.gradients, strict=True)
        gradients, places = zip(*((p.grad, place) for p, place in both if p.grad is not None), strict=True)
        torch._foreach_copy_(places, gradients)
        for p in self.model.parameters():
            p.grad = None

    def _adapt_loss_scale(self, finite: Tensor) -> None:
        """Halves the loss scale after an overflow, and doubles it after many updates without one."""
        self.good_updates = (self.good_updates + 1) * finite
        grow = self.good_updates >= FP16_GROWTH_INTERVAL
        self.loss_scale *= torch.where(finite, 1.0 + grow.float(), 0.5)
        self.good_updates = self.good_updates * ~grow

    def report(self) -> Report:
        """What happened since the last report. Every process must call this."""
        return self.metrics.report(self.world, self.threshold)

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on as if nothing had happened. Every process must call this."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "metrics": self.metrics.state_dict(self.world),
            "threshold": self.threshold.state_dict(),
            "loss_scale": self.loss_scale,
            "good_updates": self.good_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.metrics.load_state_dict(state["metrics"], self.world)
        self.threshold.load_state_dict(state["threshold"])
        self.loss_scale.copy_(state["loss_scale"])
        self.good_updates.copy_(state["good_updates"])
