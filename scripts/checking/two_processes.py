"""Two processes on one card train as one does. They talk over gloo, since NCCL refuses to share a card."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from checking.setting import CheckFailedError, Figures, Setting
from checking.steps import NEVER, differences, faults, in_the_widest_gap, travel_with_skips
from checking.trajectory import Trajectory
from vdvae.runtime.processes import World

PROCESSES = 2
SIZES = ["train.batch_size=4", "train.micro_batch=1"]
"""The same micro-batches, with the same noise, for one process and for two."""
MODES = ("eager", "recorded")
"""The all-reduce of what is recorded comes after the record."""


def check(setting: Setting) -> Iterator[Figures]:
    """The demo in this process alone, then in two, with skipped updates."""
    steps, world = 12 if setting.on_gpu else 4, World(0, 1, setting.device)
    threshold = in_the_widest_gap(travel_with_skips(SIZES, "eager", NEVER, steps, world).norms)
    alone = travel_with_skips(SIZES, "eager", threshold, steps, world)
    yield {"steps": steps, "bits_per_dim": alone.bits_per_dim, "skipped": alone.skipped}
    told, failed = [], []
    for mode, ranks in together(setting, threshold, steps).items():
        found = differences(alone, ranks[0])
        yield {mode: found}
        told.append(f"{mode} {found['losses']:.1e}")
        yield {"told": f"losses of two processes differ from those of one by {', '.join(told)}"}
        failed += [f"{mode}: {fault}" for fault in faults(alone, ranks[0], found)]
        if not torch.equal(ranks[0].moved, ranks[1].moved):
            failed.append(f"{mode}: the two processes came to different weights")
    if failed:
        raise CheckFailedError("; ".join(failed))


def together(setting: Setting, threshold: float, steps: int) -> dict[str, list[Trajectory]]:
    """What became of the model in each mode, in each of the processes."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        meet = Path(folder, "meet").as_uri()
        asked = [pool.submit(one, setting, rank, meet, threshold, steps) for rank in range(PROCESSES)]
        ranks = [rank.result() for rank in asked]
    return {mode: [_from_numpy(rank[mode]) for rank in ranks] for mode in MODES}


def one(setting: Setting, rank: int, meet: str, threshold: float, steps: int) -> dict[str, dict[str, Any]]:
    """What one of the processes has to say of each mode; they find each other by a file."""
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=PROCESSES)
    world = World(rank, PROCESSES, setting.device)
    found = {mode: travel_with_skips(SIZES, mode, threshold, steps, world)._asdict() for mode in MODES}
    dist.barrier()  # with torch 2.6, gloo can hang where one process leaves before the other
    dist.destroy_process_group()
    return {mode: {**figures, "moved": figures["moved"].numpy()} for mode, figures in found.items()}


def _from_numpy(figures: dict[str, Any]) -> Trajectory:
    """A tensor between processes would need its sender to live on."""
    return Trajectory(**{**figures, "moved": torch.from_numpy(figures["moved"])})
