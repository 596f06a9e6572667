"""People's own images: from a folder of image files to a prepared set."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from vdvae.data.image_files import BACKGROUNDS, SUFFIXES, Header, check_fits, read_fitted, read_header
from vdvae.data.manifest import File, Manifest
from vdvae.data.prepare.image_source import Pictures, decoded, find_pictures
from vdvae.data.prepare.write import identity, prepared_before, write_set
from vdvae.data.splits import DATASETS, FEWEST, Rule, Rules
from vdvae.errors import UserError

SPLIT_FOLDERS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}


@dataclass(frozen=True)
class FolderOptions:
    """How images become a set.

    Raises:
        UserError: a value that cannot be.
    """

    name: str
    size: int | None
    """Side of the square images, pixels; None takes them as they are."""
    crop: bool
    """Whether to take the middle square of images that are not."""
    background: str | None
    """What to put behind transparent images: a key of `BACKGROUNDS`."""
    seed: int
    """What the split is drawn with, where there are no folders train, valid and test."""
    held_out: float
    """The part of the images that is held out by it, half for validation and half for the test."""
    bits: int
    """At which the NLL is measured."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.name) or self.name in (*DATASETS, "downloads"):
            raise UserError(f"--name {self.name!r} must be letters, digits, - and _, and not {', '.join(DATASETS)}")
        if self.size is not None and self.size < 4:
            raise UserError(f"--size must be at least 4, not {self.size}")
        if not 0 < self.held_out < 1:
            raise UserError(f"--held_out must be between 0 and 1, not {self.held_out:g}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed must be from 0 to 2**32 - 1, not {self.seed}")
        if not 1 <= self.bits <= 8:
            raise UserError(f"--bits must be from 1 to 8, not {self.bits}")

    def __str__(self) -> str:
        """As on the command line, without the name."""
        given = {**vars(self), "name": None, "crop": "center" if self.crop else None}
        return " ".join(f"--{option} {value}" for option, value in given.items() if value is not None)


def prepare_folder(source: Path, root: Path, options: FolderOptions) -> tuple[Manifest, bool]:
    """Makes `root/NAME` from the images in a folder and below it.

    Returns:
        what the folder holds, and whether it did before.

    Raises:
        UserError: the images cannot make one set, or something else is there already; says which image and why.
    """
    target = root / options.name
    before = prepared_before(target)
    parts, others = _parts(source)
    if others:
        tqdm.write(f"{source}: leaving out {others:,} files that are no PNG, JPEG, WebP or BMP")
    shape = _common_shape(parts, options)
    images = f"{sum(part.count for part in parts.values()):,} images of {source.resolve()}"
    described = f"{images}, {options}"
    if before is not None:
        if before.source not in (described, f"{images}, {options!r}"):  # as it was written until November 2026
            raise UserError(f"{target} holds another set, which stays as it is; choose another --name, or move it away")
        return before, True

    background = BACKGROUNDS[options.background] if options.background else None
    load = partial(read_fitted, size=shape[0], crop=options.crop, channels=shape[2], background=background)
    counts = {file: part.count for file, part in parts.items()}
    splits = _rules(counts, options)

    def manifest(files: dict[str, File]) -> Manifest:
        return Manifest(options.name, shape[0], shape[2], options.bits, None, False, described, files, splits)

    sources = {file: decoded(part, shape, load) for file, part in parts.items()}
    return write_set(target, sources, shape, [described, identity(source)], manifest), False


def _parts(source: Path) -> tuple[dict[str, Pictures], int]:
    """The pictures of each file of the set, and the number of files left out."""
    if not source.is_dir():
        raise UserError(f"there is no folder {source}")
    folders = {path.name: path for path in sorted(source.iterdir()) if path.is_dir() and path.name in SPLIT_FOLDERS}
    if "train" not in folders:
        pictures, others = find_pictures(source, SUFFIXES)
        if pictures.count < 3 * FEWEST:
            raise UserError(f"{source} has {pictures.count} images; a set needs {3 * FEWEST}, {FEWEST} for each split")
        return {"images.npy": pictures}, others
    parts, left_out = {}, 0
    for name, folder in folders.items():
        pictures, others = find_pictures(folder, SUFFIXES)
        file = f"{SPLIT_FOLDERS[name]}.npy"
        if pictures.count < FEWEST:
            raise UserError(f"{folder} has {pictures.count} images; a split needs {FEWEST}")
        if file in parts:
            raise UserError(f"{source} has two folders of validation images; keep one")
        parts[file], left_out = pictures, left_out + others
    if len(parts) == 1:
        raise UserError(f"{source} has a folder train, but neither valid nor test beside it")
    outside = find_pictures(source, SUFFIXES)[0].count - sum(part.count for part in parts.values())
    if outside:
        raise UserError(f"{source} has {outside:,} images outside of {', '.join(folders)}; move them into one of these")
    return parts, left_out


def _common_shape(parts: dict[str, Pictures], options: FolderOptions) -> tuple[int, int, int]:
    """(H, W, C) of the set: every header is looked at before any image is decoded."""
    first: tuple[str, Header] | None = None
    channels = 1
    for file, part in parts.items():
        for source, name in tqdm(part.files(), f"looking at {file}", part.count, leave=False, disable=None):
            header = read_header(source, name)
            channels = max(channels, header.channels)
            first = first or (name, header)
            if options.size is None and header[:2] != first[1][:2]:
                raise UserError(
                    f"{name} is {header.width} x {header.height}, but {first[0]} is {first[1].width} x "
                    f"{first[1].height}; --size brings them to one size"
                )
            check_fits(header, options.size or min(header[:2]), options.crop, name, "use a smaller --size")
    assert first is not None
    size = options.size or min(first[1][:2])
    return (size, size, channels)


def _rules(counts: dict[str, int], options: FolderOptions) -> Rules:
    if "images.npy" in counts:
        n, half = counts["images.npy"], max(FEWEST, round(counts["images.npy"] * options.held_out / 2))
        if n - 2 * half < FEWEST:
            raise UserError(f"--held_out {options.held_out:g} leaves {max(0, n - 2 * half)} of {n} images to train on")
        valid = Rule("images.npy", options.seed, 0, half)
        test = Rule("images.npy", options.seed, half, half)
        return {"train": Rule("images.npy", options.seed, 2 * half, n - 2 * half), "valid": valid, "test": test}
    rules = {file.removesuffix(".npy"): Rule(file, None, 0, count) for file, count in counts.items()}
    only = rules.get("valid") or rules["test"]
    return {"train": rules["train"], "valid": rules.get("valid", only), "test": rules.get("test", only)}
