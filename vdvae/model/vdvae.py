"""The Very Deep VAE (Child 2020): images to likelihood terms, images to latents, latents to images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vdvae.model import arguments
from vdvae.model.arguments import Temperature
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


class Pass(NamedTuple):
    """One pass through all layers."""

    latents: list[Latent]
    """What each layer did, top-down."""
    mixture: Mixture
    """p(x|z)"""


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
        self._log_prob: Callable[[Mixture, Tensor], Tensor] = Mixture.log_prob  # compiled by `compile_blocks`

    @property
    def num_layers(self) -> int:
        """L, the number of latent layers: the "stochastic depth" of the paper."""
        return len(self.decoder.specs)

    @property
    def resolutions(self) -> list[int]:
        """Of each latent layer, top-down."""
        return [spec.resolution for spec in self.decoder.specs]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return (self.config.image_channels, self.config.image_size, self.config.image_size)

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """(zdim, r, r) of each latent layer, top-down."""
        return self.decoder.latent_shapes

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

    def recompute_from(self, resolution: int) -> None:
        """Has blocks of this resolution and above keep only their inputs for the backward pass, which runs them again:
        the same gradients for less memory and about 40 % more arithmetic.
        """
        blocks = [*self.encoder.enc_blocks, *self.decoder.dec_blocks]
        resolutions = [spec.resolution for spec in self.encoder.specs] + self.resolutions
        for block, its_resolution in zip(blocks, resolutions, strict=True):
            block.recompute = its_resolution >= resolution

    def compile_blocks(self) -> None:
        """Compiles the residual blocks, the top-down blocks and the likelihood, each on its own: blocks of one shape
        share their code, so that compile time does not grow with depth.
        """
        torch._dynamo.config.cache_size_limit = 256  # shapes of one function: those of all resolutions
        for block in [*self.encoder.enc_blocks, *self.decoder.dec_blocks]:
            block.compile(dynamic=False)
        self._log_prob = torch.compile(Mixture.log_prob, dynamic=False)

    def forward(self, images: Tensor, generator: torch.Generator | None = None, layers: int | None = None) -> Terms:
        """The likelihood terms of `images`, with one posterior sample per layer.

        With fewer `layers` than all, only so many from the top come from the posterior, and the others, nearest to
        the image, from the prior, at no rate: the bound L^{>k} of Havtorn et al. 2021, k = num_layers - layers, for
        out-of-distribution detection.
        """
        return self.terms(images, self.top_down(images, self.from_posterior(layers), generator=generator))

    def terms(self, images: Tensor, run: Pass) -> Terms:
        """The likelihood terms of `images`, by a pass that has seen them; layers from the prior have no rate."""
        images = self._checked(images)
        dims, none = self.config.dims, run.mixture.logits.new_zeros(len(images))
        rates = [
            none if latent.posterior is None else latent.kl.sum((1, 2, 3)) if latent.rate is None else latent.rate
            for latent in run.latents
        ]
        layer_rate = torch.stack(rates, 1) / dims  # [B, L]
        return Terms(-self._log_prob(run.mixture, images) / dims, layer_rate.sum(1), layer_rate)

    def log_weights(
        self, images: Tensor, samples: int, generator: torch.Generator | None = None, layers: int | None = None
    ) -> Tensor:
        """log p(x, z) / q(z|x) of some posterior samples z, in nats, [samples, B].

        The logarithm of their mean is the importance-weighted bound (Burda et al. 2016), which in expectation lies
        between the ELBO and log p(x). Samples are drawn one after the other: without gradients, memory does not grow
        with their number.

        Args:
            images: uint8 `[B, C, H, W]`.
            samples: how many, at least 1.
            generator: source of the noise.
            layers: only so many from the top come from the posterior, as in `forward`.

        Raises:
            ValueError: arguments not as above.
        """
        if samples < 1:
            raise ValueError(f"samples must be at least 1, not {samples}")
        images, sources = self._checked(images), self.from_posterior(layers)
        activations = self._activations(images)
        weights = []
        for _ in range(samples):
            run = self._run(len(images), activations, sources, [1.0] * self.num_layers, generator)
            weight = run.mixture.log_prob(images)  # [B]
            for latent in run.latents:
                if latent.posterior is not None:
                    weight = weight + (latent.log_prior - latent.log_posterior).sum((1, 2, 3))
            weights.append(weight)
        return torch.stack(weights)

    def encode(
        self,
        images: Tensor,
        layers: int | None = None,
        mode: Literal["sample", "mean"] = "sample",
        temperature: Temperature = 1.0,
        generator: torch.Generator | None = None,
    ) -> list[Latent]:
        """The latents of `images`, top-down: z and the parameters of q and p for each of the first `layers` layers.

        Args:
            images: uint8 `[B, C, H, W]`.
            layers: how many layers, from the top (see `layers_up_to`); all of them if None.
            mode: draw z from the posterior, or take its mean (each layer given the means of those above).
            temperature: on the posteriors; one number per layer means those `layers` layers.
            generator: source of the noise.

        Raises:
            ValueError: images, `layers`, `mode` or `temperature` not as above.
        """
        if mode not in ("sample", "mean"):
            raise ValueError(f"mode must be 'sample' or 'mean', not {mode!r}")
        layers = arguments.check_layers(layers, self.num_layers)
        temperatures = arguments.per_layer(0.0 if mode == "mean" else temperature, self.resolutions[:layers])
        images = self._checked(images)
        sources = self.from_posterior()[:layers]
        _, latents = self.decoder.top_down(len(images), self._activations(images), sources, temperatures, generator)
        return latents

    def top_down(
        self,
        images: Tensor | None,
        sources: Sequence[Source | Latent | None] = (),
        temperature: Temperature = 1.0,
        num_images: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Pass:
        """A pass in which every layer's z has the origin of one's choice.

        Args:
            images: uint8 `[B, C, H, W]`, for the posteriors; None if no layer needs one.
            sources: top-down, `"posterior"`, `"prior"`, or z itself, `[B, zdim, r, r]` (of a `Latent`, its z). Absent
                and None layers come from the prior.
            temperature: on the distribution that each layer is drawn from.
            num_images: B, needed where neither images nor a z tell.
            generator: source of the noise.

        Raises:
            ValueError: arguments not as above.
        """
        chosen = arguments.per_layer_sources(sources, self.latent_shapes, self.device)
        activations = None
        if images is not None:
            images = self._checked(images)
            activations = self._activations(images)
            if num_images not in (None, len(images)):
                raise ValueError(f"num_images is {num_images}, but there are {len(images)} images")
            num_images = len(images)
        elif any(source == "posterior" for source in chosen if isinstance(source, str)):
            raise ValueError("a layer is to come from the posterior, which needs images")
        num_images = arguments.batch_size(chosen, self.latent_shapes, num_images)
        return self._run(num_images, activations, chosen, self._temperatures(temperature), generator)

    def mixture(
        self,
        latents: Sequence[Tensor | Latent | None] = (),
        temperature: Temperature = 1.0,
        num_images: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Mixture:
        """p(x|z) for the given latents; arguments as for `decode`."""
        return self.top_down(None, latents, temperature, num_images, generator).mixture

    def decode(
        self,
        latents: Sequence[Tensor | Latent | None] = (),
        temperature: Temperature = 1.0,
        output: Literal["sample", "mean"] = "sample",
        num_images: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Images from latents.

        Args:
            latents: z of the layers, top-down, each `[B, zdim, r, r]`; absent or None layers come from the prior.
            temperature: on the priors of those.
            output: `sample` draws uint8 pixels from the mixture, `mean` returns its mean, floats on 0..255 that
                gradients flow through.
            num_images: B, needed where no latent is given.
            generator: source of the latents' noise, then of the pixels'.

        Returns:
            `[B, C, H, W]`.

        Raises:
            ValueError: latents of a wrong shape or number or not finite, a wrong temperature or output.
        """
        if output not in ("sample", "mean"):
            raise ValueError(f"output must be 'sample' or 'mean', not {output!r}")
        mixture = self.mixture(latents, temperature, num_images, generator)
        return mixture.sample(generator) if output == "sample" else mixture.mean()

    def sample(
        self,
        num_images: int,
        temperature: Temperature = 1.0,
        output: Literal["sample", "mean"] = "sample",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """New images, every layer from its prior: `decode` without latents."""
        return self.decode((), temperature, output, num_images, generator)

    def sample_rows(
        self, num_images: int, temperatures: Sequence[Temperature], generator: torch.Generator | None = None
    ) -> Tensor:
        """New images at several temperatures, from the same noise, all in one batch.

        Args:
            num_images: in each row.
            temperatures: a row each.
            generator: source of the latents' noise, then of the pixels'.

        Returns:
            uint8 `[rows, num_images, C, H, W]`.

        Raises:
            ValueError: a wrong temperature or number of images, or no row.
        """
        rows = [self._temperatures(temperature) for temperature in temperatures]  # [rows][L]
        if not rows or num_images < 1:
            raise ValueError(f"num_images and the number of temperatures must be at least 1: {num_images}, {len(rows)}")
        per_image = torch.tensor(rows, device=self.device).repeat_interleave(num_images, 0)  # [rows * num_images, L]
        per_layer = [t.view(-1, 1, 1, 1) for t in per_image.unbind(1)]
        sources: list[Source] = ["prior"] * self.num_layers
        mixture = self._run(len(per_image), None, sources, per_layer, generator, copies=len(rows)).mixture
        return mixture.sample(generator, copies=len(rows)).view(len(rows), num_images, *self.image_shape)

    def flatten(self, latents: Sequence[Tensor | Latent]) -> Tensor:
        """The latents of the first layers as one row per image, `[B, N]`, in fp32: layer by layer from the top, each
        as channels, rows, columns. The first 31 layers of ImageNet-64 make the 91,168 numbers of the brain-decoding
        literature.

        Raises:
            ValueError: latents of a wrong shape or number, or not finite.
        """
        given = arguments.per_layer_sources(latents, self.latent_shapes, self.device)[: len(latents)]
        layers = [z for z in given if isinstance(z, Tensor)]
        if not layers or len(layers) < len(given):
            raise ValueError("flatten takes the z of the first layers, from the top, without gaps")
        arguments.batch_size(layers, self.latent_shapes, None)
        return torch.cat([z.flatten(1) for z in layers], 1)  # [B, N]

    def unflatten(self, flat: Tensor) -> list[Tensor]:
        """The inverse of `flatten`: z of as many layers as `[B, N]` holds, each `[B, zdim, r, r]`.

        Raises:
            ValueError: no number of layers has N numbers.
        """
        return arguments.split_flat(flat, self.latent_shapes)

    def layers_up_to(self, resolution: int) -> int:
        """How many layers from the top work at no more than `resolution` x `resolution`.

        Raises:
            ValueError: no layer has this resolution.
        """
        arguments.check_resolution(resolution, self.resolutions)
        above = (i for i, r in enumerate(self.resolutions) if r > resolution)
        return next(above, self.num_layers)

    def from_posterior(self, layers: int | None = None) -> list[Source]:
        """The sources of a pass whose first `layers` layers come from the posterior (None: all), the others from the
        prior.

        Raises:
            ValueError: there are not so many.
        """
        layers = arguments.check_layers(layers, self.num_layers)
        sources: list[Source] = ["posterior"] * layers
        return sources + ["prior"] * (self.num_layers - layers)

    def _run(
        self,
        num_images: int,
        activations: dict[int, Tensor] | None,
        sources: Sequence[Source],
        temperatures: Sequence[float | Tensor],
        generator: torch.Generator | None,
        copies: int = 1,
    ) -> Pass:
        x, latents = self.decoder.top_down(num_images, activations, sources, temperatures, generator, copies)
        parameters = self.decoder.mixture_parameters(x)
        return Pass(latents, Mixture.from_parameters(parameters, self.config.image_channels, self.binning))

    def _activations(self, images: Tensor) -> dict[int, Tensor]:
        """What the encoder makes of checked images, by resolution."""
        return self.encoder((images.float() + self.config.input_shift) * self.config.input_scale)

    def _checked(self, images: Tensor) -> Tensor:
        """Images on the model's device, if they are such as it takes."""
        arguments.check_images(images, self.config)
        return images.to(self.device)

    def _temperatures(self, temperature: Temperature) -> list[float]:
        return arguments.per_layer(temperature, self.resolutions)
