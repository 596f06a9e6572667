"""dataset.json: what a prepared folder holds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vdvae.config import Variant
from vdvae.data.splits import DATASETS, VARIANTS, Rule, Rules
from vdvae.errors import UserError
from vdvae.files import atomic_write

FILE_NAME = "dataset.json"
FORMAT = 1


@dataclass(frozen=True)
class File:
    """One .npy file, or one list of image files (.txt)."""

    count: int
    sha256: str
    names_sha256: str | None = None
    """The checksum of the list of names beside it; None where there is none, and in sets of older versions."""


@dataclass(frozen=True)
class Manifest:
    """Facts of a prepared data set."""

    name: str
    image_size: int
    image_channels: int
    bits: int
    """At which its NLL is measured, and which a model must have; edit it to measure otherwise."""
    variant: Variant | None
    partial: bool
    """Whether images of the official set are missing."""
    source: str
    """What it was made from."""
    files: dict[str, File]
    splits: Rules
    folder: str | None = None
    """Where the image files of a .txt list are."""
    identity: str | None = None
    """What changes when a file that it was made from does; None in sets of older versions."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)"""
        return (self.image_size, self.image_size, self.image_channels)

    def __str__(self) -> str:
        facts = [VARIANTS[self.variant]] if self.variant else []
        facts += ["a part of the set only"] if self.partial else []
        facts += ["validated on the test images"] if self.splits["valid"] == self.splits["test"] else []
        return f"{self.name} ({'; '.join(facts)})" if facts else self.name

    def facts(self) -> dict[str, Any]:
        """What every result on this set must say of it."""
        return {"dataset": self.name, "variant": self.variant, "partial": self.partial, "bits": self.bits}

    def checksums(self) -> dict[str, str]:
        """SHA-256 of each file, by name: what a run was trained on."""
        return {name: file.sha256 for name, file in self.files.items()}

    def write(self, folder: Path) -> None:
        """Writes `folder/dataset.json`."""
        content = {"format": FORMAT, "shape": self.image_shape, **asdict(self)}
        with atomic_write(folder / FILE_NAME) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())


def official_manifest(
    name: str,
    files: dict[str, File],
    source: str,
    variant: Variant | None = None,
    partial: bool = False,
    folder: str | None = None,
) -> Manifest:
    """The manifest of a set of the table."""
    dataset = DATASETS[name]
    splits = dataset.rules({file: about.count for file, about in files.items()})
    size, channels = dataset.image_size, dataset.image_channels
    return Manifest(name, size, channels, dataset.bits, variant, partial, source, files, splits, folder)


def read_manifest(folder: Path) -> Manifest:
    """Reads `folder/dataset.json`.

    Raises:
        UserError: it cannot be read, or was written by another version.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise UserError(f"there is no prepared data set at {folder}: it has no {FILE_NAME}")
    try:
        content = json.loads(path.read_text())
        version = content.pop("format")
        if version != FORMAT:
            raise UserError(f"{path} has format {version}; this version reads format {FORMAT}: prepare the set again")
        del content["shape"]
        content["files"] = {name: File(**file) for name, file in content["files"].items()}
        content["splits"] = {split: Rule(**content["splits"][split]) for split in ("train", "valid", "test")}
        manifest = Manifest(**content)
        _check(manifest)
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); prepare the set again") from error
    return manifest


def _check(manifest: Manifest) -> None:
    """Raises `ValueError` for values that no preparation writes, but a damaged or edited file may have."""
    numbers = [manifest.image_size, manifest.image_channels, manifest.bits]
    numbers += [file.count for file in manifest.files.values()]
    numbers += [n for rule in manifest.splits.values() for n in (rule.first, rule.count, rule.permutation or 0)]
    if not all(isinstance(number, int) and 0 <= number < 2**32 for number in numbers):
        raise ValueError("a size or count is no whole number")
    for split, rule in manifest.splits.items():
        if rule.file not in manifest.files or not 0 < rule.count <= manifest.files[rule.file].count - rule.first:
            raise ValueError(f"the {split} images are not in its files")
    if not (manifest.variant is None or manifest.variant in VARIANTS):
        raise ValueError(f"there is no variant {manifest.variant!r}")
    if any(name.endswith(".txt") for name in manifest.files) and not isinstance(manifest.folder, str):
        raise ValueError("it does not say in which folder its image files are")
