"""What fp32, tf32, bf16 and fp16 mean: how convolutions multiply. Everything else stays in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
PRECISIONS = get_args(Precision)
AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def has_bf16(device: torch.device) -> bool:
    """Whether a CUDA device multiplies in bf16; on older ones PyTorch would emulate it, slowly."""
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def best_precision(device: torch.device) -> Precision:
    """bf16 on a GPU that has it, fp16 on another, fp32 on a CPU, where few have anything faster."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if has_bf16(device) else "fp16"


def set_matmul_precision(precision: str) -> None:
    """Lets CUDA convolutions and matrix products round to tf32, or not; PyTorch's default for convolutions is yes."""
    _set("high" if precision == "tf32" else "highest", precision == "tf32")


def matmul_precision() -> tuple[str, bool | str]:
    """How matrix products and convolutions multiply now, by whichever of PyTorch's two sets of settings was used; it
    refuses to tell the older one, (str, bool), where the newer, (str, str), has been.
    """
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]


@contextmanager
def in_fp32() -> Iterator[None]:
    """Has the convolutions and matrix products inside in fp32, whatever was set, and those after it as before; by
    algorithms that don't hang on how fast each was when it was tried, so that figures don't either.
    """
    before, cudnn = matmul_precision(), torch.backends.cudnn
    _set(*(("highest", False) if isinstance(before[1], bool) else ("ieee", "ieee")))
    benchmark, cudnn.benchmark = cudnn.benchmark, False
    try:
        yield
    finally:
        cudnn.benchmark = benchmark
        _set(*before)


def _set(products: str, convolutions: bool | str) -> None:
    if isinstance(convolutions, bool):
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
    else:
        torch.backends.cuda.matmul.fp32_precision = products
        torch.backends.cudnn.conv.fp32_precision = convolutions  # type: ignore[attr-defined]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision; does nothing for fp32 and tf32."""
    return torch.autocast(device.type, AUTOCAST_TYPES.get(precision), enabled=precision in AUTOCAST_TYPES)
