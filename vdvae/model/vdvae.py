"""The Very Deep VAE (Child 2020), as its Figure 3 draws it: `Block`, `Encoder`, `TopDownBlock`, `Decoder`, `VDVAE`.

States are `[B, C, r, r]`, channels last in memory. Autograd makes all gradients, and every module is called as one.
What makes the model fast is not here, but in `vdvae.fast`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdvae.model.blockspec import DecoderSpec
from vdvae.model.config import ModelConfig
from vdvae.model.gaussian import DiagonalGaussian, Latent, Source
from vdvae.model.latents import LatentVariableModel, Pass
from vdvae.model.likelihood import Mixture, MixtureNet


class Conv(nn.Conv2d):
    """A convolution that keeps the resolution; one of 1x1 pixels is computed as the matrix product that it is.

    Begins with PyTorch's weights times `scale`, and with biases of 0.
    """

    bias: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, scale: float = 1.0) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        nn.init.zeros_(self.bias)
        self.weight.data.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, in_channels, r, r]` to `[B, out_channels, r, r]`."""
        if self.kernel_size != (1, 1):
            return super().forward(x)
        b, c, h, w = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(b * h * w, c)  # a view, because channels are last in memory
        y = torch.addmm(self.bias, pixels, self.weight.flatten(1).t())  # [B*h*w, out_channels]
        return y.view(b, h, w, -1).permute(0, 3, 1, 2)


