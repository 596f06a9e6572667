"""The exact NLL of a split, and other bounds: every image once, however many processes share the work."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vdvae.data.splits import Split
from vdvae.distributed import World
from vdvae.evaluation.batches import measured
from vdvae.model.likelihood import Binning
from vdvae.model.vdvae import VDVAE


class NLL(NamedTuple):
    """The negative ELBO, an upper bound on the negative log-likelihood, with one posterior sample per image."""

    bits_per_dim: float
    nats_per_dim: float
    rate: float
    """bits/dim"""
    distortion: float
    """bits/dim"""
    rate_per_resolution: dict[int, float]
    """bits/dim, lowest resolution first"""
    num_images: int
    standard_error: float
    """of bits_per_dim, over images"""
    bits_per_dim_by_binning: dict[str, float]
    """With 5 bits under both arithmetics, see `likelihood.Binning`; else under the model's own alone"""


class ImportanceWeighted(NamedTuple):
    """The importance-weighted bound (Burda et al. 2016), tighter than the ELBO in expectation."""

    bits_per_dim: float
    standard_error: float
    """of bits_per_dim, over images"""
    samples: int
    """posterior samples per image"""


def evaluate(
    model: VDVAE,
    split: Split,
    batch_size: int,
    world: World,
    seed: int = 0,
    show_progress: bool = False,
    layers: int | None = None,
) -> NLL:
    """Measures `model` on all images of a split.

    Noise depends on (seed, index of the batch) alone and images are summed in their order, so the result is the
    same to the last digit for any number of processes; another `batch_size` draws other noise.

    Args:
        model: on `world.device`.
        split: the images.
        batch_size: images at once.
        world: the processes among which the batches are dealt out. Every one must call this.
        seed: of the noise.
        show_progress: whether the main process shows a bar on a terminal.
        layers: only so many from the top come from the posterior, the others from the prior: see `VDVAE.forward`.
    """
    binnings = {name: Binning.of(model.config.bits, name) for name in _binnings(model)}

    def measure(images: Tensor, noise: torch.Generator) -> Tensor:
        run = model.top_down(images, model.from_posterior(layers), generator=noise)
        terms = model.terms(images, run)
        distortions = [
            terms.distortion
            if name == model.config.binning
            else -run.mixture._replace(binning=binning).log_prob(images) / model.config.dims
            for name, binning in binnings.items()
        ]
        return torch.cat([torch.stack(distortions, 1), terms.layer_rate], 1)

    per_image = _over_images(
        split,
        batch_size,
        world,
        seed,
        len(binnings) + model.num_layers,
        measure,
        "evaluating" if show_progress else None,
    )
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
    )


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

    def measure(images: Tensor, noise: torch.Generator) -> Tensor:
        log_weights = model.log_weights(images, samples, noise, layers).cpu().double()  # [samples, B]
        return (math.log(samples) - log_weights.logsumexp(0))[:, None] / model.config.dims

    bar = f"{samples} samples per image" if show_progress else None
    bits_per_dim = _over_images(split, batch_size, world, seed, 1, measure, bar)[:, 0]
    return ImportanceWeighted(bits_per_dim.mean().item(), _standard_error(bits_per_dim), samples)


def _binnings(model: VDVAE) -> tuple[str, ...]:
    """The arithmetics of the likelihood that give a model's NLL different figures."""
    return ("exact", "released") if model.config.bits == 5 else (model.config.binning,)


@torch.no_grad()
def _over_images(
    split: Split,
    batch_size: int,
    world: World,
    seed: int,
    columns: int,
    measure: Callable[[Tensor, torch.Generator], Tensor],
    title: str | None,
) -> Tensor:
    """What `measure` makes of every image, [B, columns] in nats/dim, as [N, columns] in bits/dim, fp64. The main
    process shows a bar with this title on a terminal; none without title.
    """
    per_image = torch.zeros(len(split), columns, dtype=torch.float64)
    for rows, result in measured(split, len(split), batch_size, world, seed, measure, title):
        per_image[rows] = result.cpu().double()
    return world.sum(per_image.to(world.device)).cpu() / math.log(2)


def _standard_error(bits_per_dim: Tensor) -> float:
    return bits_per_dim.std().item() / math.sqrt(len(bits_per_dim))
