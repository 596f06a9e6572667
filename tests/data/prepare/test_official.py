"""Every official layout, offline, and one training step on each; and what is refused."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import refuses, says
from tests.data.conftest import Prepare, contents, set_up, tiny_model
from tests.data.prepare import archives
from vdvae import VDVAE
from vdvae.config import load_config
from vdvae.data.loader import BatchOrder, training_batches
from vdvae.data.manifest import read_manifest
from vdvae.data.prepare import official
from vdvae.data.prepare.archive import Form, Sources
from vdvae.data.prepare.cifar10 import cifar10_python
from vdvae.data.prepare.official import check_counts
from vdvae.data.prepare.sources import Source
from vdvae.data.prepare.table import FORMS
from vdvae.data.prepare.write import verify
from vdvae.data.prepared import load_splits
from vdvae.data.storage import Images
from vdvae.errors import UserError
from vdvae.runtime.processes import World
from vdvae.training.update import Update

ALONE = World(0, 1, torch.device("cpu"))
Damage = Callable[[Path], object]
Layout = tuple[str, Callable[[Path], dict[str, Images]], str | None]
LAYOUTS: dict[str, Layout] = {
    "CIFAR-10, Python": ("cifar10", archives.cifar10_python, None),
    "CIFAR-10, binary": ("cifar10", archives.cifar10_binary, None),
    "ImageNet-32, PNG tars": ("imagenet32", archives.imagenet_pngs, "original"),
    "ImageNet-32, PNG folders": ("imagenet32", archives.unpacked_imagenet_pngs, "original"),
    "ImageNet-32, npz": ("imagenet32", archives.imagenet_npz, "newer"),
    "ImageNet-64, PNG tars": ("imagenet64", lambda folder: archives.imagenet_pngs(folder, 64), "original"),
    "ImageNet-64, npz": ("imagenet64", lambda folder: archives.imagenet_npz(folder, 64), "newer"),
    "FFHQ-256": ("ffhq256", archives.ffhq256, None),
    "FFHQ-1024": ("ffhq1024", archives.ffhq1024, None),
    "Fashion-MNIST": ("fashion_mnist", archives.fashion_mnist, None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_the_archive_to_a_training_step(layout: str, tmp_path: Path, prepare: Prepare) -> None:
    """The prepared files hold the images, dataset.json says what they are, and an update changes the model."""
    name, build, variant = LAYOUTS[layout]
    images = build(tmp_path)
    status, _, err = prepare(name, "--from", tmp_path, "--partial")
    assert (status, err) == (0, "")
    assert [path.name for path in (tmp_path / "data").iterdir()] == [name]
    manifest = read_manifest(tmp_path / "data" / name)
    assert (manifest.name, manifest.variant, manifest.partial) == (name, variant, True)
    assert {file: about.count for file, about in manifest.files.items()} == {k: len(v) for k, v in images.items()}
    verify(tmp_path / "data" / name)

    settings = [f"data.root={tmp_path / 'data'}", f"data.dataset={name}", f"data.variant={variant or 'none'}"]
    settings += [*tiny_model(manifest.image_size, manifest.image_channels), "train.batch_size=2"]
    config = load_config(name if name != "fashion_mnist" else "fashion", settings)
    splits = load_splits(config.data, config.model)
    for file, split in ((manifest.splits["train"].file, splits.train), (manifest.splits["test"].file, splits.test)):
        assert np.array_equal(split.read(np.arange(len(split))), images[file][split.rows])

    batches = training_batches(splits.train, BatchOrder(len(splits.train), 2, 0), 0, ALONE, config.data)
    model = VDVAE(config.model)
    before = [p.detach().clone() for p in model.parameters()]
    update = Update(model, config.train.resolved(), ALONE)
    update(next(batches), 0)
    assert update.report().skipped == 0
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_as_people_start_it(tmp_path: Path) -> None:
    archives.cifar10_binary(tmp_path)
    result = set_up(tmp_path, "cifar10", "--from", tmp_path, "--partial")
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "data/cifar10/dataset.json").is_file()


def cut(name: str, keep: float) -> Damage:
    """Cuts a file off."""
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * keep))


def replace(name: str, content: bytes) -> Damage:
    """Overwrites a file."""
    return lambda folder: (folder / name).write_bytes(content)


def in_tar(name: str, change: Callable[[dict[str, bytes]], object], mode: str = "w") -> Damage:
    """Changes the members of a tar."""

    def damage(folder: Path) -> None:
        with tarfile.open(folder / name) as archive:
            files = {m.name: file.read() for m in archive if (file := archive.extractfile(m))}
        change(files)
        archives.tar(folder / name, files, mode)

    return damage


def in_zip(name: str, change: Callable[[dict[str, bytes]], object]) -> Damage:
    """Changes the members of a zip archive."""

    def damage(folder: Path) -> None:
        with zipfile.ZipFile(folder / name) as archive:
            files = {member: archive.read(member) for member in archive.namelist()}
        change(files)
        with zipfile.ZipFile(folder / name, "w") as archive:
            for member, content in files.items():
                archive.writestr(member, content)

    return damage


def link_in_a_tar(folder: Path) -> None:
    with tarfile.open(folder / TRAIN, "a") as archive:
        link = tarfile.TarInfo("train_32x32/0000021.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


class RunsCode:
    """What unpickles into a call."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


