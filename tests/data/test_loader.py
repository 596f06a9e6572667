"""Batches are a pure function of (seed, step), whoever asks."""

from __future__ import annotations

import itertools
import os
import sys
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from measuring.memory import memory_mb
from numpy.typing import NDArray

from tests.conftest import refuses
from vdvae.config import DataConfig
from vdvae.data.loader import BatchOrder, read_ahead, training_batches
from vdvae.data.prepared import Split
from vdvae.data.storage import NpyFile, PictureFiles, Pixels
from vdvae.errors import UserError
from vdvae.runtime.processes import World

ALONE = World(0, 1, torch.device("cpu"))
ORDER = BatchOrder(num_images=10, batch_size=4, seed=0)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(processes: int) -> None:
    for step in range(6):
        shares = [ORDER.positions(step, rank, processes) for rank in range(processes)]
        assert np.array_equal(np.concatenate(shares), ORDER.positions(step))


def test_every_epoch_has_every_image_once() -> None:
    stream = np.concatenate([ORDER.positions(step) for step in range(5)])
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert not np.array_equal(stream[:10], stream[10:])


def test_a_batch_may_be_larger_than_the_data() -> None:
    positions = BatchOrder(3, 8, 0).positions(0)
    assert np.bincount(positions).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_seeds_differ() -> None:
    assert not np.array_equal(BatchOrder(100, 50, 0).positions(0), BatchOrder(100, 50, 1).positions(0))


@pytest.fixture
def split() -> Split:
    """Ten images, number i all of value 9 - i."""
    array = np.arange(10, dtype=np.uint8).repeat(48).reshape(10, 4, 4, 3)
    return Split(Pixels(array), np.arange(10)[::-1].copy())


@pytest.mark.parametrize("resident", [False, True])
def test_batches_start_anywhere_and_come_as_channels_last_uint8(resident: bool, split: Split) -> None:
    data = DataConfig("any", resident=resident)
    from_0 = list(itertools.islice(training_batches(split, ORDER, 0, ALONE, data), 5))
    from_3 = list(itertools.islice(training_batches(split, ORDER, 3, ALONE, data), 2))
    assert all(torch.equal(a, b) for a, b in zip(from_0[3:], from_3, strict=True))
    assert from_0[0].shape == (4, 3, 4, 4)
    assert from_0[0].dtype == torch.uint8
    assert from_0[0].is_contiguous(memory_format=torch.channels_last)
    assert from_0[0][:, 0, 0, 0].tolist() == (9 - ORDER.positions(0)).tolist()


@pytest.mark.parametrize("resident", [False, True])
def test_the_processes_of_a_run_share_the_batch(resident: bool, split: Split) -> None:
    data = DataConfig("any", resident=resident)
    whole = next(training_batches(split, ORDER, 2, ALONE, data))
    shares = [next(training_batches(split, ORDER, 2, World(r, 2, torch.device("cpu")), data)) for r in range(2)]
    assert torch.equal(torch.cat(shares), whole)


def test_reading_ahead_ends_with_the_positions(split: Split) -> None:
    positions = [np.array([0, 1]), np.array([2])]
    assert [len(batch) for batch in read_ahead(split, positions, torch.device("cpu"))] == [2, 1]


def test_rows_of_a_file(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 5, 5, 3), np.uint8)
    np.save(tmp_path / "a.npy", images)
    storage = NpyFile(tmp_path / "a.npy")
    rows = np.array([49, 0, 7, 7])
    assert storage.shape == images.shape
    assert np.array_equal(storage.read(rows), images[rows])


def extra_memory_mb(path: Path) -> float:
    """What the process grows by over 200 batches of 256 images in random order, from all over the file."""
    before = memory_mb("VmRSS")
    assert before is not None
    storage = NpyFile(path)
    split = Split(storage, np.arange(storage.shape[0]))
    order = BatchOrder(len(split), 256, 0)
    for batch in itertools.islice(training_batches(split, order, 0, ALONE, DataConfig("any")), 200):
        assert batch.shape == (256, 3, 32, 32)
    peak = memory_mb("VmHWM")
    assert peak is not None
    return peak - before


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory of a process")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """2 GB, made of holes; mapped, every page that was touched would count."""
    path = tmp_path / "big.npy"
    with path.open("wb") as file:
        shape = (700_000, 32, 32, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + 700_000 * 3072)
    with get_context("forkserver").Pool(1) as pool:
        assert pool.apply(extra_memory_mb, (path,)) < 100


def test_a_file_that_shrinks_under_a_run(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((50, 5, 5, 3), np.uint8))
    storage = NpyFile(tmp_path / "a.npy")
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(1000)
    with refuses("a.npy ends", UserError):
        storage.read(np.array([49]))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 3, 3, 3), np.float32), "float32 [2, 3, 3, 3]"),
        (np.zeros((2, 27), np.uint8), "[2, 27]"),
        (np.asfortranarray(np.zeros((2, 3, 3, 3), np.uint8)), ""),
    ],
)
def test_other_arrays_are_refused(array: NDArray[Any], words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with refuses(f"a.npy uint8 [N, H, W, C] {words}", UserError):
        NpyFile(tmp_path / "a.npy")


@pytest.mark.parametrize("length", [0, 5, 100, 1000])
def test_a_file_that_is_cut_off(length: int, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((50, 5, 5, 3), np.uint8))
    os.truncate(tmp_path / "a.npy", length)
    with refuses("a.npy cut off", UserError):
        NpyFile(tmp_path / "a.npy")


def test_files_of_their_own_are_decoded_by_threads_in_the_same_order(tmp_path: Path) -> None:
    """Equal to decoding them here. No process is started, which would need shared memory and sockets; and no number is
    drawn from the global generator.
    """
    images = np.random.default_rng(0).integers(0, 256, (10, 6, 6, 3), np.uint8)
    for i, image in enumerate(images):
        iio.imwrite(tmp_path / f"{i}.png", image)
    split = Split(PictureFiles(tmp_path, [f"{i}.png" for i in range(10)], (6, 6, 3)), np.arange(10))
    state = torch.get_rng_state()
    batches = training_batches(split, ORDER, 0, ALONE, DataConfig("any", workers=2))
    for step, batch in enumerate(itertools.islice(batches, 4)):
        assert np.array_equal(batch.permute(0, 2, 3, 1), images[ORDER.positions(step)])
        assert not active_children()
    batches.close()  # type: ignore[attr-defined]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with refuses("1.png missing", UserError):
        PictureFiles(tmp_path, ["0.png", "1.png"], (6, 6, 3)).read(np.array([1]))
