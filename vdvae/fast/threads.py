"""How many of PyTorch's threads a step on a CPU is worth, found by timing steps while they do their work.

After every operation the threads wait for the last of them. Where another program holds one of the cores, that is the
thread which shares it, and a step of the demo on all cores takes many times as long as on one fewer. What is best
changes as other programs come and go, so it is looked at again and again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Sequence
from statistics import median

import torch

STEPS = 3
"""Steps by which a number of threads is judged."""
BETTER = 0.95
"""The share of a step's time below which another number of threads is taken."""
FAR_WORSE = 1.5
"""A step that takes so many times as long ends a trial, and several in a row a rest."""
SHORTEST_REST = 30.0
"""Seconds between two looks."""
RESTS = 20
"""A rest is at least so many times as long as the steps with other numbers of threads before it."""

Plan = Generator[int, float, None]
"""Yields the number of threads for the next step; takes the seconds that it took."""


class Threads:
    """Chooses the number of threads for steps of one kind, each of which is run in this context.

    The number that PyTorch has at first is the most, and the one to begin with. Nothing else is tried on a GPU, and
    where the environment has OMP_NUM_THREADS. What was chosen last stays PyTorch's number.

    Args:
        device: where the steps run.
        clock: seconds.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        is_fixed = device.type != "cpu" or "OMP_NUM_THREADS" in os.environ
        self.counts = [torch.get_num_threads()] if is_fixed else candidates(torch.get_num_threads())
        self._plan = plan(self.counts)
        self._next = next(self._plan)
        self._began = 0.0

    def __enter__(self) -> None:
        if len(self.counts) > 1:
            torch.set_num_threads(self._next)
            self._began = self.clock()

    def __exit__(self, *_: object) -> None:
        if len(self.counts) > 1:
            self._next = self._plan.send(self.clock() - self._began)


def candidates(most: int) -> list[int]:
    """The numbers of threads that are tried, ascending: all, all but one, and halves down to one."""
    halves = [most >> i for i in range(most.bit_length())]
    return sorted({*halves, max(1, most - 1)})


def plan(counts: Sequence[int]) -> Plan:
    """Looks for the best of some ascending numbers of threads, from the last of them on; then rests with it, for ever
    in turns.
    """
    place = len(counts) - 1
    while True:
        seconds, _ = yield from _trial(counts[place], float("inf"))
        first, wasted = place, 0.0
        for direction in (-1, 1):
            while 0 <= place + direction < len(counts) and (place - first) * direction >= 0:
                other, took = yield from _trial(counts[place + direction], seconds)
                if other > BETTER * seconds:
                    wasted += took
                    break
                place, seconds = place + direction, other
        yield from _rest(counts[place], seconds, max(SHORTEST_REST, RESTS * wasted))


def _trial(count: int, usual: float) -> Generator[int, float, tuple[float, float]]:
    """The seconds of a step with so many threads, and of the whole trial."""
    times: list[float] = []
    while len(times) < STEPS and not (times and times[-1] > FAR_WORSE * usual):
        times.append((yield count))
    return median(times), sum(times)


def _rest(count: int, usual: float, left: float) -> Plan:
    """Steps with so many threads for `left` seconds, or until several in a row take far longer than usual."""
    slow = 0
    while left > 0 and slow < STEPS:
        took = yield count
        left -= took
        slow = slow + 1 if took > FAR_WORSE * usual else 0