def npz(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


HTML = b"\n<!DOCTYPE html><html><title>404 Not Found</title></html>" + bytes(2000)
PYTHON, BINARY, TRAIN, VALID = "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz", "train_32x32.tar", "valid_32x32.tar"
PICKLE, PNG = "cifar-10-batches-py/data_batch_3", "train_32x32/0000007.png"
BAD: dict[str, tuple[str, str, Damage, str]] = {
    "a truncated .tar.gz": ("CIFAR-10, Python", "--partial", cut(PYTHON, 0.6), f"{PYTHON} damaged"),
    "another size than published": (
        "CIFAR-10, Python",
        "",
        cut(PYTHON, 1),
        f"{PYTHON} bytes 170,498,071",
    ),
    "another checksum than published": (
        "Fashion-MNIST",
        "",
        cut("t10k-images-idx3-ubyte.gz", 1),
        "train-images-idx3-ubyte.gz checksum sha256 --partial",
    ),
    "a batch missing in the middle": (
        "CIFAR-10, Python",
        "--partial",
        in_tar(PYTHON, lambda files: files.pop(PICKLE), "w:gz"),
        "lacks data_batch_3",
    ),
    "binary batches cut off": (
        "CIFAR-10, binary",
        "--partial",
        in_tar(BINARY, lambda files: files.update({"x/test_batch.bin": bytes(3072)}), "w:gz"),
        "test_batch.bin damaged 3,072 3,073",
    ),
    "a pickle that runs code": (
        "CIFAR-10, Python",
        "--partial",
        in_tar(PYTHON, lambda files: files.update({PICKLE: pickle.dumps({"data": RunsCode()})}), "w:gz"),
        "posix.system executed",
    ),
    "a damaged pickle": (
        "CIFAR-10, Python",
        "--partial",
        in_tar(PYTHON, lambda files: files.update({PICKLE: files[PICKLE][:5000]}), "w:gz"),
        "data_batch_3 damaged unpickling",
    ),
    "a pickle of something else": (
        "CIFAR-10, Python",
        "--partial",
        in_tar(PYTHON, lambda files: files.update({PICKLE: pickle.dumps({"data": np.zeros((2, 3072))})}), "w:gz"),
        "data_batch_3 damaged uint8 [N, 3072]",
    ),
    "an error page for a tar": (
        "ImageNet-32, PNG tars",
        "",
        replace(VALID, HTML),
        f"{VALID} web page",
    ),
    "an error page for a .gz": ("CIFAR-10, Python", "--partial", replace(PYTHON, HTML), f"{PYTHON} web page"),
    "an empty file": ("ImageNet-32, npz", "--partial", replace("Imagenet32_val_npz.zip", b""), "_npz.zip empty"),
    "noise for a tar": ("ImageNet-32, PNG tars", "--partial", replace(TRAIN, b"\xff" * 9000), f"{TRAIN} damaged"),
    "a tar that ends in the middle of an image": (
        "ImageNet-32, PNG tars",
        "--partial",
        cut(TRAIN, 0.55),
        f"{TRAIN} cut off middle train_32x32/",
    ),
    "a tar that ends between two images": (
        "ImageNet-32, PNG tars",
        "--partial",
        lambda folder: os.truncate(folder / VALID, 512 + 2 * (512 + 3584)),
        f"{VALID} cut off 2 files",
    ),
    "an image missing in the middle of a tar": (
        "ImageNet-32, PNG tars",
        "--partial",
        in_tar(TRAIN, lambda files: files.pop(PNG)),
        "train.npy gap 0000006.png 0000008.png",
    ),
    "an image missing in the middle of a folder": (
        "ImageNet-32, PNG folders",
        "--partial",
        lambda folder: (folder / PNG).unlink(),
        "train.npy gap 0000006.png 0000008.png",
    ),
    "a damaged image": (
        "ImageNet-32, PNG tars",
        "--partial",
        in_tar(TRAIN, lambda files: files.update({PNG: archives.flip_a_bit(files[PNG])})),
        f"0000007.png {TRAIN} damaged",
    ),
    "mixed sizes": (
        "ImageNet-32, PNG tars",
        "--partial",
        in_tar(TRAIN, lambda files: files.update({PNG: archives.png(archives.random_images(1, 31)[0])})),
        f"0000007.png {TRAIN} 31 32",
    ),
    "mixed channels": (
        "ImageNet-32, PNG tars",
        "--partial",
        in_tar(TRAIN, lambda files: files.update({PNG: archives.png(archives.random_images(1, 32, 1)[0])})),
        f"0000007.png {TRAIN} 1 3 channels",
    ),
    "a tar that leads out": (
        "ImageNet-32, PNG tars",
        "--partial",
        in_tar(TRAIN, lambda files: files.update({"train_32x32/../../evil.png": files[PNG]})),
        f"{TRAIN} train_32x32/../../evil.png",
    ),
    "a link in a tar": (
        "ImageNet-32, PNG tars",
        "--partial",
        link_in_a_tar,
        f"{TRAIN} train_32x32/0000021.png link",
    ),
    "an absolute path in a tar": (
        "CIFAR-10, Python",
        "--partial",
        in_tar(PYTHON, lambda files: files.update({"/tmp/data_batch_1": b""}), "w:gz"),
        f"{PYTHON} /tmp/data_batch_1",
    ),
    "too few images": (
        "ImageNet-32, PNG folders",
        "",
        lambda folder: None,
        "20 train.npy 1,281,149 --partial",
    ),
    "next to no images": (
        "ImageNet-32, PNG folders",
        "--partial",
        lambda folder: list(map(Path.unlink, (folder / "valid_32x32").glob("*[2-9].png"))),
        "1 test.npy 4",
    ),
    "one of two archives": (
        "ImageNet-32, PNG tars",
        "--partial",
        lambda folder: (folder / VALID).unlink(),
        f"{VALID} missing",
    ),
    "both down-samplings": (
        "ImageNet-32, PNG tars",
        "--partial",
        lambda folder: archives.imagenet_npz(folder),
        "two down-samplings",
    ),
    "a batch missing in a zip": (
        "ImageNet-32, npz",
        "--partial",
        in_zip("Imagenet32_train_npz.zip", lambda files: files.pop("train_data_batch_4.npz")),
        "Imagenet32_train_npz.zip lacks train_data_batch_4.npz",
    ),
    "a truncated zip": (
        "ImageNet-32, npz",
        "--partial",
        cut("Imagenet32_train_npz.zip", 0.9),
        "train_data_batch_1.npz cut off",
    ),
    "the batches of another size": (
        "ImageNet-32, npz",
        "--partial",
        in_zip("Imagenet32_val_npz.zip", lambda f: f.update({"val_data.npz": npz(data=np.zeros((2, 768), np.uint8))})),
        "val_data.npz Imagenet32_val_npz.zip [2, 768] [N, 3072]",
    ),
    "a batch without data": (
        "ImageNet-32, npz",
        "--partial",
        in_zip("Imagenet32_val_npz.zip", lambda f: f.update({"val_data.npz": npz(labels=np.zeros(2))})),
        "'data.npy'",
    ),
    "a truncated .npy": ("FFHQ-256", "--partial", cut("ffhq-256.npy", 0.5), "ffhq-256.npy cut off"),
    "an array of another shape": (
        "FFHQ-256",
        "--partial",
        lambda folder: np.save(folder / "ffhq-256.npy", np.zeros((9, 128, 128, 3), np.uint8)),
        "ffhq-256.npy [128, 128, 3] [256, 256, 3]",
    ),
    "too few images in an .npy": ("FFHQ-256", "", lambda folder: None, "8 images.npy 70,000"),
    "a truncated idx file": (
        "Fashion-MNIST",
        "--partial",
        cut("train-images-idx3-ubyte.gz", 0.5),
        "train-images-idx3-ubyte.gz damaged",
    ),
    "idx labels instead of images": (
        "Fashion-MNIST",
        "--partial",
        replace("t10k-images-idx3-ubyte.gz", gzip.compress(struct.pack(">2i", 0x801, 9) + bytes(9))),
        "t10k-images-idx3-ubyte.gz idx 28",
    ),
    "FFHQ of another size": (
        "FFHQ-1024",
        "--partial",
        replace("images1024x1024/65000/65001.png", archives.png(archives.random_images(1, 128)[0])),
        "65001.png 128 1024",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_archives_are_one_line_and_leave_nothing(case: str, tmp_path: Path, prepare: Prepare) -> None:
    """Exit status 2; neither a half-prepared folder nor a lost archive; nothing from a pickle was executed."""
    layout, partial, damage, words = BAD[case]
    name, build, _ = LAYOUTS[layout]
    (tmp_path / "in").mkdir()
    build(tmp_path / "in")
    damage(tmp_path / "in")
    before = contents(tmp_path)
    status, out, err = prepare(name, "--from", "in", *partial.split())
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    says(err.replace("in/", ""), words)
    assert contents(tmp_path) == before
    assert not (tmp_path / "data" / name).exists()


def test_python_3_pickles_of_every_protocol(tmp_path: Path) -> None:
    """People pack CIFAR-10's batches anew."""
    data = archives.planes(archives.random_images(6, 32))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        for name in names:
            (tmp_path / name).write_bytes(pickle.dumps({b"data": data, b"labels": [0] * 6}, protocol))
        source = cifar10_python(tmp_path)["test.npy"]
        assert np.array_equal(np.concatenate(list(source.chunks(0))), archives.random_images(6, 32))


def test_what_is_prepared_is_never_overwritten(tmp_path: Path, prepare: Prepare) -> None:
    """Neither by the other down-sampling nor by the same command; nor is a folder that something else made."""
    for name, build in (("old", archives.imagenet_pngs), ("new", archives.imagenet_npz)):
        (tmp_path / name).mkdir()
        build(tmp_path / name)
    assert prepare("imagenet32", "--from", "old", "--partial")[0] == 0
    before = contents(tmp_path)
    status, _, err = prepare("imagenet32", "--from", "new", "--partial")
    assert status == 2
    says(err, "imagenet32 original part")
    says(prepare("imagenet32", "--from", "old")[2], "imagenet32 original part")  # not --partial
    for arguments in (["--from", "old", "--partial"], []):
        status, out, _ = prepare("imagenet32", *arguments)
        assert (status, "prepared before" in out) == (0, True)
    assert contents(tmp_path) == before

    (tmp_path / "data/cifar10").mkdir()
    (tmp_path / "data/cifar10/train.npy").write_text("precious")
    archives.cifar10_python(tmp_path)
    status, _, err = prepare("cifar10", "--from", ".", "--partial")
    assert status == 2
    says(err, "data/cifar10 no prepared data set")
    assert (tmp_path / "data/cifar10/train.npy").read_text() == "precious"


def test_counts_tell_the_two_down_samplings_apart(tmp_path: Path) -> None:
    """PNGs with the newer set's 50,000 validation images are refused, with that hint."""
    original, newer = FORMS["imagenet32"]
    assert original.counts == {"train.npy": 1_281_149, "test.npy": 49_999}

    def check(form: Form, test_count: int, gap: str = "") -> None:
        counts = {"train.npy": form.counts["train.npy"], "test.npy": test_count}
        sources = {file: Source(count, lambda start: iter(()), gap) for file, count in counts.items()}
        check_counts(form, [tmp_path], sources, FORMS["imagenet32"])

    check(original, 49_999, gap="none between 7.png and 9.png")  # whatever the numbers are
    check(newer, 50_000)
    with refuses("50,000 49,999 Imagenet32_train_npz", UserError):
        check(original, 50_000)
    with refuses("49,999 50,000 train_32x32.tar", UserError):
        check(newer, 49_999)
    with refuses("49,998 49,999 7.png 9.png", UserError):
        check(original, 49_998, gap="none between 7.png and 9.png")


def test_sets_without_an_address_say_what_to_get(prepare: Prepare) -> None:
    status, _, err = prepare("imagenet64")
    assert status == 2
    says(err, "train_64x64.tar 12,112,588,800 valid_64x64.tar 477,255,680 Imagenet64_train_part1_npz.zip")
    says(err, "https://image-net.org/download-images ./setup_data.sh imagenet64 --from")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "cifar10|imagenet32"),
        (["cifar100"], "'cifar100'"),
        (["cifar10", "--from", "nowhere"], "nowhere"),
        (["cifar10", "--from", "."], "--from cifar10 cifar-10-python.tar.gz 170,498,071"),
        (["cifar10", "--form", "."], "--form"),
        (["verify", "data/cifar10"], "no data/cifar10"),
    ],
)
def test_bad_command_lines(arguments: list[str], words: str, tmp_path: Path, prepare: Prepare) -> None:
    status, out, err = prepare(*arguments)
    assert (status, out, err.count("\n"), list(tmp_path.iterdir())) == (2, "", 1, [])
    says(err, words)


