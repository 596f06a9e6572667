"""How many of PyTorch's threads a step on a CPU is worth, found by timing steps while they do their work.

After every operation the threads wait for the last of them. Where another program holds one of the cores, that is the
thread which shares it, and a step of the demo on all cores takes many times as long as on one fewer. What is best
changes as other programs come and go, so it is looked at again and again. The number of threads shows in the last bits
of a convolution's gradient. So nothing is tried while this process has its cores to itself.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from statistics import median

import torch

from vdvae.runtime.processes import cores_per_process

WARM_UP = 2
"""The first steps, which record what later ones repeat."""
STEPS = 5
"""Steps by which a number of threads is judged, and so many slow ones in a row end a rest."""
FEWEST = 2
"""Steps that may do where one number is far worse."""
BETTER = 0.95
"""The share of a step's time below which another number of threads is taken."""
FAR_WORSE = 2.0
"""So many times as long as others, a step is slow."""
SHORTEST_REST = 30.0
"""Seconds between two looks."""
WINDOW = 2.0
"""Seconds in which others must have taken the cores."""
TOLERATED = 0.25
"""Cores that others may take of those that the threads run on."""
RESTS = 20
"""A rest is at least so many times as long as the steps with other numbers of threads before it."""

Plan = Generator[int, float, None]
"""Yields the number of threads for the next step; takes the seconds that it took."""


class Threads:
    """Chooses the number of threads for steps of one kind, each of which is run in this context.

    The number that PyTorch has at first is the most, and the one to begin with, or that of the cores which this process
    has to itself, if these are fewer. On Linux no other is tried while no other program takes these cores. Nothing is
    changed on a GPU, and where the environment has OMP_NUM_THREADS. What was chosen last stays PyTorch's number.

    Args:
        device: where the steps run.
        clock: seconds.
        contended: whether others take the cores; default: what Linux says.
    """

    def __init__(
        self,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
        contended: Callable[[], bool] | None = None,
    ) -> None:
        self.clock = clock
        limit = _positive("OMP_THREAD_LIMIT")
        if limit and limit < torch.get_num_threads():
            torch.set_num_threads(limit)  # or oneDNN would wait for ever for threads that OpenMP does not give it
        self.is_fixed = device.type != "cpu" or _positive("OMP_NUM_THREADS") is not None
        self.counts = candidates(min(torch.get_num_threads(), cores_per_process()))
        self._plan = plan(self.counts, contended or Contention(self.counts[-1]))
        self._next = next(self._plan)
        self._began = 0.0

    def __enter__(self) -> None:
        if not self.is_fixed:
            torch.set_num_threads(self._next)
            self._began = self.clock()

    def __exit__(self, *_: object) -> None:
        if not self.is_fixed:
            self._next = self._plan.send(self.clock() - self._began)


def _positive(name: str) -> int | None:
    """A variable of OpenMP, which ignores what is no positive number; of a list, the first."""
    found = re.match(r"\s*0*([1-9][0-9]{0,8})\s*(,|$)", os.environ.get(name, ""))
    return int(found[1]) if found else None


def candidates(most: int) -> list[int]:
    """The numbers of threads that are tried, ascending: all, all but one, and halves down to one."""
    halves = [most >> i for i in range(most.bit_length())]
    return sorted({*halves, max(1, most - 1)})


def plan(counts: Sequence[int], contended: Callable[[], bool]) -> Plan:
    """Looks for the best of some ascending numbers of threads, from the last of them on, as soon as others take the
    cores; then rests with it, for ever in turns.
    """
    place = len(counts) - 1
    for _ in range(WARM_UP):
        yield counts[place]
    while True:
        while place == len(counts) - 1 and not contended():
            yield counts[place]
        first, wasted, seconds = place, 0.0, 0.0
        for direction in (-1, 1):
            while 0 <= place + direction < len(counts) and (place - first) * direction >= 0:
                other = counts[place + direction]
                times = yield from _compared(counts[place], other)
                seconds, its = (median(times[count]) for count in (counts[place], other))
                if its > BETTER * seconds:
                    wasted += sum(times[other])
                    break
                place, seconds = place + direction, its
        yield from _rest(counts[place], seconds, max(SHORTEST_REST, RESTS * wasted))


def _compared(one: int, other: int) -> Generator[int, float, dict[int, list[float]]]:
    """The seconds of steps with either number of threads, in turn, so that what else the machine does meets both."""
    times: dict[int, list[float]] = {one: [], other: []}
    for _ in range(STEPS):
        for count in times:
            times[count].append((yield count))
        fast, slow = sorted(times.values(), key=median)
        if len(fast) >= FEWEST and min(slow) > FAR_WORSE * max(fast):
            break
    return times


def _rest(count: int, usual: float, left: float) -> Plan:
    """Steps with so many threads for `left` seconds, or until several in a row take far longer than usual."""
    slow = 0
    while left > 0 and slow < STEPS:
        took = yield count
        left -= took
        slow = slow + 1 if took > FAR_WORSE * usual else 0


class Contention:
    """Whether other programs took so much of the cores that this process may use, in the last seconds, that so many
    threads had to share one. Where the system does not tell, they may have.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._began, self._before = time.monotonic(), _seconds_of_others()
        self._is_contended = self._before is None

    def __call__(self) -> bool:
        """What the last whole `WINDOW` showed."""
        seconds = time.monotonic() - self._began
        if seconds >= WINDOW and self._before is not None and (now := _seconds_of_others()) is not None:
            spare = len(os.sched_getaffinity(0)) - self.threads
            self._is_contended = (now - self._before) / seconds > max(0, spare) + TOLERATED
            self._began, self._before = time.monotonic(), now
        return self._is_contended


def _seconds_of_others() -> float | None:
    """CPU time that others have taken of this process's cores so far, the host of a virtual machine among them, up to a
    constant; None where there is no Linux to ask.
    """
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        ticks = sum(
            sum(map(int, line[1:4] + line[6:9])) for line in lines if line[0] in mine
        )  # all but idle and waiting
        own = os.times()
        return ticks / os.sysconf("SC_CLK_TCK") - own.user - own.system
    except (OSError, ValueError, AttributeError):
        return None
