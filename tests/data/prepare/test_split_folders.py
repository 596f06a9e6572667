"""Images of different splits are never mixed, whatever their folders and files are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import refuses
from vdvae.data.image_files import SUFFIXES
from vdvae.data.prepare.split_folders import find_split_folders, refuse_pooled_splits, refuse_shared
from vdvae.data.prepare.walk import files_below
from vdvae.errors import UserError


def made(source: Path, *names: str) -> Path:
    """Empty files, which their names alone tell apart."""
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    return source


def look(source: Path) -> dict[str, Path]:
    """What a preparation asks of a folder."""
    folders = find_split_folders(source)
    if not folders:
        refuse_pooled_splits(source, files_below(source, SUFFIXES)[0])
    for split, folder in folders.items():
        refuse_pooled_splits(folder, files_below(folder, SUFFIXES)[0], split)
    return folders


@pytest.mark.parametrize(
    "folders",
    [
        ("imagesTr", "imagesTs"),
        ("tr", "te"),
        ("tr", "va", "te"),
        ("train_labeled", "test_unlabeled"),
        ("trainA", "testB"),
        ("Set_TrainHR", "Set_TestLR"),
        ("trainhr", "testlr"),
        ("Trainingsdaten", "Testdaten"),
        ("my_trainset_lr", "my_testset_hr"),
        ("photos_train", "holiday_test"),
        ("train", "val_seen", "val_unseen"),
        ("Train (1)", "Test (copy)"),
        ("Training", "PublicTest", "PrivateTest"),
        ("market_train", "market_query_test", "a", "b", "c", "d"),
        ("a/b/imagesTr", "a/b/imagesTs"),
    ],
)
def test_folders_of_different_splits(folders: tuple[str, ...], tmp_path: Path) -> None:
    with refuses(f"{tmp_path} different splits mixed train, valid test", UserError):
        look(made(tmp_path, *(f"{folder}/0.png" for folder in folders)))


@pytest.mark.parametrize(
    "folders",
    [
        ("train_station", "test_tube"),
        ("TrainTracks", "test patterns", "dev kits"),
        ("trains", "testaments", "trainers"),
        ("en", "de", "fr", "tr", "te"),
        ("tr", "a"),
        ("contest", "latest", "strain"),
        ("train_a", "train_b", "training_c"),
        ("trainA", "annotations"),
    ],
)
def test_folders_that_are_no_splits(folders: tuple[str, ...], tmp_path: Path) -> None:
    assert look(made(tmp_path, *(f"{folder}/0.png" for folder in folders))) == {}


def test_a_class_called_train(tmp_path: Path) -> None:
    with refuses("train neither valid nor test class rename trains split give", UserError):
        look(made(tmp_path, "car/0.png", "bus/0.png", "train/0.png"))
    assert look(made(tmp_path, "test/0.png", "valid_labels/0.txt")).keys() == {"train", "test"}


@pytest.mark.parametrize(
    "names",
    [
        ("train_0.png", "train_1.png", "test_0.png", "logo.png"),
        ("cat_train.png", "dog_test.png"),
        ("case1_tr.png", "case2_tr.png", "case3_te.png"),
        ("x/train_0.png", "x/test_0.png"),
        ("train/train_0.png", "train/test_0.png", "test/0.png"),
    ],
)
def test_files_of_different_splits(names: tuple[str, ...], tmp_path: Path) -> None:
    with refuses("different splits mixed", UserError):
        look(made(tmp_path, *names))


def test_a_few_names_of_files_say_nothing(tmp_path: Path) -> None:
    assert look(made(tmp_path, "train_0.png", "test_0.png", "a.png", "b.png")) == {}


@pytest.mark.parametrize("name", ["train.txt", "test.txt", "val.csv", "lists/Train_list.txt", "test_images.json"])
def test_lists_of_splits(name: str, tmp_path: Path) -> None:
    with refuses(f"{tmp_path / name} list folders train, valid test", UserError):
        look(made(tmp_path, "0.png", name))


def test_what_is_no_list_of_a_split(tmp_path: Path) -> None:
    look(made(tmp_path, "0.png", "test.png", "test.txt", "train_log.txt", "labels.csv", "notes.txt"))
    assert look(made(tmp_path / "sorted", "train/0.png", "test/1.png", "train.txt", "train/train.csv"))


def test_a_hard_link_is_the_same_file(tmp_path: Path) -> None:
    made(tmp_path, "train/0.png", "train/1.png", "test/0.png")
    (tmp_path / "test/gone.png").symlink_to("nowhere")
    parts = [["train/0.png", "train/1.png"], ["test/0.png", "test/gone.png"]]
    assert refuse_shared(tmp_path, parts) == {os.path.realpath(tmp_path / name) for part in parts for name in part}
    os.link(tmp_path / "train/1.png", tmp_path / "test/h.png")
    with refuses("train/1.png test/h.png one file two splits", UserError):
        refuse_shared(tmp_path, [parts[0], ["test/h.png"]])
