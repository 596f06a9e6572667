"""What the C library does with freed memory, and PyTorch on a GPU. Of C libraries only glibc can be asked."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_ON_HEAP = 32 << 20
"""The largest threshold that glibc takes, in bytes."""
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Asks the C library to keep what a step frees, for the next step, instead of giving it back to the system.

    The system clears every page that it hands out, in the demo 6,000 in each step. The setting holds for the whole
    process, so programs call this, and the library does not.
    """
    if mallopt := _find("mallopt"):
        mallopt(M_MMAP_THRESHOLD, LARGEST_ON_HEAP)
        mallopt(M_TRIM_THRESHOLD, NEVER)


def give_back_freed_memory() -> None:
    """Asks the C library to give back the pages that are free now, and PyTorch those of the GPU: for where much was
    freed in pieces that nothing else fits in. PyTorch keeps pieces of up to 1 MB, as most weights are, for others of
    that size.
    """
    torch.cuda.empty_cache()  # does nothing where CUDA was not used
    if malloc_trim := _find("malloc_trim"):
        malloc_trim(0)


def _find(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
