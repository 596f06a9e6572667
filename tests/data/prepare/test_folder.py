"""People's own images: through the script to a prepared set, a configuration, and a training step."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import prepare_data
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT, says
from tests.data.conftest import Prepare, contents, tiny_model
from tests.data.prepare.archives import random_images
from vdvae import VDVAE
from vdvae.config import Config, DataConfig, load_config
from vdvae.data import image_files
from vdvae.data.image_files import Header
from vdvae.data.loader import BatchOrder, training_batches
from vdvae.data.manifest import read_manifest
from vdvae.data.prepare import folder as folder_module
from vdvae.data.prepare import fragment, image_source
from vdvae.data.prepare.fragment import check_fragment, write_fragment
from vdvae.data.prepare.image_source import Decoded, Pictures
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
    update = Update(VDVAE(config.model), config.train.resolved(), ALONE)
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
    """Other formats; a size of the paper's presets."""
    write(tmp_path / "in/train", random_images(6, 70), ".bmp")
    write(tmp_path / "in/test", random_images(2, 90), ".jpg")
    assert prepare("folder", "in", "--name", "mine", "--size", 64, "--config", "mine.yaml", "--bits", 5)[0] == 0
    config = load_config(f"imagenet64,{tmp_path / 'mine.yaml'}", [])  # not only after cifar10
    splits = load_splits(config.data, config.model)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (4, 2, 2)
    assert (config.model.enc_blocks, config.model.bits) == (load_config("imagenet64", []).model.enc_blocks, 5)
    assert read_manifest(tmp_path / "data/mine").bits == 5


@pytest.mark.parametrize(("given", "missing"), [("test", "valid"), ("valid", "test")])
def test_a_split_without_a_folder_is_drawn_from_training(
    given: str, missing: str, tmp_path: Path, prepare: Prepare
) -> None:
    """By --seed and half of --held_out; the three share no image."""
    images, others = random_images(20, 20, 1), random_images(3, 20, 1, seed=9)
    write(tmp_path / "in/Train", images)
    write(tmp_path / f"in/{given}", others)
    arguments = ["folder", "in", "--name", "mine", "--seed", 3, "--held_out", 0.4, "--config", "mine.yaml"]
    for _ in range(2):
        status, out, _ = prepare(*arguments)
        assert status == 0
        says(out, f"16 train 4 {missing} 3 {given} {missing} drawn from training --seed 3")
    _, splits = opened(tmp_path)
    order = np.random.RandomState(3).permutation(20)
    parts = {"train": images[order[4:]], missing: images[order[:4]], given: others}
    for name, expected in parts.items():
        split = getattr(splits, name)
        assert np.array_equal(split.read(np.arange(len(split))), expected)


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Validation", "Test"),
        ("TRAIN", "VAL", "TEST"),
        ("training", "dev", "testing"),
        ("train_set", "valset", "test-set"),
        ("trainset", "validation_images", "TestImages"),
        ("train2017", "val2017", "test2017"),
        ("01_train", "02_valid", "03_test"),
        ("Training Data", "Validation Data", "Test Data"),
        ("dataset.train", "dataset.dev", "dataset.test"),
    ],
)
def test_usual_spellings_of_splits(names: tuple[str, str, str], tmp_path: Path, prepare: Prepare) -> None:
    for i, name in enumerate(names):
        write(tmp_path / "in" / name / "a", random_images(2 + i, 32, seed=i))
    assert prepare("folder", "in", "--name", "mine", "--config", "mine.yaml")[0] == 0
    _, splits = opened(tmp_path)
    for i, split in enumerate((splits.train, splits.valid, splits.test)):
        assert np.array_equal(split.read(np.arange(len(split))), random_images(2 + i, 32, seed=i))


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train", "Training", "test"), "in/Training in/train both train"),
        (("train", "val", "valid"), "in/val in/valid both valid"),
        (("Test", "others"), "Test no folder train"),
        (("val", "others"), "val no folder train"),
        (("train", "eval"), "in/eval valid test"),
        (("trainval", "test"), "trainval"),
        (("holdout", "a"), "in/holdout valid test"),
        (("bottle/train/good", "bottle/test/broken"), "in/bottle/test in/bottle split"),
        (("wrapper/Train", "wrapper/Test"), "in/wrapper/Test give in/wrapper"),
        (("a/train", "b/val_set"), "in/b/val_set"),
        (("trainA", "testA", "trainB", "testB"), "trainA testA train, valid test"),
        (("cats_train", "cats_test"), "cats_test cats_train"),
        (("PublicTest", "PublicTrain"), "PublicTest PublicTrain"),
        (("DIV2K_train_HR", "DIV2K_valid_HR"), "DIV2K_train_HR DIV2K_valid_HR"),
        (("train/a", "train/val", "test"), "in/train/val"),
        (("train", "a"), "train neither valid nor test"),
    ],
)
def test_splits_are_never_pooled(folders: tuple[str, ...], words: str, tmp_path: Path, prepare: Prepare) -> None:
    for i, name in enumerate(folders):
        write(tmp_path / "in" / name, random_images(6, 16, seed=i))
    status, out, err = prepare("folder", "in", "--name", "mine", "--config", "mine.yaml")
    assert (status, out, err.count("\n")) == (2, "", 1)
    says(err, words)
    assert not (tmp_path / "data").exists()


