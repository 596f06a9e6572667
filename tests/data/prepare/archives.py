"""Small archives in each layout that is officially distributed, and the images they hold."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from vdvae.data.storage import Images


def random_images(count: int, size: int, channels: int = 3, seed: int = 0) -> Images:
    """uint8 [count, size, size, channels]"""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), np.uint8)


def planes(images: Images) -> Images:
    """Channel-major rows, [N, H, W, C] -> [N, C*H*W]."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def python2_pickle(data: Images) -> bytes:
    """{'data': data} as cPickle of Python 2 wrote it, protocol 2: the dialect of CIFAR-10's batches."""
    rows, columns = (struct.pack("<i", n) for n in data.shape)
    raw = data.tobytes()
    return b"".join(
        [
            b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04",
            b"K\x00\x85U\x01b\x87Rq\x05(K\x01J"
            + rows
            + b"J"
            + columns
            + b"\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87R",
            b"q\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(raw)) + raw,
            b"tbU\x06labelsq\x08]q\x09u.",
        ]
    )


def tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    """A tar of files by name, with a folder entry first as the official ones have."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        folder = tarfile.TarInfo(next(iter(files)).split("/")[0])
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def png(image: Images) -> bytes:
    """[H, W, C] as a PNG."""
    return iio.imwrite("<bytes>", image.squeeze(), extension=".png")


def flip_a_bit(content: bytes) -> bytes:
    """In the middle of a file."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


def cifar10_python(folder: Path) -> dict[str, Images]:
    """cifar-10-python.tar.gz with 6 images in each batch."""
    train, test = random_images(30, 32), random_images(6, 32, seed=1)
    files = {
        f"cifar-10-batches-py/data_batch_{i + 1}": python2_pickle(planes(train[6 * i : 6 * i + 6])) for i in range(5)
    }
    files |= {"cifar-10-batches-py/test_batch": python2_pickle(planes(test)), "cifar-10-batches-py/readme.html": b"<>"}
    tar(folder / "cifar-10-python.tar.gz", files, "w:gz")
    return {"train.npy": train, "test.npy": test}


def cifar10_binary(folder: Path) -> dict[str, Images]:
    """cifar-10-binary.tar.gz with 6 images in each batch."""
    train, test = random_images(30, 32), random_images(6, 32, seed=1)

    def records(images: Images) -> bytes:
        return np.concatenate([np.full((len(images), 1), 9, np.uint8), planes(images)], 1).tobytes()

    files = {f"cifar-10-batches-bin/data_batch_{i + 1}.bin": records(train[6 * i : 6 * i + 6]) for i in range(5)}
    tar(folder / "cifar-10-binary.tar.gz", {**files, "cifar-10-batches-bin/test_batch.bin": records(test)}, "w:gz")
    return {"train.npy": train, "test.npy": test}


def imagenet_pngs(folder: Path, size: int = 32, count: int = 20) -> dict[str, Images]:
    """train_SxS.tar and valid_SxS.tar, the files of which are in no order."""
    train, test = random_images(count, size), random_images(5, size, seed=1)
    for part, images, digits in (("train", train, 7), ("valid", test, 5)):
        order = np.random.default_rng(2).permutation(len(images)).tolist()
        files = {f"{part}_{size}x{size}/{i + 1:0{digits}}.png": png(images[i]) for i in order}
        tar(folder / f"{part}_{size}x{size}.tar", files)
    return {"train.npy": train, "test.npy": test}


def unpacked_imagenet_pngs(folder: Path) -> dict[str, Images]:
    """The folders that the tars unpack to."""
    images = imagenet_pngs(folder)
    for path in list(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                if file := archive.extractfile(member):
                    (folder / member.name).parent.mkdir(exist_ok=True)
                    (folder / member.name).write_bytes(file.read())
        path.unlink()
    return images


def imagenet_npz(folder: Path, size: int = 32) -> dict[str, Images]:
    """Imagenet32_train_npz.zip and so on: ten training batches of 2 images, channel-major."""
    train, test = random_images(20, size), random_images(5, size, seed=1)

    def batch(images: Images) -> bytes:
        content = io.BytesIO()
        np.savez(content, data=planes(images), labels=np.arange(len(images)), mean=np.zeros(3 * size * size))
        return content.getvalue()

    batches = {f"train_data_batch_{i + 1}.npz": batch(train[2 * i : 2 * i + 2]) for i in range(10)}
    names = ["train"] if size == 32 else ["train_part1", "train_part2"]
    for part, name in enumerate(names):
        with zipfile.ZipFile(folder / f"Imagenet{size}_{name}_npz.zip", "w") as archive:
            for i, (file, content) in enumerate(batches.items()):
                if i * len(names) // 10 == part:
                    archive.writestr(file, content)
    with zipfile.ZipFile(folder / f"Imagenet{size}_val_npz.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("val_data.npz", batch(test))
    return {"train.npy": train, "test.npy": test}


def ffhq256(folder: Path) -> dict[str, Images]:
    """ffhq-256.npy"""
    images = random_images(8, 256)
    np.save(folder / "ffhq-256.npy", images)
    return {"images.npy": images}


def ffhq1024(folder: Path) -> dict[str, Images]:
    """images1024x1024 with folders of a thousand, around the border between training and test images."""
    images = {}
    for number in range(64_996, 65_004):
        images[number] = np.broadcast_to(np.uint8(number % 256), (1024, 1024, 3)).copy()
        path = folder / f"images1024x1024/{number // 1000 * 1000:05}/{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(images[number]))
    (folder / "images1024x1024/LICENSE.txt").write_text("CC")
    stacked = {
        part: np.stack([images[n] for n in images if (n < 65_000) == (part == "train")]) for part in ("train", "test")
    }
    return {f"{part}.txt": pixels for part, pixels in stacked.items()}


def fashion_mnist(folder: Path) -> dict[str, Images]:
    """train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz"""
    train, test = random_images(12, 28, 1), random_images(4, 28, 1, seed=1)
    for name, images in (("train", train), ("t10k", test)):
        with gzip.open(folder / f"{name}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">4i", 0x803, len(images), 28, 28) + images.tobytes())
    return {"train.npy": train, "test.npy": test}
