"""Convolutions, the bottleneck of a residual block, pooling and unpooling (paper Section 4 and Figure 3).

Inside the networks a state is `[B, r, r, C]`: the channels of a pixel lie side by side. That is the layout in which
images are stored, in which CPUs and tensor cores convolve, and in which a 1x1 convolution is a matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def conv(in_channels: int, out_channels: int, kernel_size: int = 1, scale: float = 1.0) -> Conv:
    """A convolution that keeps the resolution: PyTorch's initial weights times `scale`, bias 0."""
    layer = Conv(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    layer.weight.data.mul_(scale)
    if kernel_size > 1:
        layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return layer


class Conv(nn.Conv2d):
    """A convolution of states; one of 1x1 as the matrix product that it is."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, r, r, in_channels]` to `[B, r, r, out_channels]`."""
        assert self.bias is not None
        if self.kernel_size == (1, 1):
            return pointwise(x, self.weight, self.bias)
        y: Tensor = super().forward(x.permute(0, 3, 1, 2))  # the strides say that the channels lie side by side
        return y.permute(0, 2, 3, 1)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The 1x1 convolution of `x` `[B, r, r, C]` with weights `[K, C, 1, 1]`; bias `[K]`, or `[B*r*r, K]`."""
    return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight.flatten(1).t()).view(*x.shape[:-1], -1)


def add_products(state: Tensor, bias: Tensor, *products: tuple[Tensor, Tensor]) -> Tensor:
    """state `[B, r, r, K]` + bias `[K]` + the 1x1 convolutions of any `x` `[B, r, r, C]` with weights `[K, C, 1, 1]`.

    A product that is added where the sum lies saves writing it and reading it again.
    """
    total = state.reshape(-1, state.shape[-1]) + bias  # [B*r*r, K]
    for x, weight in products:
        factors = x.reshape(-1, x.shape[-1]), weight.flatten(1).t()
        if torch.is_autocast_enabled(x.device.type):
            total = total + factors[0] @ factors[1]  # the product has fewer bits than the sum
        else:
            total.addmm_(*factors)
    return total.view_as(state)


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

    def inner(self, hidden: Tensor) -> Tensor:
        """What is between the first and the last convolution, `[B, r, r, middle_channels]` to the same."""
        hidden = self.c2(F.gelu(hidden))
        hidden = self.c3(F.gelu(hidden))
        return F.gelu(hidden)


class ResidualBlock(Bottleneck):
    """A bottleneck with its first GELU and its residual connection, or without the latter (paper Figure 5, "FFN")."""

    recompute = False
    """See `run`."""

    def __init__(
        self,
        in_channels: int,
        middle_channels: int,
        out_channels: int,
        resolution: int,
        last_scale: float,
        connected: bool = True,
    ) -> None:
        super().__init__(in_channels, middle_channels, out_channels, resolution, last_scale)
        self.connected = connected

    def forward(self, state: Tensor) -> Tensor:
        """Maps `[B, r, r, in_channels]` to the same."""
        hidden = self.inner(self.c1(F.gelu(state)))
        assert self.c4.bias is not None
        if not self.connected:
            return pointwise(hidden, self.c4.weight, self.c4.bias)
        return add_products(state, self.c4.bias, (hidden, self.c4.weight))


def run(recompute: bool, function: Callable[..., Any], *inputs: Any) -> Any:
    """function(*inputs), of which, if it is to be recomputed, only the inputs are kept for the backward pass, which
    runs it again: "activation checkpointing" (Chen et al. 2016).
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)  # noise is among the inputs
    return function(*inputs)


def initial_scale(residual_scaling: bool, blocks: int) -> float:
    """Factor on the initial weights of what N blocks add to a state: 1/sqrt(N) (paper Section 4, Table 3), or none."""
    return blocks**-0.5 if residual_scaling else 1.0


def pool(x: Tensor, factor: int) -> Tensor:
    """Average pooling: `[B, r, r, C]` to `[B, r/factor, r/factor, C]`."""
    return F.avg_pool2d(x.permute(0, 3, 1, 2), kernel_size=factor, stride=factor).permute(0, 2, 3, 1)


class NearestUnpool(nn.Module):
    """Nearest-neighbour upsampling, between widths as `match_channels` has it (paper Section 4, Figure 5)."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.channels = channels
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, r, r, C]` to `[B, r*factor, r*factor, channels]`."""
        x = match_channels(x, self.channels).permute(0, 3, 1, 2)
        return F.interpolate(x, scale_factor=self.factor).permute(0, 2, 3, 1)


class ConvUnpool(nn.ConvTranspose2d):
    """A learned upsampler, in which every pixel becomes factor x factor new ones (paper Figure 5)."""

    def __init__(self, in_channels: int, channels: int, factor: int) -> None:
        super().__init__(in_channels, channels, factor, stride=factor)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Maps `[B, r, r, in_channels]` to `[B, r*factor, r*factor, channels]`."""
        y: Tensor = super().forward(x.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1)


def match_channels(x: Tensor, channels: int) -> Tensor:
    """Drops trailing channels of `[B, r, r, C]`, or appends zeros, where two resolutions differ in width."""
    if x.shape[-1] >= channels:
        return x[..., :channels]
    return F.pad(x, (0, channels - x.shape[-1]))
