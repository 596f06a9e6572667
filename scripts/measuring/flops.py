"""How much there is to compute, and how fast this device computes at best."""

from __future__ import annotations

import statistics

import torch
from torch.utils.flop_counter import FlopCounterMode

from vdvae.model.config import ModelConfig
from vdvae.model.vdvae import VDVAE
from vdvae.runtime.device import now
from vdvae.runtime.precision import AUTOCAST_TYPES

PRODUCTS = 5


def flops_per_image(config: ModelConfig, backward: bool = True) -> int:
    """Floating-point operations of an image's convolutions, a multiply-add being two: of a forward and a backward pass,
    or of a forward pass alone. Counted on the plain model, without memory for it, so that nothing that makes it fast
    changes the number.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = VDVAE(config)
        loss = model(torch.empty(1, *model.image_shape, dtype=torch.uint8)).nats_per_dim.mean()
        if backward:
            loss.backward()
    return counter.get_total_flops()


def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOP/s in products of large square matrices of a precision that is set: the median of a few."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device, dtype=AUTOCAST_TYPES.get(precision, torch.float32))
    seconds = []
    for _ in range(1 + PRODUCTS):
        start = now(device)
        torch.mm(a, b)
        seconds.append(now(device) - start)
    return 2 * size**3 / statistics.median(seconds[1:])
