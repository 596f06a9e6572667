""".npz files of any length: written and read a few rows at a time."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vdvae.errors import UserError
from vdvae.whole_file import whole_file

Array = NDArray[Any]


def write_npz(
    path: Path, name: str, shape: tuple[int, ...], dtype: DTypeLike, chunks: Iterable[Array], others: dict[str, Array]
) -> None:
    """Writes an array that comes in chunks of rows, and small ones beside it: after an error, `path` is as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with whole_file(path) as whole, zipfile.ZipFile(whole, "w", allowZip64=True) as archive:
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_2_0(file, header)
            for chunk in chunks:
                file.write(np.ascontiguousarray(chunk, dtype).tobytes())
        for other, array in others.items():
            with archive.open(f"{other}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


DAMAGED = (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading ends in; RuntimeError where it is encrypted or compressed in a way that nobody knows."""


class NpzArray(NamedTuple):
    """One array of an .npz, read by chunks of rows. Nothing pickled is read."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def chunks(self, rows: int) -> Iterator[Array]:
        """Consecutive rows, at most so many at once.

        Raises:
            UserError: the file is damaged.
        """
        row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as file:
                _header(file)
                for first in range(0, self.shape[0], rows):
                    count = min(rows, self.shape[0] - first)
                    pixels = file.read(count * row)
                    yield np.frombuffer(pixels, self.dtype).reshape(count, *self.shape[1:])
        except DAMAGED as error:
            raise UserError(f"{self.path} is damaged: {error}") from error


def open_npz(path: Path, name: str) -> NpzArray:
    """Finds an array in an .npz without reading its values.

    Raises:
        UserError: no such file or array in it, or one with Python objects.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            shape, dtype = _header(file)
    except KeyError as error:
        raise UserError(f"{path} has no array {name!r}") from error
    except DAMAGED as error:
        raise UserError(f"{path} is cut off, damaged, or no .npz: {error}") from error
    return NpzArray(path, name, shape, dtype)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if is_fortran or dtype.hasobject or not shape:
        raise ValueError("it holds Python objects, columns first, or a single number")
    return shape, dtype
