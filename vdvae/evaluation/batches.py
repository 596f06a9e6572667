"""A measurement of each batch of a split, dealt out among processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vdvae.data.loader import read_ahead
from vdvae.data.splits import Split
from vdvae.data.storage import Rows
from vdvae.distributed import World
from vdvae.noise import Purpose, generator
from vdvae.replay import Replay


def measured(
    split: Split,
    count: int,
    batch_size: int,
    world: World,
    seed: int,
    measure: Callable[[Tensor, torch.Generator], Tensor],
    title: str | None = None,
) -> Iterator[tuple[Rows, Tensor]]:
    """What `measure` makes of each of this process's batches, and the batch's positions in the split.

    Args:
        split: the images, of which the first `count` are taken, each once by one of the processes.
        count: at most all.
        batch_size: images at once.
        world: the processes.
        seed: of the noise, which depends on it and the index of the batch alone.
        measure: from images, uint8 [B, C, H, W], and noise.
        title: of a bar that the main process shows on a terminal; none without.
    """
    starts = range(0, count, batch_size)
    mine = range(world.rank, len(starts), world.size)
    positions = [np.arange(starts[b], min(starts[b] + batch_size, count)) for b in mine]
    hidden = None if title and world.is_main else True  # None: hidden unless on a terminal
    bar = tqdm(mine, title, unit="batch", leave=False, disable=hidden)
    replay = Replay(measure)
    for b, rows, images in zip(bar, positions, read_ahead(split, positions, world.device), strict=True):
        yield rows, replay(images, generator(world.device, seed, Purpose.EVALUATION, b))
