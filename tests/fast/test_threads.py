"""The number of threads follows the time that steps take, on a clock made up for the test."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vdvae.fast import threads
from vdvae.fast.threads import SHORTEST_REST, STEPS, Contention, Threads, candidates

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("vdvae.fast.threads.cores_per_process", lambda: 4)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


class Machine:
    """Steps that take so many seconds as a function of the number of threads says."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.seconds = seconds
        self.time = 0.0
        self.is_contended = True
        self.threads = Threads(CPU, lambda: self.time, lambda: self.is_contended)

    def run(self, seconds: float) -> list[int]:
        """The number of threads of each step, for some seconds."""
        used = []
        end = self.time + seconds
        while self.time < end:
            with self.threads:
                used.append(torch.get_num_threads())
                self.time += self.seconds(used[-1])
        return used


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def alone(threads: int) -> float:
    return 0.1 / threads


def beside_another_program(threads: int) -> float:
    """On one core of four."""
    return 0.1 / threads if threads < 4 else 10.0


def beside_three(threads: int) -> float:
    return 0.1 if threads == 1 else 4.0 * threads


def test_candidates() -> None:
    assert candidates(1) == [1]
    assert candidates(2) == [1, 2]
    assert candidates(8) == [1, 2, 4, 7, 8]
    assert candidates(12) == [1, 3, 6, 11, 12]


@pytest.mark.parametrize(("seconds", "best"), [(alone, 4), (beside_another_program, 3), (beside_three, 1)])
def test_the_fastest_number_is_found_and_kept(seconds: Callable[[int], float], best: int) -> None:
    machine = Machine(seconds)
    assert machine.run(0.001) == [4]
    machine.run(100 * seconds(4))
    assert torch.get_num_threads() == best
    used = machine.run(3600)
    assert sum(seconds(count) for count in used if count != best) < 0.06 * 3600


def test_another_program_that_comes_is_noticed_at_once_and_one_that_goes_soon() -> None:
    machine = Machine(alone)
    machine.run(10)
    machine.seconds = beside_another_program
    used = machine.run(5 * STEPS * 10)
    assert used.count(4) <= 3 * STEPS
    assert used[-1] == 3
    machine.seconds = alone
    machine.run(20 * 10 * STEPS + SHORTEST_REST)
    assert torch.get_num_threads() == 4


def test_first_steps_and_single_slow_ones_decide_nothing() -> None:
    """The first ones record, and now and then a checkpoint is copied."""
    machine = Machine(alone)
    steps = itertools.count()
    machine.seconds = lambda threads: alone(threads) * (20 if next(steps) in (0, 1, 5, 6, 60, 61) else 1)
    assert set(machine.run(20)[30:]) == {4}


def test_equal_times_keep_the_number() -> None:
    machine = Machine(lambda threads: 0.1)
    machine.run(1000)
    assert machine.run(SHORTEST_REST / 2).count(4) > 100


def test_nothing_is_tried_while_the_cores_are_its_own() -> None:
    """So that the last bits of a run do not depend on when it was looked; then, the best is found as ever."""
    machine = Machine(beside_three)
    machine.is_contended = False
    assert set(machine.run(1000)) == {4}
    machine.is_contended = True
    machine.run(1000)
    assert torch.get_num_threads() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_other_programs_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of another program counts, and that of this one does not."""
    monkeypatch.setattr(threads, "WINDOW", 0.5)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        contention = Contention(1)
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
            spin(1.0)
            seen = contention()
            other.kill()
        assert seen
    finally:
        os.sched_setaffinity(0, cores)


def test_its_own_work_is_no_other_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the figures of /proc/stat: user, nice, system, idle, waiting, interrupts, steal, in hundredths of seconds."""
    own = [0.0]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "times", lambda: SimpleNamespace(user=own[0], system=0.0))
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    stat = tmp_path / "stat"
    monkeypatch.setattr(threads, "Path", lambda _: stat)

    def others(*cores: str) -> float | None:
        stat.write_text("".join(f"cpu{i} {core}\n" for i, core in enumerate(cores)) + "intr 1 2 3\n")
        return threads._seconds_of_others()

    idle = "0 0 0 500 50 0 0 0 0 0"
    assert others(idle, idle, idle) == 0
    assert others("100 0 50 0 0 0 0 0 0 0", idle, "900 0 0 0 0 0 0 0 0 0") == 1.5  # the third core is not its own
    own[0] = 1.5
    assert others("100 0 50 0 0 0 0 0 0 0", idle, idle) == 0
    assert others("100 0 50 0 0 0 0 30 0 0", "0 20 0 0 0 5 5 0 0 0", idle) == pytest.approx(0.6)


def test_what_the_environment_says_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr("vdvae.fast.threads.cores_per_process", lambda: 2)
    assert set(Machine(beside_three).run(100)) == {4}


@pytest.mark.parametrize("told", ["", "0", "-1", "abc"])
def test_what_openmp_ignores_is_ignored(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert Machine(alone).threads.counts == [1, 2, 3, 4]


@pytest.mark.parametrize("told", ["", "4"])
def test_no_more_threads_than_openmp_gives(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch does not know of this limit, and oneDNN waits for ever for the others."""
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setenv("OMP_THREAD_LIMIT", "2")
    assert max(Machine(alone).run(1)) == 2


def test_on_a_gpu_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdvae.fast.threads.cores_per_process", lambda: 2)
    with Threads(torch.device("cuda")):
        assert torch.get_num_threads() == 4


def test_there_are_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container with a quota of CPU time, PyTorch counts those of the machine."""
    monkeypatch.setattr("vdvae.fast.threads.cores_per_process", lambda: 1)
    assert set(Machine(alone).run(1)) == {1}
