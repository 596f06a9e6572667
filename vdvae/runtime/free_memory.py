"""How much memory is free for a process on its device."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from vdvae.launch import read_local_size
from vdvae.runtime.device import control_groups


def free_memory(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that are free now on a CUDA device; or on a CPU, for each of the processes that torchrun started here, the
    least of what the system has and what the limits of its containers leave.

    Args:
        device: the device of this process, which shares a GPU with no other.
        root: the folder of /proc and /sys.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    file = root / "proc/meminfo"
    found = re.search(r"MemAvailable:\s*(\d+) kB", file.read_text()) if file.is_file() else None
    # Other systems do not tell what is free, but what there is.
    free = int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([free, *_left_by_limits(root)]) // read_local_size())


def _left_by_limits(root: Path) -> Iterator[int]:
    """Bytes that each control group of this process with a limit has left; files in its cache give way."""
    for group, version in control_groups("memory", root):
        limit, usage = ("limit_in_bytes", "usage_in_bytes") if version == 1 else ("max", "current")
        with suppress(OSError, ValueError):  # no limit is `max`, or more than there can be
            left = int((group / f"memory.{limit}").read_text()) - int((group / f"memory.{usage}").read_text())
            cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
            yield left + (int(cached[1]) if cached else 0)
