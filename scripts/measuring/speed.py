"""Seconds of settings that take turns, so that a machine that slows down does so for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from measuring.flops import flops_per_image, matmul_rate
from measuring.memory import peak_mb, reset_peak
from measuring.work import Prepare, Work, new_model
from vdvae import fast
from vdvae.config import Config
from vdvae.errors import UserError
from vdvae.runtime.device import now

STEPS_AHEAD = 5
"""On CUDA the device is waited for after so many steps, so that the host can run ahead as it does in a run."""


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
    """Peak of a step after the first, with the model; None on a CPU, where `memory` tells."""
    flops: Flops | None
    """Arithmetic of a training step; None of other work."""


class Measured:
    """A setting that is measured in a process of its own, so that neither the memory nor the settings of one reach the
    other. Where it is fast, the C library keeps freed memory, as in train.py. The first step is taken here.

    On a GPU, what a setting does not need between its turns is the other's: it gives the memory of its activations back
    after each turn, and takes it again in a step that does not count. Weights, moments and the memory of a CUDA graph
    stay.

    Args:
        setting: what is measured.
        prepare: makes its work, given the model; to be pickled.
        device: device to compute on.

    Raises:
        UserError: the device has too little memory, beside what other settings hold.
    """

    def __init__(self, setting: Config, prepare: Prepare, device: torch.device) -> None:
        self.setting = setting
        self.device = device
        self.process = ProcessPoolExecutor(1, get_context("forkserver"))
        self.first_step_seconds = self._ask(begin, setting, prepare, device)
        self.steps = 1

    def run(self, repeats: int) -> list[float]:
        """Seconds per step of the next steps; on CUDA the mean of every few."""
        first = self.steps + (self.device.type == "cuda")
        if first > self.steps:
            self._ask(timed, range(self.steps, first), self.device)
        self.steps = first + repeats
        seconds: list[float] = self._ask(timed, range(first, self.steps), self.device)
        if self.device.type == "cuda":
            self._ask(torch.cuda.empty_cache)
        return seconds

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns in this setting's process."""
        try:
            return self.process.submit(function, *arguments).result()
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{self.device} has too little memory for {self.setting.train.batch_size} images, beside what else is "
                "there; take a smaller --batch or, with --compare, measure each setting on its own"
            ) from error

    def speed(self, seconds: list[float], rows: int = 1, trains: bool = True) -> Speed:
        """All figures, from the seconds of steps; the process ends then.

        Args:
            seconds: of each step, from `run`.
            rows: batches of images that a step makes.
            trains: whether a step is one of training, whose arithmetic is counted.
        """
        lower, median, upper = np.percentile(seconds, [25, 50, 75]).tolist()
        train, flops = self.setting.train, None
        with self.process:
            peak = self._ask(peak_mb, self.device)
            if trains:
                rate = self._ask(matmul_rate, self.device, train.precision)
                work = flops_per_image(self.setting.model) * train.batch_size
                flops = Flops(work / 1e9, rate / 1e12, work / median / rate)
        return Speed(
            batch=train.batch_size,
            images_per_second=rows * train.batch_size / median,
            milliseconds_per_step=1000 * median,
            milliseconds_quartiles=(1000 * lower, 1000 * upper),
            first_step_seconds=self.first_step_seconds,
            peak_memory_mb=peak if self.device.type == "cuda" else None,
            flops=flops,
        )


_works: list[Work] = []
"""In the process of a setting: its work, last."""


def begin(setting: Config, prepare: Prepare, device: torch.device) -> float:
    """Prepares the work of this process, takes the first step, and returns its seconds."""
    if setting.train.fast:
        fast.keep_freed_memory()
    model = new_model(setting, device)
    start = now(device)
    work = prepare(setting, model)
    work(0)
    seconds = now(device) - start
    _works.append(work)
    reset_peak(device)
    return seconds


def timed(steps: range, device: torch.device) -> list[float]:
    """Seconds per step of the steps with these numbers; on CUDA the mean of every few."""
    seconds = []
    size = STEPS_AHEAD if device.type == "cuda" else 1
    for first in tqdm(range(0, len(steps), size), "steps", leave=False, disable=None):
        few = steps[first : first + size]
        start = now(device)
        for step in few:
            _works[-1](step)
        seconds.append((now(device) - start) / len(few))
    return seconds


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
