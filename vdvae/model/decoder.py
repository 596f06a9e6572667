"""The top-down network: one latent layer per block (paper Figure 3, right)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdvae.model.blocks import (
    Bottleneck,
    ConvUnpool,
    NearestUnpool,
    ResidualBlock,
    add_products,
    conv,
    initial_scale,
    pointwise,
    run,
)
from vdvae.model.blockspec import DecoderSpec
from vdvae.model.config import ModelConfig
from vdvae.model.gaussian import DiagonalGaussian, sample_and_rate
from vdvae.model.likelihood import MixtureHead

Source = Tensor | Literal["posterior", "prior"]
"""Where a layer's z comes from: given as a tensor, [B, zdim, r, r], or drawn from one of its two distributions."""


class Latent(NamedTuple):
    """One latent layer of a pass; every tensor but the last is [B, zdim, r, r]."""

    z: Tensor
    prior: DiagonalGaussian
    """p(z_i | z_<i)"""
    posterior: DiagonalGaussian | None
    """q(z_i | z_<i, x); None where no image was given, or z is drawn from the prior"""
    rate: Tensor | None = None
    """KL(q || p) of the whole layer in nats, [B]; known where z was drawn from the posterior"""

    @property
    def kl(self) -> Tensor:
        """KL(q || p) of each latent variable, in nats."""
        return self._known_posterior.kl(self.prior)

    @property
    def log_prior(self) -> Tensor:
        """log p(z_i | z_<i) of each latent variable, in nats; whatever temperature z was drawn at."""
        return self.prior.log_density(self.z)

    @property
    def log_posterior(self) -> Tensor:
        """log q(z_i | z_<i, x) of each latent variable, in nats; whatever temperature z was drawn at."""
        return self._known_posterior.log_density(self.z)

    @property
    def _known_posterior(self) -> DiagonalGaussian:
        if self.posterior is None:
            raise ValueError("this layer has no posterior: no image was given, or z came from the prior")
        return self.posterior


class DecoderBlock(nn.Module):
    """Posterior, prior, latent projection and residual block of one layer (paper Figure 3, "top-down block")."""

    recompute = False
    """See `blocks.run`: of the block, and then of each of its three bottlenecks, so that never more than the inside of
    one of them exists."""

    def __init__(self, config: ModelConfig, spec: DecoderSpec, residual_scale: float) -> None:
        super().__init__()
        self.spec = spec
        self.zdim = config.zdim
        self.width = config.width_at(spec.resolution)
        middle = config.bottleneck_width(spec.resolution)
        width, resolution = self.width, spec.resolution
        self.enc = Bottleneck(2 * width, middle, 2 * config.zdim, resolution)
        self.prior = Bottleneck(width, middle, 2 * config.zdim + width, resolution, last_scale=0.0)
        self.z_proj = conv(config.zdim, width, scale=residual_scale)
        connected = config.topdown_residual
        self.resnet = ResidualBlock(width, middle, width, resolution, residual_scale if connected else 1.0, connected)
        self.unpool: nn.Module | None = None
        if spec.mixin is not None:
            factor = resolution // spec.mixin
            if config.unpool == "conv":
                self.unpool = ConvUnpool(config.width_at(spec.mixin), width, factor)
            else:
                self.unpool = NearestUnpool(width, factor)

    def enter(self, states: dict[int, Tensor], batch: int) -> Tensor:
        """The state [batch, r, r, width] at the block's door: that of its resolution, if there is one, and the
        unpooled one that it mixes in.
        """
        r, mixin = self.spec
        x = states.get(r, self.z_proj.weight.new_zeros(1, 1, 1, self.width))
        if mixin is not None:
            assert self.unpool is not None
            x = x + self.unpool(states[mixin])
        return x.expand(batch, r, r, -1).contiguous()

    def forward(
        self,
        x: Tensor,
        read: Tensor,
        seen: Tensor | None,
        source: Source,
        noise: Tensor | None,
        temperature: float | Tensor,
    ) -> tuple[Tensor, Latent]:
        """Takes the state `x` [B, r, r, width] through the layer.

        Args:
            x: the top-down state.
            read: the state that the prior and the posterior read, as `x`: `x` itself, or that of the group's start.
            seen: what the posterior reads of the encoder, [B*r*r, middle_channels] (see `Decoder._read`), or None.
            source: where z comes from.
            noise: standard normal [B, r, r, zdim]; None where z is given.
            temperature: factor on the standard deviation that z is drawn with, a number or [B, 1, 1, 1].

        Returns:
            the next state, [B, r, r, width], and what the layer did.
        """
        activated = F.gelu(read)
        hidden = run(self.recompute, self.prior.inner, self.prior.c1(activated))
        last = self.prior.c4
        assert last.bias is not None
        for_prior, for_state = last.weight.split((2 * self.zdim, self.width))
        prior_bias, state_bias = last.bias.split((2 * self.zdim, self.width))
        p = pointwise(hidden, for_prior, prior_bias).float()  # [B, r, r, 2*zdim]
        q = rate = None
        if seen is not None:
            both = pointwise(activated, self.enc.c1.weight[:, : self.width], seen)
            q = self.enc.c4(run(self.recompute, self.enc.inner, both)).float()  # [B, r, r, 2*zdim]
        prior = DiagonalGaussian.from_channels(p)
        posterior = None if q is None else DiagonalGaussian.from_channels(q)
        if isinstance(source, Tensor):
            z = source.permute(0, 2, 3, 1)
        else:
            assert noise is not None
            if source == "posterior":
                assert q is not None
                z, rate = sample_and_rate(q, p, noise, temperature)
            else:
                z = prior.sample(noise.permute(0, 3, 1, 2), temperature).permute(0, 2, 3, 1)
        assert self.z_proj.bias is not None
        x = add_products(x, state_bias + self.z_proj.bias, (hidden, for_state), (z, self.z_proj.weight))
        return run(self.recompute, self.resnet, x), Latent(z.permute(0, 3, 1, 2), prior, posterior, rate)


