"""People's own images: through the script to a prepared set, a configuration, and a training step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import prepare_data
import pytest
import torch

from tests.conftest import ROOT, says
from tests.data.conftest import Prepare, contents, tiny_model
from tests.data.prepare.archives import random_images
from vdvae import VDVAE
from vdvae.config import Config, DataConfig, load_config
from vdvae.data.loader import BatchOrder, training_batches
from vdvae.data.manifest import read_manifest
from vdvae.data.prepare import fragment
from vdvae.data.prepared import Splits, load_splits
from vdvae.data.storage import Images
from vdvae.errors import UserError
from vdvae.runtime.processes import World
from vdvae.training.update import Update

ALONE = World(0, 1, torch.device("cpu"))


def write(folder: Path, images: Images, suffix: str = ".png") -> None:
    """Image files 000, 001, ... in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        iio.imwrite(folder / f"{i:03}{suffix}", image.squeeze())


def opened(folder: Path, *settings: str) -> tuple[Config, Splits]:
    config = load_config(f"cifar10,{folder / 'mine.yaml'}", [f"data.root={folder / 'data'}", *settings])
    return config, load_splits(config.data, config.model)


def test_from_a_folder_to_a_training_step(tmp_path: Path, prepare: Prepare) -> None:
    """One-channel images stay so; the split is that of the stated seed; mean and scale are the training images'."""
    images = random_images(20, 20, 1) // 2
    write(tmp_path / "photos/a", images[:10])
    write(tmp_path / "photos/b/c", images[10:])
    (tmp_path / "photos/notes.txt").write_text("not an image")
    (tmp_path / "photos/.thumbs").mkdir()
    (tmp_path / "photos/.thumbs/000.png").write_text("hidden")
    arguments = ["folder", "photos", "--name", "mine", "--seed", 3, "--held_out", 0.4, "--config", "mine.yaml"]
    status, out, err = prepare(*arguments)
    assert (status, err) == (0, "")
    left_out, counts, usage = out.splitlines()
    says(left_out, "photos 1 PNG")
    says(counts, "data/mine 12 train 4 valid 4 test 20 x 20 x 1 8 bits")
    assert usage == f"mine.yaml: for python {ROOT}/train.py --hps cifar10,mine.yaml"
    config, splits = opened(tmp_path)
    order = np.random.RandomState(3).permutation(20)
    for split, rows in ((splits.valid, order[:4]), (splits.test, order[4:8]), (splits.train, order[8:])):
        assert np.array_equal(split.read(np.arange(len(split))), images[rows])
    assert config.model.input_shift == pytest.approx(-images[order[8:]].mean(), abs=1e-5)
    assert config.model.input_scale == pytest.approx(1 / images[order[8:]].std(), rel=1e-5)
    assert (config.model.image_size, config.model.image_channels, config.model.bits) == (20, 1, 8)
    assert config.model.enc_blocks == "20x6,20d2,10x6,10d2,5x6,5d5,1x3"
    assert config.model.dec_blocks == "1x1,5m1,5x3,10m5,10x6,20m10,20x12"

    config, splits = opened(tmp_path, *tiny_model(20, 1), "train.batch_size=4")
    update = Update(VDVAE(config.model), config.train, ALONE)
    update(next(training_batches(splits.train, BatchOrder(len(splits.train), 4, 0), 0, ALONE, config.data)), 0)
    report = update.report()
    assert (report.skipped, math.isfinite(report.grad_norm_mean)) == (0, True)

    before = contents(tmp_path)
    status, out, _ = prepare(*arguments)
    assert (status, "data/mine: prepared before" in out) == (0, True)
    assert contents(tmp_path) == before
    status, _, err = prepare(*arguments, "--crop", "center")
    assert status == 2
    says(err, "data/mine another set")
    assert contents(tmp_path) == before


