"""People's own images: from a folder of image files to a prepared set."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from vdvae.data.image_files import BACKGROUNDS, SUFFIXES, Header, check_fits, read_fitted, read_header, refuse_bad
from vdvae.data.manifest import File, Manifest
from vdvae.data.prepare.image_source import Pictures, decoded, find_pictures, leaving_out, other_kinds
from vdvae.data.prepare.split_folders import find_split_folders, refuse_pooled_splits, refuse_shared
from vdvae.data.prepare.write import PreparedMeanwhileError, identity, prepared_before, write_set
from vdvae.data.splits import DATASETS, FEWEST, Rule, Rules
from vdvae.errors import UserError, one_line

SPLITS = ("train", "valid", "test")


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
    """What the splits are drawn with that have no folder."""
    held_out: float
    """The part of the images that is held out by it, half for validation and half for the test."""
    bits: int
    """At which the NLL is measured."""
    skip_bad: bool = field(default=False, repr=False)
    """Whether to leave out images that cannot be taken, instead of refusing all."""

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
        given["skip_bad"] = "" if self.skip_bad else None
        return " ".join(f"--{option} {value}".strip() for option, value in given.items() if value is not None)


def prepare_folder(source: Path, root: Path, options: FolderOptions) -> tuple[Manifest, bool]:
    """Makes `root/NAME` from the images in a folder and below it.

    Returns:
        what the folder holds, and whether it did before.

    Raises:
        UserError: the images cannot make one set, or something else is there already; says which images and why.
    """
    target = root / options.name
    before = prepared_before(target)
    parts, others = _parts(source)
    looked_at = {file: identity(source, part.names) for file, part in parts.items()}
    made_from = hashlib.sha256(json.dumps(looked_at).encode()).hexdigest()
    count = f"{sum(part.count for part in parts.values()):,}"
    if before is not None:
        _check_same(before, source, target, count, made_from, options)
        return before, True

    if others:
        tqdm.write(leaving_out(source, others, SUFFIXES))
    shape, bad = _look(parts, options)
    good = {file: [name for name in part.names if name not in bad[file]] for file, part in parts.items()}
    _rules({file: len(good[file]) if options.skip_bad else part.count for file, part in parts.items()}, options)
    load = partial(read_fitted, size=shape[0], crop=options.crop, channels=shape[2], background=_level(options))
    sources = {file: decoded(Pictures(source, good[file]), shape, load, leave_out=True) for file in parts}

    def manifest(files: dict[str, File]) -> Manifest:
        reasons = _reasons(parts, {file: {**bad[file], **(sources[file].bad or {})} for file in parts})
        if not options.skip_bad:
            refuse_bad(reasons, sum(part.count for part in parts.values()))
        for reason in reasons.values():
            tqdm.write(f"left out: {one_line(reason)}")
        told = f"{count} images of {source.resolve()}, {options}"
        told += f" ({len(reasons):,} left out)" if reasons else ""
        splits = _rules({file: about.count for file, about in files.items()}, options)
        return Manifest(
            options.name, shape[0], shape[2], options.bits, None, False, told, files, splits, identity=made_from
        )

    # which images the rows are may change though no file does, as where one could not be read for a while
    made_of = [made_from, str(_with_bad_ones(options)), shape, {file: sorted(bad[file]) for file in parts}]
    try:
        return write_set(target, sources, shape, made_of, manifest), False
    except PreparedMeanwhileError:
        return prepare_folder(source, root, options)


def _check_same(
    before: Manifest, source: Path, target: Path, count: str, made_from: str, options: FolderOptions
) -> None:
    """Raises `UserError` where a target holds what other images or options gave. Without --skip_bad, a set that leaves
    images out is another.
    """
    told = re.fullmatch(r"([\d,]+) images of (.*?)( --skip_bad)?( \([\d,]+ left out\))?", before.source, re.DOTALL)
    number, settings, _, left_out = told.groups() if told else ("", "", "", "")
    older = f"{source.resolve()}, {options!r}"  # as it was written until November 2026
    is_same = settings in (f"{source.resolve()}, {_with_bad_ones(options)}", older)
    if is_same and (number != count or before.identity not in (None, made_from)):
        raise UserError(
            f"{source} has changed since {target} was prepared from it, which stays as it is; choose another --name, "
            "or move it away"
        )
    if not is_same or (left_out and not options.skip_bad):
        raise UserError(f"{target} holds another set, which stays as it is; choose another --name, or move it away")


def _level(options: FolderOptions) -> int | None:
    """What stands behind transparent images."""
    return BACKGROUNDS[options.background] if options.background else None


def _with_bad_ones(options: FolderOptions) -> FolderOptions:
    """The same without --skip_bad: an attempt goes on with or without it."""
    return replace(options, skip_bad=False)


def drawn(manifest: Manifest) -> str:
    """In words, which of the splits that a folder was made to were drawn from other images."""
    train, valid, test = (manifest.splits[split] for split in SPLITS)
    if valid == test:
        return "; the validation images are the test images: prepare the set anew under another name to keep them apart"
    if train.file == valid.file == test.file:
        return f"; all three drawn by --seed {train.permutation}"
    split = next((split for split in ("valid", "test") if manifest.splits[split].file == train.file), None)
    return f"; {split} drawn from the training images by --seed {train.permutation}" if split else ""


def _parts(source: Path) -> tuple[dict[str, Pictures], int]:
    """The pictures of each file of the set, and the number of files left out."""
    if not source.is_dir():
        raise UserError(f"there is no folder {source}")
    folders = find_split_folders(source)
    pictures, others = find_pictures(source, SUFFIXES)
    if "train" not in folders:
        for split, folder in folders.items():
            if find_pictures(folder, SUFFIXES)[0].count:
                raise UserError(
                    f"{source} has a folder {folder.name} of {split} images, but no folder train beside it; "
                    "rename it if it is no split"
                )
        if pictures.count < 3 * FEWEST:
            besides = f", besides {kinds}" if (kinds := other_kinds(source, SUFFIXES)) else ""
            needed = f"a set needs {3 * FEWEST}, {FEWEST} for each split"
            raise UserError(f"{source} has {pictures.count} PNG, JPEG, WebP or BMP images{besides}; {needed}")
        refuse_pooled_splits(source, pictures.names)
        return {"images.npy": pictures}, others
    if len(folders) == 1:
        raise UserError(
            f"{source} has a folder {folders['train'].name}, but neither valid nor test beside it; give "
            f"{folders['train']} itself to have them drawn from it"
        )
    parts, others = {}, 0
    for split in sorted(folders, key=SPLITS.index):
        part, left_out = find_pictures(folders[split], SUFFIXES)
        if part.count < FEWEST:
            raise UserError(f"{folders[split]} has {part.count} images; a split needs {FEWEST}")
        refuse_pooled_splits(folders[split], part.names, split)
        parts[f"{split}.npy"] = Pictures(source, [f"{folders[split].name}/{name}" for name in part.names])
        others += left_out
    inside = refuse_shared(source, [part.names for part in parts.values()])
    beside = set(pictures.names).difference(*(part.names for part in parts.values()))
    if outside := sorted(name for name in beside if os.path.realpath(source / name) not in inside):
        names = ", ".join(folder.name for folder in folders.values())
        raise UserError(
            f"{source} has {len(outside):,} images outside of {names}, as {outside[0]}; move them into one of these"
        )
    return parts, others


def _look(parts: dict[str, Pictures], options: FolderOptions) -> tuple[tuple[int, int, int], dict[str, dict[str, str]]]:
    """(H, W, C) of the set, and, by file and name, what is wrong with images as far as their headers show it: each is
    looked at before any image is decoded.
    """
    bad: dict[str, dict[str, str]] = {file: {} for file in parts}
    headers: dict[str, dict[str, Header]] = {file: {} for file in parts}
    for file, part in parts.items():
        files = tqdm(part.files(), f"looking at {file}", part.count, leave=False, disable=None)
        for name, (source, called) in zip(part.names, files, strict=True):
            try:
                header = read_header(source, called)
                check_fits(header, options.size or min(header[:2]), options.crop, called, "use a smaller --size")
                headers[file][name] = header
            except UserError as error:
                bad[file][name] = str(error)
    sides = Counter(min(header[:2]) for part in headers.values() for header in part.values())
    if not sides:
        refuse_bad(_reasons(parts, bad), sum(part.count for part in parts.values()))
    size, count = sides.most_common(1)[0]
    size, example = options.size or size, ""
    for file, part in parts.items():
        for name, header in headers[file].items():
            if options.size is None and min(header[:2]) != size:
                bad[file][name] = f"{part.path / name} is {header.width} x {header.height}"
            else:
                example = example or str(part.path / name)
    others = f"and {count:,} others, such as {example}, are {size} x {size}; --size brings them to one size"
    for file in parts:
        for name in bad[file].keys() & headers[file].keys():
            bad[file][name] = f"{bad[file][name]}, {others}"
    return (size, size, _channels(parts, headers, bad, size, options)), bad


def _channels(
    parts: dict[str, Pictures],
    headers: dict[str, dict[str, Header]],
    bad: dict[str, dict[str, str]],
    size: int,
    options: FolderOptions,
) -> int:
    """3 if there is an image in colour that can be decoded, else 1; those tried that cannot are added to the bad."""
    for file, part in parts.items():
        for name, header in headers[file].items():
            if header.channels == 1 or name in bad[file]:
                continue
            path = part.path / name
            try:
                read_fitted(path, str(path), size, options.crop, header.channels, _level(options))
            except UserError as error:
                bad[file][name] = str(error)
            else:
                return header.channels
    return 1


def _reasons(parts: dict[str, Pictures], bad: dict[str, dict[str, str]]) -> dict[str, str]:
    """What is wrong with images of any file, in the order of their names."""
    return {name: bad[file][name] for file, part in parts.items() for name in part.names if name in bad[file]}


def _rules(counts: dict[str, int], options: FolderOptions) -> Rules:
    """The splits of files with so many images; one without a file of its own is drawn from the training images."""
    for file, count in counts.items():
        if count < (least := FEWEST if len(counts) > 1 else len(SPLITS) * FEWEST):
            raise UserError(f"{count} images are left for {file.removesuffix('.npy')}, which needs {least}")
    drawn_from = "train.npy" if "train.npy" in counts else "images.npy"
    drawn = [split for split in ("valid", "test") if f"{split}.npy" not in counts]
    n = counts[drawn_from]
    part = max(FEWEST, round(n * options.held_out / 2))
    left = n - len(drawn) * part
    if left < FEWEST:
        raise UserError(f"--held_out {options.held_out:g} leaves {max(0, left)} of {n} images to train on")
    rules = {"train": Rule(drawn_from, options.seed if drawn else None, len(drawn) * part, left)}
    for split in ("valid", "test"):
        if split in drawn:
            rules[split] = Rule(drawn_from, options.seed, drawn.index(split) * part, part)
        else:
            rules[split] = Rule(f"{split}.npy", None, 0, counts[f"{split}.npy"])
    return rules
