"""What one does with a trained model: encode, decode, sample, flatten, densities and importance weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vdvae.model import arguments
from vdvae.model.arguments import Temperature
from vdvae.model.config import ModelConfig
from vdvae.model.gaussian import Latent, Source
from vdvae.model.likelihood import Likelihood


class Pass(NamedTuple):
    """One pass through all layers."""

    latents: list[Latent]
    """Prior, posterior and z of each layer, top-down."""
    mixture: Likelihood
    """The likelihood p(x|z) of each image, a `Mixture` unless the model has another."""


class LatentVariableModel(nn.Module):
    """The public methods of a `VDVAE` besides its forward pass, on top of `encoder_features` and `propagate`."""

    config: ModelConfig
    encoder: nn.Module
    decoder: nn.Module
    encoder_features: Callable[[Tensor], dict[int, Tensor]]
    propagate: Callable[..., Pass]

    @property
    def num_layers(self) -> int:
        """L, the number of latent layers: the "stochastic depth" of the paper."""
        return len(self.config.decoder_specs)

    @property
    def resolutions(self) -> list[int]:
        """The resolution of each latent layer, top-down."""
        return [spec.resolution for spec in self.config.decoder_specs]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of one image, (C, H, W)."""
        return (self.config.image_channels, self.config.image_size, self.config.image_size)

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """The shape (zdim, r, r) of each latent layer, top-down."""
        return [(self.config.zdim, r, r) for r in self.resolutions]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights: fp32, or fp64 after `model.double()`. A convolution may have weights of another."""
        return self.decoder.gain.dtype  # type: ignore[return-value]

    def per_resolution(self, layer_rate: Sequence[float]) -> dict[int, float]:
        """Sums a number per layer over the layers of each resolution, from the lowest resolution up."""
        sums = dict.fromkeys(sorted(set(self.resolutions)), 0.0)
        for resolution, rate in zip(self.resolutions, layer_rate, strict=True):
            sums[resolution] += rate
        return sums

    def log_weights(
        self, images: Tensor, samples: int, generator: torch.Generator | None = None, layers: int | None = None
    ) -> Tensor:
        """log p(x, z) / q(z|x) of some posterior samples z, in nats, `[samples, B]`.

        The logarithm of their mean is the importance-weighted bound (Burda et al. 2016), which in expectation lies
        between the ELBO and log p(x). Samples are drawn one after the other: without gradients, memory does not grow
        with their number.

        Args:
            images: uint8 `[B, C, H, W]`.
            samples: the number of posterior samples, at least 1.
            generator: source of the noise.
            layers: the number of layers, from the top, that come from the posterior, as in `forward`.

        Raises:
            ValueError: arguments not as above.
        """
        samples = arguments.check_count("samples", samples)
        images, sources = self.check(images, generator), self.from_posterior(layers)
        features = self.encoder_features(images)
        weights = []
        for _ in range(samples):
            result = self.propagate(len(images), features, sources, [1.0] * self.num_layers, generator)
            weight = result.mixture.log_prob(images)  # [B]
            for latent in result.latents:
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
            layers: the number of layers, from the top (see `layers_up_to`); all of them if None.
            mode: draw z from the posterior, or take its mean (each layer given the means of those above).
            temperature: factor on the posteriors' standard deviations; one number per layer means those `layers`
                layers.
            generator: source of the noise.

        Raises:
            ValueError: images, `layers`, `mode` or `temperature` not as above.
        """
        if mode not in ("sample", "mean"):
            raise ValueError(f"mode must be 'sample' or 'mean', not {mode!r}")
        layers = arguments.check_layers(layers, self.num_layers)
        temperatures = arguments.per_layer(0.0 if mode == "mean" else temperature, self.resolutions[:layers])
        images = self.check(images, generator)
        sources = self.from_posterior()[:layers]
        latents: list[Latent]
        _, latents = self.decoder(len(images), self.encoder_features(images), sources, temperatures, generator)
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
            temperature: factor on the standard deviations of the distributions that the layers are drawn from.
            num_images: B, needed where neither images nor a z tell.
            generator: source of the noise.

        Raises:
            ValueError: arguments not as above.
        """
        arguments.check_generator(generator)
        arguments.check_weights(self.dtype)
        chosen = arguments.per_layer_sources(sources, self.latent_shapes, self.device, self.dtype)
        features = None
        if images is not None:
            images = self.check(images)
            features = self.encoder_features(images)
            if num_images is not None and arguments.check_count("num_images", num_images) != len(images):
                raise ValueError(f"num_images is {num_images}, but there are {len(images)} images")
            num_images = len(images)
        elif any(source == "posterior" for source in chosen if isinstance(source, str)):
            raise ValueError("a layer is to come from the posterior, which needs images")
        num_images = arguments.batch_size(chosen, self.latent_shapes, num_images)
        temperatures = arguments.per_layer(temperature, self.resolutions)
        return self.propagate(num_images, features, chosen, temperatures, generator)

    def mixture(
        self,
        latents: Sequence[Tensor | Latent | None] = (),
        temperature: Temperature = 1.0,
        num_images: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Likelihood:
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
            temperature: factor on the standard deviations of those priors.
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

    def flatten(self, latents: Sequence[Tensor | Latent]) -> Tensor:
        """The latents of the first layers as one row per image, `[B, N]`, in fp32: layer by layer from the top, each
        as channels, rows, columns. The first 31 layers of ImageNet-64 make the 91,168 numbers of the brain-decoding
        literature.

        Raises:
            ValueError: latents of a wrong shape or number, or not finite.
        """
        given = arguments.per_layer_sources(latents, self.latent_shapes, self.device, self.dtype)[: len(latents)]
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

    def check(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images on the model's device.

        Raises:
            ValueError: they are not uint8 `[B, C, H, W]` of the model's size, `generator` is something else, or the
                weights are of half precision.
        """
        arguments.check_generator(generator)
        arguments.check_weights(self.dtype)
        arguments.check_images(images, self.config)
        return images.to(self.device)
