"""From an image file to uint8 [H, W, C]: which kinds of PNG, JPEG, WebP and BMP are taken, and how."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
from imageio.plugins.pillow import PillowPlugin
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from vdvae.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
GRAY = ("1", "L", "LA", "I", "I;16", "I;16B")
COLOUR = ("P", "PA", "RGB", "RGBA")
ALPHA = ("LA", "PA", "RGBA")
BACKGROUNDS = {"black": 0, "white": 255}


class Header(NamedTuple):
    """What a file says of itself before its pixels are decoded."""

    height: int
    width: int
    channels: int
    """1 or 3, transparency aside."""


def read_header(source: Path | bytes, name: str) -> Header:
    """Looks at an image without decoding it.

    Args:
        source: a path, or the file's bytes.
        name: what messages call it.

    Raises:
        UserError: not an image, more than one, or of a kind that is not taken.
    """
    with closing(_opened(source, name)) as file:
        facts = _facts(file, name)
        width, height = facts["shape"]
        if facts.get("Orientation", 1) > 4:  # EXIF: the camera was held upright
            width, height = height, width
        return Header(height, width, 1 if facts["mode"] in GRAY else 3)


def read_picture(source: Path | bytes, name: str, background: int | None = None) -> NDArray[np.uint8]:
    """Decodes an image.

    Palettes are applied; of 16 bits per channel the upper 8 are kept; EXIF orientation is followed.

    Args:
        source: a path, or the file's bytes.
        name: what messages call it.
        background: 0 to 255, put behind transparent images; without one they are refused.

    Returns:
        uint8 [H, W, 1] for gray and [H, W, 3] for colour.

    Raises:
        UserError: damaged, or of a kind that is not taken.
    """
    with closing(_opened(source, name)) as file:
        facts = _facts(file, name)
        mode, has_alpha = facts["mode"], facts["mode"] in ALPHA or "transparency" in facts
        convert = {"1": "L", "P": "RGB", "PA": "RGBA"}.get(mode)
        if has_alpha:
            convert = "LA" if mode in GRAY else "RGBA"
        try:
            pixels = np.atleast_3d(file.read(index=0, mode=convert, rotate=True))  # type: ignore[arg-type]  # [H, W, C]
        except Exception as error:  # damaged bytes make decoders fail in any way there is
            raise UserError(f"{name} is damaged: {_first_line(error)}") from error
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    if has_alpha:
        pixels = _without_alpha(pixels, name, background)
    return pixels


def check_shape(found: tuple[int, ...], expected: tuple[int, ...], name: str) -> None:
    """Raises `UserError` where an image (H, W, C) has not the shape that all images of a set have."""
    if found != expected:
        described = ("{1} x {0} with {2} channels".format(*shape) for shape in (found, expected))
        raise UserError(f"{name} is {', not '.join(described)}")


def fit(pixels: NDArray[np.uint8], size: int, crop: bool, name: str) -> NDArray[np.uint8]:
    """Brings an image to `size` x `size`: the middle square if `crop`, then bicubic down-sampling with antialiasing.

    Raises:
        UserError: not square and not to be cropped, or too small.
    """
    check_fits(Header(*pixels.shape), size, crop, name)
    h, w = pixels.shape[:2]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    pixels = pixels[top : top + side, left : left + side]
    if side == size:
        return pixels
    planes = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float()  # [1, C, side, side]
    planes = interpolate(planes, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return planes.round().clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()  # [size, size, C]


def read_fitted(
    source: Path | bytes, name: str, size: int, crop: bool, channels: int, background: int | None
) -> NDArray[np.uint8]:
    """Decodes an image and brings it to uint8 [size, size, channels]; gray ones get equal channels where 3 are wanted.

    Raises:
        UserError: damaged, of a kind that is not taken, not to be brought to that size, or in colour where 1 channel
            is wanted.
    """
    pixels = fit(read_picture(source, name, background), size, crop, name)
    if pixels.shape[-1] > channels:
        raise UserError(f"{name} is in colour, and {channels} channel is wanted; convert it to gray")
    return np.repeat(pixels, channels, -1) if pixels.shape[-1] < channels else pixels


def check_fits(header: Header, size: int, crop: bool, name: str, remedy: str = "give a larger image") -> None:
    """Refuses, before anything is decoded, what `fit` would refuse; `remedy` is what to do where it is too small."""
    if header.height != header.width and not crop:
        raise UserError(f"{name} is {header.width} x {header.height} and not square; --crop center takes its middle")
    if min(header.height, header.width) < size:
        raise UserError(f"{name} is {header.width} x {header.height}, smaller than {size}; {remedy}")


def _opened(source: Path | bytes, name: str) -> PillowPlugin:
    try:
        return iio.imopen(source, "r", plugin="pillow")
    except FileNotFoundError as error:
        raise UserError(f"{name} is missing") from error
    except Exception as error:
        raise UserError(f"{name} is no image, or its beginning is damaged") from error


def _facts(file: PillowPlugin, name: str) -> dict[str, Any]:
    try:
        facts = file.metadata(index=0, exclude_applied=False)
        several = file.properties(index=...).n_images != 1  # type: ignore[arg-type]
    except Exception as error:
        raise UserError(f"{name} is damaged: {_first_line(error)}") from error
    if several:
        raise UserError(f"{name} is animated; keep one of its frames")
    if facts["mode"] not in (*GRAY, *COLOUR):
        raise UserError(f"{name} is in {facts['mode']}, which has no agreed way to RGB; convert it first")
    return facts


def _without_alpha(pixels: NDArray[np.uint8], name: str, background: int | None) -> NDArray[np.uint8]:
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    if alpha.min() == 255:
        return colour
    if background is None:
        raise UserError(f"{name} is partly transparent; --background white (or black) puts a colour behind it")
    opacity = alpha / 255.0
    return np.round(colour * opacity + background * (1 - opacity)).astype(np.uint8)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
