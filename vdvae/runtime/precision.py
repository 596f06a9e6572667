"""What fp32, tf32, bf16 and fp16 mean: how convolutions multiply. Everything else stays in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
PRECISIONS = get_args(Precision)
AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def set_matmul_precision(precision: str) -> None:
    """Lets CUDA convolutions and matrix products round to tf32, or not; PyTorch's default for convolutions is yes."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


@contextmanager
def in_fp32() -> Iterator[None]:
    """Has the convolutions and matrix products inside in fp32, whatever `set_matmul_precision` said, and those after it
    as before.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    set_matmul_precision("fp32")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision; does nothing for fp32 and tf32."""
    return torch.autocast(device.type, AUTOCAST_TYPES.get(precision), enabled=precision in AUTOCAST_TYPES)