def test_names_of_images_may_say_their_split(tmp_path: Path, prepare: Prepare) -> None:
    images = random_images(8, 16)
    (tmp_path / "in").mkdir()
    for i, image in enumerate(images):
        iio.imwrite(tmp_path / "in" / f"{'train' if i % 2 else 'test'}_{i}.png", image)
    arguments = ["folder", "in", "--name", "mine", "--config", "mine.yaml"]
    status, _, err = prepare(*arguments)
    assert status == 2
    says(err, "test_0 train_1 train, valid test")
    for i, image in enumerate(images):  # most names say nothing: no such layout
        iio.imwrite(tmp_path / "in" / f"harbour_{i}.png", image)
    assert prepare(*arguments)[0] == 0


@pytest.mark.parametrize(
    "folders",
    [
        ("bus", "car"),
        ("trains", "test tubes", "development_tools"),
        ("train_station", "test_tube"),
        ("train", "test/train", "test/bus", "train/train"),
        ("photos/train", "photos/bus"),
    ],
)
def test_classes_are_no_splits(folders: tuple[str, ...], tmp_path: Path, prepare: Prepare) -> None:
    for i, name in enumerate(folders):
        write(tmp_path / "in" / name, random_images(6, 16, seed=i))
    (tmp_path / "in/tests").mkdir() if "train" not in folders else None
    assert prepare("folder", "in", "--name", "mine", "--config", "mine.yaml")[0] == 0
    assert sum(file.count for file in read_manifest(tmp_path / "data/mine").files.values()) == 6 * len(folders)


def test_linked_folders_are_followed(tmp_path: Path, prepare: Prepare) -> None:
    """As splits, as classes, and as files; each image once."""
    for i, name in enumerate(("t", "v", "a")):
        write(tmp_path / "elsewhere" / name, random_images(4, 32, seed=i))
    source = tmp_path / "in"
    (source / "train").mkdir(parents=True)
    (source / "train/x").symlink_to("../../elsewhere/t")
    (source / "train/again").symlink_to("../../elsewhere/t")
    (source / "train/loop").symlink_to("..")
    (source / "valid").symlink_to("../elsewhere/v")
    (source / "test").mkdir()
    for i in range(4):
        (source / f"test/{i}.png").symlink_to(tmp_path / f"elsewhere/a/{i:03}.png")
    status, out, err = prepare("folder", "in", "--name", "mine", "--config", "mine.yaml")
    assert (status, err) == (0, "")
    says(out, "4 train, 4 valid, 4 test")
    _, splits = opened(tmp_path)
    for i, split in enumerate((splits.train, splits.valid, splits.test)):
        assert np.array_equal(split.read(np.arange(4)), random_images(4, 32, seed=i))


@pytest.mark.parametrize("link", ["test/leak.png", "test/more", "valid"])
def test_one_image_in_two_splits_is_refused(link: str, tmp_path: Path, prepare: Prepare) -> None:
    for i, name in enumerate(("train/a", "test")):
        write(tmp_path / "in" / name, random_images(4, 32, seed=i))
    target = tmp_path / "in/train/a"
    (tmp_path / "in" / link).symlink_to(target / "002.png" if link.endswith("png") else target)
    status, _, err = prepare("folder", "in", "--name", "mine", "--config", "mine.yaml")
    assert (status, err.count("\n")) == (2, 1)
    says(err, f"in/train/a/00 in/{link} one file two splits")


