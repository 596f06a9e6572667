"""The exact NLL of a split, and other bounds: every image once, however many processes share the work."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vdvae import fast
from vdvae.data.prepared import Split
from vdvae.data.storage import Rows
from vdvae.evaluation.active_units import ActiveUnits
from vdvae.evaluation.batches import measured
from vdvae.model.likelihood import Binning, Mixture
from vdvae.model.vdvae import VDVAE
from vdvae.runtime.precision import in_fp32
from vdvae.runtime.processes import World

UNIT_IMAGES = 1024
"""Images on which active units are counted, rounded up to whole batches."""


class NLL(NamedTuple):
    """The negative ELBO, an upper bound on the negative log-likelihood, with one posterior sample per image."""

    bits_per_dim: float
    nats_per_dim: float
    rate: float
    """The KL of all layers, in bits/dim."""
    distortion: float
    """-log p(x|z), in bits/dim."""
    rate_per_resolution: dict[int, float]
    """The rate of the layers of each resolution, in bits/dim, lowest resolution first."""
    num_images: int
    standard_error: float
    """Standard error of bits_per_dim, over images."""
    bits_per_dim_by_binning: dict[str, float]
    """The same under each arithmetic of the likelihood, see `likelihood.Binning`: both with 5 bits, else the
    model's own alone."""
    active_units_per_resolution: dict[int, int] | None = None
    """Latent variables in use, lowest resolution first, see `ActiveUnits`; None where they were not counted."""


class ImportanceWeighted(NamedTuple):
    """The importance-weighted bound (Burda et al. 2016), tighter than the ELBO in expectation."""

    bits_per_dim: float
    standard_error: float
    """Standard error of bits_per_dim, over images."""
    samples: int
    """Posterior samples per image."""


@in_fp32()
@torch.no_grad()
def evaluate(
    model: VDVAE,
    split: Split,
    batch_size: int,
    world: World,
    seed: int = 0,
    show_progress: bool = False,
    layers: int | None = None,
    count_units: bool = False,
) -> NLL:
    """Measures `model` on all images of a split.

    Noise depends on (seed, index of the batch) alone and images are summed in their order, so the result is the
    same to the last digit for any number of processes; another `batch_size` draws other noise.

    Args:
        model: the model, on `world.device`.
        split: the images.
        batch_size: images at once.
        world: the processes among which the batches are dealt out. Every one must call this.
        seed: seed of the noise.
        show_progress: whether the main process shows a bar on a terminal.
        layers: the number of layers, from the top, that come from the posterior; the others come from the prior, see
            `VDVAE.forward`. All of them if None.
        count_units: whether active units are counted too, on the batches that begin among the first `UNIT_IMAGES`.
    """
    binnings = {name: Binning.of(model.config.bits, name) for name in _binnings(model)}
    units = ActiveUnits(model)

    def look(images: Tensor, counts: bool, noise: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Nats per dimension of each image, `[B, binnings + L]`, and of each latent variable if it counts."""
        result = model.top_down(images, model.from_posterior(layers), generator=noise)
        terms = model.terms(images, result)
        distortions = [
            terms.distortion
            if name == model.config.binning or not isinstance(result.mixture, Mixture)
            else -result.mixture._replace(binning=binning).log_prob(images) / model.config.dims
            for name, binning in binnings.items()
        ]
        per_image = torch.cat([torch.stack(distortions, 1), terms.layer_rate], 1)
        return per_image, units.nats_of(result.latents) if counts else None

    looked = fast.recorded_if_prepared(look, model)

    def measure(rows: Rows, images: Tensor, noise: torch.Generator) -> Tensor:
        per_image, nats = looked(images, count_units and bool(rows[0] < UNIT_IMAGES), noise)
        if nats is not None:
            units.add(nats, len(images))
        return per_image

    title = "evaluating" if show_progress else None
    per_image = _over_images(split, batch_size, world, seed, len(binnings) + model.num_layers, measure, title)
    own = list(binnings).index(model.config.binning)
    rates = per_image[:, len(binnings) :]
    means = per_image.mean(0).tolist()
    bits_per_dim = per_image[:, own] + rates.sum(1)  # [N]
    rate = sum(means[len(binnings) :])
    return NLL(
        bits_per_dim=bits_per_dim.mean().item(),
        nats_per_dim=bits_per_dim.mean().item() * math.log(2),
        rate=rate,
        distortion=means[own],
        rate_per_resolution=model.per_resolution(means[len(binnings) :]),
        num_images=len(split),
        standard_error=_standard_error(bits_per_dim),
        bits_per_dim_by_binning={name: means[i] + rate for i, name in enumerate(binnings)},
        active_units_per_resolution=units.per_resolution(world) if count_units else None,
    )


@in_fp32()
@torch.no_grad()
def evaluate_importance_weighted(
    model: VDVAE,
    split: Split,
    batch_size: int,
    world: World,
    samples: int,
    seed: int = 0,
    show_progress: bool = False,
    layers: int | None = None,
) -> ImportanceWeighted:
    """-log of the mean of p(x, z) / q(z|x) over `samples` posterior samples per image, averaged over a split.

    An image's samples are drawn one after the other, so memory is that of `evaluate` however many they are, and its
    first is the one that `evaluate` draws. Other arguments and determinism as there.
    """
    weigh = fast.recorded_if_prepared(lambda images, noise: model.log_weights(images, samples, noise, layers), model)

    def measure(rows: Rows, images: Tensor, noise: torch.Generator) -> Tensor:
        log_weights = weigh(images, noise).cpu().double()  # [samples, B]
        return (math.log(samples) - log_weights.logsumexp(0))[:, None] / model.config.dims

    bar = f"{samples} samples per image" if show_progress else None
    bits_per_dim = _over_images(split, batch_size, world, seed, 1, measure, bar)[:, 0]
    return ImportanceWeighted(bits_per_dim.mean().item(), _standard_error(bits_per_dim), samples)


def _binnings(model: VDVAE) -> tuple[str, ...]:
    """The arithmetics of the likelihood that give a model's NLL different figures."""
    return ("exact", "released") if model.config.bits == 5 else (model.config.binning,)


def _over_images(
    split: Split,
    batch_size: int,
    world: World,
    seed: int,
    columns: int,
    measure: Callable[[Rows, Tensor, torch.Generator], Tensor],
    title: str | None,
) -> Tensor:
    """What `measure` makes of every image, [B, columns] in nats/dim, as [N, columns] in bits/dim, fp64. The main
    process shows a bar with this title on a terminal; none without title.
    """
    per_image = torch.zeros(len(split), columns, dtype=torch.float64)
    for rows, result in measured(split, batch_size, world, seed, measure, title):
        per_image[rows] = result.cpu().double()
    return world.sum(per_image.to(world.device)).cpu() / math.log(2)


def _standard_error(bits_per_dim: Tensor) -> float:
    return bits_per_dim.std().item() / math.sqrt(len(bits_per_dim))