def _read_all(activation: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
    return pointwise(F.gelu(activation), weights, biases).flatten(0, 2)


class Decoder(nn.Module):
    """The top-down blocks, the learned start of each resolution's state, and the likelihood's parameters."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.specs = config.decoder_specs
        self.zdim = config.zdim
        self.group = config.stochastic_group
        scale = initial_scale(config.residual_scaling, len(self.specs))
        self.dec_blocks = nn.ModuleList([DecoderBlock(config, spec, scale) for spec in self.specs])
        resolutions = sorted({spec.resolution for spec in self.specs})
        self.bias_xs = nn.ParameterList(
            nn.Parameter(torch.zeros(1, config.width_at(r), r, r)) for r in resolutions if r <= config.no_bias_above
        )
        width = config.width_at(config.image_size)
        self.out_net = MixtureHead(config)
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, width, 1, 1))

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """(zdim, r, r) of every layer, top-down."""
        return [(self.zdim, spec.resolution, spec.resolution) for spec in self.specs]

    def top_down(
        self,
        batch: int,
        activations: dict[int, Tensor] | None,
        sources: Sequence[Source],
        temperatures: Sequence[float | Tensor],
        generator: torch.Generator | None,
        copies: int = 1,
    ) -> tuple[Tensor, list[Latent]]:
        """Runs the first `len(sources)` layers; returns the last state, [batch, r, r, width], and what each did.

        The noise of a layer whose z is not given is one standard-normal draw [batch, zdim, r, r] in fp32, made on
        the generator's device, layers in top-down order. A temperature may be a tensor [batch, 1, 1, 1]. With `copies`
        the batch consists of so many equal parts, each with the same noise.
        """
        latents: list[Latent] = []
        states: dict[int, Tensor] = {bias.shape[2]: bias.permute(0, 2, 3, 1) for bias in self.bias_xs}
        blocks = [block for block in self.dec_blocks[: len(sources)] if isinstance(block, DecoderBlock)]
        seen = self._read(activations, [b for b, source in zip(blocks, sources, strict=True) if source != "prior"])
        for i, (block, source, temperature) in enumerate(zip(blocks, sources, temperatures, strict=True)):
            r = block.spec.resolution
            x = block.enter(states, batch)
            if i % self.group == 0:
                at_start, read = dict(states), x  # of the group
            else:
                read = block.enter(at_start, batch)
            at_start[r] = read
            noise = None if isinstance(source, Tensor) else self._noise(batch, r, generator, copies)
            x, latent = run(block.recompute, block, x, read, seen.get(block), source, noise, temperature)
            states[r] = x
            latents.append(latent)
        return x, latents

    def mixture_parameters(self, x: Tensor) -> Tensor:
        """Maps the last state [B, H, W, width] to the likelihood's parameters [B, P, H, W], in fp32."""
        with torch.autocast(x.device.type, enabled=False):
            return self.out_net(x.float(), self.gain.flatten(), self.bias.flatten())

    def _read(
        self, activations: dict[int, Tensor] | None, blocks: Sequence[DecoderBlock]
    ) -> dict[DecoderBlock, Tensor]:
        """The first convolution of these blocks' posteriors, as far as it reads the encoder, [B*r*r, middle_channels].

        The blocks of one resolution read the same activation, so that one product does for all of them, and nothing
        as wide as the state and the activation together is ever written.
        """
        read: dict[DecoderBlock, Tensor] = {}
        for r, activation in (activations or {}).items():
            alike = [block for block in blocks if block.spec.resolution == r]
            if alike:
                weights = torch.cat([block.enc.c1.weight[:, block.width :] for block in alike])
                biases = torch.cat([block.enc.c1.bias for block in alike if block.enc.c1.bias is not None])
                seen = run(alike[0].recompute, _read_all, activation, weights, biases)
                read.update(zip(alike, seen.chunk(len(alike), 1), strict=True))
        return read

    def _noise(self, batch: int, r: int, generator: torch.Generator | None, copies: int) -> Tensor:
        device = self.gain.device if generator is None else generator.device
        noise = torch.randn(batch // copies, self.zdim, r, r, generator=generator, device=device, dtype=torch.float32)
        noise = noise.to(self.gain.device).permute(0, 2, 3, 1).contiguous()
        return noise if copies == 1 else noise.repeat(copies, 1, 1, 1)
