"""The table of data sets: splits as the released code makes them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import PRESET_NAMES
from vdvae.config import load_config
from vdvae.data.manifest import File, official_manifest
from vdvae.data.prepare.table import FORMS
from vdvae.data.splits import DATASETS


def ends(dataset: str, counts: dict[str, int] | None = None) -> dict[str, list[int]]:
    """The number of images, and the first and last row, of each split of a set."""
    counts = counts or DATASETS[dataset].counts
    rules = DATASETS[dataset].rules(counts)
    rows = {split: rule.rows(counts[rule.file]) for split, rule in rules.items()}
    for r in rows.values():
        assert len(set(r.tolist())) == len(r)
    if rules["train"].file == rules["valid"].file:
        assert not set(rows["train"].tolist()) & set(rows["valid"].tolist())
    return {split: [len(r), r[0], r[-1]] for split, r in rows.items()}


def test_cifar10_is_split_like_scikit_learns_train_test_split() -> None:
    """Whose permutation's first 5,000 are the held-out ones."""
    order = np.random.RandomState(11172018).permutation(50_000)
    assert ends("cifar10") == {
        "train": [45_000, order[5000], order[-1]],
        "valid": [5_000, order[0], order[4999]],
        "test": [10_000, 0, 9_999],
    }


@pytest.mark.parametrize("name", ["imagenet32", "imagenet64"])
def test_imagenet_holds_out_the_last_5000_of_a_permutation(name: str) -> None:
    order = np.random.RandomState(42).permutation(1_281_149)
    assert ends(name) == {
        "train": [1_276_149, order[0], order[-5001]],
        "valid": [5_000, order[-5000], order[-1]],
        "test": [49_999, 0, 49_998],
    }
    newer = ends(name, FORMS[name][1].counts)
    assert [newer[split][0] for split in ("train", "valid", "test")] == [1_276_167, 5_000, 50_000]


def test_ffhq() -> None:
    order = np.random.RandomState(5).permutation(70_000)
    held_out = [7_000, order[-7000], order[-1]]
    assert ends("ffhq256") == {"train": [63_000, order[0], order[-7001]], "valid": held_out, "test": held_out}
    test = [5_000, 0, 4_999]
    assert ends("ffhq1024") == {"train": [65_000, 0, 64_999], "valid": test, "test": test}


def test_fashion_mnist_keeps_its_test_images_for_the_test() -> None:
    order = np.random.RandomState(0).permutation(60_000)
    assert ends("fashion_mnist") == {
        "train": [55_000, order[5000], order[-1]],
        "valid": [5_000, order[0], order[4999]],
        "test": [10_000, 0, 9_999],
    }


def test_a_part_of_a_set_holds_out_the_same_share() -> None:
    assert ends("cifar10", {"train.npy": 500, "test.npy": 7})["valid"][0] == 50


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_every_preset_fits_its_set(name: str) -> None:
    config = load_config(name, [])
    dataset = DATASETS[config.data.dataset]
    model = config.model
    assert (model.image_size, model.image_channels, model.bits) == (
        dataset.image_size,
        dataset.image_channels,
        dataset.bits,
    )
    variants = {form.variant for form in FORMS.get(config.data.dataset, ())} or {None}
    assert config.data.variant == ("original" if "original" in variants else None)


def test_the_demo_is_validated_on_images_that_are_no_test_images() -> None:
    order = np.random.RandomState(0).permutation(10_000)
    assert ends("fashion_mnist_9k_1k") == {
        "train": [8_500, order[1500], order[-1]],
        "valid": [500, order[1000], order[1499]],
        "test": [1_000, order[0], order[999]],
    }


def test_a_set_says_where_it_is_validated_on_its_test_images() -> None:
    """Where the paper has it so; a checkpoint that is kept as the best has then seen them."""
    said = set()
    for name, dataset in DATASETS.items():
        files = {file: File(count, "") for file, count in dataset.counts.items()}
        if "validated on the test images" in str(official_manifest(name, files, "")):
            said.add(name)
    assert said == {"ffhq256", "ffhq1024"}
