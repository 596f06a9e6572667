"""Work that threads do ahead of whoever needs it, in the same order.

Decoders of images let go of Python's lock. So threads decode side by side as processes would, and there is no shared
memory to run out of, no socket, and no process that the system could kill.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from vdvae.runtime import processes

Item = TypeVar("Item")
Result = TypeVar("Result")


def threads(count: int) -> ThreadPoolExecutor:
    """So many threads, in each of which PyTorch uses no further ones."""
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


def on_all_cores(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What `work` makes of each item, in order, by a thread for each core that this process has to itself."""
    workers = processes.cores_per_process()
    with threads(workers) as pool:
        yield from in_order(pool, work, items, ahead=2 * workers)


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """What `work` makes of each item. When one is asked for, `ahead` more are being worked on, or done."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
