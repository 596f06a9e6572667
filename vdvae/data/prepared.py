"""The three splits of a prepared data set, opened without being read."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vdvae.config import DataConfig
from vdvae.data.manifest import FILE_NAME, File, Manifest, official_manifest, read_manifest
from vdvae.data.splits import DATASETS, VARIANTS
from vdvae.data.storage import Images, NpyFile, PictureFiles, Pixels, Rows, Storage
from vdvae.errors import UserError, did_you_mean, user_path
from vdvae.model.config import ModelConfig

EMBEDDED = "fashion_mnist_9k_1k"
"""The set whose images come with the package."""
EMBEDDED_MANIFEST = official_manifest(
    EMBEDDED,
    {"t10k-images-idx3-ubyte.gz": File(10_000, "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa")},
    "Zalando's Fashion-MNIST",
)


@dataclass(frozen=True)
class Split:
    """One split: some rows of a storage, in an order of its own."""

    storage: Storage
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, positions: Rows) -> Images:
        """The images at `positions` of the split, uint8 [len(positions), H, W, C]."""
        return self.storage.read(self.rows[positions])


class Splits(NamedTuple):
    """The three splits of a data set; `valid` and `test` are the same images where the paper has it so."""

    train: Split
    valid: Split
    test: Split
    manifest: Manifest


def load_splits(data: DataConfig, model: ModelConfig) -> Splits:
    """Opens a data set without reading its images.

    Raises:
        UserError: it is not there, damaged, or not what the model or the configuration expects.
    """
    folder = folder_of(data)
    manifest = EMBEDDED_MANIFEST if data.dataset == EMBEDDED else _prepared_manifest(data, folder)
    _check(manifest, data, model)
    return open_splits(manifest, folder)


def folder_of(data: DataConfig) -> Path:
    """The absolute path of the folder that a prepared set is in, or should be."""
    return (user_path(data.root) / data.dataset).absolute()


def is_there(data: DataConfig) -> bool:
    """Whether a set is embedded, or prepared where the configuration says."""
    return data.dataset == EMBEDDED or (folder_of(data) / FILE_NAME).is_file()


def open_splits(manifest: Manifest, folder: Path) -> Splits:
    """Opens the files of a prepared set.

    Raises:
        UserError: one is missing, cut off, or not what the manifest says.
    """
    storages = {name: _open(folder, name, manifest) for name in manifest.files}
    splits = {
        split: Split(storages[rule.file], rule.rows(manifest.files[rule.file].count))
        for split, rule in manifest.splits.items()
    }
    return Splits(**splits, manifest=manifest)


def _prepared_manifest(data: DataConfig, folder: Path) -> Manifest:
    if (folder / FILE_NAME).is_file():
        return read_manifest(folder)
    where = "set data.root=DIR if it was prepared with --to DIR, or has been moved"
    if data.dataset in DATASETS:
        to = "" if folder.parent == Path(DataConfig.root).absolute() else f" --to {folder.parent}"
        raise UserError(
            f"data set {data.dataset} is not at {folder}: run ./setup_data.sh {data.dataset}{to}, or {where}"
        )
    hint = did_you_mean(data.dataset, list(DATASETS))
    official = f"; official sets are {', '.join(DATASETS)}" if hint else ""
    raise UserError(
        f"there is no data set {data.dataset!r} at {folder}{hint}: {where}; scripts/prepare_data.py folder makes one "
        f"of your own images{official}"
    )


def _check(manifest: Manifest, data: DataConfig, model: ModelConfig) -> None:
    """Refuses what would train on, or measure, something else than is said."""
    size, channels = manifest.image_size, manifest.image_channels
    if (model.image_size, model.image_channels) != (size, channels):
        hint = "" if data.dataset in DATASETS else f"; its fragment goes behind a preset: --hps cifar10,{data.dataset}"
        raise UserError(
            f"data.dataset {data.dataset} has {channels} channels of {size} pixels, but the model has "
            f"model.image_channels {model.image_channels} and model.image_size {model.image_size}{hint}"
        )
    if model.bits != manifest.bits:
        raise UserError(
            f"data.dataset {data.dataset} is measured at {manifest.bits} bits, but the model has model.bits "
            f"{model.bits}: the two NLLs don't compare. Set model.bits={manifest.bits}"
            + ("" if manifest is EMBEDDED_MANIFEST else f", or bits in its {FILE_NAME} to measure it otherwise")
        )
    if manifest.variant != data.variant:
        wanted = f"wants {VARIANTS[data.variant]}" if data.variant else "says nothing of variants"
        held = VARIANTS[manifest.variant] if manifest.variant else "a set without variants"
        raise UserError(
            f"{folder_of(data)} is {held}, but the configuration {wanted}: the two NLLs don't compare. To use "
            f"what is there, set data.variant={manifest.variant or 'none'}"
        )


def _open(folder: Path, name: str, manifest: Manifest) -> Storage:
    if manifest is EMBEDDED_MANIFEST:
        with gzip.open(Path(__file__).parent / EMBEDDED / name) as file:
            pixels = np.frombuffer(file.read(), np.uint8, offset=16)  # after the idx header
        return Pixels(pixels.reshape(-1, *manifest.image_shape))
    path = folder / name
    if not path.is_file():
        raise UserError(f"{path} is missing; prepare the set again")
    storage: Storage
    if path.suffix == ".txt":
        assert manifest.folder is not None
        if not Path(manifest.folder).is_dir():
            raise UserError(
                f"the folder {manifest.folder} of the images is gone; put it back, or prepare the set again from where "
                "it is now"
            )
        try:
            names = path.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8; prepare the set again") from error
        storage = PictureFiles(Path(manifest.folder), names, manifest.image_shape)
    else:
        storage = NpyFile(path)
    expected = (manifest.files[name].count, *manifest.image_shape)
    if storage.shape != expected:
        raise UserError(f"{path} holds {list(storage.shape)}, but {FILE_NAME} says {list(expected)}; prepare it again")
    return storage
