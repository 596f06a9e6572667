"""Measures how fast this machine is at something, for one preset.

python scripts/benchmark.py data --hps cifar10 --json results/data-cifar10.json
python scripts/benchmark.py data --hps imagenet32 --made_up 700000     without having the set
"""

from __future__ import annotations

import math
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from vdvae import VDVAE, distributed
from vdvae.config import Config, load_config
from vdvae.data.datasets import DATASETS, DataConfig
from vdvae.data.loader import BatchOrder, to_device, training_batches
from vdvae.data.manifest import File, Manifest
from vdvae.data.prepare.sources import Source
from vdvae.data.prepare.write import write_set
from vdvae.data.splits import load_splits
from vdvae.data.storage import Images, pieces
from vdvae.distributed import World
from vdvae.errors import CommandLine, UserError, exit_on_user_error
from vdvae.results import prepare_result, write_result
from vdvae.training.update import Update

MEGABYTE = 1 << 20


class LoaderSpeed(NamedTuple):
    """Of the loader alone, in a fresh process on one core."""

    images_per_second: float
    """Median of several seconds."""
    extra_memory_mb: float | None
    """Its peak, above what the process had before it opened the set; None where the system does not tell."""
    set_size_mb: float
    training_images: int


def main() -> None:
    """Reads the command line, measures, prints a table, and writes JSON where asked to."""
    parser = CommandLine(description="Measures how fast this machine is.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    data = kinds.add_parser("data", help="the loader alone, against what the model can take")
    data.add_argument("--hps", required=True, help="presets, as for train.py")
    data.add_argument("--made_up", type=int, metavar="N", help="measure on N random images instead of the set")
    data.add_argument("--seconds", type=int, default=5, help="how long the loader is measured")
    data.add_argument("--device", default="auto")
    data.add_argument("--json", type=Path, metavar="FILE")
    data.add_argument("overrides", nargs="*", metavar="section.key=value")
    with exit_on_user_error():
        args = parser.parse_args()
        if args.seconds < 1 or (args.made_up is not None and args.made_up < 1000):
            raise UserError("--seconds must be at least 1, and --made_up at least 1000")
        prepare_result(args.json)
        config = load_config(args.hps, args.overrides)
        device = distributed.pick_device(args.device)
        if args.made_up is None:
            load_splits(config.data, config.model)
    with tempfile.TemporaryDirectory(dir=".", prefix=".benchmark-") as folder:
        if args.made_up is not None:
            config = replace(config, data=make_up(config, args.made_up, Path(folder)))
        with get_context("forkserver").Pool(1) as pool:
            loader = pool.apply(measure_loader, (config, args.seconds))
    model = measure_training(config, World(0, 1, device))

    size = config.model.image_size
    print(f"{args.hps}: {loader.training_images:,} images of {size} x {size}, {loader.set_size_mb:,.0f} MB")
    print(f"loader alone, one core   {loader.images_per_second:12,.0f} images/s")
    if loader.extra_memory_mb is not None:
        print(f"  extra memory, peak     {loader.extra_memory_mb:12,.0f} MB")
    print(f"training, {device.type:5}          {model:12,.1f} images/s")
    print(f"loader / training        {loader.images_per_second / model:12,.0f}")
    if args.json:
        about = {
            "hps": args.hps,
            "overrides": args.overrides,
            "made_up": args.made_up,
            "batch": config.train.batch_size,
            "numpy": np.__version__,
        }
        figures = {**loader._asdict(), "training_images_per_second": model}
        write_result(args.json, device, about, figures)


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


def memory_mb(which: str) -> float | None:
    """VmRSS, what this process has now, or VmHWM, the most it ever had; mapped files count."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return int(re.findall(rf"{which}:\s*(\d+) kB", status.read_text())[0]) / 1024


def measure_training(config: Config, world: World) -> float:
    """Images per second of updates with one micro-batch each: the median of three, after one that is not counted."""
    batch = config.train.micro_batch or config.train.batch_size
    update = Update(VDVAE(config.model).to(world.device), replace(config.train, batch_size=batch), world)
    shape = (batch, config.model.image_size, config.model.image_size, config.model.image_channels)
    images = to_device(np.random.default_rng(0).integers(0, 256, shape, np.uint8), world.device)
    rates = []
    for step in tqdm(range(4), "training", leave=False, disable=None):
        start = time.perf_counter()
        update(images, step)
        update.report()  # waits for the device
        rates.append(batch / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def make_up(config: Config, count: int, root: Path) -> DataConfig:
    """A prepared set of random images, of the shape of the preset's own."""
    model = config.model
    shape = (model.image_size, model.image_size, model.image_channels)
    sources = {name: Source(n, partial(noise, n, shape)) for name, n in (("train.npy", count), ("test.npy", 4))}
    splits = DATASETS["cifar10"].rules({name: source.count for name, source in sources.items()})

    def manifest(files: dict[str, File]) -> Manifest:
        return Manifest("made_up", shape[0], shape[2], model.bits, config.data.variant, False, "noise", files, splits)

    write_set(root / "made_up", sources, shape, None, manifest)
    return replace(config.data, dataset="made_up", root=str(root))


def noise(count: int, shape: tuple[int, int, int], start: int) -> Iterator[Images]:
    """Chunks of random images, [n, H, W, C]."""
    generator = np.random.default_rng(start)
    for _, n in pieces(start, count, math.prod(shape)):
        yield generator.integers(0, 256, (n, *shape), np.uint8)


if __name__ == "__main__":
    main()
