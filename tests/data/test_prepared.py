"""Opening a prepared set, and what a model or a configuration must not be pointed at."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import refuses
from tests.data.conftest import Prepare
from tests.data.prepare import archives
from vdvae.config import Config, DataConfig, load_config
from vdvae.data.prepared import load_splits
from vdvae.data.storage import NpyFile, Pixels
from vdvae.errors import UserError


def test_embedded_images(tiny: Config) -> None:
    """8,500, 500 and 1,000 different images, together the 10,000 of the file."""
    splits = load_splits(tiny.data, tiny.model)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (8_500, 500, 1_000)
    assert sorted([*splits.train.rows, *splits.valid.rows, *splits.test.rows]) == list(range(10_000))
    first = splits.train.read(np.arange(3))
    assert first.shape == (3, 28, 28, 1)
    assert first.dtype == np.uint8
    assert isinstance(splits.train.storage, Pixels)
    assert splits.train.storage.pixels.mean() == pytest.approx(73.15, abs=0.01)  # of Zalando's test images


@pytest.fixture
def root(tmp_path: Path, prepare: Prepare) -> Path:
    """Folder of prepared sets: ImageNet-32 of either kind, of 20 and 5 images."""
    archives.imagenet_pngs(tmp_path)
    assert prepare("imagenet32", "--from", ".", "--partial")[0] == 0
    (tmp_path / "npz").mkdir()
    archives.imagenet_npz(tmp_path / "npz")
    assert prepare("imagenet32", "--from", "npz", "--partial", "--to", "newer")[0] == 0
    return tmp_path / "data"


def test_files_are_opened_and_not_read(root: Path) -> None:
    splits = load_splits(DataConfig("imagenet32", str(root), "original"), load_config("imagenet32", []).model)
    assert isinstance(splits.train.storage, NpyFile)
    assert np.array_equal(splits.test.read(np.array([3])), np.load(root / "imagenet32/test.npy")[3:4])
    assert splits.manifest.facts() == {"dataset": "imagenet32", "variant": "original", "partial": True, "bits": 8}


@pytest.mark.parametrize(
    ("hps", "settings", "words"),
    [
        (
            "imagenet64",
            "data.dataset=imagenet32",
            "imagenet32 32 model.image_size 64",
        ),
        ("fashion", "data.dataset=imagenet32", "imagenet32 3 model.image_channels 1"),
        (
            "imagenet32",
            "model.bits=5",
            "imagenet32 8 model.bits 5",
        ),
        ("imagenet32", "data.variant=newer", "original newer"),
        (
            "imagenet32",
            "data.root=newer",
            "newer original",
        ),
        ("imagenet32", "data.root=newer", "data.variant=newer"),
        ("cifar10", "data.dataset=imagenet32", "variant"),
        (
            "cifar10",
            "",
            "data/cifar10 ./setup_data.sh data.root",
        ),
        ("cifar10", "data.root=/x", "/x/cifar10 ./setup_data.sh --to data.root"),
        (
            "cifar10",
            "data.dataset=cifar",
            "'cifar' 'cifar10' imagenet32",
        ),
        ("cifar10", "data.dataset=photos", "'photos' scripts/prepare_data.py"),
    ],
)
def test_a_preset_pointed_at_the_wrong_set(hps: str, settings: str, words: str, root: Path) -> None:
    config = load_config(hps, settings.split())
    with refuses(words, UserError):
        load_splits(config.data, config.model)


def edit(**changes: object) -> Callable[[Path], object]:
    """Changes entries of dataset.json."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps({**content, **changes}))

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "test.npy").unlink(), "test.npy missing"),
        (lambda folder: os.truncate(folder / "train.npy", 9000), "train.npy cut off"),
        (
            lambda folder: np.save(folder / "test.npy", np.zeros((4, 32, 32, 3), np.uint8)),
            "test.npy dataset.json [5, 32",
        ),
        (lambda folder: (folder / "dataset.json").write_text("{"), "dataset.json damaged"),
        (edit(files={"train.npy": 3}), "dataset.json damaged"),
        (edit(splits={}), "dataset.json damaged 'train'"),
        (edit(more=1), "dataset.json damaged"),
        (edit(image_size="32"), "dataset.json damaged"),
        (edit(variant="old"), "dataset.json damaged"),
        (edit(files={"train.npy": {"count": 3, "sha256": ""}}), "dataset.json damaged"),
        (edit(format=2), "dataset.json format 2 1"),
    ],
)
def test_a_damaged_set(damage: Callable[[Path], object], words: str, root: Path) -> None:
    config = load_config("imagenet32", [])
    damage(root / "imagenet32")
    with refuses(words, UserError):
        load_splits(config.data, config.model)


def test_bits_can_be_chosen_in_the_manifest(root: Path) -> None:
    """Who measures at another number of bits says so where the set is."""
    edit(bits=5)(root / "imagenet32")
    config = load_config("imagenet32", ["model.bits=5"])
    assert load_splits(config.data, config.model).manifest.facts()["bits"] == 5


def test_wrong_channels(tiny: Config) -> None:
    model = replace(tiny.model, image_channels=3)
    with refuses("1 model.image_channels 3", UserError):
        load_splits(tiny.data, model)


def test_images_that_are_read_where_they_lie(tmp_path: Path, prepare: Prepare) -> None:
    """Their folder may move, their list be edited, and one of them change."""
    images = archives.ffhq1024(tmp_path)["train.txt"]
    assert prepare("ffhq1024", "--from", tmp_path, "--partial")[0] == 0
    data, model = DataConfig("ffhq1024", str(tmp_path / "data")), load_config("ffhq1024", []).model
    names = tmp_path / "data/ffhq1024/train.txt"
    told = names.read_text()
    names.write_bytes(told.encode("utf-8-sig"))
    splits = load_splits(data, model)
    assert np.array_equal(splits.train.read(np.array([0]))[0], images[splits.train.rows[0]])
    names.write_bytes(told.replace("64996", "\xe9").encode("latin-1"))
    with refuses(f"{names} not UTF-8 prepare again", UserError):
        load_splits(data, model)
    names.write_text(told)
    folder = tmp_path / "images1024x1024"
    Image.new("RGBA", (1024, 1024)).save(folder / "65000/65000.png")
    with pytest.raises(UserError, match=r"65000\.png is partly transparent; put a colour"):
        splits.test.read(np.arange(4))
    folder.rename(tmp_path / "moved")
    with refuses("folder gone prepare again", UserError):
        load_splits(data, model)
