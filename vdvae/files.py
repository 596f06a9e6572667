"""Files that are whole or not there, and files that are read without executing anything from them."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from vdvae.errors import UserError

Array = NDArray[Any]
DAMAGED = (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""The errors that reading a damaged .npz ends in; RuntimeError where it is encrypted, or compressed in a way that
nobody knows."""


def from_here(path: Path) -> Path:
    """A path as one would type it in this directory: relative to it where that leads down."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def temporary_name(path: Path) -> Path:
    """What a file is named until it is complete."""
    return path.with_name(f"{path.name}.tmp")


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write, under a temporary name: it replaces `path` when it is complete and on the disk, whatever
    happens to the process or the machine in between, and not at all after an error.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say of what
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name
    finally:
        os.close(folder)


def check_is_itself(path: Path) -> None:
    """Raises `UserError` where a file is not what it is named after, but what downloads leave in its place."""
    with path.open("rb") as file:  # what the system has to say against it should be heard as it is
        begin = file.read(512)
    text = begin.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if begin.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UserError(f"{path} is a Git LFS pointer, not the file; `git lfs pull` in its repository fetches that")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        raise UserError(f"{path} is a web page, not the file; download the file itself")
    if begin.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")):
        raise UserError(f"{path} is compressed; unpack it and give the file in it")
    if begin[257:262] == b"ustar":
        raise UserError(f"{path} is a tar archive; unpack it and give the file in it")


def read_torch_file(path: Path) -> Any:
    """Reads a file of torch.save, with tensors on the CPU: a zip archive, whose checksums are compared, or the format
    before PyTorch 1.6, which has none.

    Raises:
        UserError: it is missing, damaged or something else, or its pickle asks for more than tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    check_is_itself(path)
    if _is_plain_zip(path):
        raise UserError(f"{path} is a zip archive, and none of torch.save; unpack it and give the file in it")
    if _is_safetensors(path):
        raise UserError(
            f"{path} is a safetensors file; torch.save(safetensors.torch.load_file(path), new) makes one for here"
        )
    try:
        _compare_checksums(path)
        with warnings.catch_warnings():  # of pickle protocols, deprecated storages and the like
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make unpickling fail in any way there is
        message, is_pickle = str(error), isinstance(error, UnpicklingError)
        if is_pickle and (wanted := re.search(r"GLOBAL ([\w.]+)", message)):
            raise UserError(
                f"{path} is not read: it would call {wanted[1]}, and weights are nothing but tensors. "
                "Nothing of it was executed"
            ) from error
        reason = f"{type(error).__name__}: {message}".splitlines()[0][:90]
        if is_pickle:
            reason = "a pickle of something else, not executed"
        raise UserError(
            f"{path} is cut off, damaged, or no file of torch.save ({reason}); copy or download it again"
        ) from error


def write_npz(
    path: Path, name: str, shape: tuple[int, ...], dtype: DTypeLike, chunks: Iterable[Array], others: dict[str, Array]
) -> None:
    """Writes an array that comes in chunks of rows, and small ones beside it: after an error, `path` is as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with atomic_write(path) as whole, zipfile.ZipFile(whole, "w", allowZip64=True) as archive:
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_2_0(file, header)
            for chunk in chunks:
                file.write(np.ascontiguousarray(chunk, dtype).tobytes())
        for other, array in others.items():
            with archive.open(f"{other}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


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
                read_array_header(file)
                for first in range(0, self.shape[0], rows):
                    count = min(rows, self.shape[0] - first)
                    pixels = file.read(count * row)
                    yield np.frombuffer(pixels, self.dtype).reshape(count, *self.shape[1:])
        except DAMAGED as error:
            raise UserError(f"{self.path} is damaged: {error}") from error


def open_npz(path: Path, name: str) -> NpzArray:
    """Finds an array in an .npz without reading its values.

    Raises:
        UserError: no such file or array in it, or one that cannot be read by rows.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    check_is_itself(path)
    if not path.stat().st_size:
        raise UserError(f"{path} is empty; write or copy it again")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            shape, is_fortran, dtype = read_array_header(file)
    except KeyError as error:
        raise UserError(f"{path} has no array {name!r}") from error
    except DAMAGED as error:
        raise UserError(f"{path} is cut off, damaged, or no .npz: {error}") from error
    if dtype.hasobject:
        raise UserError(f"{name} in {path} holds Python objects, which are not read; save plain numbers")
    if is_fortran:
        raise UserError(f"{name} in {path} is stored in Fortran order; save numpy.ascontiguousarray of it")
    if 0 in shape or not shape:
        raise UserError(f"{name} in {path} has no rows: its shape is {list(shape)}")
    return NpzArray(path, name, shape, dtype)


def read_array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape of the .npy that begins where a file is, whether it is in Fortran order, and its numbers' type; then
    the file is where its numbers begin.

    Raises:
        ValueError: it is no .npy, or damaged.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version in ((2, 0), (3, 0)):  # which differ in the names of fields alone
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"nobody knows version {version} of .npy")


def _is_plain_zip(path: Path) -> bool:
    """Whether it is an archive of anything but what torch.save puts into one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return not any(name.endswith(("/data.pkl", "/version")) for name in archive.namelist())
    except Exception:  # none at all, or damaged in any way there is
        return False


def _is_safetensors(path: Path) -> bool:
    """Whether it begins with the length of a header in JSON, and the header."""
    with path.open("rb") as file:
        length, begin = int.from_bytes(file.read(8), "little"), file.read(2)
    return begin == b'{"' and length < path.stat().st_size


def _compare_checksums(path: Path) -> None:
    """torch.save writes a CRC-32 of each tensor and of the pickle; torch.load does not look at them."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} does not have its checksum")
