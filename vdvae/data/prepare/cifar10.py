"""CIFAR-10's two archives: Python pickles, of which nothing is executed, and binary records."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vdvae.data.prepare.sources import Source, from_array, reading
from vdvae.data.prepare.tars import check_member
from vdvae.data.storage import Images
from vdvae.errors import UserError


def cifar10_python(path: Path) -> dict[str, Source]:
    """`cifar-10-python.tar.gz`, or the folder it unpacks to."""
    return _sources(path, "", _pickled_batch)


def cifar10_binary(path: Path) -> dict[str, Source]:
    """`cifar-10-binary.tar.gz`, or the folder it unpacks to."""
    return _sources(path, ".bin", _binary_batch)


def _sources(path: Path, suffix: str, batch: Callable[[bytes], Images]) -> dict[str, Source]:
    parts = {"train.npy": [f"data_batch_{i}{suffix}" for i in range(1, 6)], "test.npy": [f"test_batch{suffix}"]}
    names = [name for part in parts.values() for name in part]
    with reading(path):
        files = _files(path, names)
    if missing := [name for name in names if name not in files]:
        raise UserError(f"{path} lacks {', '.join(missing)}; get it again")
    images = {}
    for name in names:
        with reading(path / name):
            planes = batch(files.pop(name))  # [N, 3072]
        images[name] = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # [N, 32, 32, 3]
    return {file: from_array(np.concatenate([images[name] for name in part])) for file, part in parts.items()}


def _files(path: Path, names: list[str]) -> dict[str, bytes]:
    """The contents of some files of a folder or a .tar.gz, by their names without folders."""
    if path.is_dir():
        return {name: (path / name).read_bytes() for name in names if (path / name).is_file()}
    found = {}
    with tarfile.open(path, "r:*") as tar:
        for member in tar:
            check_member(member, path)
            name = Path(member.name).name
            if name in names and (file := tar.extractfile(member)):
                found[name] = file.read()
    return found


def _binary_batch(content: bytes) -> Images:
    """Records of a label and 3,072 bytes."""
    if not content or len(content) % 3073:
        raise ValueError(f"its {len(content):,} bytes are no records of 3,073")
    return np.frombuffer(content, np.uint8).reshape(-1, 3073)[:, 1:]


def _pickled_batch(content: bytes) -> Images:
    """The entry `data` of a pickled dictionary."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        data = batch[b"data"] if b"data" in batch else batch["data"]
    except Exception as error:  # damaged bytes make unpickling fail in any way there is
        raise ValueError(f"unpickling fails: {error}") from error
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3072):
        raise ValueError("its data are not uint8 [N, 3072]")
    return data


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin-1")


_reconstruct = np.empty(0).__reduce__()[0]
_frombuffer = np.empty(1).__reduce_ex__(5)[0]


class _ArrayUnpickler(pickle.Unpickler):
    """Makes NumPy arrays and plain values. Whatever else a pickle names is refused, not called."""

    PARTS_OF_AN_ARRAY = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.numeric", "_frombuffer"): _frombuffer,
        ("numpy._core.numeric", "_frombuffer"): _frombuffer,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,  # how Python 3 writes bytes for Python 2
    }

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for."""
        part = self.PARTS_OF_AN_ARRAY.get((module, name))
        if part is None:
            raise ValueError(f"it names {module}.{name}, as no CIFAR-10 batch does; nothing of it was executed")
        return part
