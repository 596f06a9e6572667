"""How much memory a process, or a CUDA device, holds and has held; and what a training step takes of it."""

from __future__ import annotations

import re
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from measuring.work import new_model, training
from vdvae.config import Config
from vdvae.counting import memory as counting
from vdvae.errors import UserError
from vdvae.runtime.device import now

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class StepMemory:
    """The most that a training step holds, in MB of 2**20 bytes."""

    batch: int
    peak_mb: float
    """Above what there was before the model was built: all that training takes."""
    step_mb: float
    """Above what there was when model, EMA, gradient and optimiser were built: Adam's moments, activations."""


@dataclass(frozen=True)
class CountedMemory:
    """What a training step holds by the count, in MB of 2**20 bytes; see `vdvae.counting.memory.StepBytes`."""

    batch: int
    peak_mb: float
    state_mb: float
    saved_mb: float


def counted_memory(setting: Config) -> CountedMemory:
    """Memory of an update, counted on fake tensors: any model fits."""
    counted = counting.memory_of_step(setting, setting.train.batch_size)
    megabytes = (n / MEGABYTE for n in (counted.peak, counted.state, counted.saved))
    return CountedMemory(setting.train.batch_size, *megabytes)


def memory_of_step(setting: Config, device: torch.device) -> StepMemory:
    """Memory of the first two updates, in a fresh process: the first may be recorded and the second repeated.

    Raises:
        UserError: the system does not tell, or ended the process.
    """
    if device.type == "cpu" and memory_mb("VmHWM") is None:
        raise UserError("this system does not tell the memory of a process; Linux does")
    with ProcessPoolExecutor(1, get_context("forkserver")) as pool:
        try:
            return pool.submit(_memory_of_step, setting, device).result()
        except BrokenProcessPool as error:
            raise UserError("the system ended the process of the step, most likely for lack of memory") from error


def _memory_of_step(setting: Config, device: torch.device) -> StepMemory:
    torch.optim.AdamW([torch.zeros(1)])  # the first one imports much
    before = held_mb(device)
    update = training(setting, new_model(setting, device))
    built = held_mb(device)
    reset_peak(device)
    update(0)
    update(1)
    now(device)
    peak = peak_mb(device)
    return StepMemory(setting.train.batch_size, peak - before, peak - built)


def memory_mb(which: str) -> float | None:
    """VmRSS, what this process has now, or VmHWM, the most it ever had; mapped files count. None where the system
    does not tell.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    found = re.search(rf"{which}:\s*(\d+) kB", status.read_text())
    return int(found[1]) / 1024 if found else None


def held_mb(device: torch.device) -> float:
    """What tensors on a CUDA device, or this process, hold now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / MEGABYTE
    return memory_mb("VmRSS") or 0.0


def peak_mb(device: torch.device) -> float:
    """The most that they held since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MEGABYTE
    return memory_mb("VmHWM") or 0.0


def reset_peak(device: torch.device) -> None:
    """Lets the peak begin at what is held now; not of a process where the system does not allow it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
