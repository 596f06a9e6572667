"""Preparations that are killed, run out of disk, or meet each other; and what is verified."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import refuses, says
from tests.data.conftest import Prepare, contents, set_up
from tests.data.prepare import archives
from vdvae.data.manifest import File, Manifest
from vdvae.data.prepare import write as write_module
from vdvae.data.prepare.sources import Source
from vdvae.data.prepare.write import PreparedMeanwhileError, identity, locked, write_set
from vdvae.data.splits import Rule
from vdvae.data.storage import Images
from vdvae.errors import UserError

IMAGES = archives.random_images(40, 8)


def source_that_ends_after(chunks: int, end: Callable[[], object]) -> tuple[Source, list[int]]:
    """40 images, 4 at a time, and where reading started."""
    started = []

    def read(start: int) -> Iterator[Images]:
        started.append(start)
        for i, first in enumerate(range(start, 40, 4)):
            if i == chunks:
                end()
            yield IMAGES[first : first + 4]

    return Source(40, read), started


def make(folder: Path, source: Source) -> Manifest:
    """Prepares that source as the set `x`."""

    def manifest(files: dict[str, File]) -> Manifest:
        rule = Rule("images.npy", None, 0, 40)
        return Manifest("x", 8, 3, 8, None, False, "here", files, dict.fromkeys(("train", "valid", "test"), rule))

    return write_set(folder / "x", {"images.npy": source}, (8, 8, 3), ["x"], manifest)


def die() -> None:
    """Like kill -9: no clean-up of any kind."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("chunks", [0, 3, 9])
def test_a_killed_preparation_goes_on_where_it_was(
    chunks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the last chunk on the disk; the result is that of an undisturbed one, and nothing looks finished before."""
    monkeypatch.setattr(write_module, "FLUSH_EVERY", 8 * 8 * 8 * 3)  # every second chunk
    killed = get_context("fork").Process(target=make, args=(tmp_path, source_that_ends_after(chunks, die)[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process that has threads
        killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".x.preparing"]
    source, started = source_that_ends_after(99, die)
    manifest = make(tmp_path, source)
    assert started == [chunks // 2 * 8]
    assert np.array_equal(np.load(tmp_path / "x/images.npy"), IMAGES)
    assert manifest.files["images.npy"].sha256 == hashlib.sha256((tmp_path / "x/images.npy").read_bytes()).hexdigest()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dataset.json", "images.npy", "x"]


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hidden folder of a preparation that was interrupted after 20 of 40 images."""
    monkeypatch.setattr(write_module, "FLUSH_EVERY", 1)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, source_that_ends_after(5, interrupt)[0])
    folder = tmp_path / ".x.preparing"
    assert json.loads((folder / "journal.json").read_text()) == {
        "made_of": ["x"],
        "done": {"images.npy": 20},
        "bad": {"images.npy": {}},
    }
    return folder


def test_other_sources_start_over(interrupted: Path, tmp_path: Path) -> None:
    journal = interrupted / "journal.json"
    journal.write_text(journal.read_text().replace('"x"', '"y"'))
    source, started = source_that_ends_after(99, die)
    make(tmp_path, source)
    assert started == [0]


def test_nothing_of_another_attempt_comes_into_a_set(interrupted: Path, tmp_path: Path) -> None:
    """Neither of other sources, nor where the journal is gone."""
    for journal in (interrupted / "journal.json", None):
        (interrupted / "train.npy").write_text("of a split that is no more")
        journal.write_text(journal.read_text().replace('"x"', '"y"')) if journal else None
        make(tmp_path, source_that_ends_after(99, die)[0])
        assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["dataset.json", "images.npy"]
        (tmp_path / "x").rename(interrupted)
        (interrupted / "dataset.json").unlink()


@pytest.mark.parametrize(
    "journal",
    [
        b"",
        b"{",
        b"\0" * 99,
        b"\xff",
        b"null",
        b"[]",
        b"7",
        b"[" * 99999,
        b"{}",
        b'{"made_of": ["x"], "done": null, "bad": 3}',
    ],
)
def test_a_damaged_journal_starts_over(journal: bytes, interrupted: Path, tmp_path: Path) -> None:
    (interrupted / "journal.json").write_bytes(journal)
    source, started = source_that_ends_after(99, die)
    make(tmp_path, source)
    assert started == [0]
    assert np.array_equal(np.load(tmp_path / "x/images.npy"), IMAGES)


