"""Grids for people: where each image lands, and what the rows show."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch

from tests.conftest import random_model, refuses
from vdvae import VDVAE
from vdvae.config import Config
from vdvae.evaluation.grids import grid, interpolation, reconstruction_grid, sample_grid, save_gif, save_png


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


def test_interpolation_ends_where_the_images_are(tiny: Config) -> None:
    """The ends are the decoded posterior means, and the frames between differ."""
    model = random_model(tiny.model, std=0.4)
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    frames = interpolation(model, images, 5, layers=2, temperature=0.0)
    assert frames.shape == (5, 1, 28, 28)
    latents = model.encode(images, layers=2, mode="mean")
    for frame, i in ((frames[:1], slice(0, 1)), (frames[-1:], slice(1, 2))):
        end = model.decode([latent.z[i] for latent in latents], 0.0, output="mean")
        torch.testing.assert_close(frame.float(), end.round(), rtol=0, atol=1)
    assert len({frame.numpy().tobytes() for frame in frames}) > 2
    for wrong in (images[:1], torch.cat([images, images])):
        with refuses(f"interpolation 2 images {len(wrong)}"):
            interpolation(model, wrong, 5)
    with refuses("steps whole number 1"):
        interpolation(model, images, 0)


def test_save_gif(tmp_path: Path) -> None:
    pictures = [np.full((8, 8, 1), 60 * i, np.uint8) for i in range(4)]
    save_gif(pictures, tmp_path / "new/a.gif")
    frames = iio.imread(tmp_path / "new/a.gif")
    assert frames.shape[:3] == (4, 8, 8)
    assert [int(frame.flat[0]) for frame in frames] == [0, 60, 120, 180]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.gif"]


def test_save_png(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 6, 1), np.uint8)
    save_png(picture, tmp_path / "new/a.png")
    assert np.array_equal(iio.imread(tmp_path / "new/a.png"), picture[..., 0])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
