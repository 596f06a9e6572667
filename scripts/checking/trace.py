"""What a GPU does in one step, by torch.profiler: how many kernels, for how long, and which take longest."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from vdvae.runtime.device import now

LARGEST = 25
"""Kernels that are named."""
NAME = 160
"""Characters of a name that are kept."""


class Trace(NamedTuple):
    """The work of a GPU."""

    kernels: int
    copies: int
    """Copies and fills of memory, which are launched too."""
    busy_milliseconds: float
    """Time of all of them together."""
    largest: list[tuple[str, int, float]]
    """The kernels that take longest: name, how often, milliseconds in all."""


def trace_of(work: Callable[[], object], device: torch.device) -> Trace:
    """Profiles one call; without kernels where the system lets nobody profile."""
    now(device)
    gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else [ProfilerActivity.CPU]
    with profile(activities=gpu) as profiler:
        work()
        now(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        return count(json.loads(path.read_text(errors="replace"))["traceEvents"])


def count(events: Iterable[dict[str, Any]]) -> Trace:
    """Sums up the events of a Chrome trace, whose durations are in microseconds."""
    launched = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    kernels = [event for event in launched if event["cat"] == "kernel"]
    times: Counter[str] = Counter()
    for event in kernels:
        times[event["name"]] += event["dur"]
    calls = Counter(event["name"] for event in kernels)
    largest = [(name[:NAME], calls[name], time / 1000) for name, time in times.most_common(LARGEST)]
    busy = sum(event["dur"] for event in launched)
    return Trace(len(kernels), len(launched) - len(kernels), busy / 1000, largest)
