"""Streams of images: where preparation reads from, chunk by chunk, from any image on."""

from __future__ import annotations

import gzip
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from vdvae.data.storage import Images, pieces, read_npy_header
from vdvae.errors import UserError
from vdvae.files import read_array_header

DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, ValueError, KeyError)
"""What an archive makes its readers raise if it is not what it should be."""


@dataclass(frozen=True)
class Source:
    """Some images, not yet read."""

    count: int
    chunks: Callable[[int], Iterator[Images]]
    """From an image on, uint8 [n, H, W, C] at a time."""
    gap: str = ""
    """In words, where numbered files leave out a number."""
    names: Sequence[str] = ()
    """What the images are called, where that is to be kept."""
    bad: dict[str, str] | None = None
    """Where bad images are left out, what is wrong with each that `chunks` met, by name; None where the first ends all.
    """


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what libraries raise about a damaged archive into one line. An error of the disk or the network passes: the
    archive may be read another time.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except DAMAGED as error:
        raise UserError(f"{path} is damaged or cut off ({error}); get it again") from error


def from_array(images: Images) -> Source:
    """Images that are in memory already."""

    def chunks(start: int) -> Iterator[Images]:
        for first, n in pieces(start, len(images), images[0].size):
            yield images[first : first + n]

    return Source(len(images), chunks)


def npz_images(batches: list[tuple[Path, str]], size: int) -> Source:
    """Batches of `data`, uint8 [n, 3 * size * size] in channel-major order.

    Args:
        batches: a zip archive or folder, and the name of the batch in it.
        size: of the images.
    """
    counts = []
    for path, name in batches:
        with reading(path), _npz_data(path, name, size) as (count, _):
            counts.append(count)

    def chunks(start: int) -> Iterator[Images]:
        row = 3 * size * size
        for (path, name), count in zip(batches, counts, strict=True):
            skipped = min(start, count)
            start -= skipped
            if skipped == count:
                continue
            with reading(path), _npz_data(path, name, size) as (_, file):
                file.seek(skipped * row, os.SEEK_CUR)
                for _, n in pieces(skipped, count, row):
                    planes = np.frombuffer(exactly(file, n * row), np.uint8).reshape(n, 3, size, size)
                    yield np.ascontiguousarray(planes.transpose(0, 2, 3, 1))

    return Source(sum(counts), chunks)


def idx_images(path: Path, size: int) -> Source:
    """`*-images-idx3-ubyte`, with or without .gz."""
    opener: Any = gzip.open if path.suffix == ".gz" else open

    def header(file: IO[bytes]) -> int:
        magic, count, height, width = np.frombuffer(exactly(file, 16), ">i4").tolist()
        if magic != 0x803 or (height, width) != (size, size):
            raise UserError(f"{path} holds no idx images of {size} x {size}")
        return int(count)

    def chunks(start: int) -> Iterator[Images]:
        with reading(path), opener(path) as file:
            count = header(file)
            file.seek(16 + start * size * size)
            for _, n in pieces(start, count, size * size):
                yield np.frombuffer(exactly(file, n * size * size), np.uint8).reshape(n, size, size, 1)

    with reading(path), opener(path) as file:
        return Source(header(file), chunks)


def npy_images(path: Path, size: int) -> Source:
    """A uint8 .npy file [N, size, size, 3]."""
    shape, offset = read_npy_header(path)
    if shape[1:] != (size, size, 3):
        raise UserError(f"{path} holds images of {list(shape[1:])}, not {[size, size, 3]}")
    row = size * size * 3

    def chunks(start: int) -> Iterator[Images]:
        with reading(path), path.open("rb") as file:
            file.seek(offset + start * row)
            for _, n in pieces(start, shape[0], row):
                yield np.frombuffer(exactly(file, n * row), np.uint8).reshape(n, size, size, 3)

    return Source(shape[0], chunks)


def exactly(file: IO[bytes], size: int) -> bytes:
    """The next `size` bytes.

    Raises:
        EOFError: there are fewer.
    """
    content = file.read(size)
    if len(content) != size:
        raise EOFError(f"{size - len(content):,} bytes are missing at its end")
    return content


@contextmanager
def _npz_data(path: Path, name: str, size: int) -> Iterator[tuple[int, IO[bytes]]]:
    """The number of images of a batch, and its file at the first of them."""
    with ExitStack() as stack:
        outer: Any = path / name
        if path.is_file():
            members = stack.enter_context(zipfile.ZipFile(path))
            inside = [m for m in members.namelist() if PurePosixPath(m).name == name]
            if not inside:
                raise UserError(f"{path} lacks {name}: cut off, or another file; get it again")
            outer = stack.enter_context(members.open(inside[0]))
        batch = stack.enter_context(zipfile.ZipFile(outer))
        file = stack.enter_context(batch.open("data.npy"))
        shape, fortran_order, dtype = read_array_header(file)
        if dtype != np.uint8 or fortran_order or shape[1:] != (3 * size * size,):
            raise UserError(f"{name} in {path} holds {dtype} {list(shape)}, not uint8 [N, {3 * size * size}]")
        yield shape[0], file
