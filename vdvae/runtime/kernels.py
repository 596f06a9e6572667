"""Which algorithms cuDNN, cuBLAS and PyTorch take: the fastest, or those that give the same bits every time."""

from __future__ import annotations

import os

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""The variable that has cuBLAS use one workspace for all that it does at a time. It looks at it when it starts."""
REPEATABLE = (":4096:8", ":16:8")
"""The values with which cuBLAS gives the same bits; the first is the faster one, with 24 MB more."""


def choose_kernels(deterministic: bool = False) -> None:
    """For programs whose shapes are the same in every step; libraries leave this to them. Call it before CUDA starts.

    Args:
        deterministic: whether only algorithms are taken that give the same bits every time, an operation without one
            being an error. If not, cuDNN times its algorithms for each shape that is new, and keeps the fastest: which
            that is can change from run to run, and with it the last bits.
    """
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic)
    # Or PyTorch would fill all memory that it hands out, although nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = not deterministic  # type: ignore[attr-defined]
    if deterministic and os.environ.get(WORKSPACE) not in REPEATABLE:
        os.environ[WORKSPACE] = REPEATABLE[0]
