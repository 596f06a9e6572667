"""From a step's number to its batch on the device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdvae.config import DataConfig
from vdvae.data.ahead import in_order, threads
from vdvae.data.prepared import Split
from vdvae.data.storage import Images, NpyFile, Pixels, Rows, pieces
from vdvae.errors import UserError
from vdvae.runtime import processes
from vdvae.runtime.processes import World

MOST_WORKERS = 8
"""Threads that decode, unless told otherwise."""


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


def first_images(split: Split, most: int, device: torch.device) -> Tensor:
    """The first images of a split, no more than `most`, uint8 [B, C, H, W] on the device."""
    return to_device(split.read(np.arange(min(most, len(split)))), device)


def training_batches(
    split: Split, order: BatchOrder, first_step: int, world: World, data: DataConfig
) -> Iterator[Tensor]:
    """This process's share of the batches from `first_step` on, for ever, uint8 [B, C, H, W] on the device."""
    positions = (order.positions(step, world.rank, world.size) for step in itertools.count(first_step))
    if data.resident:
        return resident_batches(split, positions, world.device)
    return read_ahead(split, positions, world.device, data.workers)


def read_ahead(
    split: Split, positions: Iterable[Rows], device: torch.device, workers: int | None = None
) -> Iterator[Tensor]:
    """The images of each batch of positions, uint8 [B, C, H, W] on the device; the next is read in the meantime.

    Args:
        split: the images.
        positions: of each batch, in the split.
        device: where they go.
        workers: threads that decode, where the images are in files of their own; None: one for each core that this
            process has to itself, but no more than `MOST_WORKERS`.
    """
    with threads(1) as reader, threads(workers or min(processes.cores_per_process(), MOST_WORKERS)) as decoders:

        def load(batch: Rows) -> Tensor:
            if device.type == "cuda":
                torch.cuda.set_device(device)  # a new thread's is 0, where pinning memory would open a context
            if isinstance(split.storage, (NpyFile, Pixels)):
                return to_device(split.read(batch), device)
            return to_device(np.concatenate(list(decoders.map(split.read, np.split(batch, len(batch))))), device)

        yield from in_order(reader, load, positions, ahead=1)


def resident_batches(split: Split, positions: Iterable[Rows], device: torch.device) -> Iterator[Tensor]:
    """Like `read_ahead`, from a copy of the whole split in the device's memory.

    Raises:
        UserError: it does not fit.
    """
    image_bytes = math.prod(split.storage.shape[1:])
    size = len(split) * image_bytes
    if device.type == "cuda" and size > (free := torch.cuda.mem_get_info(device)[0]):
        raise UserError(
            f"data.resident: the training images take {size / 1e9:.1f} GB, and the GPU has {free / 1e9:.1f} GB free; "
            "set data.resident=false"
        )
    images = torch.empty(len(split), *split.storage.shape[1:], dtype=torch.uint8, device=device)
    for first, n in pieces(0, len(split), image_bytes):
        images[first : first + n] = torch.from_numpy(split.read(np.arange(first, first + n)))

    def batches() -> Iterator[Tensor]:
        for batch in positions:
            index = torch.from_numpy(batch)
            if device.type == "cuda":
                index = index.pin_memory()
            yield images[index.to(device, non_blocking=True)].permute(0, 3, 1, 2)

    return batches()
