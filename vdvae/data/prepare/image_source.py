"""Folders and tars of pictures, decoded on all cores."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path, PurePosixPath

import numpy as np

from vdvae.data.image_files import check_shape, read_picture
from vdvae.data.prepare.sources import Source, exactly, reading
from vdvae.data.prepare.tars import list_tar
from vdvae.data.storage import Images, pieces
from vdvae.runtime.device import available_cores

FEW = 4096
"""So many pictures are decoded sooner than processes start."""

Decode = Callable[[Path | bytes, str], Images]
"""From a file, and what messages call it, to uint8 [H, W, C]."""


@dataclass(frozen=True)
class Pictures:
    """Image files below a folder, or in an uncompressed tar."""

    path: Path
    names: list[str]
    """Relative to a folder, or without folders in a tar."""
    places: list[tuple[int, int]] | None = None
    """(offset, size) of each in the tar; None for a folder."""

    @property
    def count(self) -> int:
        """How many."""
        return len(self.names)

    @property
    def gap(self) -> str:
        """See `first_gap`."""
        return first_gap(self.names)

    def part(self, first: int, count: int) -> Pictures:
        """Some of them."""
        end = first + count
        return Pictures(self.path, self.names[first:end], self.places[first:end] if self.places else None)

    def files(self) -> Iterator[tuple[Path | bytes, str]]:
        """Each one's path or content, and what messages call it."""
        if self.places is None:
            for name in self.names:
                yield self.path / name, str(self.path / name)
            return
        with reading(self.path), self.path.open("rb") as tar:
            for name, (offset, size) in zip(self.names, self.places, strict=True):
                tar.seek(offset)
                yield exactly(tar, size), f"{name} in {self.path}"


def find_pictures(path: Path, suffixes: tuple[str, ...]) -> tuple[Pictures, int]:
    """The files with these endings in a tar, or in a folder and below it, in the order of their names; and how many
    other files there are. Files and folders whose names begin with a dot are left out.
    """
    if path.is_file():
        with reading(path):
            listed = list_tar(path)
        chosen = [file for file in listed if file[0].lower().endswith(suffixes) and not file[0].startswith(".")]
        places = [(offset, size) for _, offset, size in chosen]
        return Pictures(path, [name for name, _, _ in chosen], places), len(listed) - len(chosen)
    names, others = [], 0
    for place, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        within = PurePosixPath(os.path.relpath(place, path))
        for name in files:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                names.append(str(within / name))
            else:
                others += not name.startswith(".")
    return Pictures(path, sorted(names)), others


def first_gap(names: list[str]) -> str:
    """Where numbered files leave a number out or have one twice, in words; empty if they don't, or have no numbers."""
    stems = [PurePosixPath(name).stem for name in names]
    if not all(stem.isdigit() for stem in stems):
        return ""
    order = np.argsort(numbers := np.array([int(stem) for stem in stems]))
    steps = np.diff(numbers[order])
    for i in np.flatnonzero(steps != 1)[:1].tolist():
        before, after = names[order[i]], names[order[i + 1]]
        return f"{before} and {after} have one number" if steps[i] == 0 else f"none between {before} and {after}"
    return ""


def decoded(pictures: Pictures, shape: tuple[int, int, int], decode: Decode = read_picture) -> Source:
    """The pictures as a source, which refuses what `decode` does not give the shape [H, W, C]."""
    image_bytes = int(np.prod(shape))

    def chunks(start: int) -> Iterator[Images]:
        parts = [pictures.part(*piece) for piece in pieces(start, pictures.count, image_bytes)]
        if pictures.count - start <= FEW:
            yield from (_decode(part, shape, decode) for part in parts)
            return
        workers = available_cores()
        with ProcessPoolExecutor(workers, get_context("forkserver"), _leave_interrupts_to_the_parent) as pool:
            ahead: deque[Future[Images]] = deque()
            try:
                for part in parts:
                    ahead.append(pool.submit(_decode, part, shape, decode))
                    if len(ahead) > 2 * workers:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    return Source(pictures.count, chunks, pictures.gap)


def _decode(pictures: Pictures, shape: tuple[int, int, int], decode: Decode) -> Images:
    images = np.empty((pictures.count, *shape), np.uint8)
    for image, (source, name) in zip(images, pictures.files(), strict=True):
        picture = decode(source, name)
        check_shape(picture.shape, shape, name)
        image[...] = picture
    return images


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
