"""Where tensors live: which device, what hardware it is, and when it has done its work."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path

import torch

from vdvae.launch import read_local_rank


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is this process's CUDA device where there is one, else the CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "cpu"
    if name == "cuda" and has_cuda:
        name = f"cuda:{read_local_rank()}"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device {name!r} here; use auto or cpu") from error
    return torch.device(name)


def describe(device: torch.device) -> str:
    """The hardware behind a device, for whoever reads a result."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or platform.machine()}"


def now(device: torch.device) -> float:
    """Seconds on a clock, when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
