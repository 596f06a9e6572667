"""What a run shows of itself: pictures on the way, and a summary at its end."""

from __future__ import annotations

import sys
from pathlib import Path

from vdvae.data.loader import first_images
from vdvae.data.prepared import Splits
from vdvae.evaluation.grids import TEMPERATURES, reconstruction_grid, sample_grid, save_png
from vdvae.evaluation.nll import NLL
from vdvae.evaluation.png import png_bits_per_dim, strip_bits_per_dim
from vdvae.files import from_here
from vdvae.model.vdvae import VDVAE
from vdvae.run.directory import RunDirectory
from vdvae.run.log import RunLog, warn_where_unwritten
from vdvae.runtime.precision import in_fp32

MOST_PIXELS = 1 << 20
"""In a row of pictures: 8 images of 256 pixels, and 1 of 1024. 8 of those are 120 passes through the model of
configs/ffhq1024.yaml, 90 TFLOP: half an hour on two cores."""


@in_fp32()
def draw_pictures(
    ema: VDVAE, splits: Splits, columns: int, directory: RunDirectory, step: int, log: RunLog, writes: bool = True
) -> None:
    """Samples, and reconstructions of validation images, as PNG files and in TensorBoard: `columns` of each in a row,
    or what `MOST_PIXELS` leaves.

    While training goes on, all processes draw, and one of them writes: so the others are busy for as long, and don't
    give up waiting, however large the model is and however slow the machine.
    """
    columns = max(1, min(columns, MOST_PIXELS // ema.config.image_size**2))
    originals = first_images(splits.valid, columns, ema.device)
    pictures = {
        "samples": sample_grid(ema, TEMPERATURES, columns),
        "reconstructions": reconstruction_grid(ema, originals),
    }
    for name, picture in pictures.items() if writes else ():
        with warn_where_unwritten(f"the {name}"):
            save_png(picture, directory.picture(name, step))
        log.picture(step, name, picture)


def print_summary(test: NLL, splits: Splits, directory: RunDirectory, step: int) -> None:
    """The test NLL beside what lossless files of the images need, and where to look. It never fails, as the run is
    complete without it.
    """
    try:
        compared = _lossless_files(test, splits)
    except Exception as error:  # an image that cannot be read any more, a lack of memory
        compared = f"PNG was not measured: {' '.join(str(error).split()) or type(error).__name__}"
    print(f"\ntest bits/dim: {test.bits_per_dim:.4f}   ({compared})")
    print(f"data set:        {splits.manifest}")
    print(f"samples:         {directory.picture('samples', step)}")
    print(f"reconstructions: {directory.picture('reconstructions', step)}")
    tensorboard = from_here(Path(sys.executable).with_name("tensorboard"))
    print(f"TensorBoard:     {tensorboard} --logdir {directory.path}")


def _lossless_files(test: NLL, splits: Splits) -> str:
    """Bits/dim of PNG and WebP, in words that say of which images and in which files."""
    bits = splits.manifest.bits
    png, taken = png_bits_per_dim(splits.test, bits=bits)
    strips = strip_bits_per_dim(splits.test, bits=bits)
    images = f"the same {taken:,}" if taken == test.num_images else f"{taken:,} of the {test.num_images:,}"
    return f"PNG on {images} images: {png:.2f} with a file for each; {strips.png:.2f} as strips, WebP {strips.webp:.2f}"
