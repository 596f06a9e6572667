"""Which folders of a person's images are training, validation and test images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path

from vdvae.data.image_files import SUFFIXES
from vdvae.data.prepare.walk import files_below
from vdvae.errors import UserError

SPELLINGS = {
    "train": "train training trn",
    "valid": "valid val vali validate validation dev devel development",
    "test": "test tests testing tst",
    "unclear": "eval evaluate evaluation holdout heldout trainval trainvalid trainvalidation traintest valtest testval",
}
KINDS = {word: kind for kind, words in SPELLINGS.items() for word in words.split()}
"""From a word to the split that it is a name of."""
SHORT = {"tr": "train", "va": "valid", "te": "test", "ts": "test"}
"""Words that name a split only where most names beside them name one too: they are also languages."""
FILLERS = "datasets dataset data splits split sets set images image imgs img pictures pics photos samples files folder"
FILLERS += " lists list"
BEGIN = re.compile(r"(train|test|valid)(?!s$|er|ee|a$|ament|im|if|ic|os|ud|y$)(?P<rest>.*)")
"""A word such as trainhr or Testdaten, but not trains, trainer or testament."""
THINGS = (
    "station track wheel car ticket driver ride shoe tube pattern paper drive pilot bed kit strip flight tool tooling"
)
"""What is something else behind a word for a split, as a train station is; their plurals too."""
LISTS = (".txt", ".csv", ".tsv", ".lst", ".json")
"""Endings of files that may list the images of a split."""


@lru_cache(10_000)  # the words of a million names of files
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
        UserError: two for one split, one that may be any, some that seem to be splits but not which, a lone `train`
            among other folders of images, or a link that leads nowhere.
    """
    found: dict[str, Path] = {}
    others: list[Path] = []
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or path.is_file():
            continue
        kind = kind_of(path.name)
        if kind is None:
            others.append(path)
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
    if len(found) == 1:
        (one,) = found.values()
        with_images = [path for path in others if path.is_dir() and files_below(path, SUFFIXES)[0]]
        _refuse_different(sorted(path.name for path in (one, *with_images)), source)
        if with_images and "train" in found:
            raise UserError(
                f"{source} has a folder {one.name} among others, but neither valid nor test beside it; if it is a "
                f"class, rename it, as to {one.name}s; if it is a split, give {one} itself to have them drawn from it"
            )
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
    for above, siblings in groupby(sorted(folders - {""}, key=_parts), lambda folder: folder.rpartition("/")[0]):
        _refuse_different([Path(folder).name for folder in siblings], source / above)
    for above, files in groupby(sorted(names, key=_parts), lambda name: name.rpartition("/")[0]):
        _refuse_different([Path(name).stem for name in files], source / above, most=True)
    _refuse_lists(source, {Path(name).stem for name in names}, split)


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
    owners: dict[object, str] = {}
    places = set()
    for names in parts:
        for name in names:
            place = os.path.realpath(source / name)
            places.add(place)
            try:
                about = Path(place).stat()
                itself: object = (about.st_dev, about.st_ino)  # a hard link is the same file
            except OSError:  # who reads it says what is wrong
                itself = place
            first = owners.setdefault(itself, name)
            if first is not name:
                raise UserError(f"{source / first} and {source / name} are one file, in two splits; remove one of them")
    return places


def _parts(path: str) -> tuple[str, str]:
    above, _, own = path.rpartition("/")
    return above, own


def _kinds_in(name: str) -> Iterator[tuple[str, bool]]:
    """The splits that the words of a name are names of, and whether by a short one, as in imagesTr."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    for word, behind in pairwise((*words, "")):
        if word in SHORT:
            yield SHORT[word], True
        elif not _is_thing(behind) and (kind := kind_of(word)):
            yield kind, False
        elif (begin := BEGIN.fullmatch(word)) and not _is_thing(begin["rest"] or behind):
            yield begin[1], False


def _is_thing(word: str) -> bool:
    return word.removesuffix("s") in THINGS.split()


def _refuse_different(names: Iterable[str], place: Path, most: bool = False) -> None:
    """Refuses names of which two name different splits, as cats_train and dogs_test do.

    Args:
        names: of folders or files, beside each other.
        place: where they are.
        most: whether this only counts where most of them name one, as it always is for short ones.
    """
    kinds = [(name, next(_kinds_in(name), None)) for name in names]
    named = [(name, *found) for name, found in kinds if found]
    if 2 * len(named) <= len(kinds):
        named = [] if most else [found for found in named if not found[2]]
    for name, kind, _ in named:
        if kind != named[0][1]:
            raise UserError(
                f"{named[0][0]} and {name} in {place} seem to be of different splits, and would be mixed; put them "
                "into folders train, valid and test"
            )


def _refuse_lists(source: Path, images: set[str], split: str | None) -> None:
    """Refuses files such as train.txt and val.csv, which say what is a split's; but not the caption of an image."""
    for name in files_below(source, LISTS)[0]:
        stem = Path(name).stem
        if stem not in images and kind_of(stem) not in (None, split):
            raise UserError(
                f"{source / name} seems to list the images of a split, and all would be mixed; sort the images into "
                "folders train, valid and test, or move it away if it is no such list"
            )
