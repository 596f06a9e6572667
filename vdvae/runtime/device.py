"""Where tensors live: which device, what hardware it is, and when it has done its work."""

from __future__ import annotations

import math
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import suppress
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
    cores, all_cores = available_cores(), os.cpu_count()
    told = f"{cores}" if cores == all_cores else f"{cores} of {all_cores}"
    return f"{told} cores of {names[0] if names else platform.processor() or platform.machine()}"


def available_cores(root: Path = Path("/")) -> int:
    """The CPU cores that this process may use: those that it is bound to, by taskset or Slurm, or as many as its
    container's quota of CPU time comes to, rounded up.

    Args:
        root: the folder of /proc and /sys.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([bound, *(math.ceil(quota) for quota in _cpu_quotas(root))])


def _cpu_quotas(root: Path) -> Iterator[float]:
    """The CPU time, in cores, that this process's control group may take, and each one above it that has a limit."""
    for group, version in control_groups("cpu", root):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if version == 1 else ("cpu.max",)
        with suppress(OSError, ValueError):  # no limit is `max`, or -1
            quota, period = (float(n) for name in names for n in (group / name).read_text().split())
            if quota > 0 and period > 0:
                yield quota / period


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, int]]:
    """The folders of this process's control groups, where limits may stand, from the outermost on, each with the
    version of its files, 1 or 2; some may not be there.

    Args:
        controller: what is limited, `cpu` or `memory`.
        root: the folder of /proc and /sys.
    """
    file = root / "proc/self/cgroup"
    for line in file.read_text().splitlines() if file.is_file() else ():
        _, controllers, place = line.split(":", 2)  # version 2 names no controllers
        if controllers and controller not in controllers.split(","):
            continue
        parts = [part for part in place.split("/") if part not in ("", "..")]  # .. leads out of a container
        for mount in (controllers, controller) if controllers else ("", "unified"):
            for depth in range(len(parts) + 1):  # the host's path may not be there in a container
                yield root.joinpath("sys/fs/cgroup", mount, *parts[:depth]), 1 if controllers else 2


def now(device: torch.device) -> float:
    """Seconds on a clock, when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
