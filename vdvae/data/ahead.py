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

Item = TypeVar("Item")
Result = TypeVar("Result")


def threads(count: int) -> ThreadPoolExecutor:
    """So many threads, in each of which PyTorch uses no further ones."""
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


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
