"""Which folders of a person's images are training, validation and test images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from vdvae.errors import UserError

SPELLINGS = {
    "train": "train training trn",
    "valid": "valid val vali validate validation dev devel development",
    "test": "test tests testing tst",
    "unclear": "eval evaluate evaluation holdout heldout trainval trainvalid trainvalidation traintest valtest testval",
}
KINDS = {word: kind for kind, words in SPELLINGS.items() for word in words.split()}
"""From a word to the split that it is a name of."""
FILLERS = "datasets dataset data splits split sets set images image imgs img pictures pics photos samples files folder"


def kind_of(name: str) -> str | None:
    """The split that a folder's name is one of the usual spellings of, as Train, test_set, val2017 or 02-validation;
    `unclear` where it names one, but not which; or None.
    """
    word = re.sub(r"[\W\d_]+", "", name.lower())
    for filler in FILLERS.split() * 2:  # as in test_set_images
        word = word.removeprefix(filler) or word
        word = word.removesuffix(filler) or word
    return KINDS.get(word)


def find_split_folders(source: Path) -> dict[str, Path]:
    """The folders in a folder that are splits, by `train`, `valid` and `test`.

    Raises:
        UserError: two for one split, one that may be any, or a link that leads nowhere.
    """
    found: dict[str, Path] = {}
    for path in sorted(source.iterdir()):
        kind = None if path.name.startswith(".") else kind_of(path.name)
        if kind is None or path.is_file():
            continue
        if not path.exists():
            raise UserError(f"{path} is a link to {path.readlink()}, which is not there")
        if not path.is_dir():
            continue
        if kind == "unclear":
            raise UserError(f"{path} may be validation or test images; rename it to valid or test")
        if kind in found:
            raise UserError(f"{found[kind]} and {path} are both {kind} images; put them into one folder {kind}")
        found[kind] = path
    return found


def refuse_pooled_splits(source: Path, names: list[str], split: str | None = None) -> None:
    """Refuses images that belong to different splits, as their folders or names say, and would be mixed.

    Args:
        source: folder of the images.
        names: relative to it.
        split: which the folder is; then a folder of that name in it, or one of things called train, is none.

    Raises:
        UserError: naming one that would be mixed, and what to do.
    """
    folders = {name.rpartition("/")[0] for name in names}
    while new := {folder.rpartition("/")[0] for folder in folders} - folders:
        folders |= new
    for folder in sorted(folders - {""}):
        above, _, own = folder.rpartition("/")
        if kind_of(own) not in (None, split, "train"):
            raise UserError(
                f"{source / folder} seems to be a split inside of {source}, whose images would be mixed with the "
                f"others; give the folder {source / above}, or move or rename {own}"
            )
    if split is None:
        for above, siblings in groupby(sorted(folders - {""}, key=_parts), lambda folder: folder.rpartition("/")[0]):
            _refuse_pairs([Path(folder).name for folder in siblings], source / above)
        for above, files in groupby(sorted(names, key=_parts), lambda name: name.rpartition("/")[0]):
            _refuse_pairs([Path(name).stem for name in files], source / above, everyone=True)


def refuse_shared(source: Path, parts: list[list[str]]) -> set[str]:
    """Refuses a file that is reached from two splits.

    Args:
        source: folder of all images.
        parts: the names of the files of each split, relative to it.

    Returns:
        where the files really are.

    Raises:
        UserError: naming both ways.
    """
    owners: dict[str, str] = {}
    for names in parts:
        for name in names:
            first = owners.setdefault(os.path.realpath(source / name), name)
            if first is not name:
                raise UserError(f"{source / first} and {source / name} are one file, in two splits; remove one of them")
    return set(owners)


def _parts(path: str) -> tuple[str, str]:
    above, _, own = path.rpartition("/")
    return above, own


def _refuse_pairs(names: Iterable[str], place: Path, everyone: bool = False) -> None:
    """Refuses names that differ by the split that they name, as cats_train and cats_test do.

    Args:
        names: of folders or files.
        place: where they are.
        everyone: whether this only counts where every name has a split in it.
    """
    seen: dict[tuple[str, ...], tuple[str, str]] = {}
    pair = None
    for name in names:
        words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
        kind = next((KINDS[word] for word in words if word in KINDS), None)
        if kind is None:
            if everyone:
                return
            continue
        pattern = tuple("" if word in KINDS else word for word in words)
        other, its_kind = seen.setdefault(pattern, (name, kind))
        if its_kind != kind:
            pair = pair or (other, name)
    if pair:
        raise UserError(
            f"{pair[0]} and {pair[1]} in {place} seem to be of different splits, and would be mixed; put them into "
            "folders train, valid and test"
        )
