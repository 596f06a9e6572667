"""The files below a folder: links are followed, and every file comes once."""

from __future__ import annotations

import os
from pathlib import Path

NOT_THEIRS = ("@eadir", "#recycle", "$recycle.bin", "system volume information", "__macosx", "lost+found", "lost.dir")
"""Folders, in lower case, that systems and disks put beside a person's files: thumbnails, and what was deleted."""


def files_below(folder: Path, suffixes: tuple[str, ...] = ("",), once: bool = False) -> tuple[list[str], int]:
    """The files with these endings in a folder and below it, whatever the case, and how many other files there are.

    Links are followed, but not up to a folder that they lie in. A real folder is entered once, and a real file counts
    once, by its own name rather than a link's, and by the first link's if it lies elsewhere. A link that leads nowhere
    counts as a file, and so does a folder that cannot be looked into, so that who reads it can say so. Names that begin
    with a dot are left out, and folders such as @eaDir and $RECYCLE.BIN.

    Args:
        folder: where to look.
        suffixes: the endings, in lower case.
        once: whether of a file's hard links only the first counts, by name.

    Returns:
        the names, relative to the folder and sorted, and the number of others.

    Raises:
        OSError: the folder itself cannot be looked into.
    """
    found: list[str] = []
    others = 0
    root = os.path.realpath(folder)
    entered = {root}
    real_folders = [("", root)]
    linked_folders: list[tuple[str, str]] = []
    linked_files: list[tuple[str, str]] = []
    while real_folders or linked_folders:
        if not real_folders:  # all that lies there itself comes before what is linked
            linked_folders.sort(reverse=True)
            within, place = linked_folders.pop()
            if place in entered:
                continue
            entered.add(place)
            real_folders.append((within, place))
        within, place = real_folders.pop()
        try:
            entries = os.scandir(place)
        except OSError:
            if not within:
                raise
            found.append(within.removesuffix("/"))
            continue
        with entries:
            for entry in entries:
                name = within + entry.name
                if entry.name.startswith(".") or entry.name.lower() in NOT_THEIRS:
                    continue
                if entry.is_symlink():
                    real = os.path.realpath(entry.path)
                    if not Path(real).is_dir():
                        linked_files.append((name, real))
                    elif os.path.commonpath((real, place)) != real:
                        linked_folders.append((f"{name}/", real))
                elif entry.is_dir():
                    if entry.path not in entered:
                        entered.add(entry.path)
                        real_folders.append((f"{name}/", entry.path))
                elif name.lower().endswith(suffixes):
                    found.append(name)
                else:
                    others += 1
    elsewhere = set()
    for name, real in sorted(linked_files):
        place, own = os.path.split(real)
        itself = place in entered and own.lower().endswith(suffixes) and not own.startswith(".")
        if not name.lower().endswith(suffixes):
            others += 1
        elif not Path(real).exists():
            found.append(name)
        elif not itself and real not in elsewhere:
            elsewhere.add(real)
            found.append(name)
    found.sort()
    return _first_links(folder, found) if once else found, others


def _first_links(folder: Path, names: list[str]) -> list[str]:
    """Those that are no hard link to an earlier one."""
    seen: dict[object, str] = {}
    for name in names:
        try:
            about = (folder / name).stat()
            seen.setdefault((about.st_dev, about.st_ino), name)
        except OSError:  # a link that leads nowhere
            seen[name] = name
    return list(seen.values())
