"""Bits per dimension of PNG files of the same images: a yardstick that everybody knows."""

from __future__ import annotations

import imageio.v3 as iio
import numpy as np

from vdvae.data.prepared import Split

MOST_PIXELS = 1 << 26
"""The most pixels to take, which are compressed within a minute or so: 1,000 images of 256 pixels, 64 of 1024."""


def png_bits_per_dim(split: Split, most: int = 1000) -> tuple[float, int]:
    """Bits per sub-pixel of PNG files, one per image and optimised, headers included.

    Args:
        split: the images.
        most: the most images to take, evenly spaced, where they have no more than `MOST_PIXELS` together.

    Returns:
        bits per sub-pixel, and the number of images taken.
    """
    height, width = split.storage.shape[1:3]
    count = max(1, min(most, len(split), MOST_PIXELS // (height * width)))
    positions = np.unique(np.linspace(0, len(split) - 1, count).astype(np.int64))
    images = split.read(positions)  # [N, H, W, C]
    squeezed = images[..., 0] if images.shape[-1] == 1 else images
    total = sum(len(iio.imwrite("<bytes>", image, extension=".png", optimize=True)) for image in squeezed)
    return 8 * total / images.size, len(positions)
