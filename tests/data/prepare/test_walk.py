"""Links are followed, loops end, and every file comes once."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import refuses
from vdvae.data.image_files import read_header
from vdvae.data.prepare.walk import files_below
from vdvae.data.prepare.write import identity
from vdvae.errors import UserError

HERE = ["a/1.png", "a/2.PNG", "b/c/3.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures and a text, and two elsewhere, below `here` and `there`."""
    for name in (*(f"here/{name}" for name in HERE), "here/b/notes.txt", "there/8.png", "there/d/9.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("links", "names", "others"),
    [
        ({}, HERE, 1),
        ({"x": "../there"}, [*HERE, "x/8.png", "x/d/9.png"], 1),
        ({"x": "../there", "w": "../there/d"}, [*HERE, "w/9.png", "x/8.png"], 1),
        ({"0": "b", "z": "a"}, HERE, 1),
        ({"loop": "."}, HERE, 1),
        ({"b/loop": "..", "b/c/above": "../../.."}, HERE, 1),
        ({"x": "../there", "../there/back": "../here", "../there/d/back": ".."}, [*HERE, "x/8.png", "x/d/9.png"], 1),
        ({"0.png": "a/1.png"}, HERE, 1),
        ({"8.png": "../there/8.png", "z.png": "../there/8.png"}, ["8.png", *HERE], 1),
        ({"text.png": "b/notes.txt"}, [*HERE, "text.png"], 1),
        ({"text.txt": "a/1.png"}, HERE, 2),
        ({"gone.png": "nowhere", "gone.txt": "nowhere", "gone": "nowhere"}, [*HERE, "gone.png"], 3),
        ({"gone.png": "a/3.png", "gone2.png": "a/3.png"}, [*HERE, "gone.png", "gone2.png"], 1),
        ({"self.png": "self.png"}, [*HERE, "self.png"], 1),
        ({".hidden": "../there", ".1.png": "a/1.png"}, HERE, 1),
        ({"x.png": "../there"}, [*HERE, "x.png/8.png", "x.png/d/9.png"], 1),
    ],
)
def test_links(links: dict[str, str], names: list[str], others: int, folder: Path) -> None:
    for link, target in links.items():
        (folder / link).symlink_to(target)
    assert files_below(folder, (".png",)) == (names, others)
    (folder.parent / "alias").symlink_to("here")
    assert files_below(folder.parent / "alias", (".png",)) == (names, others)


def test_the_order_in_which_a_disk_has_them_does_not_matter(folder: Path) -> None:
    """Folders that are linked to each other in a ring, made in any order."""
    random.seed(0)
    found = set()
    for attempt in range(5):
        root = folder / f"{attempt}"
        for i in random.sample(range(6), 6):
            (root / f"{i}").mkdir(parents=True)
            (root / f"{i}" / f"{i}.png").touch()
            (root / f"{i}/next").symlink_to(f"../{(i + 1) % 6}")
            (root / f"link{i}").symlink_to(folder / "a")
        found.add(tuple(files_below(root)[0]))
    assert found == {(*(f"{i}/{i}.png" for i in range(6)), "link0/1.png", "link0/2.PNG")}


@pytest.mark.parametrize("name", ["@eaDir/1.png", "$RECYCLE.BIN", "__MACOSX", "lost+found", "#recycle"])
def test_folders_of_the_system_are_left_out(name: str, folder: Path) -> None:
    for place in (folder / name, folder / "b" / name):
        place.mkdir(parents=True)
        (place / "SYNOPHOTO_THUMB_M.png").touch()
    assert files_below(folder, (".png",)) == (HERE, 1)


def test_hard_links_count_once_where_that_is_wanted(folder: Path) -> None:
    for name in ("a/0.png", "b/z.png"):
        os.link(folder / "a/1.png", folder / name)
    (folder / "gone.png").symlink_to("nowhere")
    everything = sorted([*HERE, "a/0.png", "b/z.png", "gone.png"])
    assert files_below(folder, (".png",)) == (everything, 1)
    assert files_below(folder, (".png",), once=True) == (["a/0.png", "a/2.PNG", "b/c/3.png", "gone.png"], 1)


def test_a_folder_that_cannot_be_looked_into_is_told_where_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root may look into any, it is refused here."""
    scandir = os.scandir

    def refusing(place: str) -> Any:
        if place.endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr("os.scandir", refusing)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert files_below(folder, (".png",)) == (["a/1.png", "a/2.PNG", "b"], 0)
    with refuses("b is a folder that cannot be looked into", UserError):
        read_header(folder / "b", "b")
    with pytest.raises(PermissionError):
        files_below(folder / "b")


def test_identity_changes_with_the_files_that_matter(folder: Path) -> None:
    (folder / "gone.png").symlink_to("nowhere")
    every, some = identity(folder), identity(folder, ["a/1.png", "gone.png"])
    (folder / "b/notes.txt").write_text("changed")
    assert identity(folder) != every
    assert identity(folder, ["a/1.png", "gone.png"]) == some
    (folder / "a/1.png").write_text("changed")
    assert identity(folder, ["a/1.png", "gone.png"]) != some
