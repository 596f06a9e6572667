"""Convolutions, the bottleneck of a residual block, pooling and unpooling (paper Section 4 and Figure 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(in_channels: int, out_channels: int, kernel_size: int = 1, scale: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps the resolution: PyTorch's initial weights times `scale`, bias 0.

    Images are stored, and so arrive, with their channels last; convolutions keep that layout, which is the faster one
    on CPUs and on tensor cores, if their weights have it too.
    """
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    layer.weight.data.mul_(scale)
    if kernel_size > 1:
        layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return layer


class Bottleneck(nn.Module):
    """1x1, 3x3, 3x3, 1x1 convolutions, each after a GELU (paper Figure 3, "res block").

    The caller applies the first GELU, because blocks that read the same state can share it, and adds the residual
    connection where there is one. Below 4x4 pixels the 3x3 convolutions are 1x1, as in the released code.

    Args:
        in_channels: channels read.
        middle_channels: channels of the three inner states.
        out_channels: channels returned.
        resolution: height and width of the states.
        last_scale: factor on the last convolution's initial weights: 1/sqrt(N) for residual blocks, 0 for priors.
    """

    def __init__(
        self, in_channels: int, middle_channels: int, out_channels: int, resolution: int, last_scale: float = 1.0
    ) -> None:
        super().__init__()
        kernel_size = 3 if resolution > 2 else 1
        self.c1 = conv(in_channels, middle_channels)
        self.c2 = conv(middle_channels, middle_channels, kernel_size)
        self.c3 = conv(middle_channels, middle_channels, kernel_size)
        self.c4 = conv(middle_channels, out_channels, scale=last_scale)

    def forward(self, activated: Tensor) -> Tensor:
        """Maps gelu(state) `[B, in_channels, r, r]` to `[B, out_channels, r, r]`."""
        hidden = self.c1(activated)
        hidden = self.c2(F.gelu(hidden))
        hidden = self.c3(F.gelu(hidden))
        return self.c4(F.gelu(hidden))


def pool(x: Tensor, factor: int) -> Tensor:
    """Average pooling: `[B, C, r, r]` to `[B, C, r/factor, r/factor]`."""
    return F.avg_pool2d(x, kernel_size=factor, stride=factor)


def unpool(x: Tensor, factor: int) -> Tensor:
    """Nearest-neighbour upsampling: `[B, C, r, r]` to `[B, C, r*factor, r*factor]` (paper Section 4, Figure 5)."""
    return F.interpolate(x, scale_factor=factor)


def match_channels(x: Tensor, channels: int) -> Tensor:
    """Drops trailing channels of `[B, C, r, r]`, or appends zeros, where two resolutions differ in width."""
    if x.shape[1] >= channels:
        return x[:, :channels]
    return F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))
