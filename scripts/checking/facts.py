"""The card: what it is, and what it reaches in large products and copies."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import torch
from measuring.flops import matmul_rate

from checking.setting import Figures, Setting
from vdvae.runtime.device import available_cores, describe, now
from vdvae.runtime.precision import has_bf16, set_matmul_precision

COPIES = 10


def check(setting: Setting) -> Iterator[Figures]:
    """Names and versions; TFLOP/s of matrix products by precision; GB/s of memory, by copies."""
    device = setting.device
    yield {"card": describe(device), "torch": torch.__version__, "cores": available_cores(), "cpus": os.cpu_count()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        yield {
            "driver": driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "capability": "{}.{}".format(*torch.cuda.get_device_capability(device)),
            "architectures": torch.cuda.get_arch_list(),
            "memory_gb": properties.total_memory / 1e9,
            "free_memory_gb": torch.cuda.mem_get_info(device)[0] / 1e9,
            "multiprocessors": properties.multi_processor_count,
            "bf16": has_bf16(device),
        }
    copied = copy_rate(device)
    yield {"copy_gb_per_second": copied}
    rates = {}
    for precision in ("fp32", "tf32", "bf16", "fp16") if device.type == "cuda" else ("fp32",):
        set_matmul_precision(precision)
        rates[precision] = matmul_rate(device, precision) / 1e12
        yield {"matmul_tflops": rates}
    told = ", ".join(f"{precision} {rate:.3g}" for precision, rate in rates.items())
    yield {"told": f"{describe(device)}, {copied:,.0f} GB/s in copies, TFLOP/s in products: {told}"}


def driver() -> str | None:
    """The driver's version; None where nvidia-smi is not there or does not answer."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.split()[0]
    except (OSError, IndexError, subprocess.SubprocessError):
        return None


def copy_rate(device: torch.device) -> float:
    """GB/s read and written by copies of a large tensor: the fastest of a few."""
    source = torch.zeros((1 << 30) if device.type == "cuda" else (1 << 26), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    seconds = []
    for _ in range(COPIES):
        start = now(device)
        target.copy_(source)
        seconds.append(now(device) - start)
    return 2 * source.numel() / min(seconds) / 1e9