def test_links_that_lead_nowhere(tmp_path: Path, prepare: Prepare) -> None:
    """They matter where somebody would read them."""
    write(tmp_path / "in", random_images(10, 32))
    (tmp_path / "in/notes.txt").symlink_to("nowhere")
    (tmp_path / "in/self").symlink_to("self")
    arguments = ["folder", "in", "--name", "mine", "--config", "mine.yaml"]
    assert prepare(*arguments)[0] == 0
    (tmp_path / "in/x.png").symlink_to("nowhere")
    status, _, err = prepare("folder", "in", "--name", "other", "--config", "other.yaml")
    assert status == 2
    says(err, "in/x.png link to nowhere --skip_bad")
    (tmp_path / "in/Train").symlink_to("nowhere")
    status, _, err = prepare(*arguments)
    assert status == 2
    says(err, "in/Train link to nowhere")


ODD_NAMES = ("①.png", "²³.png", "٣.png", "a\nb.png", "tab\t.png", "\udcff.png", "x" * 251 + ".png", "é 'quoted\".png")


def test_any_name_will_do(tmp_path: Path, prepare: Prepare) -> None:
    """And each image's name stands beside the set."""
    folder = tmp_path / "in/\udcfe\n"
    folder.mkdir(parents=True)
    images = random_images(len(ODD_NAMES), 16)
    for name, image in zip(ODD_NAMES, images, strict=True):
        (folder / name).write_bytes(iio.imwrite("<bytes>", image, extension=".png"))
    (folder / "②.png").write_bytes(b"bad")
    (folder / "b\udcff\n.png").write_bytes(b"bad")
    arguments = ["folder", "in", "--name", "mine", "--config", "mine.yaml"]
    status, _, err = prepare(*arguments)
    assert (status, err.count("\n")) == (2, 3)
    assert "\n  in/\\udcfe /b\\udcff .png is no image" in err
    status, out, _ = prepare(*arguments, "--skip_bad")
    assert (status, out.count("left out: ")) == (0, 2)
    names = json.loads((tmp_path / "data/mine/images.names.json").read_text())
    assert names == [f"\udcfe\n/{name}" for name in sorted(ODD_NAMES)]
    order = [ODD_NAMES.index(name.rpartition("/")[2]) for name in names]
    assert np.array_equal(np.load(tmp_path / "data/mine/images.npy"), images[order])


def bad_ones(folder: Path) -> dict[str, str]:
    """Ten good images of 32 x 32 and all kinds of bad ones: the words that tell of each."""
    write(folder, random_images(10, 32))
    good = (folder / "000.png").read_bytes()
    (folder / "c").mkdir()
    (folder / "c/cut.png").write_bytes(good[:900])
    (folder / "c/damaged.png").write_bytes(good[:1000] + b"x" + good[1001:])
    (folder / "c/empty.jpg").write_bytes(b"")
    (folder / "c/gone.png").symlink_to("nowhere")
    (folder / "c/text.png").write_text("hello")
    Image.fromarray(random_images(1, 32)[0]).convert("CMYK").save(folder / "c/cmyk.jpg")
    Image.fromarray(random_images(1, 32)[0]).save(folder / "c/gif.png", "GIF")
    frames = [Image.fromarray(image) for image in random_images(2, 32)]
    frames[0].save(folder / "c/moving.webp", save_all=True, append_images=frames[1:])
    iio.imwrite(folder / "c/small.png", random_images(1, 20)[0])
    iio.imwrite(folder / "c/wide.png", random_images(1, 40)[0, :32])
    iio.imwrite(folder / "c/glass.png", random_images(1, 32, 4)[0])
    return {
        "cut.png": "damaged",
        "damaged.png": "damaged",
        "empty.jpg": "empty",
        "gone.png": "link nowhere",
        "text.png": "no image",
        "cmyk.jpg": "CMYK",
        "gif.png": "GIF",
        "moving.webp": "animated",
        "small.png": "20 x 20",
        "wide.png": "40 x 32 --crop center",
        "glass.png": "transparent --background",
    }


