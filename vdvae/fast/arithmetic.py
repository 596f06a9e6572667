"""The arithmetic of the blocks as functions of their weights, in few and cheap passes over memory.

States are `[B, C, r, r]`, channels last in memory. Under autocast, what convolutions read is cast once, before its
GELU; the states that blocks add to are kept in the type that they are told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vdvae.model.gaussian import DiagonalGaussian, Latent, Source
from vdvae.model.vdvae import channels_last, draw


class Affine(NamedTuple):
    """The weights of a convolution."""

    weight: Tensor
    """`[K, C, k, k]`"""
    bias: Tensor
    """`[K]`"""


class Bottleneck(NamedTuple):
    """The weights of a `Block`."""

    c1: Affine
    c2: Affine
    c3: Affine
    c4: Affine


class TopDown(NamedTuple):
    """The weights of a `TopDownBlock`."""

    prior: Bottleneck
    enc: Bottleneck
    z_proj: Affine
    resnet: Bottleneck


def inner(weights: Bottleneck, hidden: Tensor) -> Tensor:
    """The middle of a bottleneck, from its first to its last convolution: `[B, middle_channels, r, r]` to the same."""
    hidden = convolution(gelu(hidden), weights.c2)
    hidden = convolution(gelu(hidden), weights.c3)
    return gelu(hidden)


class Way(NamedTuple):
    """How a block is computed, besides its weights."""

    stream: torch.dtype = torch.float32
    """The type of the states under autocast."""
    inner: Callable[[Bottleneck, Tensor], Tensor] = inner
    """Computes the middle of each bottleneck."""


def residual_block(weights: Bottleneck, x: Tensor, activated: Tensor | None, residual: bool, way: Way) -> Tensor:
    """`Block.forward` of a state `[B, C, r, r]`; `activated` is its GELU, None where it is not known yet."""
    hidden = product(gelu(x) if activated is None else activated, weights.c1)
    hidden = way.inner(weights, hidden)
    return add_products(x, [(hidden, weights.c4)], way.stream) if residual else product(hidden, weights.c4)


def top_down_block(
    weights: TopDown,
    x: Tensor,
    condition: Tensor,
    activated: Tensor | None,
    seen: Seen | None,
    source: Source,
    noise: Tensor | None,
    temperature: float,
    residual: bool,
    way: Way,
) -> tuple[Tensor, Latent]:
    """`TopDownBlock.forward` without its concatenation: prior and posterior share the GELU of what both read, and what
    is added to the state is added where the sum lies.

    Args:
        weights: weights of the block.
        x: the state, `[B, width, r, r]`.
        condition: the state that prior and posterior read.
        activated: its GELU; None where it is not known yet.
        seen: what `see` has of the encoder's state; None without a posterior.
        source: the origin of z.
        noise: standard normal `[B, zdim, r, r]`; None where z is given.
        temperature: factor on the standard deviation that z is drawn with.
        residual: whether the last bottleneck's input is added.
        way: how it is computed.
    """
    prior, enc, z_proj, resnet = weights
    activated = gelu(condition) if activated is None else activated
    width, zdim = z_proj.weight.shape[:2]
    (p_weight, x_weight), (p_bias, x_bias) = (part.split((2 * zdim, width)) for part in prior.c4)
    hidden = way.inner(prior, product(activated, prior.c1))
    p, q = gaussian(product(hidden, Affine(p_weight, p_bias))), None
    if seen is not None:
        posterior = add_products(seen.product, [(activated, Affine(seen.by_condition, enc.c1.bias))])
        q = gaussian(product(way.inner(enc, posterior), enc.c4))
    z = draw(source, p, q, noise, temperature)
    x = add_products(x, [(hidden, Affine(x_weight, x_bias)), (z, z_proj)], way.stream)
    return residual_block(resnet, x, None, residual, way), Latent(z, p, q)


class Seen(NamedTuple):
    """What the first convolution of a layer's posterior makes of the encoder's state, and what it has left to do."""

    product: Tensor
    """By the weights for the encoder's state, without bias, `[B, middle, r, r]`."""
    by_condition: Tensor
    """The weights for the condition, `[middle, width, 1, 1]`."""


