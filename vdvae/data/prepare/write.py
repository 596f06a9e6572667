"""From sources of images to a prepared folder: streaming, restartable, and never half there.

Everything is written to a hidden folder beside the final one, which takes its name in one step at the very end. A
preparation that was killed goes on from the last chunk that is safely on the disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from tqdm import tqdm

from vdvae.data.image_files import check_shape, read_picture
from vdvae.data.manifest import FILE_NAME, File, Manifest, read_manifest
from vdvae.data.prepare.archive import Sources, sha256_of
from vdvae.data.prepare.image_source import Pictures
from vdvae.data.prepare.sources import Source
from vdvae.data.prepare.walk import files_below
from vdvae.errors import UserError
from vdvae.files import atomic_write

NAMES = ".names.json"
"""Ending of the file beside `NAME.npy` that has the name of each image, in their order."""
FLUSH_EVERY = 32 << 20
"""Bytes of pixels after which a killed preparation will go on."""


class Staging(NamedTuple):
    """The hidden folder where a set is prepared, and what is finished in it."""

    folder: Path
    made_of: Any
    """What the set is prepared from; of anything else, nothing is taken over."""

    @property
    def journal(self) -> Path:
        """Where that is noted."""
        return self.folder / "journal.json"

    def begin(self) -> None:
        """Clears what was not left by an attempt at the same."""
        if self._noted() is None:
            for path in self.folder.iterdir():
                path.unlink()

    def done(self) -> dict[str, int]:
        """Images of each file that are safely on the disk."""
        return dict(self._content()["done"])

    def bad(self, name: str) -> dict[str, str]:
        """What is wrong with the images that were left out up to there, by name."""
        return dict(self._content()["bad"].get(name, {}))

    def save(self, name: str, file: BinaryIO, images: int, bad: dict[str, str]) -> None:
        """Puts what is written to a file on the disk, and notes that so many images are, and which were left out."""
        file.flush()
        os.fsync(file.fileno())
        content = self._content()
        content["done"][name] = images
        content["bad"][name] = bad
        with atomic_write(self.journal) as journal:
            journal.write(json.dumps(content).encode())

    def _content(self) -> dict[str, Any]:
        return self._noted() or {"made_of": self.made_of, "done": {}, "bad": {}}

    def _noted(self) -> dict[str, Any] | None:
        """The journal; None where there is none of the same, or a damaged one."""
        try:
            content = json.loads(self.journal.read_bytes())
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        if not isinstance(content, dict) or content.get("made_of") != self.made_of:
            return None
        return content if all(isinstance(content.get(key), dict) for key in ("done", "bad")) else None


class PreparedMeanwhileError(UserError):
    """Another process has prepared the same target since this one looked."""


def prepared_before(target: Path) -> Manifest | None:
    """What a target holds already.

    Raises:
        UserError: something that preparation did not make, and will not overwrite; or it is below a file.
    """
    check_folder(target.parent, "--to")
    if (target / FILE_NAME).is_file():
        return read_manifest(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is no prepared data set; move it away, or choose another --to")
    return None


def check_folder(folder: Path, option: str) -> None:
    """Raises `UserError` where a folder cannot be made, as a file is in its place or above it."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise UserError(f"{there} is no folder; choose another {option}")


