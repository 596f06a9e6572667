"""Bits per dimension of lossless image files of the same images: yardsticks that everybody knows."""

from __future__ import annotations

from typing import Any, NamedTuple

import imageio.v3 as iio
import numpy as np

from vdvae.data.prepared import Split
from vdvae.data.storage import Images

MOST_PIXELS = 1 << 23
"""The most pixels that are compressed, to end within seconds: 8 images of 1024x1024, or 1,000 of 64x64 and more."""
LARGEST_WEBP = 16_383
"""The longest side of a WebP file, in pixels."""
SMALLEST_WEBP = {"lossless": True, "quality": 95, "method": 6}
"""The smallest files that WebP makes within seconds; quality 100 saves 0.5 % more and takes 80 times as long."""


class Strips(NamedTuple):
    """Bits per sub-pixel of images that share a file, one above the other, so that hardly any of it is headers."""

    png: float
    webp: float
    """WebP's lossless form: the strongest of the yardsticks."""


def png_bits_per_dim(split: Split, most: int = 1000, bits: int = 8) -> tuple[float, int]:
    """Bits per sub-pixel of PNG files, one per image and optimised. The headers of each, 57 bytes, are counted: 0.58
    bits per sub-pixel of a gray image of 28x28.

    Args:
        split: the images.
        most: the most images to take, evenly spaced; of large ones no more than `MOST_PIXELS` allow.
        bits: at which the NLL is measured that this is to be compared with; the files hold the levels of that.

    Returns:
        bits per sub-pixel, and the number of images taken.
    """
    images = _some(split, most, bits)
    return _bits_per_dim(images, images, extension=".png", optimize=True), len(images)


def strip_bits_per_dim(split: Split, most: int = 1000, bits: int = 8) -> Strips:
    """Bits per sub-pixel of the same images as strips; arguments as for `png_bits_per_dim`."""
    images = _some(split, most, bits)
    n, h, w, c = images.shape
    in_one = max(1, LARGEST_WEBP // h)
    strips = [images[i : i + in_one].reshape(-1, w, c) for i in range(0, n, in_one)]
    return Strips(
        png=_bits_per_dim(images, strips, extension=".png", optimize=True),
        webp=_bits_per_dim(images, strips, extension=".webp", **SMALLEST_WEBP),
    )


def _some(split: Split, most: int, bits: int) -> Images:
    """Evenly spaced images, as levels 0 ... 2^bits - 1, uint8 [N, H, W, C]."""
    h, w = split.storage.shape[1:3]
    count = min(most, len(split), max(1, MOST_PIXELS // (h * w)))
    positions = np.unique(np.linspace(0, len(split) - 1, count).astype(np.int64))
    return np.right_shift(split.read(positions), 8 - bits, dtype=np.uint8)


def _bits_per_dim(images: Images, pictures: Any, **form: Any) -> float:
    """The size of files of pictures, uint8 [h, w, C] each, in bits per sub-pixel of the images in them."""
    squeezed = (picture[..., 0] if picture.shape[-1] == 1 else picture for picture in pictures)
    return 8 * sum(len(iio.imwrite("<bytes>", picture, **form)) for picture in squeezed) / images.size