def test_folders_are_splits(tmp_path: Path, prepare: Prepare) -> None:
    """train, val and test; gray images among colour ones become colour."""
    parts = {name: random_images(3, 32, seed=i) for i, name in enumerate(("train", "val", "test"))}
    parts["test"][1] = parts["test"][1, :, :, :1]
    for name, images in parts.items():
        write(tmp_path / "in" / name, images)
    iio.imwrite(tmp_path / "in/test/001.png", parts["test"][1, :, :, 0])
    assert prepare("folder", "in", "--name", "mine", "--config", "mine.yaml")[0] == 0
    config, splits = opened(tmp_path)
    assert config.model.enc_blocks == load_config("cifar10", []).model.enc_blocks
    for split, name in ((splits.train, "train"), (splits.valid, "val"), (splits.test, "test")):
        assert np.array_equal(split.read(np.arange(3)), parts[name])


def test_train_and_test_only(tmp_path: Path, prepare: Prepare) -> None:
    """The test images are the validation images too, as in FFHQ; other formats; a size of the paper's presets."""
    write(tmp_path / "in/train", random_images(3, 70), ".bmp")
    write(tmp_path / "in/test", random_images(2, 90), ".jpg")
    assert prepare("folder", "in", "--name", "mine", "--size", 64, "--config", "mine.yaml", "--bits", 5)[0] == 0
    config = load_config(f"imagenet64,{tmp_path / 'mine.yaml'}", [])  # not only after cifar10
    splits = load_splits(config.data, config.model)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (3, 2, 2)
    assert (config.model.enc_blocks, config.model.bits) == (load_config("imagenet64", []).model.enc_blocks, 5)
    assert read_manifest(tmp_path / "data/mine").bits == 5


def odd_one(folder: Path) -> None:
    iio.imwrite(folder / "in/003.png", random_images(1, 30)[0])


def splits_beside_images(folder: Path) -> None:
    for split in ("train", "test"):
        write(folder / "in" / split, random_images(3, 32))


def an_empty_split(folder: Path) -> None:
    write(folder / "in/train", random_images(3, 32))
    (folder / "in/test").mkdir()


def another_set(folder: Path) -> None:
    (folder / "data/mine").mkdir(parents=True)
    (folder / "data/mine/train.npy").write_text("x")


