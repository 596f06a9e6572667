"""Grids for people to look at: samples by temperature, reconstructions by resolution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdvae.files import atomic_write
from vdvae.model.arguments import Temperature, check_count
from vdvae.model.vdvae import VDVAE
from vdvae.runtime.noise import Purpose, generator

SMALLEST_CELL = 64
"""Images are enlarged by a whole factor to about this many pixels, so that a 28-pixel image can be seen."""
TEMPERATURES = (1.0, 0.9, 0.8, 0.7)
"""The temperatures of the rows of a grid of samples, unless told otherwise."""
LOW_TEMPERATURE = 0.1
"""The temperature of the prior above the resolution up to which posterior latents are used (paper Figure 4)."""


@torch.no_grad()
def sample_grid(model: VDVAE, temperatures: Sequence[Temperature], columns: int, seed: int = 0) -> NDArray[np.uint8]:
    """A row of samples for each temperature, from the same noise in every row, uint8 [H, W, C]."""
    return grid([model.sample(columns, temperature, generator=_noise(model, seed)) for temperature in temperatures])


@torch.no_grad()
def reconstruction_grid(
    model: VDVAE, images: Tensor, seed: int = 0, temperature: Temperature = LOW_TEMPERATURE
) -> NDArray[np.uint8]:
    """The originals, then reconstructions from the posterior's latents up to each resolution, from the lowest to
    all, with the prior at a low temperature for the rest (paper Figure 4), uint8 [H, W, C].

    Args:
        model: the model.
        images: uint8 [B, C, H, W], a column each.
        seed: seed of the noise.
        temperature: temperature of the prior.
    """
    latents = model.encode(images, generator=_noise(model, seed))
    rows = [images]
    for resolution in sorted(set(model.resolutions)):
        given = latents[: model.layers_up_to(resolution)]
        rows.append(model.decode(given, temperature, generator=_noise(model, seed)))
    return grid(rows)


@torch.no_grad()
def interpolation(
    model: VDVAE,
    images: Tensor,
    steps: int,
    layers: int | None = None,
    seed: int = 0,
    temperature: Temperature = LOW_TEMPERATURE,
) -> Tensor:
    """Images on the straight line between the latents of two.

    Args:
        model: the model.
        images: two images, uint8 [2, C, H, W].
        steps: the number of images, the two ends included.
        layers: the layers, from the top, that go from posterior mean to posterior mean; all if None. The others
            come from the prior, with the same noise in every image.
        seed: seed of that noise.
        temperature: temperature of that prior.

    Returns:
        the means of p(x|z), uint8 [steps, C, H, W].

    Raises:
        ValueError: not two images, or arguments not as `encode` and `decode` take them.
    """
    if len(images) != 2:
        raise ValueError(f"an interpolation is between 2 images, not {len(images)}")
    latents = model.encode(images, layers, mode="mean")
    pictures = []
    for t in torch.linspace(0, 1, check_count("steps", steps)).tolist():
        between = [torch.lerp(latent.z[:1], latent.z[1:], t) for latent in latents]
        pictures.append(model.decode(between, temperature, output="mean", generator=_noise(model, seed)))
    return to_uint8(torch.cat(pictures))


def to_uint8(means: Tensor) -> Tensor:
    """Floats on 0..255, of any shape, to the nearest whole numbers."""
    return means.round().clamp(0, 255).to(torch.uint8)


def grid(rows: Sequence[Tensor]) -> NDArray[np.uint8]:
    """Rows of uint8 [columns, C, h, w] as one picture [H, W, C], enlarged by a whole factor, with white gaps."""
    factor = max(1, SMALLEST_CELL // rows[0].shape[-1])
    gap = 2
    cells = torch.stack([row.cpu() for row in rows])  # [R, columns, C, h, w]
    cells = cells.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    cells = torch.nn.functional.pad(cells, (0, gap, 0, gap), value=255)
    r, columns, c, h, w = cells.shape
    picture = cells.permute(0, 3, 1, 4, 2).reshape(r * h, columns * w, c)  # [R*h, columns*w, C]
    picture = torch.nn.functional.pad(picture, (0, 0, gap, 0, gap, 0), value=255)
    return picture.numpy()


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """The PNG file of uint8 [H, W, C]."""
    return _encode(picture, ".png")


def save_png(picture: NDArray[np.uint8], path: Path) -> None:
    """Writes uint8 [H, W, C] as a PNG, whole or not at all."""
    _save(encode_png(picture), path)


def save_gif(pictures: Sequence[NDArray[np.uint8]], path: Path, milliseconds: int = 100) -> None:
    """Writes uint8 [H, W, C] pictures as an endless animation, whole or not at all."""
    _save(_encode(np.stack(pictures), ".gif", duration=milliseconds, loop=0), path)


def _encode(pixels: NDArray[np.uint8], extension: str, **options: Any) -> bytes:
    """In memory: an image writer that meets a full disk says so twice."""
    return iio.imwrite("<bytes>", pixels[..., 0] if pixels.shape[-1] == 1 else pixels, extension=extension, **options)


def _save(encoded: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(encoded)


def _noise(model: VDVAE, seed: int) -> torch.Generator:
    return generator(model.device, seed, Purpose.PICTURES)
