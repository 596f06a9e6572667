"""Seconds of settings that take turns, so that a machine that slows down does so for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
from tqdm import tqdm

from measuring.flops import flops_per_image, matmul_rate
from measuring.memory import peak_mb, reset_peak
from measuring.work import Phases, Prepare, Setting, Training
from vdvae import fast
from vdvae.runtime.device import now

STEPS_AHEAD = 5
"""On CUDA the device is waited for after so many steps, so that the host can run ahead as it does in a run."""
PHASE_REPEATS = 5


@dataclass(frozen=True)
class Flops:
    """The work of a training step, and how much of the device does it."""

    gflop_per_step: float
    matmul_tflops: float
    """What the device reaches in large matrix products of the step's precision, TFLOP/s."""
    utilisation: float
    """The step's FLOP/s over that."""


@dataclass(frozen=True)
class Speed:
    """What was measured of one setting."""

    batch: int
    """Images of a step; of a row, where a step is a grid."""
    images_per_second: float
    """By the median step."""
    milliseconds_per_step: float
    """The median; on CUDA, of means over a few steps."""
    milliseconds_quartiles: tuple[float, float]
    first_step_seconds: float
    """From a model on its device to the end of the first step, with all that is loaded and compiled on the way."""
    peak_memory_mb: float | None
    """Peak of a step, with the model; None on a CPU, where `memory` tells."""
    flops: Flops | None = None
    """Arithmetic of a training step; None of other work."""
    phases: Phases | None = None
    """Where the time of a training step goes; None of other work."""


class Measured:
    """A setting that is being measured. The first step is taken here.

    Args:
        setting: what is measured.
        prepare: makes its work, given the model.
        device: where.
        rows: batches of images that a step makes.
    """

    def __init__(self, setting: Setting, prepare: Prepare, device: torch.device, rows: int = 1) -> None:
        self.setting = setting
        self.device = device
        self.images_per_step = rows * setting.config.train.batch_size
        self.peak = 0.0
        model = setting.model(device)
        start = now(device)
        self.work = prepare(setting, model)
        self.work(0)
        self.first_step_seconds = now(device) - start
        self.steps = 1

    def run(self, repeats: int) -> list[float]:
        """Seconds per step of the next steps; on CUDA the mean of every few."""
        reset_peak(self.device)
        seconds = []
        size = STEPS_AHEAD if self.device.type == "cuda" else 1
        end = self.steps + repeats
        for first in tqdm(range(self.steps, end, size), "steps", leave=False, disable=None):
            steps = range(first, min(first + size, end))
            start = now(self.device)
            for step in steps:
                self.work(step)
            seconds.append((now(self.device) - start) / len(steps))
        self.steps = end
        self.peak = max(self.peak, peak_mb(self.device))
        return seconds

    def speed(self, seconds: list[float]) -> Speed:
        """All figures, from the seconds of steps; those of training take some more steps."""
        lower, median, upper = np.percentile(seconds, [25, 50, 75]).tolist()
        flops = phases = None
        train = self.setting.config.train
        if isinstance(self.work, Training):
            work = flops_per_image(self.setting.config.model) * train.batch_size
            rate = matmul_rate(self.device, train.precision)
            flops = Flops(work / 1e9, rate / 1e12, work / median / rate)
            phases = self.work.phases(range(self.steps, self.steps + min(len(seconds), PHASE_REPEATS)))
        return Speed(
            batch=train.batch_size,
            images_per_second=self.images_per_step / median,
            milliseconds_per_step=1000 * median,
            milliseconds_quartiles=(1000 * lower, 1000 * upper),
            first_step_seconds=self.first_step_seconds,
            peak_memory_mb=self.peak if self.device.type == "cuda" else None,
            flops=flops,
            phases=phases,
        )


class Apart:
    """A `Measured` in a process of its own, so that neither the memory nor the settings of one reach the other.

    Where the setting is fast, the C library keeps freed memory, as in train.py. Arguments as for `Measured`, and to be
    pickled.
    """

    def __init__(self, setting: Setting, prepare: Prepare, device: torch.device, rows: int = 1) -> None:
        self.process = ProcessPoolExecutor(1, get_context("forkserver"))
        self.process.submit(_begin, setting, prepare, device, rows).result()

    def run(self, repeats: int) -> list[float]:
        """As `Measured.run`."""
        return self.process.submit(_run, repeats).result()

    def speed(self, seconds: list[float]) -> Speed:
        """As `Measured.speed`; the process ends then."""
        with self.process:
            return self.process.submit(_speed, seconds).result()


_measured: list[Measured] = []
"""In such a process: the one that it measures."""


def _begin(setting: Setting, prepare: Prepare, device: torch.device, rows: int) -> None:
    if setting.config.train.fast:
        fast.keep_freed_memory()
    _measured.append(Measured(setting, prepare, device, rows))


def _run(repeats: int) -> list[float]:
    return _measured[0].run(repeats)


def _speed(seconds: list[float]) -> Speed:
    return _measured[0].speed(seconds)


def take_turns(
    blocks: Sequence[Callable[[int], list[float]]], warmup: int, repeats: int, rounds: int
) -> list[list[float]]:
    """Seconds of the steps of each of `blocks`, which take a number of steps and run in turn, A B A B: `rounds` times
    `repeats` steps, after `warmup` that do not count.
    """
    for block in blocks:
        block(warmup)
    seconds: list[list[float]] = [[] for _ in blocks]
    for _ in range(rounds):
        for block, mine in zip(blocks, seconds, strict=True):
            mine += block(repeats)
    return seconds
