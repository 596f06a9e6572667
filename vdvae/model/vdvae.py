"""The Very Deep VAE (Child 2020): images to likelihood terms, images to latents, latents to images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vdvae.model.blocks import Bottleneck
from vdvae.model.config import ModelConfig
from vdvae.model.decoder import Decoder, Latent, Source
from vdvae.model.encoder import Encoder
from vdvae.model.likelihood import Binning, Mixture


class Terms(NamedTuple):
    """The negative ELBO of each image (paper Eq. 1), in nats per dimension."""

    distortion: Tensor
    """-log p(x|z), [B]"""
    rate: Tensor
    """KL(q(z|x) || p(z)), [B]"""
    layer_rate: Tensor
    """The rate of each layer, [B, L]"""

    @property
    def nats_per_dim(self) -> Tensor:
        """distortion + rate, [B]: the loss, and an upper bound on the negative log-likelihood."""
        return self.distortion + self.rate


class VDVAE(nn.Module):
    """A hierarchical VAE with one diagonal-Gaussian latent layer per top-down block.

    Images are uint8 `[B, C, H, W]`; the model scales them itself. Randomness comes from `generator`, or from
    PyTorch's global one; a CPU generator gives the same noise on every device. Gradients flow through everything
    but the drawing of pixels. Parameter names are those of the released weights.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.binning = Binning.of(config.bits, config.binning)

    @property
    def num_layers(self) -> int:
        """L, the number of latent layers: the "stochastic depth" of the paper."""
        return len(self.decoder.specs)

    @property
    def resolutions(self) -> list[int]:
        """Of each latent layer, top-down."""
        return [spec.resolution for spec in self.decoder.specs]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.gain.device

    def per_resolution(self, layer_rate: Sequence[float]) -> dict[int, float]:
        """Sums a number per layer over the layers of each resolution, from the lowest resolution up."""
        sums = dict.fromkeys(sorted(set(self.resolutions)), 0.0)
        for resolution, rate in zip(self.resolutions, layer_rate, strict=True):
            sums[resolution] += rate
        return sums

    def compile_blocks(self) -> None:
        """Compiles the bottlenecks, those of one shape together, so that compile time does not grow with depth."""
        torch._dynamo.config.cache_size_limit = 256  # shapes of one function: up to 4 per resolution
        for module in self.modules():
            if isinstance(module, Bottleneck):
                module.compile(dynamic=False)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Terms:
        """The likelihood terms of `images`, with one posterior sample per layer."""
        activations = self._activations(images)
        sources: list[Source] = ["posterior"] * self.num_layers
        x, latents = self.decoder.top_down(len(images), activations, sources, self._temperatures(1.0), generator)
        layer_rate = torch.stack([latent.kl.sum((1, 2, 3)) for latent in latents], 1) / self.config.dims  # [B, L]
        distortion = -self._mixture(x).log_prob(images) / self.config.dims  # [B]
        return Terms(distortion, layer_rate.sum(1), layer_rate)

    def encode(
        self,
        images: Tensor,
        layers: int | None = None,
        mode: Literal["sample", "mean"] = "sample",
        temperature: float | Sequence[float] = 1.0,
        generator: torch.Generator | None = None,
    ) -> list[Latent]:
        """The latents of `images`, top-down: z and the parameters of q and p for each of the first `layers` layers.

        Args:
            images: uint8 `[B, C, H, W]`.
            layers: how many layers, from the top; all of them if None.
            mode: draw z from the posterior, or take its mean (each layer given the means of those above).
            temperature: factor on the posteriors' standard deviations, or one per layer.
            generator: source of the noise.

        Raises:
            ValueError: images, `layers`, `mode` or `temperature` not as above.
        """
        layers = self.num_layers if layers is None else layers
        if not 1 <= layers <= self.num_layers:
            raise ValueError(f"layers must be from 1 to {self.num_layers}, not {layers}")
        if mode not in ("sample", "mean"):
            raise ValueError(f"mode must be 'sample' or 'mean', not {mode!r}")
        temperatures = self._temperatures(0.0 if mode == "mean" else temperature)
        sources: list[Source] = ["posterior"] * layers
        activations = self._activations(images)
        _, latents = self.decoder.top_down(len(images), activations, sources, temperatures, generator)
        return latents

    def mixture(
        self,
        latents: Sequence[Tensor | None] = (),
        temperature: float | Sequence[float] = 1.0,
        num_images: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Mixture:
        """p(x|z) for the given latents; arguments as for `decode`."""
        if len(latents) > self.num_layers:
            raise ValueError(f"got latents for {len(latents)} layers; the model has {self.num_layers}")
        num_images = self._num_images(latents, num_images)
        sources: list[Source] = ["prior" if z is None else z for z in latents]
        sources += ["prior"] * (self.num_layers - len(sources))
        x, _ = self.decoder.top_down(num_images, None, sources, self._temperatures(temperature), generator)
        return self._mixture(x)

    def decode(
        self,
        latents: Sequence[Tensor | None] = (),
        temperature: float | Sequence[float] = 1.0,
        output: Literal["sample", "mean"] = "sample",
        num_images: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Images from latents.

        Args:
            latents: z of the layers, top-down, each `[B, zdim, r, r]`; absent or None layers come from the prior.
            temperature: factor on the priors' standard deviations, or one per layer; 0 takes the mean.
            output: `sample` draws uint8 pixels from the mixture, `mean` returns its mean, floats on 0..255 that
                gradients flow through.
            num_images: B, needed where no latent is given.
            generator: source of the latents' noise, then of the pixels'.

        Returns:
            `[B, C, H, W]`.

        Raises:
            ValueError: latents of a wrong shape or number, a wrong temperature or output.
        """
        if output not in ("sample", "mean"):
            raise ValueError(f"output must be 'sample' or 'mean', not {output!r}")
        mixture = self.mixture(latents, temperature, num_images, generator)
        return mixture.sample(generator) if output == "sample" else mixture.mean()

    def sample(
        self,
        num_images: int,
        temperature: float | Sequence[float] = 1.0,
        output: Literal["sample", "mean"] = "sample",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """New images, every layer from its prior: `decode` without latents."""
        return self.decode((), temperature, output, num_images, generator)

    def _activations(self, images: Tensor) -> dict[int, Tensor]:
        """What the encoder makes of uint8 images, by resolution."""
        c, size = self.config.image_channels, self.config.image_size
        if images.dtype != torch.uint8 or images.shape[1:] != (c, size, size):
            dtype = str(images.dtype).removeprefix("torch.")
            raise ValueError(f"images must be uint8 [B, {c}, {size}, {size}], not {dtype} {list(images.shape)}")
        return self.encoder((images.float() + self.config.input_shift) * self.config.input_scale)

    def _mixture(self, x: Tensor) -> Mixture:
        parameters = self.decoder.mixture_parameters(x)
        return Mixture.from_parameters(parameters, self.config.image_channels, self.binning)

    def _temperatures(self, temperature: float | Sequence[float]) -> list[float]:
        """One temperature per layer."""
        if isinstance(temperature, (int, float)):
            temperatures = [float(temperature)] * self.num_layers
        else:
            temperatures = [float(t) for t in temperature]
        if len(temperatures) != self.num_layers:
            raise ValueError(
                f"got {len(temperatures)} temperatures for {self.num_layers} layers; give one, or one each"
            )
        if not all(0 <= t < float("inf") for t in temperatures):
            raise ValueError(
                f"temperatures must be finite and not negative: {min(temperatures)} to {max(temperatures)}"
            )
        return temperatures

    def _num_images(self, latents: Sequence[Tensor | None], num_images: int | None) -> int:
        """The batch size that latents and `num_images` agree on."""
        for i, (z, shape) in enumerate(zip(latents, self.decoder.latent_shapes, strict=False)):
            if z is None:
                continue
            num_images = len(z) if num_images is None else num_images
            if z.shape != (num_images, *shape):
                raise ValueError(
                    f"latent {i} must be [{num_images}, {', '.join(map(str, shape))}], not {list(z.shape)}"
                )
        if num_images is None:
            raise ValueError("no latent says how many images to make; pass num_images")
        return num_images
