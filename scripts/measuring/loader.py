"""The loader alone, on the preset's set or on a made-up one."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from measuring.memory import MEGABYTE, memory_mb
from vdvae.config import Config, DataConfig
from vdvae.data.loader import BatchOrder, training_batches
from vdvae.data.manifest import File, Manifest
from vdvae.data.prepare.sources import Source
from vdvae.data.prepare.write import write_set
from vdvae.data.prepared import load_splits
from vdvae.data.splits import DATASETS
from vdvae.data.storage import Images, pieces
from vdvae.runtime.processes import World


class LoaderSpeed(NamedTuple):
    """Speed and memory of the loader alone, in a fresh process on one core."""

    images_per_second: float
    """Median of several seconds."""
    extra_memory_mb: float | None
    """Its peak, above what the process had before it opened the set; None where the system does not tell."""
    set_size_mb: float
    training_images: int


def measure_loader(config: Config, seconds: int) -> LoaderSpeed:
    """Batches of the preset's global batch in its random order, for some seconds."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    before = memory_mb("VmRSS")
    splits = load_splits(config.data, config.model)
    order = BatchOrder(len(splits.train), config.train.batch_size, config.train.seed)
    batches = training_batches(splits.train, order, 0, World(0, 1, torch.device("cpu")), config.data)
    next(batches)
    rates = []
    for _ in range(seconds):
        start, images = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < 1:
            images += len(next(batches))
        rates.append(images / passed)
    size = len(splits.train) * math.prod(splits.manifest.image_shape) / MEGABYTE
    extra = None if before is None else (memory_mb("VmHWM") or 0.0) - before
    return LoaderSpeed(statistics.median(rates), extra, size, len(splits.train))


def make_up(config: Config, count: int, root: Path) -> DataConfig:
    """A prepared set of random images, of the shape of the preset's own."""
    model = config.model
    shape = (model.image_size, model.image_size, model.image_channels)
    splits = DATASETS["cifar10"].rules({"train.npy": count})

    def noise(start: int) -> Iterator[Images]:
        generator = np.random.default_rng(start)
        for _, n in pieces(start, count, math.prod(shape)):
            yield generator.integers(0, 256, (n, *shape), np.uint8)  # [n, H, W, C]

    def manifest(files: dict[str, File]) -> Manifest:
        return Manifest("made_up", shape[0], shape[2], model.bits, config.data.variant, False, "noise", files, splits)

    write_set(root / "made_up", {"train.npy": Source(count, noise)}, shape, None, manifest)
    return replace(config.data, dataset="made_up", root=str(root))
