"""An official set, from what a person has or from its address to a prepared folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from vdvae.data.manifest import File, Manifest, official_manifest
from vdvae.data.prepare.archive import Archive, Form, Sources, check_archive, find_form, no_address, refuse_web_page
from vdvae.data.prepare.download import download
from vdvae.data.prepare.image_source import Pictures
from vdvae.data.prepare.table import FORMS
from vdvae.data.prepare.write import PreparedMeanwhileError, identity, prepared_before, write_set
from vdvae.data.splits import DATASETS, FEWEST
from vdvae.errors import UserError, user_path


def prepare_official(name: str, given: Sequence[str], root: Path, partial: bool) -> tuple[Manifest, bool]:
    """Makes `root/name` from official archives.

    Args:
        name: a name of `FORMS`.
        given: files and folders that have the archives, or the address of a folder that serves them. Empty: the
            official address.
        root: folder of all prepared sets.
        partial: whether to accept a part of the set, with neither checksums nor counts; said in dataset.json and in
            every result.

    Returns:
        what the folder holds, and whether it did before.

    Raises:
        UserError: the archives are not there, damaged, or not those of the set.
    """
    target = root / name
    before = prepared_before(target)
    if before is not None and not given:
        return before, True
    mirror = given[0] if given and given[0].startswith(("http://", "https://")) else None
    paths: list[Path] = []
    if given and not mirror:
        form, paths = find_form(name, FORMS[name], [user_path(path) for path in given])
    else:
        form = _form_with_address(name, mirror)
    if before is not None:
        if before.variant != form.variant or (before.partial and not partial):
            raise UserError(f"{target} holds {before}, which stays as it is; choose another --to, or move it away")
        return before, True

    ours = not paths
    if ours:
        paths = [_download(archive, mirror, root / "downloads") for archive in form.archives]
    files = [(path, archive) for path, archive in zip(paths, form.archives, strict=True) if path.is_file()]
    for check in (refuse_web_page, check_archive)[: 1 if partial else 2]:  # the quick one first
        for path, archive in files:
            try:
                check(path, archive)
            except UserError:
                if ours:
                    path.unlink()  # or the next attempt would find it here and not fetch it again
                raise
    sources = form.sources(paths)
    if partial:
        _check_part(sources)
    else:
        check_counts(form, paths, sources, FORMS[name])

    def manifest(files: dict[str, File]) -> Manifest:
        is_part = any(files[file].count != count for file, count in form.counts.items())
        made_from = " and ".join(path.name for path in paths)
        folder = next((str(s.path.resolve()) for s in sources.values() if isinstance(s, Pictures)), None)
        return official_manifest(name, files, made_from, form.variant, is_part, folder)

    made_of = [name, partial, [identity(path) for path in paths]]
    try:
        return write_set(target, sources, DATASETS[name].image_shape, made_of, manifest), False
    except PreparedMeanwhileError:
        return prepare_official(name, given, root, partial)


def _form_with_address(name: str, mirror: str | None) -> Form:
    for form in FORMS[name]:
        if all(archive.url or (mirror and archive.name != archive.folder) for archive in form.archives):
            return form
    raise no_address(name, FORMS[name])


def _download(archive: Archive, mirror: str | None, folder: Path) -> Path:
    path = folder / archive.name
    if not path.exists():
        download(f"{mirror.rstrip('/')}/{archive.name}" if mirror else str(archive.url), path)
        tqdm.write(f"{path}: downloaded; not needed once the set is prepared")
    return path


def check_counts(form: Form, paths: list[Path], sources: Sources, others: Sequence[Form]) -> None:
    """Refuses what has not the official number of images.

    Args:
        form: what it seems to be.
        paths: where it is.
        sources: the images of each file.
        others: forms of the set that it might be mistaken for.
    """
    for file, source in sources.items():
        if source.count != form.counts[file]:
            hint = f": {source.gap}" if source.gap else ""
            for other in others:
                if other.counts[file] == source.count:
                    hint = f"; that is the number of {other.archives[0].name}, another down-sampling"
            raise UserError(
                f"{' and '.join(map(str, paths))} have {source.count:,} images for {file}, not {form.counts[file]:,}"
                f"{hint}; get them again, or add --partial if they are meant to be a part of the set"
            )


def _check_part(sources: Sources) -> None:
    """Refuses a part of a set with too few images, or with a number left out in the middle; how many says nothing."""
    for file, source in sources.items():
        if source.count < 2 * FEWEST:
            raise UserError(f"{source.count} images for {file}; even a part of a set needs {2 * FEWEST}")
        if source.gap:
            raise UserError(f"the images for {file} have a gap: {source.gap}; get them again")
