"""What is measured: updates, samples and likelihoods on random images, fast or, with `train.fast=false`, plain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vdvae import fast
from vdvae.config import Config
from vdvae.counting.cards import Card
from vdvae.data.loader import to_device
from vdvae.evaluation.grids import sample_grid
from vdvae.model.vdvae import VDVAE
from vdvae.run.auto import resolve, resolve_for_card
from vdvae.runtime.noise import Purpose, generator
from vdvae.runtime.precision import autocast, set_matmul_precision
from vdvae.runtime.processes import World
from vdvae.training.update import Update

Work = Callable[[int], object]
"""Does step number `n`; may return before the device is done."""
Prepare = Callable[[Config, VDVAE], Work]
"""Makes the work of a setting, see `setting_of`, on its model."""


def setting_of(
    config: Config, device: torch.device, batch: int | None = None, trains: bool = True, card: Card | None = None
) -> Config:
    """A preset with what is then in force: its `train.batch_size` is the images of one step, without micro-batches, no
    update is skipped, or it would have less to do, and in the place of "auto" stands what a run on this device has.

    Args:
        config: of the preset and overrides.
        device: what it is measured on.
        batch: images of one step; the preset's micro-batch if None, or its whole batch where it has none.
        trains: if not, the work is not compiled and on a device in fp32, as in evaluate.py and sample.py.
        card: the GPU that it is counted for, in the place of the device.

    Raises:
        ValueError: no such batch can be.
    """
    train = config.train
    if batch is not None:
        train = replace(train, batch_size=batch, micro_batch=None)
    if not trains:
        train = replace(train, precision=train.precision if card else "fp32", compile=False, recompute_from=None)
    config = replace(config, train=train)
    train = (resolve_for_card(config, card) if card else resolve(config, World(0, 1, device))).train
    images = train.images_at_once(train.batch_size)
    return replace(config, train=replace(train, batch_size=images, micro_batch=None, skip_threshold=math.inf))


def new_model(setting: Config, device: torch.device) -> VDVAE:
    """A model that begins with the weights of a run."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(setting.train.seed)
    return VDVAE(setting.model).to(device)


def random_images(setting: Config, device: torch.device) -> Tensor:
    """The images of one step, uint8 [B, C, H, W], the same for every setting of one shape."""
    model = setting.model
    shape = (setting.train.batch_size, model.image_size, model.image_size, model.image_channels)
    return to_device(np.random.default_rng(0).integers(0, 256, shape, np.uint8), device)


def training(setting: Config, model: VDVAE) -> Work:
    """Updates as train.py makes them, with one micro-batch each, on images that are on the device."""
    update = Update(model, setting.train, World(0, 1, model.device))
    return partial(update, random_images(setting, model.device))


def sampling(setting: Config, model: VDVAE, temperatures: list[float] | None = None, precision: str = "fp32") -> Work:
    """Batches of samples at temperature 1, or grids with a batch in each row where there are temperatures."""
    batch = setting.train.batch_size
    set_matmul_precision(precision)
    if setting.train.fast:
        fast.prepare(model)
    draw = fast.recorded_if_prepared(lambda noise: model.sample(batch, generator=noise), model)

    def sample(step: int) -> object:
        with autocast(model.device, precision):
            if temperatures:
                return sample_grid(model, temperatures, batch)
            return draw(generator(model.device, 0, Purpose.PICTURES))

    return torch.no_grad()(sample)


def evaluation(setting: Config, model: VDVAE) -> Work:
    """The negative ELBO of one batch."""
    images = random_images(setting, model.device)
    set_matmul_precision("fp32")
    if setting.train.fast:
        fast.prepare(model)
    measure = fast.recorded_if_prepared(lambda images, noise: model(images, noise).nats_per_dim, model)

    def evaluate(step: int) -> object:
        return measure(images, generator(model.device, 0, Purpose.EVALUATION, step))

    return torch.no_grad()(evaluate)
