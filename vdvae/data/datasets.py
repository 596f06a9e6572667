"""The table of data sets: shapes, files, and the split of each."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vdvae.errors import did_you_mean
from vdvae.model.config import ModelConfig

Images = NDArray[np.uint8]
"""uint8 [N, H, W, C]"""

EMBEDDED = Path(__file__).parent / "fashion_mnist_9k_1k"


@dataclass(frozen=True)
class DataConfig:
    """Which images: the `data` section of a configuration."""

    dataset: str
    """A name of `DATASETS`."""
    root: str = "data"
    """Folder with one folder of .npy files per data set."""

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            hint = did_you_mean(self.dataset, list(DATASETS))
            raise ValueError(f"data.dataset: no data set {self.dataset!r}{hint}; there are {', '.join(DATASETS)}")


@dataclass(frozen=True)
class Split:
    """One split: rows of an array, which may be a file that is mapped and never read whole."""

    array: Images
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, positions: NDArray[np.int64]) -> Images:
        """The images at `positions` of the split, uint8 [len(positions), H, W, C]."""
        return np.ascontiguousarray(self.array[self.indices[positions]])


class Splits(NamedTuple):
    """The three splits of a data set; `valid` and `test` are the same images where the paper has it so."""

    train: Split
    valid: Split
    test: Split


@dataclass(frozen=True)
class Dataset:
    """A row of the table."""

    image_size: int
    image_channels: int
    files: tuple[str, ...]
    """The .npy files in `root/NAME`; none where the images come with the package."""
    split: Callable[[list[Images]], Splits]
    source: str
    """Where the files come from, for whoever lacks them."""


def _all(array: Images) -> Split:
    return Split(array, np.arange(len(array)))


def _shuffled(array: Images, seed: int, train_first: bool, held_out: int) -> tuple[Split, Split]:
    """(train, held out) by a permutation, with the held-out images at one end of it."""
    order = np.random.RandomState(seed).permutation(len(array))
    if train_first:
        return Split(array, order[:-held_out]), Split(array, order[-held_out:])
    return Split(array, order[held_out:]), Split(array, order[:held_out])


def _cifar10(arrays: list[Images]) -> Splits:
    train, valid = _shuffled(arrays[0], seed=11172018, train_first=False, held_out=5000)
    return Splits(train, valid, _all(arrays[1]))


def _imagenet(arrays: list[Images]) -> Splits:
    train, valid = _shuffled(arrays[0], seed=42, train_first=True, held_out=5000)
    return Splits(train, valid, _all(arrays[1]))


def _ffhq256(arrays: list[Images]) -> Splits:
    train, test = _shuffled(arrays[0], seed=5, train_first=True, held_out=7000)
    return Splits(train, test, test)


def _ffhq1024(arrays: list[Images]) -> Splits:
    return Splits(_all(arrays[0]), _all(arrays[1]), _all(arrays[1]))


def _fashion(arrays: list[Images]) -> Splits:
    with gzip.open(EMBEDDED / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16)  # after the idx header
    train, test = _shuffled(pixels.reshape(-1, 28, 28, 1), seed=0, train_first=False, held_out=1000)
    return Splits(train, test, test)


_IMAGENET_SOURCE = "the PNG archives of van den Oord et al. (2016), not the newer npz batches"

DATASETS = {
    "cifar10": Dataset(
        32, 3, ("train.npy", "test.npy"), _cifar10, "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    ),
    "imagenet32": Dataset(32, 3, ("train.npy", "test.npy"), _imagenet, _IMAGENET_SOURCE),
    "imagenet64": Dataset(64, 3, ("train.npy", "test.npy"), _imagenet, _IMAGENET_SOURCE),
    "ffhq256": Dataset(
        256,
        3,
        ("images.npy",),
        _ffhq256,
        "https://openaipublic.blob.core.windows.net/very-deep-vaes-assets/vdvae-assets/ffhq-256.npy",
    ),
    "ffhq1024": Dataset(1024, 3, ("train.npy", "test.npy"), _ffhq1024, "PNGs 00000-64999 and 65000-69999 of FFHQ"),
    # The 10,000 test images of Fashion-MNIST, split anew: not the standard 60,000 / 10,000 split.
    "fashion_mnist_9k_1k": Dataset(28, 1, (), _fashion, "the package"),
}


def load_splits(data: DataConfig, model: ModelConfig) -> Splits:
    """Opens a data set without reading it.

    Raises:
        FileNotFoundError: a file is missing; says which, with what in it, and where it comes from.
        ValueError: the files or the model do not have the data set's shape.
    """
    dataset = DATASETS[data.dataset]
    size, channels = dataset.image_size, dataset.image_channels
    if (model.image_size, model.image_channels) != (size, channels):
        raise ValueError(
            f"data.dataset {data.dataset} has {channels} channels of {size} pixels, but the model has "
            f"model.image_channels {model.image_channels} and model.image_size {model.image_size}"
        )
    arrays = []
    for name in dataset.files:
        path = Path(data.root) / data.dataset / name
        if not path.is_file():
            raise FileNotFoundError(
                f"data set {data.dataset} is not at {path.parent}: {path.name} is missing, uint8 [N, {size}, {size}, "
                f"{channels}], made from {dataset.source}; put it there or set data.root"
            )
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype != np.uint8 or array.shape[1:] != (size, size, channels):
            raise ValueError(
                f"{path} holds {array.dtype} {list(array.shape)}, not uint8 [N, {size}, {size}, {channels}]"
            )
        arrays.append(array)
    return dataset.split(arrays)
