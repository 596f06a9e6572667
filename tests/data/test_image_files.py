"""Kinds of image files: taken exactly, or refused by name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import refuses
from vdvae.data.image_files import Header, fit, read_header, read_picture
from vdvae.data.storage import Images
from vdvae.errors import UserError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 9, 3), np.uint8)
GRAY = COLOUR[..., :1]
ALPHA = RNG.integers(0, 256, (6, 9, 1), np.uint8)
DEEP = RNG.integers(0, 65536, (6, 9), np.uint16)


def encoded(pixels: Any, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(pixels.squeeze())
    content = io.BytesIO()
    (image.convert(mode) if mode else image).save(content, kind, **options)
    return content.getvalue()


PALETTE = Image.fromarray(COLOUR).quantize(16)


def palette_png(**options: Any) -> bytes:
    content = io.BytesIO()
    PALETTE.save(content, "PNG", **options)
    return content.getvalue()


EXACT: dict[str, tuple[bytes, Images]] = {
    "PNG": (encoded(COLOUR), COLOUR),
    "BMP": (encoded(COLOUR, "BMP"), COLOUR),
    "lossless WebP": (encoded(COLOUR, "WEBP", lossless=True), COLOUR),
    "gray": (encoded(GRAY), GRAY),
    "one bit": (encoded(np.where(GRAY > 99, 255, 0).astype(np.uint8), mode="1"), np.where(GRAY > 99, 255, 0)),
    "palette": (palette_png(), np.asarray(PALETTE.convert("RGB"))),
    "16 bits, the upper 8 of them": (encoded(DEEP), (DEEP >> 8)[..., None].astype(np.uint8)),
    "opaque alpha": (encoded(np.concatenate([COLOUR, 0 * ALPHA + 255], -1)), COLOUR),
    "opaque gray alpha": (encoded(np.concatenate([GRAY, 0 * ALPHA + 255], -1)), GRAY),
}


@pytest.mark.parametrize("kind", EXACT)
def test_kinds_that_are_taken(kind: str) -> None:
    content, pixels = EXACT[kind]
    taken = read_picture(content, kind)
    assert taken.dtype == np.uint8
    assert np.array_equal(taken, pixels)
    assert read_header(content, kind) == pixels.shape


def test_jpeg_follows_the_camera() -> None:
    """EXIF orientation 6: to be turned a quarter clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth = np.linspace(0, 200, 24 * 32 * 3).reshape(24, 32, 3).astype(np.uint8)
    content = encoded(smooth, "JPEG", exif=exif, quality=95)
    assert read_header(content, "jpeg") == Header(32, 24, 3)
    turned = read_picture(content, "jpeg")
    assert np.abs(turned.astype(int) - np.rot90(smooth, -1).astype(int)).mean() < 3


@pytest.mark.parametrize(("name", "value"), [("white", 255), ("black", 0)])
def test_transparency_shows_the_background(name: str, value: int) -> None:
    content = encoded(np.concatenate([COLOUR, ALPHA], -1))
    a = ALPHA / 255
    assert np.array_equal(read_picture(content, "x", value), np.round(COLOUR * a + value * (1 - a)))


def test_a_transparent_colour_of_a_palette_is_transparency() -> None:
    content = palette_png(transparency=int(np.asarray(PALETTE)[0, 0]))
    with refuses("leaf.png transparent --background", UserError):
        read_picture(content, "leaf.png")
    assert read_picture(content, "leaf.png", background=7)[0, 0].tolist() == [7, 7, 7]


REFUSED: dict[str, tuple[bytes, str]] = {
    "CMYK": (encoded(COLOUR, "JPEG", mode="CMYK"), "CMYK RGB"),
    "alpha": (
        encoded(np.concatenate([COLOUR, ALPHA], -1)),
        "transparent --background white black",
    ),
    "animated": (
        encoded(COLOUR, "WEBP", save_all=True, append_images=[Image.fromarray(255 - COLOUR)]),
        "animated",
    ),
    "truncated": (encoded(COLOUR)[:-60], "damaged"),
    "truncated JPEG": (encoded(COLOUR, "JPEG")[:-60], "damaged"),
    "a header only": (encoded(COLOUR)[:20], "no image"),
    "text": (b"hello", "no image"),
    "empty": (b"", "no image"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_kinds_that_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    content, words = REFUSED[kind]
    path = tmp_path / "a b.png"
    path.write_bytes(content)
    for source in (content, path):
        with refuses(f"b.png {words}", UserError):
            read_picture(source, str(path))


def test_fit_takes_the_middle_and_keeps_the_mean() -> None:
    picture = np.zeros((64, 100, 3), np.uint8)
    picture[:, 18:82] = np.indices((64, 64)).sum(0)[..., None]
    small = fit(picture, 16, crop=True, name="x")
    assert small.shape == (16, 16, 3)
    assert small.mean() == pytest.approx(63, abs=0.1)
    assert np.abs(small[..., 0] - (np.indices((16, 16)).sum(0) * 4 + 3))[2:-2, 2:-2].max() <= 1  # a plane stays one
    assert np.array_equal(fit(picture[:, 18:82], 64, crop=False, name="x"), picture[:, 18:82])


@pytest.mark.parametrize(
    ("crop", "size", "words"),
    [
        (False, 16, "x 100 64 square --crop center"),
        (True, 65, "x 100 64 65"),
    ],
)
def test_what_does_not_fit(crop: bool, size: int, words: str) -> None:
    with refuses(words, UserError):
        fit(np.zeros((64, 100, 3), np.uint8), size, crop, "x")