@pytest.mark.parametrize("size", [[], ["--size", 32], ["--size", 24]])
def test_all_bad_images_are_told_at_once(size: list[object], tmp_path: Path, prepare: Prepare) -> None:
    """Or left out and listed, which gives the set that the good ones alone give."""
    bad = bad_ones(tmp_path / "in")
    before = contents(tmp_path)
    arguments = ["folder", "in", "--name", "mine", "--config", "mine.yaml", *size]
    status, out, err = prepare(*arguments)
    assert (status, out) == (2, "")
    first, *lines = err.splitlines()
    says(first, f"error: {len(bad)} of {10 + len(bad)} mend --skip_bad")
    assert len(lines) == len(bad)
    for name, words in bad.items():
        says(next(line for line in lines if line.startswith(f"  in/c/{name} ")), words)
    assert contents(tmp_path) == before

    status, out, err = prepare(*arguments, "--skip_bad")
    assert (status, err) == (0, "")
    assert [line.split()[2] for line in out.splitlines() if line.startswith("left out: ")] == [
        f"in/c/{name}" for name in sorted(bad)
    ]
    assert read_manifest(tmp_path / "data/mine").source.endswith(f"--skip_bad ({len(bad)} left out)")
    assert json.loads((tmp_path / "data/mine/images.names.json").read_text()) == [f"{i:03}.png" for i in range(10)]
    assert "prepared before" in prepare(*arguments, "--skip_bad")[1]
    assert prepare("verify", "data/mine")[0] == 0

    write(tmp_path / "good", random_images(10, 32))
    arguments = ["folder", "good", "--name", "mine", "--config", "other.yaml", "--to", "other", *size]
    assert prepare(*arguments)[0] == 0
    there = tmp_path / "other/mine/images.npy"
    assert there.read_bytes() == (tmp_path / "data/mine/images.npy").read_bytes()


def test_many_bad_images_are_counted(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "in", random_images(10, 16))
    for i in range(70):
        (tmp_path / f"in/bad{i}.png").write_text("hello")
    _, _, err = prepare("folder", "in", "--name", "mine", "--config", "mine.yaml")
    assert (err.count("no image"), err.splitlines()[-1]) == (50, "  and 20 more")


def test_too_few_are_left(tmp_path: Path, prepare: Prepare) -> None:
    for split, count in (("train", 6), ("test", 3)):
        write(tmp_path / "in" / split, random_images(count, 16))
    for i in range(2):
        (tmp_path / f"in/test/{i:03}.png").write_bytes((tmp_path / "in/train/000.png").read_bytes()[:300])
    arguments = ["folder", "in", "--name", "mine", "--config", "mine.yaml"]
    status, _, err = prepare(*arguments, "--skip_bad")
    assert status == 2
    says(err, "1 test 2")
    for path in (tmp_path / "in").rglob("*.png"):
        path.write_text("x")
    status, _, err = prepare(*arguments, "--skip_bad")
    says(err, "9 of 9 mend")
    assert "--skip_bad" not in err


