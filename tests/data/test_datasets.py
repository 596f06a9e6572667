"""The table of data sets: splits as the released code makes them, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vdvae.config import Config, load_config
from vdvae.data.datasets import DATASETS, DataConfig, load_splits


def indices(dataset: str, counts: list[int]) -> dict[str, list[int]]:
    """The first and last index of each split, for files of `counts` images that hold no pixels."""
    arrays = [np.broadcast_to(np.uint8(0), (count, 1, 1, 1)) for count in counts]
    splits = DATASETS[dataset].split(arrays)
    for split in splits:
        assert len(set(split.indices.tolist())) == len(split)
    return {name: [len(s), s.indices[0], s.indices[-1]] for name, s in splits._asdict().items()}


def test_cifar10_is_split_like_scikit_learns_train_test_split() -> None:
    """Whose permutation's first 5,000 are the held-out ones."""
    order = np.random.RandomState(11172018).permutation(50_000)
    split = indices("cifar10", [50_000, 10_000])
    assert split["train"] == [45_000, order[5000], order[-1]]
    assert split["valid"] == [5_000, order[0], order[4999]]
    assert split["test"] == [10_000, 0, 9_999]


@pytest.mark.parametrize("name", ["imagenet32", "imagenet64"])
def test_imagenet_holds_out_the_last_5000_of_a_permutation(name: str) -> None:
    order = np.random.RandomState(42).permutation(1_281_149)
    split = indices(name, [1_281_149, 49_999])
    assert split["train"] == [1_276_149, order[0], order[-5001]]
    assert split["valid"] == [5_000, order[-5000], order[-1]]
    assert split["test"] == [49_999, 0, 49_998]


def test_ffhq() -> None:
    order = np.random.RandomState(5).permutation(70_000)
    split = indices("ffhq256", [70_000])
    assert split["train"] == [63_000, order[0], order[-7001]]
    assert split["valid"] == split["test"] == [7_000, order[-7000], order[-1]]
    split = indices("ffhq1024", [65_000, 5_000])
    assert split["train"] == [65_000, 0, 64_999]
    assert split["valid"] == split["test"] == [5_000, 0, 4_999]


def test_embedded_images(tiny: Config) -> None:
    """9,000 and 1,000 different images, together the 10,000 of the file."""
    splits = load_splits(tiny.data, tiny.model)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (9_000, 1_000, 1_000)
    assert sorted([*splits.train.indices, *splits.test.indices]) == list(range(10_000))
    first = splits.train.read(np.arange(3))
    assert first.shape == (3, 28, 28, 1)
    assert first.dtype == np.uint8
    assert splits.train.array.mean() == pytest.approx(73.15, abs=0.01)  # of Zalando's test images


def test_prepared_files_are_mapped_and_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for name, count in (("train.npy", 6000), ("test.npy", 10)):
        np.save(folder / name, np.arange(count * 3072, dtype=np.uint64).astype(np.uint8).reshape(count, 32, 32, 3))
    splits = load_splits(DataConfig("cifar10", str(tmp_path)), load_config("cifar10", []).model)
    assert isinstance(splits.train.array, np.memmap)
    assert np.array_equal(splits.test.read(np.array([7])), np.load(folder / "test.npy")[7:8])


def test_missing_files_say_which_and_where_from(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.npy is missing, uint8 \[N, 32, 32, 3\], made from https"):
        load_splits(DataConfig("cifar10", str(tmp_path)), load_config("cifar10", []).model)


def test_wrong_files(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    np.save(tmp_path / "cifar10/train.npy", np.zeros((2, 3, 32, 32), np.uint8))
    with pytest.raises(ValueError, match=r"train.npy holds uint8 \[2, 3, 32, 32\], not uint8 \[N, 32, 32, 3\]"):
        load_splits(DataConfig("cifar10", str(tmp_path)), load_config("cifar10", []).model)


def test_a_preset_pointed_at_the_wrong_set(tiny: Config) -> None:
    model = replace(tiny.model, image_channels=3)
    with pytest.raises(ValueError, match=r"has 1 channels of 28 pixels, but the model has model\.image_channels 3"):
        load_splits(tiny.data, model)
