"""The table of what is officially distributed: the forms of each set, and how each is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from vdvae.config import Variant
from vdvae.data.prepare.archive import Archive, Form, Sources
from vdvae.data.prepare.cifar10 import cifar10_binary, cifar10_python
from vdvae.data.prepare.image_source import Pictures, decoded, find_pictures, is_number
from vdvae.data.prepare.sources import Source, idx_images, npy_images, npz_images
from vdvae.data.splits import DATASETS

FACTS: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "archives.yaml").read_bytes())
"""The facts of each archive, by its name."""


def _form(
    name: str,
    archives: str,
    sources: Callable[[list[Path]], Sources],
    variant: Variant | None = None,
    where: str = "",
    counts: dict[str, int] | None = None,
) -> Form:
    """A form of the set `name`, from the names of its archives."""
    made_of = [Archive(archive, **FACTS[archive]) for archive in archives.split()]
    return Form(tuple(made_of), sources, counts or DATASETS[name].counts, variant, where)


def _imagenet(size: int, newer_train: str) -> tuple[Form, Form]:
    """The two down-samplings of ImageNet, which must not be mixed up."""
    newer_batches = [f"train_data_batch_{i}.npz" for i in range(1, 11)]
    batches_per_archive = len(newer_batches) // len(newer_train.split())

    def original(paths: list[Path]) -> Sources:
        return {file: _png_images(path, size) for file, path in zip(("train.npy", "test.npy"), paths, strict=True)}

    def newer(paths: list[Path]) -> Sources:
        places = [(paths[i // batches_per_archive], name) for i, name in enumerate(newer_batches)]
        return {"train.npy": npz_images(places, size), "test.npy": npz_images([(paths[-1], "val_data.npz")], size)}

    return (
        _form(
            f"imagenet{size}",
            f"train_{size}x{size}.tar valid_{size}x{size}.tar",
            original,
            "original",
            "once at http://image-net.org/small, closed in 2021; people share it on Academic Torrents; the paper's "
            "figure belongs to this one",
        ),
        _form(
            f"imagenet{size}",
            f"{newer_train} Imagenet{size}_val_npz.zip",
            newer,
            "newer",
            "https://image-net.org/download-images, with a free account; easier images, and figures that don't compare",
            {"train.npy": 1_281_167, "test.npy": 50_000},
        ),
    )


def _png_images(path: Path, size: int) -> Source:
    pictures, _ = find_pictures(path, (".png",), once=False)
    return decoded(pictures, (size, size, 3))


def _ffhq1024(paths: list[Path]) -> Sources:
    """FFHQ-1024 by number, as the paper splits it, whatever folders the files are in."""
    pictures, _ = find_pictures(paths[0], (".png",), once=False)
    names = [name for name in pictures.names if is_number(name)]
    train = [name for name in names if int(Path(name).stem) < DATASETS["ffhq1024"].counts["train.txt"]]
    test = sorted(set(names) - set(train))
    return {"train.txt": Pictures(paths[0], train), "test.txt": Pictures(paths[0], test)}


def _fashion(paths: list[Path]) -> Sources:
    return {file: idx_images(path, 28) for file, path in zip(("train.npy", "test.npy"), paths, strict=True)}


FORMS: dict[str, tuple[Form, ...]] = {
    "cifar10": (
        _form("cifar10", "cifar-10-python.tar.gz", lambda paths: cifar10_python(paths[0])),
        _form("cifar10", "cifar-10-binary.tar.gz", lambda paths: cifar10_binary(paths[0])),
    ),
    "imagenet32": _imagenet(32, "Imagenet32_train_npz.zip"),
    "imagenet64": _imagenet(64, "Imagenet64_train_part1_npz.zip Imagenet64_train_part2_npz.zip"),
    "ffhq256": (_form("ffhq256", "ffhq-256.npy", lambda paths: {"images.npy": npy_images(paths[0], 256)}),),
    "ffhq1024": (
        _form(
            "ffhq1024",
            "images1024x1024",
            _ffhq1024,
            where="https://github.com/NVlabs/ffhq-dataset, 89 GB of PNGs 00000 to 69999; they are read where they lie",
        ),
    ),
    "fashion_mnist": (_form("fashion_mnist", "train-images-idx3-ubyte.gz t10k-images-idx3-ubyte.gz", _fashion),),
}
