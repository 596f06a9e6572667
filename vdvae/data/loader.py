"""From a step's number to its batch on the device."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vdvae.config import DataConfig
from vdvae.data.prepared import Split
from vdvae.data.storage import Images, PictureFiles, Rows, pieces
from vdvae.errors import UserError
from vdvae.runtime import processes
from vdvae.runtime.processes import World

MOST_WORKERS = 8
"""Decoding processes, unless told otherwise."""
IMAGES_AHEAD = 8
"""Images that each decoding process works ahead."""


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
    workers = data.workers or min(processes.cores_per_process(), MOST_WORKERS)
    return read_ahead(split, positions, world.device, workers)


def read_ahead(split: Split, positions: Iterable[Rows], device: torch.device, workers: int = 1) -> Iterator[Tensor]:
    """The images of each batch of positions, uint8 [B, C, H, W] on the device; the next is read in the meantime.

    Args:
        split: the images.
        positions: of each batch, in the split.
        device: where they go.
        workers: processes that decode, where the images are kept in files of their own.
    """
    decode_elsewhere = isinstance(split.storage, PictureFiles) and workers > 1
    arrays = _decoded_by_workers(split, positions, workers) if decode_elsewhere else map(split.read, positions)

    def load() -> Tensor | None:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # a new thread's is 0, where pinning memory would open a context
        images = next(arrays, None)
        return None if images is None else to_device(images, device)

    with ThreadPoolExecutor(max_workers=1) as thread:
        upcoming = thread.submit(load)
        while (batch := upcoming.result()) is not None:
            upcoming = thread.submit(load)
            yield batch


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


def _decoded_by_workers(split: Split, positions: Iterable[Rows], workers: int) -> Iterator[Images]:
    """Batches whose images are decoded one by one in other processes, some batches ahead."""
    sizes: deque[int] = deque()

    def one_by_one() -> Iterator[int]:
        for batch in positions:
            sizes.append(len(batch))
            yield from batch.tolist()

    images = iter(
        DataLoader(
            _OneByOne(split),
            batch_size=None,
            sampler=one_by_one(),
            num_workers=workers,
            prefetch_factor=IMAGES_AHEAD,
            generator=torch.Generator(),  # or it would draw a seed from the global one
            multiprocessing_context="forkserver",  # a fork would copy the threads of CUDA and NCCL in any state
        )
    )
    for first in images:
        batch = [first, *itertools.islice(images, sizes.popleft() - 1)]
        for image in batch:
            if isinstance(image, UserError):
                raise image
        yield torch.stack(batch).numpy()


class _OneByOne(Dataset[Tensor | UserError]):
    """What a decoding process is asked for: one image at a time, uint8 [H, W, C], or what is wrong with it."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, position: int) -> Tensor | UserError:
        try:
            return torch.from_numpy(self.split.read(np.array([position]))[0])
        except UserError as error:
            return error  # raised here, it would reach the training process with this one's traceback in it