BAD: dict[str, tuple[list[object], Callable[[Path], object], str]] = {
    "no folder": (["nowhere"], lambda folder: None, "nowhere"),
    "too few images": (
        ["in"],
        lambda folder: list(map(Path.unlink, (folder / "in").glob("00[0-4].png"))),
        "in 5",
    ),
    "mixed sizes": (
        ["in"],
        odd_one,
        "in/003.png 30 in/000.png 32 --size",
    ),
    "too small": (["in", "--size", 31], odd_one, "in/003.png 30 31 --size"),
    "not square": (
        ["in", "--size", 20],
        lambda folder: iio.imwrite(folder / "in/004.png", random_images(1, 32)[0, :21]),
        "in/004.png 32 21 --crop center",
    ),
    "damaged": (
        ["in"],
        lambda f: (f / "in/009.png").write_bytes(b"png"),
        "in/009.png no image",
    ),
    "damaged in the middle": (
        ["in"],
        lambda folder: (folder / "in/009.png").write_bytes((folder / "in/009.png").read_bytes()[:900]),
        "in/009.png damaged",
    ),
    "transparent": (
        ["in"],
        lambda folder: iio.imwrite(folder / "in/002.png", random_images(1, 32, 4)[0]),
        "in/002.png transparent --background",
    ),
    "train alone": (["in"], lambda folder: write(folder / "in/train", random_images(3, 32)), "valid test"),
    "images outside of the splits": (
        ["in"],
        splits_beside_images,
        "in 10 test train",
    ),
    "an empty split": (
        ["in"],
        an_empty_split,
        "in/test 0 2",
    ),
    "the name of an official set": (
        ["in", "--name", "cifar10"],
        lambda folder: None,
        "--name 'cifar10'",
    ),
    "a name that is a path": (["in", "--name", "../x"], lambda folder: None, "--name '../x'"),
    "nothing to train on": (
        ["in", "--held_out", 0.99],
        lambda folder: None,
        "--held_out 0.99 0 10",
    ),
    "a share above 1": (["in", "--held_out", 2], lambda folder: None, "--held_out 0 1 2"),
    "no bits": (["in", "--bits", 0], lambda folder: None, "--bits 1 8 0"),
    "a size of 0": (["in", "--size", 0], lambda folder: None, "--size 4 0"),
    "a configuration in the way": (
        ["in", "--config", "mine.yaml"],
        lambda folder: (folder / "mine.yaml").write_text("train: {lr: 1}"),
        "mine.yaml script",
    ),
    "the configuration of a preset": (
        ["in", "--name", "fashion"],
        lambda folder: None,
        "fashion.yaml",
    ),
    "a configuration that --hps would not find": (
        ["in", "--config", "mine"],
        lambda folder: None,
        "--config mine .yaml",
    ),
    "another set": (
        ["in"],
        another_set,
        "data/mine no prepared data set",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_one_line_and_leave_nothing(case: str, tmp_path: Path, prepare: Prepare) -> None:
    arguments, damage, words = BAD[case]
    write(tmp_path / "in", random_images(10, 32))
    damage(tmp_path)
    before = contents(tmp_path)
    defaults = [] if "--name" in arguments else ["--name", "mine"]
    defaults += [] if "--config" in arguments or "fashion" in arguments else ["--config", "new.yaml"]
    status, out, err = prepare("folder", *arguments, *defaults)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    says(err, words)
    assert contents(tmp_path) == before


def test_a_set_of_an_older_version_is_recognised(tmp_path: Path, prepare: Prepare) -> None:
    """Whose `source` holds the options as Python shows them."""
    write(tmp_path / "in", random_images(10, 32))
    arguments = ["folder", "in", "--name", "mine", "--config", "mine.yaml", "--seed", 3]
    assert prepare(*arguments)[0] == 0
    file = tmp_path / "data/mine/dataset.json"
    content = json.loads(file.read_text())
    assert content["source"] == f"10 images of {tmp_path / 'in'}, --seed 3 --held_out 0.1 --bits 8"
    content["source"] = (
        f"10 images of {tmp_path / 'in'}, FolderOptions(name='mine', size=None, crop=False, background=None, seed=3, "
        "held_out=0.1, bits=8)"
    )
    file.write_text(json.dumps(content))
    before = contents(tmp_path)
    assert "prepared before" in prepare(*arguments)[1]
    status, _, err = prepare(*arguments, "--bits", 5)
    assert (status, "data/mine holds another set, which stays as it is" in err) == (2, True)
    assert contents(tmp_path) == before


def test_a_set_that_is_elsewhere_or_behind_another_preset(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "in", random_images(10, 20))
    assert prepare("folder", "in", "--name", "mine", "--config", "mine.yaml", "--to", "there")[0] == 0
    config = load_config(f"cifar10,{tmp_path / 'mine.yaml'}", [])
    assert len(load_splits(config.data, config.model).train) == 6
    with pytest.raises(UserError, match=rf"no data set 'mine' at {tmp_path}/data/mine: set data\.root=DIR"):
        load_splits(DataConfig("mine"), config.model)
    with pytest.raises(UserError, match=r"behind a preset: --hps cifar10,mine"):
        load_splits(config.data, load_config("cifar10", []).model)


def test_a_fragment_leads_to_its_set_from_any_directory(
    tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set goes where the command is given, and the fragment to the checkout, whose data/ is elsewhere."""
    checkout = tmp_path / "checkout"
    (checkout / "configs").mkdir(parents=True)
    for module in (prepare_data, fragment):
        monkeypatch.setattr(module, "PRESETS", checkout / "configs")
    write(tmp_path / "in", random_images(10, 20))
    status, out, err = prepare("folder", "in", "--name", "mine")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == f"checkout/configs/mine.yaml: for python {ROOT}/train.py --hps cifar10,mine"
    config = load_config(f"cifar10,{checkout / 'configs/mine.yaml'}", [])
    monkeypatch.chdir(checkout)
    assert config.data.root == str(tmp_path / "data")
    assert len(load_splits(config.data, config.model).train) == 6
    status, out, _ = prepare("folder", "in", "--name", "other", "--to", checkout / "data")
    assert (status, f"--hps cifar10,other data.root={checkout}/data" in out) == (0, True)  # as seen from here
    assert load_config(f"cifar10,{checkout / 'configs/other.yaml'}", []).data.root == "data"  # for others to share
