"""How much there is to compute, and how fast this device computes at best."""

from __future__ import annotations

import statistics

import torch
from torch.utils.flop_counter import FlopCounterMode

from vdvae import baseline
from vdvae.benchmark.work import now
from vdvae.model.config import ModelConfig
from vdvae.model.vdvae import VDVAE
from vdvae.precision import AUTOCAST_TYPES

PRODUCTS = 5


def flops_per_image(config: ModelConfig, backward: bool = True) -> int:
    """Floating-point operations of convolutions, a multiply-add being two: of a forward and a backward pass, or of a
    forward pass alone. Counted on the plainest form of the model, without memory for it, so that no way of computing
    it changes the number.
    """
    with torch.device("meta"):
        model = VDVAE(config)
        images = torch.empty(1, config.image_channels, config.image_size, config.image_size, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        loss = baseline.terms(model, images).nats_per_dim.mean()
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
