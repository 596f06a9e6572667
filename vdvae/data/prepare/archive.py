"""Official archives: finding them among what a person has, and telling damaged and wrong ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from vdvae.config import Variant
from vdvae.data.prepare.image_source import Pictures
from vdvae.data.prepare.sources import Source
from vdvae.errors import UserError

Sources = Mapping[str, Source | Pictures]
"""What goes into each file of a set: images into NAME.npy, the names of image files into NAME.txt."""


class Archive(NamedTuple):
    """One official file."""

    name: str
    sha256: Sequence[str] = ()
    """Checksum of the official file, then those of other good copies. Empty where nobody published one."""
    size: int | None = None
    """Bytes of the official file, where they are known."""
    url: str | None = None
    """None where no open address works any more."""
    folder: str | None = None
    """The folder that it unpacks to, which may stand in its place."""
    holds: Sequence[str] = ()
    """Files by which a folder of any other name may stand in its place, if it holds one of them."""


@dataclass(frozen=True, eq=False)
class Form:
    """One way in which a set is distributed."""

    archives: tuple[Archive, ...]
    sources: Callable[[list[Path]], Sources]
    """From the archives, or the folders in their place, to each file of the set: images to store, or a list."""
    counts: dict[str, int]
    """Images in each file."""
    variant: Variant | None = None
    where: str = ""
    """Where people get it, if it has no address."""


def find_form(name: str, forms: tuple[Form, ...], given: list[Path]) -> tuple[Form, list[Path]]:
    """Which form of a set lies at some paths, files or folders, and where each of its archives is.

    Raises:
        UserError: none, an incomplete one, or two that must not be confused.
    """
    for path in given:
        if not path.exists():
            raise UserError(f"there is nothing at {path}")
    found = {form: [_find(archive, given) for archive in form.archives] for form in forms}
    complete = {form: [path for path in paths if path] for form, paths in found.items() if all(paths)}
    if len({form.variant for form in complete}) > 1:
        there = " and ".join(str(paths[0]) for paths in complete.values())
        raise UserError(f"--from has two down-samplings, {there}, which must not be mixed: give one of them")
    for form, paths in complete.items():
        return form, paths
    for form, partly in found.items():
        if any(partly):
            missing = [archive.name for archive, path in zip(form.archives, partly, strict=True) if not path]
            raise UserError(
                f"{', '.join(missing)} is missing beside {next(filter(None, partly))}; {name} needs all of them"
            )
    raise UserError(f"--from {' '.join(map(str, given))} has nothing of {name}, which is {_wanted(forms)}")


def no_address(name: str, forms: tuple[Form, ...]) -> UserError:
    """What to say of a set that cannot be downloaded: which files to get, where people get them, what to do then."""
    return UserError(
        f"{name} has no open address. Get {_wanted(forms)}. Then run ./setup_data.sh {name} "
        "--from the folder they are in"
    )


def check_archive(path: Path, archive: Archive) -> None:
    """Compares a file with what was officially published.

    Raises:
        UserError: another size or checksum.
    """
    size = path.stat().st_size
    if len(archive.sha256) == 1 and size != archive.size:  # other good copies have other sizes
        raise UserError(
            f"{path} has {size:,} bytes, the official file {archive.size:,}: it is cut off or another file; get it "
            f"again{_or_partial(archive)}"
        )
    if archive.sha256 and (found := sha256_of(path)) not in archive.sha256:
        raise UserError(
            f"{path} has the checksum sha256 {found}, not {' or '.join(archive.sha256)}: it is damaged or another "
            f"file; get it again{_or_partial(archive)}"
        )


def refuse_web_page(path: Path, archive: Archive) -> None:
    """Raises `UserError` where a file is empty, or a server's error page was saved under the name of an archive."""
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(
            f"{path} is a web page and not {archive.name}: what answered was an error message; get it again"
        )
    if not start:
        raise UserError(f"{path} is empty; get it again")


def sha256_of(path: Path) -> str:
    """The checksum of a file, with a bar for a large one."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        tqdm(
            desc=f"checking {path.name}",
            total=path.stat().st_size,
            unit="B",
            unit_scale=True,
            leave=False,
            disable=None,
        ) as bar,
    ):
        while block := file.read(1 << 20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _or_partial(archive: Archive) -> str:
    unpacked = f", or unpack it and give the folder {archive.folder}" if archive.folder else ""
    return f"{unpacked}, or add --partial if it is meant to be a part of the set"


def _find(archive: Archive, given: list[Path]) -> Path | None:
    for path in given:
        if path.is_file():
            if path.name == archive.name:
                return path
            continue
        if (path / archive.name).is_file():
            return path / archive.name
        if archive.folder and path.resolve().name == archive.folder:
            return path
        if archive.folder and (path / archive.folder).is_dir():
            return path / archive.folder
        if any((path / name).exists() for name in archive.holds):
            return path
    return None


def _wanted(forms: tuple[Form, ...]) -> str:
    """The archives of every form, and where they are."""
    ways = []
    for form in forms:
        archives = [f"{a.name} ({a.size:,} bytes)" if a.size else a.name for a in form.archives]
        ways.append(" and ".join(archives) + (f" ({form.where})" if form.where else ""))
    return ", or ".join(ways)
