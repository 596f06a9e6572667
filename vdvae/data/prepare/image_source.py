"""Folders and tars of pictures, decoded by threads on all cores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from vdvae.data.ahead import on_all_cores
from vdvae.data.image_files import check_shape, read_picture
from vdvae.data.prepare.sources import Source, exactly, reading
from vdvae.data.prepare.tars import list_tar
from vdvae.data.prepare.walk import files_below
from vdvae.data.storage import Images, pieces
from vdvae.errors import UserError, one_line

MOST_KINDS = 5
"""So many kinds of other files are told."""
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


def find_pictures(path: Path, suffixes: tuple[str, ...], once: bool = True) -> tuple[Pictures, int]:
    """The files with these endings in a tar, or in a folder and below it as `files_below` has them, in the order of
    their names; and how many other files there are. Names that begin with a dot are left out, and with `once` all hard
    links to a file but the first.
    """
    if path.is_file():
        with reading(path):
            listed = list_tar(path)
        chosen = [file for file in listed if file[0].lower().endswith(suffixes) and not file[0].startswith(".")]
        places = [(offset, size) for _, offset, size in chosen]
        return Pictures(path, [name for name, _, _ in chosen], places), len(listed) - len(chosen)
    names, others = files_below(path, suffixes, once)
    return Pictures(path, names), others


def other_kinds(folder: Path, suffixes: tuple[str, ...]) -> str:
    """What else there is in a folder and below it, in words, as `3 .heic, 1 .gif`; empty where there is nothing."""
    others = (Path(name).suffix.lower() for name in files_below(folder)[0] if not name.lower().endswith(suffixes))
    kinds = Counter(others).most_common()
    told = [f"{count:,} {kind or 'without an ending'}" for kind, count in kinds[:MOST_KINDS]]
    return ", ".join(told + ["others"] * (len(kinds) > MOST_KINDS))


def leaving_out(folder: Path, count: int, suffixes: tuple[str, ...]) -> str:
    """One line about the files of a folder that are no pictures."""
    kinds = other_kinds(folder, suffixes)
    return one_line(f"{folder}: leaving out {count:,} files that are no PNG, JPEG, WebP or BMP: {kinds}")


def is_number(name: str) -> bool:
    """Whether a file is named by a number, as 00017.png is."""
    stem = PurePosixPath(name).stem
    return stem.isascii() and stem.isdecimal()


def first_gap(names: list[str]) -> str:
    """Where numbered files leave a number out or have one twice, in words; empty if they don't, or have no numbers."""
    if not all(map(is_number, names)):
        return ""
    order = np.argsort(numbers := np.array([int(PurePosixPath(name).stem) for name in names]))
    steps = np.diff(numbers[order])
    for i in np.flatnonzero(steps != 1)[:1].tolist():
        before, after = names[order[i]], names[order[i + 1]]
        return f"{before} and {after} have one number" if steps[i] == 0 else f"none between {before} and {after}"
    return ""


class Decoded(NamedTuple):
    """Some pictures, decoded."""

    images: Images
    """The pixels of those that are good, uint8 [N, H, W, C]."""
    bad: dict[str, str]
    """What is wrong with each of the others, by name."""


def decoded(
    pictures: Pictures, shape: tuple[int, int, int], decode: Decode = read_picture, leave_out: bool = False
) -> Source:
    """The pictures as a source. What `decode` does not give the shape [H, W, C] is refused, or left out and noted; then
    the names of the others are kept.
    """
    image_bytes = int(np.prod(shape))
    noted: dict[str, str] = {}

    def chunks(start: int) -> Iterator[Images]:
        parts = (pictures.part(*piece) for piece in pieces(start, pictures.count, image_bytes))
        for images, bad in on_all_cores(lambda part: _decode(part, shape, decode), parts):
            if bad and not leave_out:
                raise UserError(next(iter(bad.values())))
            noted.update(bad)
            yield images

    if leave_out:
        return Source(pictures.count, chunks, pictures.gap, pictures.names, noted)
    return Source(pictures.count, chunks, pictures.gap)


def _decode(pictures: Pictures, shape: tuple[int, int, int], decode: Decode) -> Decoded:
    images, count, bad = np.empty((pictures.count, *shape), np.uint8), 0, {}
    for name, (source, called) in zip(pictures.names, pictures.files(), strict=True):
        try:
            picture = decode(source, called)
            check_shape(picture.shape, shape, called)
        except UserError as error:
            bad[name] = str(error)
        else:
            images[count] = picture
            count += 1
    return Decoded(images[:count], bad)