def see(layers: Sequence[TopDown], activated: Tensor) -> Iterator[Seen]:
    """What the posteriors of some layers make of the encoder's state that all of them read, whose GELU is given,
    `[B, width, r, r]`. As one product, it reads the state once, and sums the state's gradients by itself.
    """
    by_condition, by_state = torch.cat([weights.enc.c1.weight for weights in layers]).chunk(2, 1)
    products = as_state(rows(activated) @ by_state.flatten(1).t(), activated)
    return map(Seen, products.chunk(len(layers), 1), by_condition.chunk(len(layers)))


def gelu(x: Tensor) -> Tensor:
    """GELU of a view that PyTorch takes for contiguous, which has the faster kernel on CPUs."""
    return F.gelu(lowered(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convolution(x: Tensor, weights: Affine) -> Tensor:
    """A convolution that keeps the resolution. On CPUs its bias gets its gradient by a sum of its own, which costs a
    fraction of oneDNN's.
    """
    weight, bias = weights
    if weight.shape[-1] == 1:
        return product(x, weights)
    if x.device.type == "cpu" and not is_lowered(x):
        y: Tensor = _Convolution.apply(x, weight, bias)
        return y
    y = F.conv2d(lowered(x), weight, padding=weight.shape[-1] // 2)
    return y + lowered(bias)[:, None, None]  # as CUDA has it; a compiler takes it into the next GELU


def product(x: Tensor, weights: Affine) -> Tensor:
    """The 1x1 convolution of `x` `[B, C, r, r]`, `[B, K, r, r]`."""
    return as_state(torch.addmm(weights.bias, rows(x), weights.weight.flatten(1).t()), x)


def add_products(
    state: Tensor, products: Sequence[tuple[Tensor, Affine]], stream: torch.dtype = torch.float32
) -> Tensor:
    """state `[B, K, r, r]` + the 1x1 convolutions of any `x` `[B, C, r, r]`, in the type of `stream` under autocast.

    A product that is added where the sum lies saves writing it and reading it again.
    """
    if is_lowered(state):  # a product has fewer bits than the sum
        return sum((product(*one) for one in products), start=state.to(stream))
    total = rows(state) + sum((affine.bias for _, affine in products[1:]), start=products[0][1].bias)
    for x, affine in products:
        total.addmm_(rows(x), affine.weight.flatten(1).t())
    return as_state(total, state)


def gaussian(features: Tensor) -> DiagonalGaussian:
    """The standard deviations side by side, because their exponential is taken twice as fast then."""
    mean, log_std = DiagonalGaussian.from_features(features)
    return DiagonalGaussian(mean, log_std if is_lowered(features) else channels_last(log_std))


def rows(x: Tensor) -> Tensor:
    """`[B, C, r, r]` as `[B*r*r, C]`."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_state(rows: Tensor, like: Tensor) -> Tensor:
    """`[B*r*r, C]` as `[B, C, r, r]`, with the B and r of a state."""
    b, _, h, w = like.shape
    return rows.view(b, h, w, -1).permute(0, 3, 1, 2)


def is_lowered(x: Tensor) -> bool:
    """Whether convolutions of `x` are in bf16 or fp16."""
    return torch.is_autocast_enabled(x.device.type)


def lowered(x: Tensor) -> Tensor:
    """`x` in the type that convolutions of it are in."""
    return x.to(torch.get_autocast_dtype(x.device.type)) if is_lowered(x) else x


class _Convolution(torch.autograd.Function):
    """Its backward pass consists of operations that can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        wanted, padding = [ctx.needs_input_grad[0], True, False], [weight.shape[-1] // 2] * 2
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, wanted
        )
        return by_x, by_weight, rows(gradient).sum(0)
