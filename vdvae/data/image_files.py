"""From an image file to uint8 [H, W, C]: which kinds of PNG, JPEG, WebP and BMP are taken, and how."""

from __future__ import annotations

import io
import os
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image  # Pillow comes with imageio, whose own reader has Pillow's limits and opens slowly
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch.nn.functional import interpolate

from vdvae.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp")
GRAY = ("1", "L", "LA", "I", "I;16")
COLOUR = ("P", "RGB", "RGBA")
BACKGROUNDS = {"black": 0, "white": 255}
BACKGROUND = "--background white (or black) puts a colour behind it"
MOST_PIXELS = 10**9
"""A larger image would need more memory than most machines have."""
MOST_LINES = 50
"""So many bad images are listed in an error."""

# What Pillow finds odd in EXIF or an animation is ignored here or refused; `catch_warnings` is not for threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.(Tiff|Png)ImagePlugin")

Array = NDArray[np.uint8]
T = TypeVar("T")


class _Jpeg(JpegImageFile):
    """A JPEG, or the first picture of a camera's MPO, which holds a preview behind it."""

    def _read_dpi_from_exif(self) -> None:
        """Nobody needs it, and broken EXIF would make Pillow warn."""


PNG = b"\x89PNG\r\n\x1a\n"
READERS: dict[bytes, type[ImageFile]] = {PNG: PngImageFile, b"\xff\xd8\xff": _Jpeg, b"BM": BmpImageFile}
"""By the bytes that a file begins with. Pillow's own `open` would also do, but for a limit on pixels that is a global
variable, and MPO as an animation."""
OTHERS = {
    b"GIF8": "a GIF",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"8BPS": "a Photoshop file",
    b"PK\3\4": "a zip archive",
    b"\x1f\x8b": "compressed with gzip",
    b"\x93NUMPY": "a NumPy array",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\xff\x0a": "a JPEG XL",
    b"\0\0\1\0": "an icon",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"<": "a web page or SVG",
}
"""What else people have under the name of an image, by the bytes that it begins with."""
BOXES = {b"avif": "an AVIF", b"avis": "an AVIF", b"heic": "a HEIC", b"heix": "a HEIC", b"mif1": "a HEIF"}
"""The same where `ftyp` and one of these follow."""
ORIENTATION = 0x0112
"""The tag of EXIF that says how the camera was held."""
TURNS: dict[int, Callable[[Array], Array]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, 1),
}
"""From EXIF orientations to upright; 1, and whatever is no orientation, needs nothing."""


class _Opened(NamedTuple):
    """An image whose pixels are not decoded yet."""

    image: ImageFile
    file: IO[bytes]
    start: bytes
    """The file's first bytes."""


class Header(NamedTuple):
    """What a file says of itself before its pixels are decoded."""

    height: int
    width: int
    channels: int
    """1 or 3, transparency aside."""


def read_header(source: Path | bytes, name: str) -> Header:
    """Looks at an image without decoding it; with a palette, its pixels say whether the colours in use are gray.

    Args:
        source: a path, or the file's bytes.
        name: what messages call it.

    Raises:
        UserError: not an image, more than one, or of a kind that is not taken.
    """

    def look(opened: _Opened) -> Header:
        width, height = opened.image.size
        if _orientation(opened) > 4:  # the camera was held upright
            width, height = height, width
        if opened.image.mode == "P":
            return Header(height, width, _planes(opened)[0].shape[-1])
        return Header(height, width, 1 if _is_gray(opened) else 3)

    return _with_image(source, name, look)


def read_picture(source: Path | bytes, name: str, background: int | None = None, remedy: str = BACKGROUND) -> Array:
    """Decodes an image.

    Palettes are applied; of 16 bits per channel the upper 8 are kept; EXIF orientation is followed.

    Args:
        source: a path, or the file's bytes.
        name: what messages call it.
        background: 0 to 255, put behind transparent images; without one they are refused.
        remedy: what to do with these.

    Returns:
        uint8 [H, W, 1] for gray and [H, W, 3] for colour.

    Raises:
        UserError: damaged, or of a kind that is not taken.
    """

    def decode(opened: _Opened) -> Array:
        turn = TURNS.get(_orientation(opened), lambda pixels: pixels)
        pixels, alpha = _planes(opened)
        if alpha is not None:
            pixels = _without_alpha(pixels, alpha, name, background, remedy)
        return np.require(turn(pixels), requirements=("C", "W"))

    return _with_image(source, name, decode)


