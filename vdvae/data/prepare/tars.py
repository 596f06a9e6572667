"""Uncompressed tars of any length, as a list of places; and what no honest archive contains."""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from vdvae.errors import UserError

BLOCK = 512


def list_tar(path: Path) -> list[tuple[str, int, int]]:
    """(name without folders, offset, size) of every file in a tar, sorted by name.

    Raises:
        UserError: it is cut off, compressed, or holds what an archive of images does not.
        tarfile.TarError: it is damaged.
    """
    length = path.stat().st_size
    files = []
    with (
        path.open("rb") as file,
        tarfile.open(fileobj=file, mode="r:") as tar,
        tqdm(desc=f"listing {path.name}", total=length, unit="B", unit_scale=True, leave=False, disable=None) as bar,
    ):
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # or it would keep them all: 1 KB for each image
            check_member(member, path)
            if member.isfile():
                if member.offset_data + member.size > length:
                    raise UserError(f"{path} is cut off in the middle of {member.name}; get it again")
                files.append((PurePosixPath(member.name).name, member.offset_data, member.size))
            bar.update(tar.offset - bar.n)
        file.seek(tar.offset)
        if file.read(BLOCK) != bytes(BLOCK):  # a header that cannot be read ends the listing silently
            raise UserError(f"{path} is damaged or cut off after {len(files):,} files; get it again")
    return sorted(files)


def check_member(member: tarfile.TarInfo, path: Path) -> None:
    """Raises `UserError` where a member points outside of the archive, or is no file or folder."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise UserError(f"{path} holds {member.name}, which leads out of it: not an official archive; nothing was used")
    if not (member.isfile() or member.isdir()):
        raise UserError(f"{path} holds {member.name}, a link or device: not an official archive; nothing was used")
