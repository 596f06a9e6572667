"""How freed memory is kept for reuse, on CPUs."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_ON_HEAP = 32 << 20
"""Bytes; the most that glibc takes."""
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Asks the C library to keep what a step frees, for the next step, instead of giving it back to the system.

    The system clears every page that it hands out: without this, the demo's step begins 6,000 pages anew. Only glibc
    knows the request; elsewhere nothing changes. It holds for the whole process, so it is for programs to make.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, LARGEST_ON_HEAP)
        mallopt(M_TRIM_THRESHOLD, NEVER)
