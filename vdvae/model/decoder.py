"""The top-down network: one latent layer per block (paper Figure 3, right)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdvae.model.blocks import Bottleneck, conv, match_channels, unpool
from vdvae.model.blockspec import DecoderSpec
from vdvae.model.config import ModelConfig
from vdvae.model.gaussian import DiagonalGaussian
from vdvae.model.likelihood import MixtureHead

Source = Tensor | Literal["posterior", "prior"]
"""Where a layer's z comes from: given as a tensor, [B, zdim, r, r], or drawn from one of its two distributions."""


class Latent(NamedTuple):
    """One latent layer of a pass; every tensor is [B, zdim, r, r]."""

    z: Tensor
    prior: DiagonalGaussian
    """p(z_i | z_<i)"""
    posterior: DiagonalGaussian | None
    """q(z_i | z_<i, x); None where no image was given, or z is drawn from the prior"""

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
        self.resnet = Bottleneck(width, middle, width, resolution, last_scale=residual_scale)

    def forward(
        self, x: Tensor, activated_acts: Tensor | None, source: Source, noise: Tensor | None, temperature: float
    ) -> tuple[Tensor, Latent]:
        """Takes the state `x` [B, width, r, r] through the layer.

        Args:
            x: the top-down state.
            activated_acts: gelu of the encoder's activation at this resolution, [B, width, r, r], or None.
            source: where z comes from.
            noise: standard normal [B, zdim, r, r]; None where z is given.
            temperature: factor on the standard deviation that z is drawn with.

        Returns:
            the next state, [B, width, r, r], and what the layer did.
        """
        activated = F.gelu(x)
        prior_features, residual = self.prior(activated).split((2 * self.zdim, self.width), dim=1)
        prior = DiagonalGaussian.from_channels(prior_features)
        posterior = None
        if activated_acts is not None:
            both = torch.cat([activated, activated_acts], dim=1)  # [B, 2*width, r, r]
            posterior = DiagonalGaussian.from_channels(self.enc(both))
        if isinstance(source, Tensor):
            z = source
        else:
            chosen = posterior if source == "posterior" else prior
            assert chosen is not None and noise is not None
            z = chosen.sample(noise, temperature)
        x = x + residual + self.z_proj(z)
        x = x + self.resnet(F.gelu(x))
        return x, Latent(z, prior, posterior)


class Decoder(nn.Module):
    """The top-down blocks, the learned start of each resolution's state, and the likelihood's parameters."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.specs = config.decoder_specs
        self.zdim = config.zdim
        scale = len(self.specs) ** -0.5  # 1/sqrt(N), N top-down blocks (paper Section 4, Table 3)
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
        temperatures: Sequence[float],
        generator: torch.Generator | None,
    ) -> tuple[Tensor, list[Latent]]:
        """Runs the first `len(sources)` layers; returns the last state, [batch, width, r, r], and what each did.

        The noise of a layer whose z is not given is one standard-normal draw [batch, zdim, r, r] in fp32, made on
        the generator's device, layers in top-down order.
        """
        latents: list[Latent] = []
        states: dict[int, Tensor] = {bias.shape[2]: bias for bias in self.bias_xs}
        activated_acts = {r: F.gelu(activation) for r, activation in (activations or {}).items()}
        for block, source, temperature in zip(self.dec_blocks, sources, temperatures, strict=False):
            assert isinstance(block, DecoderBlock)
            r, mixin = block.spec
            x = states.get(r, self.gain.new_zeros(1, block.width, 1, 1))
            if mixin is not None:
                x = x + unpool(match_channels(states[mixin], block.width), r // mixin)
            # A 1x1 state has no layout to pass on; without this the whole decoder would run with channels first.
            x = x.expand(batch, -1, r, r).contiguous(memory_format=torch.channels_last)
            noise = None
            if isinstance(source, Tensor):  # in the layout of drawn ones, so that convolutions round alike
                source = source.contiguous(memory_format=torch.channels_last)
            else:
                noise = self._noise(batch, r, generator)
            activated = None if source == "prior" else activated_acts.get(r)
            x, latent = block(x, activated, source, noise, temperature)
            states[r] = x
            latents.append(latent)
        return x, latents

    def mixture_parameters(self, x: Tensor) -> Tensor:
        """Maps the last state [B, width, H, W] to the likelihood's parameters [B, P, H, W], in fp32."""
        with torch.autocast(x.device.type, enabled=False):
            return self.out_net(x.float() * self.gain + self.bias)

    def _noise(self, batch: int, r: int, generator: torch.Generator | None) -> Tensor:
        device = self.gain.device if generator is None else generator.device
        noise = torch.randn(batch, self.zdim, r, r, generator=generator, device=device, dtype=torch.float32)
        return noise.to(self.gain.device)
