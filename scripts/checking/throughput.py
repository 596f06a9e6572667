"""Speed and memory of one kind of training step, on random images; and what the GPU does in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from measuring.memory import MEGABYTE, peak_mb
from measuring.speed import STEPS_AHEAD, begin, timed
from measuring.work import setting_of, training

from checking.modes import overrides
from checking.setting import Figures, Setting
from checking.trace import Trace, trace_of
from vdvae.config import load_config
from vdvae.runtime.device import now
from vdvae.runtime.precision import best_precision

SECONDS = 6.0
"""The time for which steps are measured, after the first few."""


def check(setting: Setting, batch: int, mode: str, profiled: bool) -> Iterator[Figures]:
    """Images per second of the preset at one micro-batch; the first step, which compiles and records; peak memory; and,
    where it is to be profiled, the kernels of one step.
    """
    device, on_gpu = setting.device, setting.on_gpu
    batch = batch if on_gpu else 2
    keys = [f"train.precision={best_precision(device)}", f"train.batch_size={batch}", f"train.micro_batch={batch}"]
    config = setting_of(load_config(setting.hps, [*keys, *overrides(mode, device)]), device, batch)
    config = replace(config, train=replace(config.train, micro_batch=batch))
    yield {"batch": batch, "mode": mode, "precision": config.train.precision}

    yield {"first_step_seconds": begin(config, training, device)}
    size = STEPS_AHEAD if on_gpu else 1
    timed(range(1, 1 + size), device)
    seconds: list[float] = []
    start, step = now(device), 1 + size
    while len(seconds) < 2 or (on_gpu and now(device) - start < SECONDS):
        seconds += timed(range(step, step + size), device)
        step += size
    lower, median, upper = np.percentile(seconds, [25, 50, 75]).tolist()
    told = f"{batch / median:,.1f} images/s"
    yield {
        "told": told,
        "images_per_second": batch / median,
        "milliseconds_per_step": 1000 * median,
        "milliseconds_quartiles": (1000 * lower, 1000 * upper),
        "timed_steps": step - 1 - size,
    }
    if on_gpu:
        memory = {
            "peak_memory_mb": peak_mb(device),
            "reserved_memory_mb": torch.cuda.memory_reserved(device) / MEGABYTE,
        }
        told += f", {memory['peak_memory_mb']:,.0f} MB"
        yield {**memory, "told": told}
    if on_gpu and profiled:
        trace = trace_of(lambda: timed(range(step, step + 1), device), device)
        yield {"trace": trace._asdict(), "told": f"{told}, {told_of(trace, median)}"}


def told_of(trace: Trace, seconds: float) -> str:
    """The kernels of a step in words."""
    if not trace.kernels:
        return "the profiler sees no kernels here"
    return f"{trace.kernels:,} kernels, GPU busy {trace.busy_milliseconds / seconds / 1000:.0%}"
