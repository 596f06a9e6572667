"""Kinds of image files: taken exactly, or refused by name."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from tests.conftest import ROOT, refuses
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


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def raw_png(rows: Any, depth: int, colour_type: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of samples [H, W, C] as they stand in the file, with chunks before and after the pixels."""
    rows = np.asarray(rows)
    h, w = rows.shape[:2]
    if depth == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]  # [H, W, C, depth]
        lines = [np.packbits(row).tobytes() for row in bits.reshape(h, -1)]
    return png_of(b"".join(b"\0" + line for line in lines), w, h, depth, colour_type, before, after)


def png_of(
    lines: bytes, width: int, height: int, depth: int, colour_type: int, before: bytes = b"", after: bytes = b""
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(lines, 1))
    return PngImagePlugin._MAGIC + header + before + pixels + after + chunk(b"IEND", b"")


def trns(*values: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


DEEP_COLOUR = RNG.integers(0, 65536, (6, 9, 3), np.uint16)
DEEP_ALPHA = RNG.integers(256, 65536, (6, 9, 1), np.uint16)
LEVELS = np.arange(54).reshape(6, 9, 1)
GRAY_PALETTE = chunk(b"PLTE", bytes(np.repeat(np.arange(0, 256, 17), 3).tolist()))
TINTED_PALETTE = chunk(b"PLTE", bytes([*np.repeat(np.arange(0, 255, 17), 3).tolist(), 200, 10, 10]))
"""A palette of grays, but for entry 15."""


def over_gray(pixels: Any, is_transparent: Any) -> Images:
    """With gray 7 where it is transparent."""
    return np.where(is_transparent, 7, pixels).astype(np.uint8)


TRANSPARENT: dict[str, tuple[bytes, Images]] = {
    "16-bit gray, one level": (
        raw_png(DEEP[..., None], 16, 0, trns(int(DEEP[2, 3]))),
        over_gray(DEEP[..., None] >> 8, DEEP[..., None] == DEEP[2, 3]),
    ),
    "8-bit gray, one level": (raw_png(GRAY, 8, 0, trns(int(GRAY[2, 3, 0]))), over_gray(GRAY, GRAY[2, 3] == GRAY)),
    "4-bit gray, one level": (raw_png(LEVELS % 16, 4, 0, trns(5)), over_gray(LEVELS % 16 * 17, LEVELS % 16 == 5)),
    "2-bit gray, one level": (raw_png(LEVELS % 4, 2, 0, trns(2)), over_gray(LEVELS % 4 * 85, LEVELS % 4 == 2)),
    "1-bit gray, one level": (raw_png(LEVELS % 2, 1, 0, trns(1)), over_gray(LEVELS % 2 * 255, LEVELS % 2 == 1)),
    "8-bit colour, one colour": (
        raw_png(COLOUR, 8, 2, trns(*COLOUR[2, 3].tolist())),
        over_gray(COLOUR, (COLOUR[2, 3] == COLOUR).all(-1, keepdims=True)),
    ),
    "16-bit colour, one colour": (
        raw_png(DEEP_COLOUR, 16, 2, trns(*DEEP_COLOUR[2, 3].tolist())),
        over_gray(DEEP_COLOUR >> 8, (DEEP_COLOUR[2, 3] == DEEP_COLOUR).all(-1, keepdims=True)),
    ),
    "gray palette": (
        raw_png(LEVELS % 16, 4, 3, GRAY_PALETTE + chunk(b"tRNS", bytes([255, 0]))),
        over_gray(LEVELS % 16 * 17, LEVELS % 16 == 1),
    ),
    "gray palette, with a colour that does not show": (
        raw_png(LEVELS % 16, 4, 3, TINTED_PALETTE + chunk(b"tRNS", bytes([255] * 15 + [0]))),
        over_gray(LEVELS % 16 * 17, LEVELS % 16 == 15),
    ),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparent_levels_and_colours_are_honoured(kind: str) -> None:
    """Compared in the file's own bits, of which Pillow keeps 8; pixels beside them are as they are without."""
    content, pixels = TRANSPARENT[kind]
    assert np.array_equal(read_picture(content, kind, background=7), pixels)
    assert read_header(content, kind) == pixels.shape
    with refuses("a.png transparent --background", UserError):
        read_picture(content, "a.png")


DEEP_RGBA = np.concatenate([DEEP_COLOUR, DEEP_ALPHA], -1)
DEEP_GRAY_ALPHA = DEEP_RGBA[..., 2:]


@pytest.mark.parametrize(("colour_type", "rows"), [(4, DEEP_GRAY_ALPHA), (6, DEEP_RGBA)])
def test_sixteen_bits_with_alpha(colour_type: int, rows: Any) -> None:
    content, upper = raw_png(rows, 16, colour_type), rows >> 8
    a = upper[..., -1:] / 255
    assert np.array_equal(read_picture(content, "x", 7), np.round(upper[..., :-1] * a + 7 * (1 - a)))
    assert read_header(content, "x") == (*rows.shape[:2], rows.shape[-1] - 1)


def test_an_unused_transparent_level_changes_nothing() -> None:
    unused = next(level for level in range(65536) if level not in DEEP)
    assert np.array_equal(read_picture(raw_png(DEEP[..., None], 16, 0, trns(unused)), "x"), DEEP[..., None] >> 8)


def bmp_palette(colours: list[int]) -> bytes:
    image = Image.fromarray((LEVELS[..., 0] % 16).astype(np.uint8), "P")
    image.putpalette(colours)
    content = io.BytesIO()
    image.save(content, "BMP")
    return content.getvalue()


EXACT: dict[str, tuple[bytes, NDArray[Any]]] = {
    "PNG": (encoded(COLOUR), COLOUR),
    "BMP": (encoded(COLOUR, "BMP"), COLOUR),
    "lossless WebP": (encoded(COLOUR, "WEBP", lossless=True), COLOUR),
    "gray": (encoded(GRAY), GRAY),
    "one bit": (encoded(np.where(GRAY > 99, 255, 0).astype(np.uint8), mode="1"), np.where(GRAY > 99, 255, 0)),
    "palette": (palette_png(), np.asarray(PALETTE.convert("RGB"))),
    "16 bits, the upper 8 of them": (encoded(DEEP), (DEEP >> 8)[..., None].astype(np.uint8)),
    "opaque alpha": (encoded(np.concatenate([COLOUR, 0 * ALPHA + 255], -1)), COLOUR),
    "opaque gray alpha": (encoded(np.concatenate([GRAY, 0 * ALPHA + 255], -1)), GRAY),
    "16 bits and opaque alpha": (raw_png(np.stack([DEEP, 0 * DEEP + 65535], -1), 16, 4), DEEP[..., None] >> 8),
    "16-bit colour": (raw_png(DEEP_COLOUR, 16, 2), DEEP_COLOUR >> 8),
    "16-bit colour and opaque alpha": (
        raw_png(np.concatenate([DEEP_COLOUR, 0 * DEEP_ALPHA + 65535], -1), 16, 6),
        DEEP_COLOUR >> 8,
    ),
    "4-bit gray": (raw_png(LEVELS % 16, 4, 0), LEVELS % 16 * 17),
    "2-bit gray": (raw_png(LEVELS % 4, 2, 0), LEVELS % 4 * 85),
    "gray palette": (raw_png(LEVELS % 16, 4, 3, GRAY_PALETTE), LEVELS % 16 * 17),
    "palette whose colours are not used": (raw_png(LEVELS % 15, 4, 3, TINTED_PALETTE), LEVELS % 15 * 17),
    "palette with one colour in use": (
        raw_png(LEVELS % 16, 4, 3, TINTED_PALETTE),
        np.where(LEVELS % 16 == 15, [200, 10, 10], LEVELS % 16 * 17),
    ),
    "BMP with a gray palette": (bmp_palette([255 - i // 3 for i in range(48)]), 255 - LEVELS % 16),
    "BMP with a palette of colours": (
        bmp_palette([i if i % 3 else 99 for i in range(48)]),
        np.stack([99 + 0 * LEVELS, LEVELS % 16 * 3 + 1, LEVELS % 16 * 3 + 2], 3)[:, :, 0],
    ),
    "WebP with opaque alpha": (
        encoded(np.concatenate([COLOUR, 0 * ALPHA + 255], -1), "WEBP", lossless=True),
        COLOUR,
    ),
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
    "truncated WebP": (encoded(COLOUR, "WEBP")[:-60], "damaged"),
    "truncated BMP": (encoded(COLOUR, "BMP")[:-60], "damaged"),
    "truncated palette": (palette_png()[:-40], "damaged"),
    "half the rows": (png_of(bytes(3 * 28), 9, 6, 8, 2), "damaged rows end early"),
    "half the rows of a palette": (png_of(bytes(3 * 10), 9, 6, 8, 3, GRAY_PALETTE), "damaged rows end early"),
    "no palette": (raw_png(LEVELS // 4, 4, 3), "damaged palette"),
    "colours beyond the palette": (raw_png(LEVELS, 8, 3, GRAY_PALETTE), "damaged colour palette"),
    "a header only": (encoded(COLOUR)[:20], "damaged"),
    "text": (b"hello", "no image PNG JPEG WebP BMP"),
    "empty": (b"", "no image empty"),
    "zeros": (bytes(9000), "no image zeros"),
    "GIF": (encoded(GRAY, "GIF"), "no image GIF"),
    "TIFF": (encoded(COLOUR, "TIFF"), "no image TIFF"),
    "AVIF": (encoded(COLOUR, "AVIF"), "no image AVIF"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "no image HEIC"),
    "web page": (b"\n<!DOCTYPE html>\n<html>", "no image web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "no image Git LFS pointer"),
    "animated PNG": (encoded(COLOUR, save_all=True, append_images=[Image.fromarray(255 - COLOUR)]), "animated"),
    "more than a gigapixel": (png_of(b"", 40_000, 40_000, 8, 2), "1,600 megapixels 1,000"),
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


EXIF_BEGIN = b"Exif\0\0"


def exif_with(kind: int, count: int, value: bytes) -> bytes:
    """EXIF whose orientation is stored with that type of TIFF."""
    return EXIF_BEGIN + b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHI", 0x0112, kind, count) + value + bytes(20)


ODD_EXIF = {
    "text": exif_with(2, 2, b"6\0\0\0"),
    "0": exif_with(3, 1, b"\0\0\0\0"),
    "9": exif_with(3, 1, b"\0\x09\0\0"),
    "rational": exif_with(5, 1, b"\0\0\0\x1a"),
    "several": exif_with(3, 2, b"\0\6\0\6"),
    "broken": EXIF_BEGIN + b"MM\0*\0\0\0\x08\0\x09",
    "no EXIF at all": EXIF_BEGIN + b"garbage",
    "empty": EXIF_BEGIN,
}


@pytest.mark.parametrize("kind", ODD_EXIF)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_orientations_that_are_none_are_ignored(kind: str, form: str) -> None:
    content = encoded(COLOUR, form, exif=ODD_EXIF[kind])
    assert read_header(content, "x") == (6, 9, 3)
    assert read_picture(content, "x").shape == (6, 9, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("behind", [False, True])
def test_every_orientation(orientation: int, behind: bool) -> None:
    """The mark at the top left of the camera's sensor stands where EXIF says; PNGs may say so behind their pixels."""
    sensor = np.zeros((4, 6, 1), np.uint8)
    sensor[0, 0], sensor[0, 5] = 100, 200
    exif = chunk(b"eXIf", exif_with(3, 1, bytes([0, orientation, 0, 0]))[6:])
    content = raw_png(sensor, 8, 0, *((b"", exif) if behind else (exif, b"")))
    upright = read_picture(content, "x")[..., 0]
    places = [(0, 0), (0, -1), (-1, -1), (-1, 0), (0, 0), (0, -1), (-1, -1), (-1, 0)]
    others = [(0, -1), (0, 0), (-1, 0), (-1, -1), (-1, 0), (-1, -1), (0, -1), (0, 0)]
    assert upright[places[orientation - 1]] == 100
    assert upright[others[orientation - 1]] == 200
    assert read_header(content, "x")[:2] == upright.shape


def test_a_camera_jpeg_with_a_preview_is_its_first_picture() -> None:
    smooth = np.linspace(0, 200, 24 * 32 * 3).reshape(24, 32, 3).astype(np.uint8)
    preview = Image.fromarray(smooth[::4, ::4])
    content = encoded(smooth, "MPO", save_all=True, append_images=[preview], quality=95)
    assert Image.open(io.BytesIO(content)).format == "MPO"
    assert read_header(content, "x") == (24, 32, 3)
    assert np.array_equal(read_picture(content, "x"), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP", "tEXt"])
@pytest.mark.parametrize("behind", [False, True])
def test_long_texts_and_profiles_are_no_damage(kind: str, behind: bool) -> None:
    """Pillow refuses more than a megabyte, or 64 of them together."""
    zeros = zlib.compress(bytes(3 << 20))
    long = {
        "zTXt": chunk(b"zTXt", b"a\0\0" + zeros),
        "iTXt": chunk(b"iTXt", b"a\0\1\0\0\0" + zeros),
        "iCCP": chunk(b"iCCP", b"a\0\0" + zeros),
        "tEXt": chunk(b"tEXt", b"a\0" + b"x" * (65 << 20)),
    }[kind]
    content = raw_png(COLOUR, 8, 2, *((b"", long) if behind else (long, b"")))
    assert read_header(content, "x") == (6, 9, 3)
    assert np.array_equal(read_picture(content, "x"), COLOUR)


def test_a_photo_of_200_megapixels() -> None:
    """Without a warning, and Pillow's limits are what they were."""
    limits = (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    content = png_of(bytes(20_000 * 1251 - 1) + b"\1", 10_000, 20_000, 1, 0)
    assert read_header(content, "x") == (20_000, 10_000, 1)
    assert int(read_picture(content, "x").sum(dtype=np.int64)) == 255
    assert limits == (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name, words in (
        ("folder.png", "folder"),
        ("link.png", "link to nowhere not there"),
        ("loop.png", "symbolic links"),
        ("pipe.png", "no regular file"),
        ("none.png", "missing"),
    ):
        with refuses(f"{name} {words}", UserError):
            read_header(tmp_path / name, name)


def test_any_damage_is_told_in_words() -> None:
    """Nothing but `UserError`, whatever bytes are changed."""
    contents = [content for content, _ in (*EXACT.values(), *TRANSPARENT.values())]
    contents += [encoded(COLOUR, "JPEG", exif=exif) for exif in ODD_EXIF.values()]
    random.seed(0)
    for content in contents * 4:
        damaged = bytearray(content)
        for _ in range(3):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        for read in (read_header, read_picture):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF and animations
                try:
                    read(bytes(damaged), "x")
                except UserError as error:
                    assert str(error).startswith("x ")


def test_black_rows_at_the_end_are_no_damage() -> None:
    black = np.zeros((6, 9, 3), np.uint8)
    for pixels in (black, black[..., :1]):
        assert np.array_equal(read_picture(encoded(pixels), "x"), pixels)


@pytest.mark.parametrize(("key", "shown"), [(0xFF00, 0), (0xFF01, 1), (1, 1), (0, 0)])
def test_the_key_of_one_bit_is_its_lowest(key: int, shown: int) -> None:
    bits = np.arange(54).reshape(6, 9, 1) % 2
    content = raw_png(bits, 1, 0, trns(key))
    assert np.array_equal(read_picture(content, "x", 7), np.where(bits == shown, 7, bits * 255))


def test_a_bmp_whose_alpha_is_zero_everywhere_is_opaque() -> None:
    """As programs write it that fill in no alpha, though the header names it."""
    pixels = np.concatenate([COLOUR[::-1, :, ::-1], np.zeros((6, 9, 1), np.uint8)], -1)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 124, 9, 6, 1, 32, 3, pixels.size, 2835, 2835, 0, 0) + masks
    start = b"BM" + struct.pack("<IHHI", 138 + pixels.size, 0, 0, 138)
    assert np.array_equal(read_picture(start + header.ljust(124, b"\0") + pixels.tobytes(), "x"), COLOUR)


def test_pillow_says_nothing_of_broken_exif(tmp_path: Path) -> None:
    """On stderr, where a command's own lines are."""
    (tmp_path / "x.jpg").write_bytes(encoded(COLOUR, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01"))
    code = "import vdvae.data.image_files as files; print(files.read_header(files.Path('x.jpg'), 'x'))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, env=env
    )
    assert (done.stdout, done.stderr) == ("Header(height=6, width=9, channels=3)\n", "")