def write_set(
    target: Path,
    sources: Sources,
    image_shape: tuple[int, int, int],
    made_of: Any,
    manifest: Callable[[dict[str, File]], Manifest],
) -> Manifest:
    """Prepares a set.

    Args:
        target: the folder to be; must not exist, or be empty.
        sources: the images of each file.
        image_shape: (H, W, C) of all images.
        made_of: plain values that identify the sources and every setting, so that another attempt with the same
            can go on.
        manifest: from the finished files to dataset.json.

    Raises:
        UserError: the sources are not as they should be, in which case nothing is kept; or they cannot be written, in
            which case the same call goes on.
        PreparedMeanwhileError: the target holds a set by now.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f".{target.name}.preparing")) as folder:
        if prepared_before(target) is not None:
            raise PreparedMeanwhileError(
                f"another process has prepared {target} meanwhile; the same command says what it has"
            )
        staging = Staging(folder, json.loads(json.dumps(made_of)))
        staging.begin()
        done = staging.done()
        _check_space(staging, sources, image_shape)
        try:
            files = {
                name: _write_list(folder / name, source, image_shape)
                if isinstance(source, Pictures)
                else _write_npy(staging, name, source, image_shape, done.get(name, 0))
                for name, source in sources.items()
            }
            finished = manifest(files)
        except UserError:
            shutil.rmtree(folder)  # the images are at fault: nothing of them is worth keeping
            raise
        with _keeping(folder / FILE_NAME):
            finished.write(folder)
        staging.journal.unlink(missing_ok=True)
        folder.replace(target)
    return finished


def identity(path: Path, names: Sequence[str] | None = None) -> list[Any]:
    """What changes when a file, or any file below a folder, does.

    Args:
        path: the file or folder.
        names: of the files in the folder that matter; default: all.
    """
    if names is None:
        names = [""] if path.is_file() else files_below(path)[0]
    digest, size = hashlib.sha256(), 0
    for name in names:
        with suppress(OSError):  # of a link that leads nowhere
            stat = (path / name).stat()
            digest.update(os.fsencode(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0"))
            digest.update(b"" if os.access(path / name, os.R_OK) else b"unreadable\0")
            size += stat.st_size
    return [str(path.resolve()), len(names), size, digest.hexdigest()]


def verify(folder: Path) -> Manifest:
    """Compares every file of a prepared set with its checksum.

    Raises:
        UserError: naming the first that differs.
    """
    manifest = read_manifest(folder)
    for name, file in manifest.files.items():
        _compare(folder / name, file.sha256)
        names = (folder / name).with_suffix(NAMES)
        if file.names_sha256 is not None:
            _compare(names, file.names_sha256)
        elif names.is_file() and not _has_names(names, file.count):
            raise UserError(f"{names} has not a name for each of the {file.count:,} images; prepare the set again")
    return manifest


def _compare(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing; prepare the set again")
    if (found := sha256_of(path)) != sha256:
        raise UserError(f"{path} has changed since it was prepared: sha256 {found}, not {sha256}")


def _has_names(path: Path, count: int) -> bool:
    """Whether a list of an older version, which has no checksum, has so many different names."""
    try:
        names = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(names, list) and len({name for name in names if isinstance(name, str)}) == len(names) == count


class WritingError(OSError):
    """The disk is full, or refuses; what is written is kept."""


def _write_npy(staging: Staging, name: str, source: Source, image_shape: tuple[int, int, int], done: int) -> File:
    path = staging.folder / name
    image_bytes = math.prod(image_shape)
    if not path.exists() or path.stat().st_size < done * image_bytes:
        done = 0
    with (
        _opened(path, "r+b" if done else "wb") as file,
        tqdm(desc=name, total=source.count, unit="image", unit_scale=True, disable=None) as bar,
    ):
        bad = source.bad if source.bad is not None else {}
        bad.update(staging.bad(name) if done else {})
        with _keeping(path):
            _write_header(file, (source.count, *image_shape))
            file.truncate(file.seek(done * image_bytes, os.SEEK_CUR))
        bar.update(done + len(bad))
        saved = done
        for chunk in source.chunks(done + len(bad)):
            with _keeping(path):
                file.write(np.ascontiguousarray(chunk).data)
                done += len(chunk)
                if (done - saved) * image_bytes >= FLUSH_EVERY:
                    staging.save(name, file, done, bad)
                    saved = done
            bar.update(done + len(bad) - bar.n)
        if done + len(bad) != source.count:
            raise UserError(f"{name}: {source.count:,} images were announced, and {done + len(bad):,} came")
        with _keeping(path):
            _write_header(file, (done, *image_shape))
            staging.save(name, file, done, bad)
    names = path.with_suffix(NAMES)
    if source.names:
        with _keeping(names):
            names.write_text(json.dumps([called for called in source.names if called not in bad], indent=0))
    return File(done, sha256_of(path), sha256_of(names) if source.names else None)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """That of a .npy, at the file's beginning; NumPy keeps room in it, so its length is the same for all numbers."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _write_list(path: Path, pictures: Pictures, image_shape: tuple[int, int, int]) -> File:
    for source, name in tqdm(pictures.files(), path.name, pictures.count, unit="image", disable=None):
        check_shape(read_picture(source, name).shape, image_shape, name)  # in training, damage would come too late
    for name in pictures.names:
        if not name.isprintable():  # a line break, or bytes that are no text
            raise UserError(f"{pictures.path} has a file {name!r}, which cannot stand in a list; rename it")
    with _keeping(path):
        path.write_text("".join(f"{name}\n" for name in pictures.names))
    return File(pictures.count, sha256_of(path))


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """The folder, made if need be, for this process alone."""
    folder.mkdir(exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another process is preparing {folder} right now; wait for it") from error
    else:
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()  # if nothing is in it
        os.close(handle)


@contextmanager
def _keeping(path: Path) -> Iterator[None]:
    """Says of a failure to write that nothing is lost."""
    try:
        yield
    except OSError as error:
        raise WritingError(
            f"cannot write {path}: {error.strerror or error}; what is written is kept, and the same command goes on"
        ) from error


@contextmanager
def _opened(path: Path, mode: str) -> Iterator[BinaryIO]:
    """A file to write. What could not be written is tried again when it is closed, which fails as writing does."""
    with _keeping(path):
        file = cast(BinaryIO, path.open(mode))
    try:
        yield file
    finally:
        with _keeping(path):
            file.close()


def _check_space(staging: Staging, sources: Sources, image_shape: tuple[int, int, int]) -> None:
    """What an earlier attempt wrote has its room already, be it noted as done or not."""
    needed, free = 0, shutil.disk_usage(staging.folder).free
    for name, source in sources.items():
        if isinstance(source, Source):
            path = staging.folder / name
            images = source.count - len(staging.bad(name))
            needed += max(0, images * math.prod(image_shape) - (path.stat().st_size if path.exists() else 0))
    if needed > free:
        raise WritingError(
            f"{staging.folder.parent} has {free / 1e6:,.0f} MB free, and {needed / 1e6:,.0f} MB are to be written; "
            "make room, or choose another --to"
        )
