"""Images on disk, read by row: one .npy file, or many image files."""

from __future__ import annotations

import math
import os
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vdvae.data.image_files import check_shape, read_picture
from vdvae.errors import UserError
from vdvae.files import check_is_itself, read_array_header

Images = NDArray[np.uint8]
"""uint8 [N, H, W, C]"""
Rows = NDArray[np.int64]

CHUNK = 4 << 20
"""Bytes of pixels at once."""


class Storage(Protocol):
    """A number of images of one shape."""

    shape: tuple[int, ...]
    """(N, H, W, C)"""

    def read(self, rows: Rows) -> Images:
        """The images of some rows, in their order, uint8 [len(rows), H, W, C].

        Raises:
            UserError: a file was changed, removed or damaged.
        """


class Pixels:
    """Images in memory, uint8 [N, H, W, C]."""

    def __init__(self, pixels: Images) -> None:
        self.pixels = pixels
        self.shape = pixels.shape

    def read(self, rows: Rows) -> Images:
        """See `Storage`."""
        return self.pixels[rows]


class NpyFile:
    """A uint8 .npy file [N, H, W, C] of any length, of which no more than the asked rows is ever in memory.

    Each row is read from its place in the file. A memory map would be faster while the file is in the page cache
    (by 1 microsecond per image of 32 x 32), but all that it touches counts as this process's memory, in pieces of
    up to 2 MB around each image: in the end, the whole file.

    Raises:
        UserError: not such a file, or cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape, self._offset = read_npy_header(path)
        self._row = int(np.prod(self.shape[1:]))
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def read(self, rows: Rows) -> Images:
        """See `Storage`."""
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        flat, row = images.reshape(-1).data, self._row
        for i, offset in enumerate((self._offset + rows * row).tolist()):
            if os.preadv(self._file, [flat[i * row : (i + 1) * row]], offset) != row:
                raise UserError(f"{self.path} ends early: it was changed while it was in use")
        return images


class PictureFiles:
    """Image files of one shape, decoded when they are read."""

    def __init__(self, folder: Path, names: list[str], image_shape: tuple[int, int, int]) -> None:
        self.folder = folder
        self.names = names
        self.shape: tuple[int, ...] = (len(names), *image_shape)

    def read(self, rows: Rows) -> Images:
        """See `Storage`."""
        return np.stack([self._picture(self.folder / self.names[row]) for row in rows.tolist()])

    def _picture(self, path: Path) -> Images:
        picture = read_picture(path, str(path), remedy="put a colour behind it, or restore the file")
        check_shape(picture.shape, self.shape[1:], str(path))
        return picture


def read_npy_header(path: Path) -> tuple[tuple[int, ...], int]:
    """The shape of a uint8 .npy file [N, H, W, C], and where its data begin.

    Raises:
        UserError: it is not such a file, cut off, or without images.
    """
    size = path.stat().st_size
    if not size:
        raise UserError(f"{path} is empty; write or copy it again")
    check_is_itself(path)
    try:
        with path.open("rb") as file:
            shape, is_fortran, dtype = read_array_header(file)
            offset = file.tell()
    except Exception as error:  # damaged bytes make NumPy fail in many ways
        what = ", but an .npz" if zipfile.is_zipfile(path) else f", or its beginning is damaged: {error}"
        raise UserError(f"{path} is no .npy file{what}") from error
    if dtype != np.uint8 or len(shape) != 4:
        raise UserError(f"{path} must hold uint8 [N, H, W, C], not {dtype} {list(shape)}")
    if is_fortran:
        raise UserError(
            f"{path} must hold uint8 [N, H, W, C] in C order, not Fortran order: save numpy.ascontiguousarray(images)"
        )
    if 0 in shape:
        raise UserError(f"{path} holds no images: its shape is {list(shape)}")
    if size != offset + math.prod(shape):
        what = "is cut off" if size < offset + math.prod(shape) else "is longer than it says"
        raise UserError(f"{path} {what}: it should hold {shape[0]:,} images; write or prepare it again")
    return shape, offset


def pieces(start: int, end: int, image_bytes: int) -> Iterator[tuple[int, int]]:
    """(first, number) of the images of each chunk."""
    most = max(1, CHUNK // image_bytes)
    for first in range(start, end, most):
        yield first, min(most, end - first)
