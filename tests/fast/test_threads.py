"""The number of threads follows the time that steps take, on a clock made up for the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from vdvae.fast.threads import SHORTEST_REST, STEPS, Threads, candidates

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


class Machine:
    """Steps that take so many seconds as a function of the number of threads says."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.seconds = seconds
        self.time = 0.0
        self.threads = Threads(CPU, lambda: self.time)

    def run(self, seconds: float) -> list[int]:
        """The number of threads of each step, for some seconds."""
        used = []
        end = self.time + seconds
        while self.time < end:
            with self.threads:
                used.append(torch.get_num_threads())
                self.time += self.seconds(used[-1])
        return used


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


def test_equal_times_keep_the_number() -> None:
    machine = Machine(lambda threads: 0.1)
    machine.run(1000)
    assert machine.run(SHORTEST_REST / 2).count(4) > 100


def test_what_the_environment_says_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert set(Machine(beside_three).run(100)) == {4}
    assert Threads(torch.device("meta")).counts == [4]
