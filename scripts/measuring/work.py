"""What is measured: updates, samples and likelihoods on random images, fast or, with `train.fast=false`, plain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from vdvae import fast
from vdvae.config import Config
from vdvae.data.loader import to_device
from vdvae.data.storage import Images
from vdvae.evaluation.images import sample_grid
from vdvae.model.vdvae import VDVAE
from vdvae.runtime.device import now
from vdvae.runtime.noise import Purpose, generator
from vdvae.runtime.precision import autocast, set_matmul_precision
from vdvae.runtime.processes import World
from vdvae.training.update import Update


@dataclass(frozen=True)
class Setting:
    """One of the things that are compared."""

    config: Config
    """Its `train.batch_size` is the images of one step, without micro-batches."""

    @classmethod
    def of(cls, config: Config, batch: int | None = None, trains: bool = True) -> Setting:
        """A preset with what is then in force. No update is skipped, or it would have less to do.

        Args:
            config: of the preset and overrides.
            batch: images of one step; the preset's micro-batch if None, or its whole batch where it has none.
            trains: if not, the work is in fp32 and not compiled, as in evaluate.py and sample.py.

        Raises:
            ValueError: no such batch can be.
        """
        train = config.train
        batch = batch or train.micro_batch or train.batch_size
        train = replace(train, batch_size=batch, micro_batch=None, skip_threshold=math.inf)
        if not trains:
            train = replace(train, precision="fp32", compile=False)
        return cls(replace(config, train=train))

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
        return VDVAE(self.config.model).to(device)


Work = Callable[[int], object]
"""Does step number `n`; may return before the device is done."""
Prepare = Callable[[Setting, VDVAE], Work]
"""Makes the work of a setting on its model."""


@dataclass(frozen=True)
class Phases:
    """The parts of a training step without a record, the device waited for after each: medians in milliseconds."""

    data: float
    """Copying the images to the device."""
    forward: float
    backward: float
    update: float
    """Clipping, the optimiser and the EMA."""


class Training:
    """Updates as train.py makes them, with one micro-batch each, on images that are on the device."""

    def __init__(self, setting: Setting, model: VDVAE) -> None:
        self.update = Update(model, setting.config.train, World(0, 1, model.device))
        self.pixels = setting.pixels()
        self.images = to_device(self.pixels, model.device)

    def __call__(self, step: int) -> None:
        """Update number `step`."""
        self.update(self.images, step)

    def phases(self, steps: range) -> Phases:
        """Makes the updates with these numbers in parts."""
        update = self.update
        device, config = update.world.device, update.config
        seconds = []
        for step in steps:
            noise = generator(device, config.seed, Purpose.TRAINING, 0, step)
            update.gradient.zero_()
            times = [now(device)]
            images = to_device(self.pixels, device)
            times.append(now(device))
            with autocast(device, config.precision):
                terms = update.model(images, noise)
            loss = terms.nats_per_dim.mean()
            times.append(now(device))
            loss.backward(update.loss_scale.value)
            times.append(now(device))
            update._apply(step)
            times.append(now(device))
            seconds.append(np.diff(times))
        return Phases(*(1000 * np.median(seconds, axis=0)).tolist())


def sampling(setting: Setting, model: VDVAE, temperatures: list[float] | None = None, precision: str = "fp32") -> Work:
    """Batches of samples at temperature 1, or grids with a batch in each row where there are temperatures."""
    batch = setting.config.train.batch_size
    set_matmul_precision(precision)
    if setting.config.train.fast:
        fast.prepare(model)
    draw = fast.recorded_if_prepared(lambda noise: model.sample(batch, generator=noise), model)

    def sample(step: int) -> object:
        with autocast(model.device, precision):
            if temperatures:
                return sample_grid(model, temperatures, batch)
            return draw(generator(model.device, 0, Purpose.PICTURES))

    return torch.no_grad()(sample)


def evaluation(setting: Setting, model: VDVAE) -> Work:
    """The negative ELBO of one batch."""
    images = to_device(setting.pixels(), model.device)
    set_matmul_precision("fp32")
    if setting.config.train.fast:
        fast.prepare(model)
    measure = fast.recorded_if_prepared(lambda images, noise: model(images, noise).nats_per_dim, model)

    def evaluate(step: int) -> object:
        return measure(images, generator(model.device, 0, Purpose.EVALUATION, step))

    return torch.no_grad()(evaluate)