def test_odd_names_beside_the_numbers_of_ffhq(tmp_path: Path, prepare: Prepare) -> None:
    """They are left out, as any other that is no number."""
    images = archives.ffhq1024(tmp_path)
    folder = tmp_path / "images1024x1024"
    for name in ("①.png", "²3.png", "\udcff.png", "a\nb.png"):
        (folder / name).write_bytes(b"")
    assert prepare("ffhq1024", "--from", tmp_path, "--partial")[0] == 0
    files = read_manifest(tmp_path / "data/ffhq1024").files
    assert {file: about.count for file, about in files.items()} == {file: len(rows) for file, rows in images.items()}


def test_a_list_has_a_line_for_each_name(tmp_path: Path, prepare: Prepare) -> None:
    archives.ffhq1024(tmp_path)
    folder = tmp_path / "images1024x1024"
    (folder / "65000").rename(folder / "65\n000")
    status, _, err = prepare("ffhq1024", "--from", tmp_path, "--partial")
    assert status == 2
    says(err, "images1024x1024 65\\n000/ rename")


def test_another_process_was_faster(tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finishes while this one looks at the archives: that is the set."""
    archives.fashion_mnist(tmp_path)
    arguments, check = ["fashion_mnist", "--from", ".", "--partial"], official._check_part

    def check_while_another_prepares(sources: Sources) -> None:
        monkeypatch.setattr(official, "_check_part", check)
        assert prepare(*arguments)[0] == 0
        check(sources)

    monkeypatch.setattr(official, "_check_part", check_while_another_prepares)
    status, out, err = prepare(*arguments)
    assert (status, err) == (0, "")
    says(out, "data/fashion_mnist prepared before")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["fashion_mnist"]
