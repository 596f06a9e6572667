"""Batches are a pure function of (seed, step), whoever asks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from vdvae.data.datasets import Split
from vdvae.data.loader import BatchOrder, batches

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


def test_batches_start_anywhere_and_come_as_channels_last_uint8() -> None:
    array = np.arange(10, dtype=np.uint8).repeat(48).reshape(10, 4, 4, 3)
    split = Split(array, np.arange(10)[::-1].copy())
    device = torch.device("cpu")
    from_0 = list(itertools.islice(batches(split, ORDER, 0, 0, 1, device), 5))
    from_3 = list(itertools.islice(batches(split, ORDER, 3, 0, 1, device), 2))
    assert all(torch.equal(a, b) for a, b in zip(from_0[3:], from_3, strict=True))
    assert from_0[0].shape == (4, 3, 4, 4)
    assert from_0[0].dtype == torch.uint8
    assert from_0[0].is_contiguous(memory_format=torch.channels_last)
    assert from_0[0][:, 0, 0, 0].tolist() == (9 - ORDER.positions(0)).tolist()
