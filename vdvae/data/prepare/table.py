"""The table of what is officially distributed: archives, addresses, checksums, and how each is read."""

from __future__ import annotations

from pathlib import Path

from vdvae.data.datasets import DATASETS
from vdvae.data.prepare.archive import Archive, Form, Sources
from vdvae.data.prepare.cifar10 import cifar10_binary, cifar10_python
from vdvae.data.prepare.picture_source import Pictures, decoded, find_pictures
from vdvae.data.prepare.sources import Source, idx_images, npy_images, npz_images


def _imagenet_original(size: int, train: Archive, valid: Archive) -> Form:
    def sources(paths: list[Path]) -> Sources:
        return {file: _png_images(path, size) for file, path in zip(("train.npy", "test.npy"), paths, strict=True)}

    return Form(
        (train, valid),
        sources,
        DATASETS[f"imagenet{size}"].counts,
        "original",
        "once at http://image-net.org/small, closed in 2021; people share it on Academic Torrents; the paper's figure "
        "belongs to this one",
    )


def _imagenet_newer(size: int, train: tuple[Archive, ...], valid: Archive) -> Form:
    batches = [f"train_data_batch_{i}.npz" for i in range(1, 11)]
    share = len(batches) // len(train)  # in each training archive

    def sources(paths: list[Path]) -> Sources:
        places = [(paths[i // share], name) for i, name in enumerate(batches)]
        return {"train.npy": npz_images(places, size), "test.npy": npz_images([(paths[-1], "val_data.npz")], size)}

    return Form(
        (*train, valid),
        sources,
        {"train.npy": 1_281_167, "test.npy": 50_000},
        "newer",
        "https://image-net.org/download-images, with a free account; easier images, and figures that don't compare",
    )


def _png_images(path: Path, size: int) -> Source:
    pictures, _ = find_pictures(path, (".png",))
    return decoded(pictures, (size, size, 3))


def _ffhq1024(paths: list[Path]) -> Sources:
    """By number, as the paper splits them, whatever folders they are in."""
    pictures, _ = find_pictures(paths[0], (".png",))
    names = [name for name in pictures.names if Path(name).stem.isdigit()]
    train = [name for name in names if int(Path(name).stem) < DATASETS["ffhq1024"].counts["train.txt"]]
    test = sorted(set(names) - set(train))
    return {"train.txt": Pictures(paths[0], train), "test.txt": Pictures(paths[0], test)}


def _fashion(paths: list[Path]) -> Sources:
    return {file: idx_images(path, 28) for file, path in zip(("train.npy", "test.npy"), paths, strict=True)}


_TORONTO = "https://www.cs.toronto.edu/~kriz"
_ZALANDO = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"

# Sizes and checksums of the ImageNet archives are those that TensorFlow Datasets published while they were online.
FORMS: dict[str, tuple[Form, ...]] = {
    "cifar10": (
        Form(
            (
                Archive(
                    "cifar-10-python.tar.gz",
                    ("6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",),
                    size=170_498_071,
                    url=f"{_TORONTO}/cifar-10-python.tar.gz",
                    folder="cifar-10-batches-py",
                    holds=("data_batch_1",),
                ),
            ),
            lambda paths: cifar10_python(paths[0]),
            DATASETS["cifar10"].counts,
        ),
        Form(
            (
                Archive(
                    "cifar-10-binary.tar.gz",
                    ("c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",),
                    size=170_052_171,
                    url=f"{_TORONTO}/cifar-10-binary.tar.gz",
                    folder="cifar-10-batches-bin",
                    holds=("data_batch_1.bin",),
                ),
            ),
            lambda paths: cifar10_binary(paths[0]),
            DATASETS["cifar10"].counts,
        ),
    ),
    "imagenet32": (
        _imagenet_original(
            32,
            Archive(
                "train_32x32.tar",
                ("244a323d48f8d72f65ad8b54658c01fed68d2d7bdc77ccb43da58c11e94224e5",),
                size=4_113_018_880,
                folder="train_32x32",
            ),
            Archive(
                "valid_32x32.tar",
                ("862e559462b24cf736212a19f6b0d47b55c2dc8ebdaa95ccecfe71260124c8f7",),
                size=161_474_560,
                folder="valid_32x32",
            ),
        ),
        _imagenet_newer(
            32,
            (
                Archive(
                    "Imagenet32_train_npz.zip",
                    ("94226337ecc1b0309d9fcd0167127aaadc931587035fbcb53925235edbaec4fc",),
                    size=3_580_435_279,
                    folder="Imagenet32_train_npz",
                    holds=("train_data_batch_1.npz",),
                ),
            ),
            Archive(
                "Imagenet32_val_npz.zip",
                ("013990e6dec1237dcd1f9beadbab81ead6604cc119af5cacbfb59ae28148377a",),
                size=139_697_668,
                folder="Imagenet32_val_npz",
                holds=("val_data.npz",),
            ),
        ),
    ),
    "imagenet64": (
        _imagenet_original(
            64,
            Archive(
                "train_64x64.tar",
                ("e2a2c1947a748d0d256e98e6d82800d855441dc9e4de2e71a773f1324c4524d7",),
                size=12_112_588_800,
                folder="train_64x64",
            ),
            Archive(
                "valid_64x64.tar",
                ("eeac03ec4f585baf871d2b4cb9c974bfe345e74878a74e5820fe6eb1041629cd",),
                size=477_255_680,
                folder="valid_64x64",
            ),
        ),
        _imagenet_newer(
            64,
            (
                Archive(
                    "Imagenet64_train_part1_npz.zip",
                    ("9422dc1dc5d092e9814a70a1cb7fc74880d2db5d88a0cb8a34ee363b12bde3f1",),
                    size=6_783_426_789,
                    folder="Imagenet64_train_part1_npz",
                    holds=("train_data_batch_1.npz",),
                ),
                Archive(
                    "Imagenet64_train_part2_npz.zip",
                    ("9fafc115afb7e6c301e66dc16b2d737152b427bd5dab26e1293487a6819c7f30",),
                    size=6_780_506_068,
                    folder="Imagenet64_train_part2_npz",
                    holds=("train_data_batch_6.npz",),
                ),
            ),
            Archive(
                "Imagenet64_val_npz.zip",
                ("e1e75133158a1924135a9c6f97a80d2d237b158945e0b34074e58e6c8430eeb8",),
                size=529_522_927,
                folder="Imagenet64_val_npz",
                holds=("val_data.npz",),
            ),
        ),
    ),
    "ffhq256": (
        Form(
            (
                Archive(
                    "ffhq-256.npy",
                    url="https://openaipublic.blob.core.windows.net/very-deep-vaes-assets/vdvae-assets/ffhq-256.npy",
                ),
            ),
            lambda paths: {"images.npy": npy_images(paths[0], 256)},
            DATASETS["ffhq256"].counts,
        ),
    ),
    "ffhq1024": (
        Form(
            (
                Archive(
                    "images1024x1024",
                    folder="images1024x1024",
                    holds=("00000.png", "00000/00000.png", "train/0/00000.png"),
                ),
            ),
            _ffhq1024,
            DATASETS["ffhq1024"].counts,
            where="https://github.com/NVlabs/ffhq-dataset, 89 GB of PNGs 00000 to 69999; they are read where they lie",
        ),
    ),
    "fashion_mnist": (
        Form(
            (
                Archive(
                    "train-images-idx3-ubyte.gz",
                    (
                        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",  # Debian's, packed anew
                    ),
                    26_421_880,
                    f"{_ZALANDO}/train-images-idx3-ubyte.gz",
                ),
                Archive(
                    "t10k-images-idx3-ubyte.gz",
                    (
                        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
                    ),
                    4_422_102,
                    f"{_ZALANDO}/t10k-images-idx3-ubyte.gz",
                ),
            ),
            _fashion,
            DATASETS["fashion_mnist"].counts,
        ),
    ),
}