def test_another_process_was_faster(tmp_path: Path) -> None:
    """Nothing is decoded again, and no hidden copy stays."""
    make(tmp_path, source_that_ends_after(99, die)[0])
    source, started = source_that_ends_after(99, die)
    with refuses("another process prepared x meanwhile", PreparedMeanwhileError):
        make(tmp_path, source)
    assert started == []
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("damage", [lambda file: os.truncate(file, 300), Path.unlink])
def test_what_was_written_may_be_gone(damage: Callable[[Path], None], interrupted: Path, tmp_path: Path) -> None:
    damage(interrupted / "images.npy")
    source, started = source_that_ends_after(99, die)
    make(tmp_path, source)
    assert started == [0]
    assert np.array_equal(np.load(tmp_path / "x/images.npy"), IMAGES)


def test_a_file_that_can_be_read_again_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content and times are the same."""
    (tmp_path / "a.png").write_text("a")
    before = identity(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("os.access", lambda path, mode: False)  # root may read whatever its mode is
        assert identity(tmp_path) != before
    assert identity(tmp_path) == before


def test_one_process_at_a_time(tmp_path: Path) -> None:
    source, started = source_that_ends_after(99, die)
    with refuses("another process", UserError), locked(tmp_path / ".x.preparing"):
        make(tmp_path, source)
    assert started == []
    make(tmp_path, source)


def test_a_full_disk(tmp_path: Path, prepare: Prepare) -> None:
    """In the middle of writing: one line, status 2, what is written is kept, and the same command goes on to the same
    bytes as one that was never disturbed.
    """
    archives.imagenet_npz(tmp_path, 64)
    arguments = ["imagenet64", "--from", ".", "--partial"]
    result = set_up(tmp_path, *arguments, largest_file_kb=100)
    assert (result.returncode, result.stdout) == (2, "")
    says(result.stderr, "error: data/.imagenet64.preparing/train.npy too large kept")
    assert not (tmp_path / "data/imagenet64").exists()
    assert prepare(*arguments)[0] == 0
    assert prepare(*arguments, "--to", "undisturbed")[0] == 0
    assert contents(tmp_path / "data") == contents(tmp_path / "undisturbed")


def test_too_little_space_is_said_before_anything_is_written(
    tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives.ffhq256(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    status, _, err = prepare("ffhq256", "--from", ".", "--partial")
    assert status == 2
    says(err, "error: data 1 MB free 2 MB --to")
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("free", [20 * 8 * 8 * 3, 8 * 8 * 3])
def test_what_is_written_has_its_room(
    free: int, interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what was written but not noted when the disk was full: 39 images here, of which 20 are noted."""
    if free < 20 * 8 * 8 * 3:
        with (interrupted / "images.npy").open("ab") as file:
            file.write(bytes(19 * 8 * 8 * 3))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free - 8 * 8 * 3))
    with pytest.raises(OSError, match="make room"):
        make(tmp_path, source_that_ends_after(99, die)[0])
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    source, started = source_that_ends_after(99, die)
    make(tmp_path, source)
    assert started == [20]


def test_a_disk_that_is_full_when_the_file_is_closed(tmp_path: Path) -> None:
    """Some of the pixels are in memory until then."""
    child = get_context("fork").Process(target=fill_the_disk, args=(tmp_path,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    child.join()
    says(
        (tmp_path / "said").read_text(), f"cannot write {tmp_path}/.x.preparing/images.npy large kept the same command"
    )
    source, _ = source_that_ends_after(99, die)
    make(tmp_path, source)
    assert np.array_equal(np.load(tmp_path / "x/images.npy"), IMAGES)


def fill_the_disk(folder: Path) -> None:
    """Prepares where no file may have over 1,000 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        make(folder, source_that_ends_after(99, die)[0])
    except OSError as error:
        (folder / "said").write_text(str(error))


def test_verify(tmp_path: Path, prepare: Prepare) -> None:
    archives.fashion_mnist(tmp_path)
    prepare("fashion_mnist", "--from", ".", "--partial")
    status, out, _ = prepare("verify", "data/fashion_mnist")
    assert (status, "every file is as it was prepared" in out) == (0, True)
    file = tmp_path / "data/fashion_mnist/train.npy"
    file.write_bytes(archives.flip_a_bit(file.read_bytes()))
    status, _, err = prepare("verify", "data/fashion_mnist")
    assert (status, "train.npy has changed since it was prepared" in err) == (2, True)
