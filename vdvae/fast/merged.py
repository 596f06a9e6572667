"""Top-down blocks in bf16 or fp16, whose products cost less than the memory that they read and write: as few as can be.

What belongs together of a layer's weights is put together beforehand, for all layers of a resolution at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vdvae.fast.arithmetic import Affine, TopDown, Way, as_state, gelu, lowered, product, residual_block, rows
from vdvae.model.gaussian import DiagonalGaussian, Latent

ALIGNMENT = 8
"""Numbers: Tensor Cores take rows of whole multiples of 16 bytes."""


class Merged(NamedTuple):
    """A layer whose z comes from its posterior: weights that were put together, each for one product, and what the
    layer has of the encoder's state. `[K, C]` takes C channels to K.
    """

    first: Affine
    """The first convolutions of prior and posterior, of the condition that both read: `[2*middle, width]`."""
    gaussians: Affine
    """The last ones, for both Gaussians, of what both have before them: `[4*zdim, 2*middle]`, half of it zeros."""
    last: Tensor
    """For what is added to the state, of what the prior has before its last convolution, of z, of a one for the bias,
    and of what rounds up their number: `[width, K]`.
    """
    seen: Tensor
    """What the posterior's first convolution makes of the encoder's state, without bias: `[B, middle, r, r]`."""


def merge(layers: Sequence[TopDown], activated: Tensor) -> Iterator[Merged]:
    """Merges the weights of some layers that read the same encoder's state, whose GELU is given, `[B, width, r, r]`.
    What they make of it is one product, which reads it once and sums its gradients by itself.
    """
    priors, posteriors, z_projs, _ = zip(*layers, strict=True)
    width, zdim = z_projs[0].weight.shape[:2]
    by_condition, by_state = _stack(w.c1.weight for w in posteriors).chunk(2, 2)  # each [L, middle, width]
    first = torch.cat([_stack(w.c1.weight for w in priors), by_condition], 1)
    first_bias = torch.stack([bias for p, q in zip(priors, posteriors, strict=True) for bias in (p.c1.bias, q.c1.bias)])
    for_p, by_hidden = _stack(w.c4.weight for w in priors).split((2 * zdim, width), 1)  # [L, ..., middle]
    p_bias, bias = _stack(w.c4.bias for w in priors).split((2 * zdim, width), 1)
    for_q, q_bias = _stack(w.c4.weight for w in posteriors), _stack(w.c4.bias for w in posteriors)
    middle = for_q.shape[2]
    gaussians = torch.cat([F.pad(for_p, (0, middle)), F.pad(for_q, (middle, 0))], 1)
    bias = bias + _stack(w.bias for w in z_projs)  # [L, width]
    (by_z,) = _stack(w.weight for w in z_projs).split(zdim, 2)  # one piece, so that gradients lie as the weights do
    last = torch.cat([by_hidden, by_z, F.pad(bias[..., None], (0, -(middle + zdim + 1) % ALIGNMENT))], 2)
    seen = rows(activated) @ by_state.reshape(-1, width).t()  # [B*r*r, L*middle]
    return map(
        Merged,
        map(Affine, first.unbind(), first_bias.view(len(layers), -1).unbind()),
        map(Affine, gaussians.unbind(), torch.cat([p_bias, q_bias], 1).unbind()),
        last.unbind(),
        as_state(seen, activated).chunk(len(layers), 1),
    )


class Result(NamedTuple):
    """What a layer makes of its condition."""

    x: Tensor
    """The next state, `[B, width, r, r]`."""
    latent: Latent
    features: Tensor
    """Means and log standard deviations of the prior, then of the posterior, `[B, 4*zdim, r, r]`, as the product left
    them.
    """


def top_down_block(
    weights: TopDown,
    merged: Merged,
    x: Tensor,
    condition: Tensor,
    activated: Tensor | None,
    noise: Tensor,
    temperature: float,
    residual: bool,
    way: Way,
) -> Result:
    """`TopDownBlock.forward` with z from the posterior.

    Args:
        weights: weights of the block.
        merged: those that were put together.
        x: the state, `[B, width, r, r]`.
        condition: the state that prior and posterior read.
        activated: its GELU; None where it is not known yet.
        noise: standard normal `[B, zdim, r, r]`.
        temperature: factor on the standard deviation that z is drawn with.
        residual: whether the last bottleneck's input is added.
        way: how it is computed.
    """
    hidden, posterior = product(gelu(condition) if activated is None else activated, merged.first).chunk(2, 1)
    hidden, posterior = way.inner(weights.prior, hidden), way.inner(weights.enc, posterior + merged.seen)
    features = product(torch.cat([hidden, posterior], 1), merged.gaussians)
    p, q = map(DiagonalGaussian.from_features, features.chunk(2, 1))
    z = q.sample(noise, temperature)
    ones = merged.last.shape[1] - hidden.shape[1] - z.shape[1]
    factors = torch.cat([rows(hidden), F.pad(lowered(rows(z)), (0, ones), value=1.0)], 1)  # [B*r*r, K]
    x = x.to(way.stream) + as_state(factors @ merged.last.t(), x)
    return Result(residual_block(weights.resnet, x, None, residual, way), Latent(z, p, q), features)


class RatedLatent(Latent):
    """A layer of a training step, whose KL is known. Gradients flow through that alone, and the Gaussians are as the
    products left them: to bring them to fp32 would take passes over memory that the step does not need.
    """

    kl_of_places: Tensor
    rate: Any = None
    """See `Latent.rate`; `sum_rates` sets it."""

    def __new__(cls, kl_of_places: Tensor, z: Tensor, features: Tensor) -> RatedLatent:  # noqa: D102
        gaussians = (DiagonalGaussian(*half.chunk(2, 1)) for half in features.chunk(2, 1))
        latent = super().__new__(cls, z, *gaussians)
        latent.kl_of_places = kl_of_places  # [B, r, r]
        return latent


def sum_rates(latents: Sequence[RatedLatent]) -> None:
    """Sets the rate of each layer, those of one resolution at once."""
    for _, group in groupby(latents, lambda latent: latent.kl_of_places.shape):
        same = list(group)
        places = torch.stack([latent.kl_of_places.flatten(1) for latent in same])  # [L, B, r*r]
        # A product: the gradient of a sum would be an expanded number, of which each compiled block takes a copy first.
        with torch.autocast(places.device.type, enabled=False):
            rates = places @ places.new_ones(places.shape[2])  # [L, B]
        for latent, rate in zip(same, rates, strict=True):
            latent.rate = rate


def _stack(weights: Iterable[Tensor]) -> Tensor:
    """Weights `[K, C, 1, 1]` as `[L, K, C]`, biases `[K]` as `[L, K]`."""
    return torch.stack([weight.flatten(1) if weight.dim() > 1 else weight for weight in weights])
