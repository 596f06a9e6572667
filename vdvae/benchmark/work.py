"""What is measured: updates, samples and likelihoods on random images, in the library's way or the baseline's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from vdvae import baseline
from vdvae.baseline import BaselineUpdate
from vdvae.config import Config
from vdvae.data.loader import to_device
from vdvae.data.storage import Images
from vdvae.distributed import World
from vdvae.evaluation.images import grid, sample_grid
from vdvae.model.vdvae import VDVAE
from vdvae.noise import Purpose, generator
from vdvae.precision import autocast
from vdvae.replay import Replay
from vdvae.training.update import Update


@dataclass(frozen=True)
class Setting:
    """One of the things that are compared."""

    config: Config
    """Its `train.batch_size` is the images of one step, without micro-batches."""
    is_baseline: bool = False
    """Whether `vdvae.baseline` does the work."""

    @classmethod
    def of(cls, config: Config, batch: int | None = None, is_baseline: bool = False, trains: bool = True) -> Setting:
        """A preset with what is then in force.

        Args:
            config: of the preset and overrides.
            batch: images of one step; the preset's micro-batch if None, or its whole batch where it has none.
            is_baseline: which is eager and in fp32, and here skips no update, or it would have less to do.
            trains: if not, the work is eager and in fp32 too, as in evaluate.py and sample.py.

        Raises:
            ValueError: no such batch can be.
        """
        train = config.train
        train = replace(train, batch_size=batch or train.micro_batch or train.batch_size, micro_batch=None)
        if is_baseline or not trains:
            train = replace(train, precision="fp32", compile=False, skip_threshold=math.inf)
        return cls(replace(config, train=train), is_baseline)

    def pixels(self) -> Images:
        """Random images, [B, H, W, C], the same for every setting of one shape."""
        model = self.config.model
        shape = (self.config.train.batch_size, model.image_size, model.image_size, model.image_channels)
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def model(self, device: torch.device) -> VDVAE:
        """A model that begins with the weights of a run."""
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.manual_seed(self.config.train.seed)
        model = VDVAE(self.config.model).to(device)
        if self.is_baseline:
            baseline.put_channels_first(model)
        return model


Work = Callable[[int], object]
"""Does step number `n`; may return before the device is done."""
Prepare = Callable[[Setting, VDVAE], Work]
"""Makes the work of a setting on its model."""


@dataclass(frozen=True)
class Phases:
    """Of a training step with `train.replay=false`, the device waited for after each: medians in milliseconds."""

    data: float
    """Copying the images to the device."""
    forward: float
    backward: float
    update: float
    """Clipping, the optimiser and the average."""


class Training:
    """Updates as train.py makes them, with one micro-batch each, on images that are on the device."""

    def __init__(self, setting: Setting, model: VDVAE) -> None:
        world = World(0, 1, model.device)
        kind = BaselineUpdate if setting.is_baseline else Update
        self.update: Update | BaselineUpdate = kind(model, setting.config.train, world)
        self.pixels = setting.pixels()
        self.images = to_device(self.pixels, model.device)

    def __call__(self, step: int) -> None:
        """Update number `step`."""
        self.update(self.images, step)

    def phases(self, steps: range) -> Phases | None:
        """Of the updates with these numbers; None for the baseline."""
        update = self.update
        if isinstance(update, BaselineUpdate):
            return None
        device, config = update.world.device, update.config
        seconds = []
        for step in steps:
            noise = generator(device, config.seed, Purpose.TRAINING, 0, step)
            update.optimizer.gradient.zero_()
            times = [now(device)]
            images = to_device(self.pixels, device)
            times.append(now(device))
            with autocast(device, config.precision):
                terms = update.model(images, noise)
            loss = terms.nats_per_dim.mean()
            times.append(now(device))
            loss.backward(update.loss_scale)
            times.append(now(device))
            update._apply(step)
            times.append(now(device))
            seconds.append(np.diff(times))
        return Phases(*(1000 * np.median(seconds, axis=0)).tolist())


def sampling(setting: Setting, model: VDVAE, temperatures: list[float] | None = None, precision: str = "fp32") -> Work:
    """Batches of samples at temperature 1, or grids with a batch in each row where there are temperatures. The
    baseline's are in fp32.
    """
    batch = setting.config.train.batch_size
    replay = Replay(lambda noise: model.sample(batch, generator=noise))

    def sample(step: int) -> object:
        noise = partial(generator, model.device, 0, Purpose.PICTURES)
        if setting.is_baseline:
            rows = [baseline.sample(model, batch, temperature, noise()) for temperature in temperatures or [1.0]]
            return grid(rows) if temperatures else rows
        with autocast(model.device, precision):
            return sample_grid(model, temperatures, batch) if temperatures else replay(noise())

    return torch.no_grad()(sample)


def evaluation(setting: Setting, model: VDVAE) -> Work:
    """The negative ELBO of one batch."""
    images = to_device(setting.pixels(), model.device)
    replay = Replay(lambda images, noise: model(images, noise).nats_per_dim)

    def evaluate(step: int) -> object:
        noise = generator(model.device, 0, Purpose.EVALUATION, step)
        return baseline.terms(model, images, noise).nats_per_dim if setting.is_baseline else replay(images, noise)

    return torch.no_grad()(evaluate)


def now(device: torch.device) -> float:
    """Seconds on a clock, when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
