"""Grids for people to look at: samples by temperature, reconstructions by resolution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdvae.model.vdvae import VDVAE
from vdvae.noise import Purpose, generator

SMALLEST_CELL = 64
"""Images are enlarged by a whole factor to about this many pixels, so that a 28-pixel image can be seen."""
LOW_TEMPERATURE = 0.1
"""Of the prior above the resolution up to which posterior latents are used (paper Figure 4)."""


@torch.no_grad()
def sample_grid(model: VDVAE, temperatures: Sequence[float], columns: int, seed: int = 0) -> NDArray[np.uint8]:
    """A row of samples for each temperature, from the same noise in every row, uint8 [H, W, C]."""
    rows = [model.sample(columns, t, generator=_noise(model, seed)) for t in temperatures]
    return grid(rows)


@torch.no_grad()
def reconstruction_grid(model: VDVAE, images: Tensor, seed: int = 0) -> NDArray[np.uint8]:
    """The originals, then reconstructions from the posterior's latents up to each resolution, from the lowest to
    all, with the prior at a low temperature for the rest (paper Figure 4), uint8 [H, W, C].

    Args:
        model: any.
        images: uint8 [B, C, H, W], a column each.
        seed: of the noise.
    """
    latents = [latent.z for latent in model.encode(images, generator=_noise(model, seed))]
    resolutions = model.resolutions
    rows = [images]
    for resolution in sorted(set(resolutions)):
        given = [z if r <= resolution else None for z, r in zip(latents, resolutions, strict=True)]
        rows.append(model.decode(given, LOW_TEMPERATURE, generator=_noise(model, seed)))
    return grid(rows)


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


def save_png(picture: NDArray[np.uint8], path: Path) -> None:
    """Writes uint8 [H, W, C] as a PNG, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp.png")
    iio.imwrite(temporary, picture[..., 0] if picture.shape[-1] == 1 else picture)
    temporary.replace(path)


def _noise(model: VDVAE, seed: int) -> torch.Generator:
    return generator(model.device, seed, Purpose.PICTURES)
