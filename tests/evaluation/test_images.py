"""Grids for people: where each image lands, and what the rows show."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch

from vdvae import VDVAE
from vdvae.config import Config
from vdvae.evaluation.images import grid, reconstruction_grid, sample_grid, save_png


def test_grid_places_rows_and_columns_and_enlarges_small_images() -> None:
    rows = [torch.full((3, 3, 28, 28), 10 * r, dtype=torch.uint8) for r in range(2)]
    rows[1][2, 1] = 77
    picture = grid(rows)
    assert picture.shape == (2 * 58 + 2, 3 * 58 + 2, 3)
    assert (picture[:2] == 255).all()
    assert (picture[2:58, 2:58] == 0).all()
    assert (picture[60:116, 118:174, 1] == 77).all()
    assert (picture[60:116, 118:174, 0] == 10).all()
    assert grid([torch.zeros(1, 3, 64, 64, dtype=torch.uint8)]).shape == (68, 68, 3)


def test_sample_rows_share_their_noise(tiny: Config) -> None:
    model = VDVAE(tiny.model)
    picture = sample_grid(model, [0.5, 0.5], columns=2)
    assert np.array_equal(picture[2:58], picture[60:116])


def test_reconstructions_start_with_the_originals(tiny: Config) -> None:
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    picture = reconstruction_grid(VDVAE(tiny.model), images)
    assert picture.shape == ((1 + 3) * 58 + 2, 2 * 58 + 2, 1)  # originals, then up to 1, 7 and 28 pixels
    assert np.array_equal(picture[2:58:2, 2:58:2, 0], images[0, 0].numpy())


def test_save_png(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 6, 1), np.uint8)
    save_png(picture, tmp_path / "new/a.png")
    assert np.array_equal(iio.imread(tmp_path / "new/a.png"), picture[..., 0])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
