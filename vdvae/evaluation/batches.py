"""A measurement of each batch of a split, dealt out among processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vdvae import fast
from vdvae.data.loader import read_ahead
from vdvae.data.prepared import Split
from vdvae.data.storage import Rows
from vdvae.model.arguments import check_count
from vdvae.runtime.noise import Purpose, generator
from vdvae.runtime.processes import World

Result = TypeVar("Result")


def measured(
    split: Split,
    batch_size: int,
    world: World,
    seed: int,
    measure: Callable[[Rows, Tensor, torch.Generator], Result],
    title: str | None = None,
) -> Iterator[tuple[Rows, Result]]:
    """The positions of each of this process's batches in the split, and what `measure` returns for it.

    Args:
        split: the images, each of which is taken once, by one of the processes.
        batch_size: images at once.
        world: the processes.
        seed: seed of the noise, which depends on it and the index of the batch alone.
        measure: takes positions in the split, the images there, uint8 `[B, C, H, W]`, and the source of all noise.
        title: the title of a bar that the main process shows on a terminal; no bar if None.

    Raises:
        ValueError: `batch_size` is no number of images, or there are none.
    """
    batch_size = check_count("batch_size", batch_size)
    if not len(split):
        raise ValueError("there are no images to measure")
    starts = range(0, len(split), batch_size)
    mine = range(world.rank, len(starts), world.size)
    positions = [np.arange(starts[b], min(starts[b] + batch_size, len(split))) for b in mine]
    hidden = None if title and world.is_main else True  # None: hidden unless on a terminal
    bar = tqdm(mine, title, unit="batch", leave=False, disable=hidden)
    threads = fast.Threads(world.device)
    for b, rows, images in zip(bar, positions, read_ahead(split, positions, world.device), strict=True):
        with threads:
            result = measure(rows, images, generator(world.device, seed, Purpose.EVALUATION, b))
        yield rows, result