class Block(nn.Module):
    """1x1, 3x3, 3x3 and 1x1 convolutions, a GELU before each (paper Figure 3, "res block"; Section 4).

    Below 4x4 pixels all four are 1x1, as in the released code.

    Args:
        in_channels: channels read.
        middle_channels: channels of the three inner states.
        out_channels: channels returned.
        resolution: height and width of the states.
        last_scale: factor on the last convolution's initial weights: 1/sqrt(N) for residual blocks, 0 for priors.
        residual: whether the input is added to the output.
    """

    def __init__(
        self,
        in_channels: int,
        middle_channels: int,
        out_channels: int,
        resolution: int,
        last_scale: float = 1.0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        kernel_size = 3 if resolution > 2 else 1
        self.residual = residual
        self.c1 = Conv(in_channels, middle_channels)
        self.c2 = Conv(middle_channels, middle_channels, kernel_size)
        self.c3 = Conv(middle_channels, middle_channels, kernel_size)
        self.c4 = Conv(middle_channels, out_channels, scale=last_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, in_channels, r, r]` to `[B, out_channels, r, r]`."""
        hidden = self.c1(F.gelu(x))
        hidden = self.c2(F.gelu(hidden))
        hidden = self.c3(F.gelu(hidden))
        hidden = self.c4(F.gelu(hidden))
        return x + hidden if self.residual else hidden


class Encoder(nn.Module):
    """The bottom-up network: residual blocks, with average pooling between resolutions (paper Figure 3, left)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.specs = config.encoder_specs
        self.widths = [config.width_at(spec.output_resolution) for spec in self.specs]
        self.in_conv = Conv(config.image_channels, config.width_at(config.image_size), kernel_size=3)
        self.enc_blocks = nn.ModuleList()
        for spec in self.specs:
            width, middle = config.width_at(spec.resolution), config.bottleneck_width(spec.resolution)
            scale = initial_scale(config, len(self.specs))
            self.enc_blocks.append(Block(width, middle, width, spec.resolution, scale, residual=True))

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """Maps scaled images `[B, C, H, W]` to the last state of each resolution r, `[B, width, r, r]`."""
        x = channels_last(self.in_conv(x))  # of one channel, a convolution cannot tell what is last
        features = {x.shape[2]: x}
        for spec, width, block in zip(self.specs, self.widths, self.enc_blocks, strict=True):
            x = block(x)
            if spec.pool > 1:
                x = match_channels(F.avg_pool2d(x, spec.pool), width)
            features[spec.output_resolution] = x
        return features


class TopDownBlock(nn.Module):
    """Prior, posterior, latent projection and residual block of one latent layer (paper Figure 3, "top-down block")."""

    def __init__(self, config: ModelConfig, spec: DecoderSpec) -> None:
        super().__init__()
        r, self.zdim, self.width = spec.resolution, config.zdim, config.width_at(spec.resolution)
        width, middle, scale = self.width, config.bottleneck_width(r), initial_scale(config, len(config.decoder_specs))
        self.enc = Block(2 * width, middle, 2 * self.zdim, r)
        self.prior = Block(width, middle, 2 * self.zdim + width, r, last_scale=0.0)
        self.z_proj = Conv(self.zdim, width, scale=scale)
        residual = config.topdown_residual
        self.resnet = Block(width, middle, width, r, scale if residual else 1.0, residual)
        if spec.mixin is not None and config.unpool == "conv":
            self.unpool = ConvUnpool(config.width_at(spec.mixin), width, r // spec.mixin)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        features: Tensor | None,
        source: Source,
        noise: Tensor | None,
        temperature: float,
    ) -> tuple[Tensor, Latent]:
        """Takes the top-down state through the layer.

        Args:
            x: the state, `[B, width, r, r]`.
            condition: the state that the prior and the posterior read: `x` itself, or that of the group's start.
            features: the encoder's state at this resolution, for the posterior; None where there is none.
            source: the origin of z.
            noise: standard normal `[B, zdim, r, r]`; None where z is given.
            temperature: factor on the standard deviation that z is drawn with.

        Returns:
            the next state, `[B, width, r, r]`, and what the layer did.
        """
        p_features, hidden = self.prior(condition).split((2 * self.zdim, self.width), 1)
        p, q = DiagonalGaussian.from_features(p_features), None
        if features is not None:
            q = DiagonalGaussian.from_features(self.enc(torch.cat([condition, features], 1)))
        z = draw(source, p, q, noise, temperature)
        return self.resnet(x + hidden + self.z_proj(z)), Latent(z, p, q)


class Decoder(nn.Module):
    """The top-down network: a latent layer per block, from the lowest resolution to the image's (Figure 3, right)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.specs = config.decoder_specs
        self.dec_blocks = nn.ModuleList([TopDownBlock(config, spec) for spec in self.specs])
        learned = [r for r in config.latent_resolutions if r <= config.no_bias_above]
        self.bias_xs = nn.ParameterList([torch.zeros(1, config.width_at(r), r, r) for r in learned])
        width = config.width_at(config.image_size)
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, width, 1, 1))
        out_channels = Mixture.num_parameters(config.image_channels, config.num_mixtures)
        self.out_net = MixtureNet(Conv(width, out_channels), config)

    def forward(
        self,
        batch: int,
        features: dict[int, Tensor] | None,
        sources: Sequence[Source],
        temperatures: Sequence[float],
        generator: torch.Generator | None,
    ) -> tuple[Tensor, list[Latent]]:
        """Runs the first `len(sources)` layers.

        The noise of a layer whose z is not given is one standard-normal draw `[B, zdim, r, r]` in fp32, made on the
        generator's device, layers in top-down order.

        Args:
            batch: B.
            features: the encoder's states by resolution; None where no layer has a posterior.
            sources: the origin of z in each layer, top-down.
            temperatures: one for each of these layers.
            generator: source of the noise; None is PyTorch's own.

        Returns:
            the state `[B, width, H, W]` at the image's resolution, with the learned gain and bias of its channels; what
            each layer did.
        """
        states = self._first_states()
        latents: list[Latent] = []
        start_of_group = states
        for i, (source, temperature) in enumerate(zip(sources, temperatures, strict=True)):
            r = self.specs[i].resolution
            x = self._enter(i, states, batch)
            if i % self.config.stochastic_group == 0:
                start_of_group, condition = dict(states), x
            else:
                condition = self._enter(i, start_of_group, batch)
            start_of_group[r] = condition
            seen = self._seen(i, features) if features is not None and source != "prior" else None
            noise = None if isinstance(source, Tensor) else self._noise(batch, r, generator)
            states[r], latent = self.dec_blocks[i](x, condition, seen, source, noise, temperature)
            latents.append(latent)
        return self._leave(states[self.config.image_size]), latents

    def _first_states(self) -> dict[int, Tensor]:
        """What the state `[1, width, r, r]` of each resolution r is before any layer: a learned bias up to
        `model.no_bias_above`, else zeros.
        """
        resolutions = self.config.latent_resolutions
        zeros = {r: self.gain.new_zeros(1, self.config.width_at(r), 1, 1).expand(-1, -1, r, r) for r in resolutions}
        return zeros | {bias.shape[2]: bias for bias in self.bias_xs}

    def _enter(self, layer: int, states: dict[int, Tensor], batch: int) -> Tensor:
        """The state `[batch, width, r, r]` at a layer's door: that of its resolution and, where its spec mixes one in,
        the unpooled state of a lower resolution (paper Section 4 and Figure 5).
        """
        r, mixin = self.specs[layer]
        x = states[r]
        if mixin is not None and self.config.unpool == "conv":
            x = x + self.dec_blocks[layer].unpool(states[mixin])  # type: ignore[operator]
        elif mixin is not None:
            x = x + F.interpolate(match_channels(states[mixin], x.shape[1]), scale_factor=r // mixin)
        return channels_last(x.expand(batch, -1, -1, -1))

    def _seen(self, layer: int, features: dict[int, Tensor]) -> Tensor:
        """The encoder's state that the posterior of a layer reads, `[B, width, r, r]`."""
        return features[self.specs[layer].resolution]

    def _leave(self, x: Tensor) -> Tensor:
        """The last state, `[B, width, H, W]`, with the learned gain and bias of its channels."""
        return x * self.gain + self.bias

    def _noise(self, batch: int, resolution: int, generator: torch.Generator | None) -> Tensor:
        device = self.gain.device if generator is None else generator.device
        shape = (batch, self.config.zdim, resolution, resolution)
        # A generator of None has no torch.compile for batches of any size.
        given: dict[str, Any] = {} if generator is None else {"generator": generator}
        noise = torch.randn(shape, device=device, dtype=torch.float32, **given)
        return channels_last(noise.to(self.gain))


class Terms(NamedTuple):
    """The negative ELBO of each image (paper Eq. 1), in nats per dimension."""

    distortion: Tensor
    """-log p(x|z), `[B]`."""
    rate: Tensor
    """KL(q(z|x) || p(z)), `[B]`."""
    layer_rate: Tensor
    """The rate of each layer, `[B, L]`."""

    @property
    def nats_per_dim(self) -> Tensor:
        """distortion + rate, `[B]`: the loss, and an upper bound on the negative log-likelihood."""
        return self.distortion + self.rate


class VDVAE(LatentVariableModel):
    """A hierarchical VAE with one diagonal-Gaussian latent layer per top-down block.

    Images are uint8 `[B, C, H, W]`; the model scales them itself. Randomness comes from `generator`, or from
    PyTorch's global one; a CPU generator gives the same noise on every device. Gradients flow through everything
    but the drawing of pixels. Parameter names are those of the released weights.
    """

    encoder: Encoder
    decoder: Decoder

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not isinstance(config, ModelConfig):
            hint = "; its `model` is one" if hasattr(config, "model") else ""
            raise ValueError(f"a VDVAE is made from a ModelConfig, not from {type(config).__name__}{hint}")
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def forward(self, images: Tensor, generator: torch.Generator | None = None, layers: int | None = None) -> Terms:
        """The likelihood terms of `images`, with one posterior sample per layer.

        With fewer `layers` than all, only so many from the top come from the posterior, and the others, nearest to
        the image, from the prior, at no rate: the bound L^{>k} of Havtorn et al. 2021, k = num_layers - layers, for
        out-of-distribution detection.

        Raises:
            ValueError: images, `generator` or `layers` not as they must be.
        """
        images = self.check(images, generator)
        features, ones = self.encoder_features(images), [1.0] * self.num_layers
        return self.terms(images, self.propagate(len(images), features, self.from_posterior(layers), ones, generator))

    def encoder_features(self, images: Tensor) -> dict[int, Tensor]:
        """The encoder's last state of each resolution r, `[B, width, r, r]`, of images that were checked."""
        x = images.to(self.dtype, memory_format=torch.contiguous_format)  # the same bits however images lay in memory
        return self.encoder(channels_last((x + self.config.input_shift) * self.config.input_scale))

    def propagate(
        self,
        batch: int,
        features: dict[int, Tensor] | None,
        sources: Sequence[Source],
        temperatures: Sequence[float],
        generator: torch.Generator | None,
    ) -> Pass:
        """A pass through all layers and the likelihood; arguments as for `Decoder.forward`."""
        x, latents = self.decoder(batch, features, sources, temperatures, generator)
        return Pass(latents, self.decoder.out_net.distribution(self.decoder.out_net(x)))

    def terms(self, images: Tensor, result: Pass) -> Terms:
        """The likelihood terms (paper Eq. 1) of images on the model's device, by a pass that has seen them; layers from
        the prior have no rate.
        """
        distortion = -result.mixture.log_prob(images) / self.config.dims  # [B]
        none = torch.zeros_like(distortion)
        rates = [none if latent.posterior is None else latent.rate for latent in result.latents]
        layer_rate = torch.stack(rates, 1) / self.config.dims  # [B, L]
        return Terms(distortion, layer_rate.sum(1), layer_rate)


class ConvUnpool(nn.ConvTranspose2d):
    """A learned upsampler, in which every pixel becomes factor x factor new ones (paper Figure 5)."""

    def __init__(self, in_channels: int, channels: int, factor: int) -> None:
        super().__init__(in_channels, channels, factor, stride=factor)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


def draw(
    source: Source,
    prior: DiagonalGaussian,
    posterior: DiagonalGaussian | None,
    noise: Tensor | None,
    temperature: float,
) -> Tensor:
    """z of a layer, `[B, zdim, r, r]`, from where `source` says."""
    if isinstance(source, Tensor):
        return source
    distribution = posterior if source == "posterior" else prior
    assert distribution is not None and noise is not None
    return distribution.sample(noise, temperature)


def initial_scale(config: ModelConfig, blocks: int) -> float:
    """The factor on the initial weights of what N blocks add to a state: 1/sqrt(N) or 1 (paper Section 4, Table 3)."""
    return blocks**-0.5 if config.residual_scaling else 1.0


def match_channels(x: Tensor, channels: int) -> Tensor:
    """Drops the last channels of `[B, C, r, r]`, or appends zeros, where two resolutions differ in width."""
    if x.shape[1] >= channels:
        return x[:, :channels]
    return F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))


def channels_last(x: Tensor) -> Tensor:
    """Lays `[B, C, r, r]` out with the channels of a pixel side by side in memory."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # vmap knows no `memory_format`
