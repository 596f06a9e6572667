"""What a run shows of itself: pictures on the way, and a summary at its end."""

from __future__ import annotations

import sys
from pathlib import Path

from vdvae.data.loader import first_images
from vdvae.data.prepared import Splits
from vdvae.evaluation.grids import TEMPERATURES, reconstruction_grid, sample_grid, save_png
from vdvae.evaluation.nll import NLL
from vdvae.evaluation.png import png_bits_per_dim
from vdvae.model.vdvae import VDVAE
from vdvae.run.directory import RunDirectory
from vdvae.run.log import RunLog, warn_where_unwritten
from vdvae.runtime.precision import in_fp32


@in_fp32()
def draw_pictures(ema: VDVAE, splits: Splits, columns: int, directory: RunDirectory, step: int, log: RunLog) -> None:
    """Samples, and reconstructions of validation images, as PNG files and in TensorBoard."""
    originals = first_images(splits.valid, columns, ema.device)
    pictures = {
        "samples": sample_grid(ema, TEMPERATURES, columns),
        "reconstructions": reconstruction_grid(ema, originals),
    }
    for name, picture in pictures.items():
        with warn_where_unwritten(f"the {name}"):
            save_png(picture, directory.picture(name, step))
        log.picture(step, name, picture)


def print_summary(test: NLL, splits: Splits, directory: RunDirectory, step: int) -> None:
    """The test NLL beside what PNG needs, and where to look."""
    png, taken = png_bits_per_dim(splits.test)
    images = f"the same {taken:,}" if taken == test.num_images else f"{taken:,} of the {test.num_images:,}"
    print(f"\ntest bits/dim: {test.bits_per_dim:.4f}   (PNG on {images} images: {png:.2f})")
    print(f"data set:        {splits.manifest}")
    print(f"samples:         {directory.picture('samples', step)}")
    print(f"reconstructions: {directory.picture('reconstructions', step)}")
    tensorboard = Path(sys.executable).with_name("tensorboard")
    if tensorboard.is_relative_to(Path.cwd()):
        tensorboard = tensorboard.relative_to(Path.cwd())
    print(f"TensorBoard:     {tensorboard} --logdir {directory.path}")