def refuse_bad(bad: Mapping[str, str], total: int) -> None:
    """Raises `UserError` where images were found bad, with all of them.

    Args:
        bad: from each one's name to what is wrong with it, in words that name it.
        total: number of images.
    """
    reasons = list(bad.values())
    remedy = " or add --skip_bad to leave out such images" if len(bad) < total else ""
    if len(reasons) == 1:
        raise UserError(f"{reasons[0]}{remedy and ';'}{remedy}")
    if reasons:
        more = [f"and {len(reasons) - MOST_LINES:,} more"] if len(reasons) > MOST_LINES else []
        told = f"{len(reasons):,} of {total:,} images cannot be taken; mend them{remedy}:"
        raise UserError(told, (*reasons[:MOST_LINES], *more))


def check_shape(found: tuple[int, ...], expected: tuple[int, ...], name: str) -> None:
    """Raises `UserError` where an image (H, W, C) has not the shape that all images of a set have."""
    if found != expected:
        described = ("{1} x {0} with {2} channels".format(*shape) for shape in (found, expected))
        raise UserError(f"{name} is {', not '.join(described)}")


def fit(pixels: Array, size: int, crop: bool, name: str) -> Array:
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
    # one channel after the other, or a large photo would need three times the memory
    return np.stack([_shrunk(pixels[..., channel], size) for channel in range(pixels.shape[-1])], -1)  # [size, size, C]


