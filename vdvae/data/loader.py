"""From a step's number to its batch on the device."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdvae.data.datasets import Images, Split


class BatchOrder(NamedTuple):
    """Which images make up which batch: a pure function of (seed, step), the same for any number of processes.

    The batches walk through one permutation of the images after another, without dropping any: a batch may end one
    epoch and begin the next.
    """

    num_images: int
    batch_size: int
    seed: int

    def positions(self, step: int, rank: int = 0, processes: int = 1) -> NDArray[np.int64]:
        """Positions in the split of one process's share of the batch of a step, [batch_size / processes]."""
        share = self.batch_size // processes
        first = step * self.batch_size + rank * share
        stream = np.arange(first, first + share)
        epochs, offsets = np.divmod(stream, self.num_images)
        return np.concatenate(
            [_permutation(self.num_images, self.seed, int(e))[offsets[epochs == e]] for e in np.unique(epochs)]
        )


@lru_cache(maxsize=2)
def _permutation(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(num_images)


def to_device(images: Images, device: torch.device) -> Tensor:
    """uint8 [B, H, W, C] to uint8 [B, C, H, W] on the device, in channels-last memory; the copy does not block."""
    tensor = torch.from_numpy(images)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True).permute(0, 3, 1, 2)


def batches(
    split: Split, order: BatchOrder, first_step: int, rank: int, processes: int, device: torch.device
) -> Iterator[Tensor]:
    """This process's share of the batches from `first_step` on, for ever; the next one is read ahead in a thread."""

    def load(step: int) -> Tensor:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # a new thread's is 0, where pinning memory would open a context
        return to_device(split.read(order.positions(step, rank, processes)), device)

    with ThreadPoolExecutor(max_workers=1) as thread:
        upcoming = thread.submit(load, first_step)
        step = first_step
        while True:
            batch = upcoming.result()
            step += 1
            upcoming = thread.submit(load, step)
            yield batch