def test_a_killed_preparation_remembers_what_was_bad(
    tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill it goes on behind the last image that is on the disk, and tells of all bad ones, those before it
    included; the set is that of an undisturbed attempt.
    """
    write(tmp_path / "in", random_images(30, 16))
    for i in (3, 11, 25):
        path = tmp_path / f"in/{i:03}.png"
        path.write_bytes(path.read_bytes()[:300])
    monkeypatch.setattr("vdvae.data.storage.CHUNK", 4 * 16 * 16 * 3)
    monkeypatch.setattr("vdvae.data.prepare.write.FLUSH_EVERY", 1)
    decode, decoded = image_source._decode, []

    def until(last: int) -> None:
        def counted(pictures: Pictures, *more: Any) -> Decoded:
            decoded.extend(pictures.names)
            if len(decoded) > last:
                raise KeyboardInterrupt
            return decode(pictures, *more)

        decoded.clear()
        monkeypatch.setattr(image_source, "_decode", counted)

    arguments = ["folder", "in", "--name", "mine", "--config", "mine.yaml"]
    until(17)
    assert prepare(*arguments)[0] == 130
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".mine.preparing"]
    until(999)
    status, out, _ = prepare(*arguments, "--skip_bad")
    assert (status, out.count("left out: ")) == (0, 3)
    assert decoded[0] == "016.png"
    assert prepare(*arguments[:-1], "other.yaml", "--skip_bad", "--to", "undisturbed")[0] == 0
    assert contents(tmp_path / "data") == contents(tmp_path / "undisturbed")
    good = np.delete(random_images(30, 16), (3, 11, 25), 0)
    assert np.array_equal(np.load(tmp_path / "data/mine/images.npy"), good)


@pytest.mark.parametrize("readable", [(False, True), (True, False)])
def test_an_image_that_is_bad_in_one_attempt_only(
    readable: tuple[bool, bool], tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network disk: after a kill, every row still is the image of its name, and each image has one row."""
    images = random_images(30, 16)
    write(tmp_path / "in", images)
    monkeypatch.setattr("vdvae.data.storage.CHUNK", 4 * 16 * 16 * 3)
    monkeypatch.setattr("vdvae.data.prepare.write.FLUSH_EVERY", 1)
    header, decode = image_files.read_header, image_source._decode
    arguments = ["folder", "in", "--name", "mine", "--config", "mine.yaml", "--skip_bad"]

    def attempt(readable: bool, last: str) -> int:
        def read_header(path: Path, name: str) -> Header:
            if path.name == "003.png" and not readable:
                raise UserError(f"{name} cannot be read")
            return header(path, name)

        def until(pictures: Pictures, *more: Any) -> Decoded:
            if last in pictures.names:
                raise KeyboardInterrupt
            return decode(pictures, *more)

        monkeypatch.setattr(folder_module, "read_header", read_header)
        monkeypatch.setattr(image_source, "_decode", until)
        return prepare(*arguments)[0]

    assert attempt(readable[0], "020.png") == 130
    assert json.loads((tmp_path / "data/.mine.preparing/journal.json").read_text())["done"]["images.npy"] > 3
    assert attempt(readable[1], "none") == 0
    names = json.loads((tmp_path / "data/mine/images.names.json").read_text())
    assert names == [f"{i:03}.png" for i in range(30) if readable[1] or i != 3]
    assert np.array_equal(np.load(tmp_path / "data/mine/images.npy"), images[[int(name[:3]) for name in names]])


def overwrite(path: Path) -> None:
    """By an image of the same size, with the same number of bytes."""
    path.write_bytes(path.read_bytes()[::-1])


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: overwrite(folder / "003.png"),
        lambda folder: (folder / "003.png").rename(folder / "003a.png"),
        lambda folder: (folder / "003.png").unlink(),
        lambda folder: write(folder / "more", random_images(1, 16)),
        lambda folder: iio.imwrite(folder / "bad.png", random_images(1, 16)[0]),
    ],
)
@pytest.mark.parametrize("skip_bad", [[], ["--skip_bad"]])
def test_a_folder_that_has_changed_is_not_prepared_before(
    skip_bad: list[str], change: Callable[[Path], None], tmp_path: Path, prepare: Prepare
) -> None:
    """Be it that a bad image was mended."""
    write(tmp_path / "in", random_images(10, 16))
    if skip_bad:
        (tmp_path / "in/bad.png").write_text("hello")
    arguments = ["folder", "in", "--name", "mine", "--config", "mine.yaml", *skip_bad]
    assert prepare(*arguments)[0] == 0
    assert "prepared before" in prepare(*arguments)[1]
    change(tmp_path / "in")
    before = contents(tmp_path)
    status, out, err = prepare(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    says(err, "in has changed since data/mine was prepared another --name move it away")
    assert contents(tmp_path) == before


def test_skip_bad_that_left_out_nothing_makes_no_other_set(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "in", random_images(10, 16))
    for given, later in (([], ["--skip_bad"]), (["--skip_bad"], [])):
        arguments = ["folder", "in", "--name", f"mine{len(given)}", "--config", f"mine{len(given)}.yaml"]
        assert prepare(*arguments, *given)[0] == 0
        assert "prepared before" in prepare(*arguments, *later)[1]
    (tmp_path / "in/bad.png").write_text("hello")
    arguments = ["folder", "in", "--name", "other", "--config", "other.yaml"]
    assert prepare(*arguments, "--skip_bad")[0] == 0
    status, _, err = prepare(*arguments)  # which would refuse the folder
    assert (status, "data/other holds another set" in err) == (2, True)
    iio.imwrite(tmp_path / "in/bad.png", random_images(1, 16)[0])
    status, _, err = prepare(*arguments)
    assert (status, "in has changed since data/other was prepared" in err) == (2, True)


@pytest.mark.parametrize(("other", "expected"), [([], (0, "prepared before")), (["--seed", 3], (2, "another set"))])
def test_another_process_was_faster(
    other: list[object], expected: tuple[int, str], tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finishes while this one looks at the images: that is the set, if it is the same."""
    write(tmp_path / "in", random_images(10, 16))
    arguments = ["folder", "in", "--name", "mine", "--config", "mine.yaml"]
    look, others = folder_module._look, [other]

    def look_while_another_prepares(*given: Any) -> Any:
        looked = look(*given)
        if others:
            prepare(*arguments, *others.pop())
        return looked

    monkeypatch.setattr(folder_module, "_look", look_while_another_prepares)
    status, out, err = prepare(*arguments)
    assert status == expected[0]
    says(out + err, f"data/mine {expected[1]}")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine"]


def test_damaged_images_do_not_make_a_gray_set_colour(tmp_path: Path, prepare: Prepare) -> None:
    """But one that can be decoded does."""
    write(tmp_path / "in/a", random_images(10, 32, 1))
    write(tmp_path / "in/b", random_images(2, 32))
    for path in (tmp_path / "in/b").iterdir():
        path.write_bytes(path.read_bytes()[:900])
    arguments = ["folder", "in", "--config"]
    status, out, _ = prepare(*arguments, "gray.yaml", "--name", "gray", "--skip_bad")
    assert (status, out.count("left out: in/b/00")) == (0, 2)
    assert np.array_equal(np.load(tmp_path / "data/gray/images.npy"), random_images(10, 32, 1))
    status, _, err = prepare(*arguments, "all.yaml", "--name", "all")
    assert (status, err.count("damaged")) == (2, 2)
    write(tmp_path / "in/c", random_images(1, 32))
    assert prepare(*arguments, "colour.yaml", "--name", "colour", "--skip_bad")[0] == 0
    assert np.load(tmp_path / "data/colour/images.npy").shape == (11, 32, 32, 3)


NAMES = [f"{i:03}.png" for i in range(10)]


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    "names",
    [None, "", "[", "null", "7", "{}", json.dumps(NAMES[1:]), json.dumps([*NAMES[1:], 7]), json.dumps(NAMES[::-1])],
)
def test_names_are_verified(names: str | None, older: bool, tmp_path: Path, prepare: Prepare) -> None:
    """By their checksum; a set of an older version has none, but a name for each image."""
    write(tmp_path / "in", random_images(10, 16))
    assert prepare("folder", "in", "--name", "mine", "--config", "mine.yaml")[0] == 0
    file = tmp_path / "data/mine/dataset.json"
    if older:
        content = json.loads(file.read_text())
        del content["files"]["images.npy"]["names_sha256"]
        file.write_text(json.dumps(content))
    assert prepare("verify", "data/mine")[0] == 0
    beside = tmp_path / "data/mine/images.names.json"
    beside.unlink() if names is None else beside.write_text(names)
    status, _, err = prepare("verify", "data/mine")
    if older and names in (None, json.dumps(NAMES[::-1])):  # nothing tells
        assert status == 0
    else:
        assert (status, err.count("\n")) == (2, 1)
        says(err, "data/mine/images.names.json")


MADE = "# Made by scripts/prepare_data.py"


@pytest.mark.parametrize(
    ("edit", "early"),
    [
        (lambda text: text + "train:\n  batch_size: 4\n", True),
        (lambda text: text.replace("dataset: mine", "dataset: other"), True),
        (lambda text: text.replace("/data", "/elsewhere"), True),
        (lambda text: text.replace("variant: null", "variant: null\n  resident: true"), True),
        (lambda text: MADE, True),
        (lambda text: f"{MADE}\nmodel: [", True),
        (lambda text: f"{MADE}\n7", True),
        (lambda text: text.replace("enc_blocks: ", "enc_blocks: 16x9,"), False),
        (lambda text: text.replace("bits: 8", "bits: 5"), False),
        (lambda text: text.replace("input_shift: -", "input_shift: -1"), False),
    ],
)
@pytest.mark.parametrize("prepared", [False, True])
def test_an_edited_fragment_stays(
    prepared: bool, edit: Callable[[str], str], early: bool, tmp_path: Path, prepare: Prepare
) -> None:
    """And so does that of another set; where the set tells before it is prepared, nothing is."""
    write(tmp_path / "in", random_images(10, 16))
    arguments = ["folder", "in", "--name", "mine", "--config", "mine.yaml"]
    assert prepare(*arguments)[0] == 0
    config = tmp_path / "mine.yaml"
    edited = edit(config.read_text())
    assert edited != config.read_text()
    config.write_text(edited)
    if not prepared:
        (tmp_path / "data").rename(tmp_path / "gone")
    before = contents(tmp_path)
    status, out, err = prepare(*arguments)
    assert (status, err.count("\n"), config.read_text()) == (2, 1, edited)
    says(err, "mine.yaml data/mine another --config move it away")
    assert (early, early) == (out == "", contents(tmp_path) == before) or (prepared and not early)


def test_a_fragment_that_says_the_same_stays(tmp_path: Path, prepare: Prepare) -> None:
    """With what a person noted in it, also where the set is prepared anew, as by somebody who got the fragment."""
    write(tmp_path / "in", random_images(10, 16))
    arguments = ["folder", "in", "--name", "mine", "--config", "mine.yaml"]
    assert prepare(*arguments)[0] == 0
    config = tmp_path / "mine.yaml"
    config.write_text(f"{config.read_text()}# harbours\n")
    before = contents(tmp_path)
    (tmp_path / "data").rename(tmp_path / ".gone")
    assert prepare(*arguments)[0] == 0
    assert {**contents(tmp_path / "data"), "mine.yaml": config.read_bytes()}.items() >= {
        name.removeprefix("data/"): content for name, content in before.items() if not name.startswith("in/")
    }.items()


@pytest.mark.parametrize("name", ["\udcff.yaml", "a\nb.yaml", "é 'quoted\".yaml", "there\udcff/mine.yaml"])
def test_any_config_will_do(name: str, tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "in", random_images(10, 16))
    assert prepare("folder", "in", "--name", "mine", "--config", "mine.yaml")[0] == 0
    root = (tmp_path / "data").rename(tmp_path / "da\udcfeta")
    for _ in range(2):
        check_fragment(tmp_path / name, "mine", root)
        write_fragment(read_manifest(root / "mine"), root, tmp_path / name)
    config = load_config(f"cifar10,{tmp_path / name}", [])
    assert (config.data.root, len(load_splits(config.data, config.model).train)) == (f"{tmp_path}/da\udcfeta", 6)


def test_a_disk_that_is_full_at_the_fragment(tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half of it stays, and the same command goes on."""
    write(tmp_path / "in", random_images(10, 16))
    arguments = ["folder", "in", "--name", "mine", "--config", "mine.yaml"]

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(fragment, "pixel_statistics", lambda split: patched.setattr("os.fsync", full) or (1.0, 2.0))
        status, _, err = prepare(*arguments)
    assert (status, err) == (2, "error: [Errno 28] No space left on device: 'mine.yaml'\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "in"]
    assert prepare(*arguments)[0] == 0
    assert (tmp_path / "mine.yaml").is_file()


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
    "a configuration that is no text": (
        ["in", "--config", "mine.yaml"],
        lambda folder: (folder / "mine.yaml").write_bytes(b"\xff\xfe"),
        "mine.yaml script",
    ),
    "a configuration that is a folder": (
        ["in", "--config", "mine.yaml"],
        lambda folder: write(folder / "mine.yaml", random_images(1, 8)),
        "mine.yaml script",
    ),
    "a configuration below a file": (
        ["in", "--config", "in/000.png/mine.yaml"],
        lambda folder: None,
        "in/000.png no folder another --config",
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
    "--to that is a file": (
        ["in", "--to", "in/000.png"],
        lambda folder: None,
        "in/000.png no folder another --to",
    ),
    "--to below a file": (
        ["in", "--to", "in/000.png/data"],
        lambda folder: None,
        "in/000.png no folder another --to",
    ),
    "--to that leads nowhere": (
        ["in", "--to", "there"],
        lambda folder: (folder / "there").symlink_to("nowhere"),
        "there no folder another --to",
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
    del content["identity"]
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


def test_what_a_folder_has_instead_of_images_is_told(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "phone").mkdir()
    for name in ("1.heic", "2.HEIC", "notes.txt"):
        (tmp_path / "phone" / name).write_bytes(b"x")
    status, _, err = prepare("folder", "phone", "--name", "mine", "--config", "mine.yaml")
    assert status == 2
    says(err, "phone 0 2 .heic 1 .txt")
