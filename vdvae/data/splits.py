"""The table of data sets: shapes, bits, counts, and the split of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vdvae.config import Variant
from vdvae.data.storage import Rows

VARIANTS: dict[Variant, str] = {
    "original": "the original down-sampling, van den Oord et al. 2016",
    "newer": "the newer down-sampling, Chrabaszcz et al. 2017",
}

FEWEST = 2
"""Images that a split needs for its NLL to have a standard error."""


@dataclass(frozen=True)
class Rule:
    """Which images of a file make up a split: rows `first` to `first + count` of a permutation."""

    file: str
    permutation: int | None
    """Seed of numpy.random.RandomState; None keeps the file's order."""
    first: int
    count: int

    def rows(self, length: int) -> Rows:
        """Row numbers, [count], in a file of `length` images."""
        end = self.first + self.count
        if self.permutation is None:
            return np.arange(self.first, end)
        return np.random.RandomState(self.permutation).permutation(length)[self.first : end]


Rules = dict[str, Rule]
"""One for each of train, valid and test."""


@dataclass(frozen=True)
class HeldOut:
    """Validation images taken from the training file: `count` at one end of a permutation, after `test` test images,
    where these come from it too.
    """

    permutation: int
    count: int
    at_start: bool
    test: int = 0


@dataclass(frozen=True)
class Dataset:
    """A row of the table."""

    image_size: int
    image_channels: int
    bits: int
    """At which its NLL is measured (paper Table 4)."""
    counts: dict[str, int]
    """Images in each file: the training images, then the test images if they are a file of their own."""
    held_out: HeldOut | None
    """None where the validation images are the test images, as they are too where there is no test file and
    `HeldOut.test` is 0."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)"""
        return (self.image_size, self.image_size, self.image_channels)

    def rules(self, counts: dict[str, int]) -> Rules:
        """The splits of files with `counts` images. Of a part of the set, the same share is held out."""
        train_file, *test_file = counts
        length = counts[train_file]
        train = Rule(train_file, None, 0, length)
        test = Rule(test_file[0], None, 0, counts[test_file[0]]) if test_file else None
        if self.held_out is None:
            assert test is not None
            return {"train": train, "valid": test, "test": test}
        seed, count, before = self.held_out.permutation, self._share(self.held_out.count, length), 0
        if self.held_out.test:
            before = self._share(self.held_out.test, length)
            test = Rule(train_file, seed, 0, before)
        left = length - before
        first = Rule(train_file, seed, before, count if self.held_out.at_start else left - count)
        second = Rule(train_file, seed, before + first.count, left - first.count)
        valid, train = (first, second) if self.held_out.at_start else (second, first)
        return {"train": train, "valid": valid, "test": test or valid}

    def _share(self, count: int, length: int) -> int:
        """What `count` images of the whole training file are in one of `length`."""
        return max(FEWEST, round(count * length / next(iter(self.counts.values()))))


# The released ImageNet script reads files in whatever order the file system gives, so its 5,000 validation images are
# not reproducible; here files are in the order of their names. Test images are all of them in either case.
DATASETS = {
    "cifar10": Dataset(32, 3, 8, {"train.npy": 50_000, "test.npy": 10_000}, HeldOut(11172018, 5_000, at_start=True)),
    "imagenet32": Dataset(32, 3, 8, {"train.npy": 1_281_149, "test.npy": 49_999}, HeldOut(42, 5_000, at_start=False)),
    "imagenet64": Dataset(64, 3, 8, {"train.npy": 1_281_149, "test.npy": 49_999}, HeldOut(42, 5_000, at_start=False)),
    "ffhq256": Dataset(256, 3, 5, {"images.npy": 70_000}, HeldOut(5, 7_000, at_start=False)),
    "ffhq1024": Dataset(1024, 3, 8, {"train.txt": 65_000, "test.txt": 5_000}, None),
    "fashion_mnist": Dataset(28, 1, 8, {"train.npy": 60_000, "test.npy": 10_000}, HeldOut(0, 5_000, at_start=True)),
    # The 10,000 test images of Fashion-MNIST, split anew: not the standard 60,000 / 10,000 split. Of the 9,000 that are
    # no test images, 500 are for validation.
    "fashion_mnist_9k_1k": Dataset(
        28, 1, 8, {"t10k-images-idx3-ubyte.gz": 10_000}, HeldOut(0, 500, at_start=True, test=1_000)
    ),
}
