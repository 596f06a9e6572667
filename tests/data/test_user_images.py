"""Images that people name: files, folders and arrays, in the shape that the model takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest

from tests.conftest import refuses
from vdvae.config import Config
from vdvae.data.user_images import open_inputs
from vdvae.errors import UserError

GRAY = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, image in enumerate(GRAY):
        (tmp_path / "photos" / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        iio.imwrite(tmp_path / "photos" / f"{i % 2}" / f"{i}.png", image)
    return tmp_path / "photos"


def test_folders_and_files_in_their_order(folder: Path, tiny: Config) -> None:
    split, names = open_inputs([folder / "1/3.png", folder], tiny.model)
    assert [Path(name).name for name in names] == ["3.png", "0.png", "2.png", "4.png", "1.png", "3.png"]
    assert np.array_equal(split.read(np.array([0, 4]))[..., 0], GRAY[[3, 1]])


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_arrays(kind: str, tmp_path: Path, tiny: Config) -> None:
    path = tmp_path / f"images.{kind}"
    np.save(path, GRAY[..., None]) if kind == "npy" else np.savez(path, GRAY[..., None])
    split, names = open_inputs([path], tiny.model)
    assert names == ["0", "1", "2", "3", "4"]
    assert np.array_equal(split.read(np.arange(5))[..., 0], GRAY)


def test_fortran_order_in_an_npz(tmp_path: Path, tiny: Config) -> None:
    np.savez(tmp_path / "images.npz", np.asfortranarray(GRAY[..., None]))
    split, _ = open_inputs([tmp_path / "images.npz"], tiny.model)
    assert np.array_equal(split.read(np.arange(5))[..., 0], GRAY)


def test_larger_and_gray_ones_are_fitted(folder: Path, tiny: Config) -> None:
    model = replace(tiny.model, image_channels=3, image_size=14, enc_blocks="14d14,1x1", dec_blocks="1x1,14m1")
    assert open_inputs([folder], model)[0].read(np.arange(2)).shape == (2, 14, 14, 3)


def test_bad_images(folder: Path, tmp_path: Path, tiny: Config) -> None:
    colour, wide, small = tmp_path / "colour.png", tmp_path / "wide.png", tmp_path / "small.png"
    iio.imwrite(colour, np.zeros((28, 28, 3), np.uint8))
    iio.imwrite(wide, np.zeros((28, 40), np.uint8))
    iio.imwrite(small, np.zeros((20, 20), np.uint8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "phone/a").mkdir(parents=True)
    for name in ("1.HEIC", "a/2.heic", "a/notes"):
        (tmp_path / "phone" / name).touch()
    arrays: dict[str, tuple[Any, str]] = {
        "floats.npy": (np.zeros((2, 28, 28, 1), np.float32), "floats.npy uint8"),
        "floats.npz": (np.zeros((2, 28, 28, 1), np.float32), "floats.npz uint8 [N, H, W, C] 255 float32"),
        "size.npz": (np.zeros((2, 32, 32, 1), np.uint8), "size.npz [32, 32, 1] [28, 28, 1]"),
        "channels.npz": (np.zeros((2, 28, 28, 3), np.uint8), "channels.npz [28, 28, 3]"),
        "objects.npz": (np.array([{}], dtype=object), "objects.npz arr_0"),
        "objects.npy": (np.array([{}], dtype=object), "objects.npy uint8 object"),
        "none.npy": (np.zeros((0, 28, 28, 1), np.uint8), "none.npy holds no images [0, 28, 28, 1]"),
        "none.npz": (np.zeros((0, 28, 28, 1), np.uint8), "none.npz holds no images [0, 28, 28, 1]"),
        "flat.npy": (np.zeros((2, 28, 28), np.uint8), "flat.npy [2, 28, 28]"),
        "columns.npy": (np.asfortranarray(GRAY[..., None]), "columns.npy Fortran order ascontiguousarray"),
    }
    for name, (array, words) in arrays.items():
        (np.save if name.endswith("npy") else np.savez)(tmp_path / name, array)
        with refuses(words, UserError):
            open_inputs([tmp_path / name], tiny.model)
    np.savez(tmp_path / "named.npz", images=GRAY[..., None])
    np.save(tmp_path / "good.npy", GRAY[..., None])
    good = (tmp_path / "good.npy").read_bytes()
    contents = {
        "zero.npy": (b"", "zero.npy is empty"),
        "zero.npz": (b"", "zero.npz is empty"),
        "text.npy": (b"hello, world", "text.npy no .npy"),
        "text.npz": (b"hello, world", "text.npz no .npz"),
        "array.npz": (good, "array.npz no .npz"),
        "archive.npy": ((tmp_path / "named.npz").read_bytes(), "archive.npy but an .npz"),
        "named.npz": ((tmp_path / "named.npz").read_bytes(), "named.npz no arr_0, but images"),
        "cut.npy": (good[:-1], "cut.npy cut off 5"),
        "long.npy": (good + b"x", "long.npy longer 5"),
        "begun.npy": (good[:40], "begun.npy damaged"),
        "version.npy": (good[:6] + b"\x09" + good[7:], "version.npy damaged version (9, 0)"),
    }
    for name, (content, words) in contents.items():
        (tmp_path / name).write_bytes(content)
        with refuses(words, UserError):
            open_inputs([tmp_path / name], tiny.model)
    for path, words in (
        (colour, "colour.png 1 channel"),
        (wide, "wide.png --crop center"),
        (small, "small.png 28"),
    ):
        with refuses(words, UserError):
            open_inputs([path], tiny.model)
    for paths, words in (
        ([tmp_path / "none.png"], "none.png"),
        ([tmp_path / "nowhere.npz"], "nowhere.npz"),
        ([tmp_path / "empty"], "empty PNG JPEG"),
        ([tmp_path / "phone"], "phone PNG JPEG but 2 .heic, 1 without an ending convert"),
        ([folder, tmp_path / "floats.npz"], ".npy .npz image"),
    ):
        with refuses(words, UserError):
            open_inputs(paths, tiny.model)


def test_all_damaged_images_are_told_before_anything_is_computed(folder: Path, tiny: Config) -> None:
    """Their headers are whole."""
    for name in ("0/0.png", "1/3.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-60])
    with refuses(f"2 of 5 --skip_bad {folder}/0/0.png {folder}/1/3.png damaged", UserError):
        open_inputs([folder], tiny.model)
    assert len(open_inputs([folder], tiny.model, skip_bad=True)[1]) == 3


def test_what_a_folder_has_besides_images_is_told(
    folder: Path, tiny: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "0/0.png").rename(folder / "0/0.JFIF")
    for name in ("a.gif", "b.GIF", "1/Thumbs.db"):
        (folder / name).touch()
    split, names = open_inputs([folder], tiny.model)
    assert (len(split), names[0]) == (5, str(folder / "0/0.JFIF"))
    assert capsys.readouterr().err == (
        f"{folder}: leaving out 3 files that are no PNG, JPEG, WebP or BMP: 2 .gif, 1 .db\n"
    )