def _shrunk(plane: Array, size: int) -> Array:
    """From [side, side] to [size, size]."""
    image = torch.from_numpy(np.ascontiguousarray(plane, np.float32))[None, None]
    small = interpolate(image, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return small.round().clamp(0, 255).byte()[0, 0].numpy()


def read_fitted(source: Path | bytes, name: str, size: int, crop: bool, channels: int, background: int | None) -> Array:
    """Decodes an image and brings it to uint8 [size, size, channels]; gray ones get equal channels where 3 are wanted.

    Raises:
        UserError: damaged, of a kind that is not taken, not to be brought to that size, or in colour where 1 channel
            is wanted.
    """
    pixels = fit(read_picture(source, name, background), size, crop, name)
    check_channels(pixels.shape[-1], channels, name)
    return np.repeat(pixels, channels, -1) if pixels.shape[-1] < channels else pixels


def check_channels(found: int, wanted: int, name: str) -> None:
    """Raises `UserError` where an image in colour is to have one channel."""
    if found > wanted:
        raise UserError(f"{name} is in colour, and {wanted} channel is wanted; convert it to gray")


def check_fits(header: Header, size: int, crop: bool, name: str, remedy: str = "give a larger image") -> None:
    """Raises `UserError`, before anything is decoded, where `fit` would; `remedy` is what to do with a small image."""
    if header.height != header.width and not crop:
        raise UserError(f"{name} is {header.width} x {header.height} and not square; --crop center takes its middle")
    if min(header.height, header.width) < size:
        raise UserError(f"{name} is {header.width} x {header.height}, smaller than {size}; {remedy}")


def _with_image(source: Path | bytes, name: str, use: Callable[[_Opened], T]) -> T:
    """Opens an image, checks that it is of a kind that is taken, and returns what `use` makes of it."""
    with ExitStack() as stack:
        file = stack.enter_context(_opened(source, name) if isinstance(source, Path) else io.BytesIO(source))
        start = file.read(64)
        readers = [reader for mark, reader in READERS.items() if start.startswith(mark)]
        if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
            readers = [WebPImageFile]
        if not readers:
            raise UserError(f"{name} is no image: {_kind(start)}")

        def attempt(file: IO[bytes]) -> T:
            file.seek(0)
            with readers[0](file) as image:
                _check_kind(image, name)
                return use(_Opened(image, file, start))

        try:
            try:
                return attempt(file)
            except ValueError as error:
                if isinstance(error, UserError) or readers[0] is not PngImageFile:
                    raise
                return attempt(_without_texts(file))  # Pillow refuses long ones
        except UserError:
            raise
        except MemoryError as error:
            raise UserError(f"{name} does not fit into memory; scale it down first") from error
        except Exception as error:  # damaged bytes make decoders fail in any way there is
            raise UserError(f"{name} is damaged: {_first_line(error)}") from error


def _opened(path: Path, name: str) -> IO[bytes]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            if path.is_dir():
                raise UserError(
                    f"{name} is a folder{'' if os.access(path, os.R_OK | os.X_OK) else ' that cannot be looked into'}"
                )
            raise UserError(f"{name} is no regular file")
        return path.open("rb")
    except FileNotFoundError as error:
        what = f"a link to {path.readlink()}, which is not there" if path.is_symlink() else "missing"
        raise UserError(f"{name} is {what}") from error
    except OSError as error:
        raise UserError(f"{name} cannot be opened: {error.strerror}") from error


def _kind(start: bytes) -> str:
    """What a file seems to be that begins like no image that is taken."""
    if not start:
        return "it is empty"
    if not start.strip(b"\0"):
        return "it begins with zeros, as after a crash or a failed copy"
    if start[4:8] == b"ftyp":
        return f"it is {BOXES.get(start[8:12], 'a video or HEIF')}; convert it to PNG or JPEG"
    kinds = (kind for mark, kind in OTHERS.items() if start.lstrip().startswith(mark))
    return next((f"it is {kind}" for kind in kinds), "it begins like no PNG, JPEG, WebP or BMP")


def _check_kind(image: ImageFile, name: str) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise UserError(
            f"{name} has {width * height / 1e6:,.0f} megapixels, more than {MOST_PIXELS / 1e6:,.0f}; "
            "scale it down first"
        )
    if getattr(image, "n_frames", 1) != 1:
        raise UserError(f"{name} is animated; keep one of its frames")
    if image.mode not in (*GRAY, *COLOUR):
        raise UserError(f"{name} is in {image.mode}, which has no agreed way to RGB; convert it first")


def _is_gray(opened: _Opened) -> bool:
    """By its mode; but Pillow opens PNGs of 16-bit gray with alpha, colour type 4, as RGBA."""
    return opened.image.mode in GRAY or (opened.start.startswith(PNG) and opened.start[25] == 4)


def _orientation(opened: _Opened) -> int:
    """The orientation by EXIF or XMP, from 1 to 8; anything else that cameras and programs write there is ignored."""
    image, file, place = opened.image, opened.file, opened.file.tell()
    try:
        if isinstance(image, PngImageFile) and "exif" not in image.info:
            for kind, start, end in _png_chunks(file):
                if kind == b"eXIf":  # it may stand behind the pixels
                    file.seek(start + 8)
                    image.info["exif"] = b"Exif\0\0" + file.read(end - start - 12)
        found = Image.Image.getexif(image).get(ORIENTATION)  # that of PngImageFile decodes all pixels
    except Exception:  # damaged EXIF fails in any way there is
        return 1
    finally:
        file.seek(place)
    return found if type(found) is int and found in TURNS else 1


def _planes(opened: _Opened) -> tuple[Array, Array | None]:
    """Decodes to uint8 [H, W, 1] or [H, W, 3], and to the opacity, uint8 [H, W, 1], where there may be transparency."""
    image, start = opened.image, opened.start
    pixels, key = np.asarray(image), image.info.get("transparency")
    if isinstance(image, PngImageFile) and not (start[28] or pixels[-1].any()):
        _check_is_whole(opened)
    if image.mode == "P":
        return _through_palette(image, pixels, key)
    pixels, alpha = np.atleast_3d(pixels), None  # [H, W, C]
    if image.mode in ("LA", "RGBA"):
        if isinstance(image, BmpImageFile) and not pixels[..., -1].any():  # as programs write it that know no alpha
            return pixels[..., :3], None
        return pixels[..., :1] if _is_gray(opened) else pixels[..., :3], pixels[..., -1:]
    if image.mode == "1":
        pixels = pixels * np.uint8(255)
    if key is not None and start.startswith(PNG):  # the one level or colour that is transparent
        depth = start[24]
        exact = _all_bits(opened, pixels) if image.mode == "RGB" and depth == 16 else pixels
        if depth == 1:  # Pillow looks at all its 16 bits
            key = _lowest_byte_of_key(opened.file)
        level = np.bitwise_and(key, 2**depth - 1) * (255 // (2**depth - 1) if depth < 8 else 1)
        alpha = np.where((exact == level).all(-1, keepdims=True), np.uint8(0), np.uint8(255))
    if image.mode in ("I", "I;16"):
        pixels = (pixels >> 8).astype(np.uint8)
    return pixels, alpha


def _check_is_whole(opened: _Opened) -> None:
    """Raises `ValueError` where the stream of a PNG that is not interlaced ends before its last row, which Pillow then
    leaves black; it refuses interlaced ones itself.
    """
    width, height = opened.image.size
    bits = opened.start[24] * {2: 3, 4: 2, 6: 4}.get(opened.start[25], 1)  # depth and colour type
    expected = height * (1 + -(-width * bits // 8))
    stream = zlib.decompressobj()
    found = 0
    for kind, start, end in _png_chunks(opened.file):
        if kind == b"IDAT":
            opened.file.seek(start + 8)
            content = opened.file.read(end - start - 12)
            while content:
                found += len(stream.decompress(content, 1 << 20))
                content = stream.unconsumed_tail
    if found < expected:
        raise ValueError("its rows end early")


def _lowest_byte_of_key(file: IO[bytes]) -> int:
    """The lower byte of the one level that a gray PNG has as transparent."""
    (end,) = (end for kind, _, end in _png_chunks(file) if kind == b"tRNS")
    file.seek(end - 5)
    return file.read(1)[0]


def _all_bits(opened: _Opened, upper: Array) -> NDArray[np.uint16]:
    """The values of a PNG of 16 bits per channel in colour, [H, W, 3], of which Pillow decodes the upper bytes."""
    opened.file.seek(0)
    image = PngImageFile(opened.file)
    image.tile = [(*tile[:3], "RGB;16L") for tile in image.tile]  # type: ignore[misc]  # bytes swapped: the lower ones
    return upper.astype(np.uint16) << 8 | np.asarray(image)


def _through_palette(image: ImageFile, indices: Array, key: int | bytes | None) -> tuple[Array, Array | None]:
    """See `_planes`; gray where all colours are that show."""
    colours = np.zeros((256, 3), np.uint8)
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    colours[: len(palette)] = palette
    opacity = np.full((256, 1), 255, np.uint8)
    if isinstance(key, int):
        opacity[key] = 0
    elif key is not None:
        opacity[: len(key), 0] = np.frombuffer(key, np.uint8)
    used = np.array(image.histogram()) > 0
    if used[len(palette) :].any():
        raise ValueError("it has pixels of a colour that its palette has not")
    shown = colours[used & (opacity[:, 0] > 0)]
    channels = 1 if (shown == shown[:, :1]).all() else 3
    return colours[:, :channels][indices], None if key is None else opacity[indices]


def _without_alpha(pixels: Array, alpha: Array, name: str, background: int | None, remedy: str) -> Array:
    if alpha.min() == 255:
        return pixels
    if background is None:
        raise UserError(f"{name} is partly transparent; {remedy}")
    shown = np.empty_like(pixels)
    for row, (colours, levels) in enumerate(zip(pixels, alpha, strict=True)):  # float64 of all would be large
        opacity = levels / 255.0
        shown[row] = np.round(colours * opacity + background * (1 - opacity))
    return shown


def _png_chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk of a PNG, as far as it goes."""
    start = len(PNG)
    while True:
        file.seek(start)
        head = file.read(8)
        if len(head) < 8:
            return
        end = start + 12 + int.from_bytes(head[:4], "big")
        yield head[4:], start, end
        start = end


def _without_texts(file: IO[bytes]) -> IO[bytes]:
    """A PNG without its texts and its colour profile."""
    content = io.BytesIO()
    content.write(PNG)
    for kind, start, end in _png_chunks(file):
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            file.seek(start)
            content.write(file.read(end - start))
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
