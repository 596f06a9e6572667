"""Arrays of any length in .npz files: what NumPy reads, and no half files."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import refuses
from vdvae.errors import UserError
from vdvae.files import open_npz, write_npz

ROWS = np.random.default_rng(0).normal(size=(7, 3, 2)).astype(np.float32)


def test_numpy_reads_what_is_written_in_chunks_and_the_other_way_round(tmp_path: Path) -> None:
    write_npz(
        tmp_path / "new/a.npz", "rows", (7, 3, 2), "float32", [ROWS[:4], ROWS[4:]], {"names": np.array(["x", "y"])}
    )
    with np.load(tmp_path / "new/a.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["rows"], ROWS)
        assert arrays["names"].tolist() == ["x", "y"]
    np.savez_compressed(tmp_path / "b.npz", rows=ROWS)
    for path in (tmp_path / "new/a.npz", tmp_path / "b.npz"):
        found = open_npz(path, "rows")
        assert found.shape == (7, 3, 2)
        assert found.dtype == np.float32
        chunks = list(found.chunks(3))
        assert [len(chunk) for chunk in chunks] == [3, 3, 1]
        assert np.array_equal(np.concatenate(chunks), ROWS)


def test_after_an_error_the_old_file_is_there(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray[Any, Any]]:
        yield ROWS[:2]
        raise UserError("the second batch is bad")

    path = tmp_path / "a.npz"
    write_npz(path, "rows", (7, 3, 2), "float32", [ROWS], {})
    before = path.read_bytes()
    with pytest.raises(UserError, match="the second batch"):
        write_npz(path, "rows", (7, 3, 2), "float32", broken(), {})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, rows=ROWS)
    with refuses("a.npz 'latents'", UserError):
        open_npz(path, "latents")
    with refuses("b.npz", UserError):
        open_npz(tmp_path / "b.npz", "rows")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with refuses("a.npz damaged .npz", UserError):
        open_npz(path, "rows")
    np.savez(path, rows=np.array([{}, {}], dtype=object))
    with refuses("a.npz Python objects", UserError):
        open_npz(path, "rows")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with refuses("a.npz `git lfs pull`", UserError):
        open_npz(path, "rows")
    for rows, words in (
        (np.asfortranarray(ROWS), "Fortran order ascontiguousarray"),
        (ROWS[:0], "no rows [0, 3, 2]"),
        (np.float32(1), "no rows []"),
    ):
        np.savez(path, rows=rows)
        with refuses(f"rows in a.npz {words}", UserError):
            open_npz(path, "rows")
    path.write_bytes(b"")
    with refuses("a.npz is empty", UserError):
        open_npz(path, "rows")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.npy", b"no array")
    with refuses("a.npz damaged", UserError):
        open_npz(path, "rows")
