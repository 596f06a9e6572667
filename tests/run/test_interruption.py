"""Signals and limits, in one process; tests/test_trouble.py has whole runs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
import torch

from tests.conftest import says
from vdvae.run.interruption import ECHO_SECONDS, TIME_IS_UP, Interruption
from vdvae.runtime.processes import World

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


class EndedError(Exception):
    pass


@pytest.fixture(autouse=True)
def exits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ending the process at once raises `EndedError`; handlers are put back."""

    def end(status: int) -> None:
        raise EndedError(status)

    monkeypatch.setattr(os, "_exit", end)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_ends_at_once(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    with Interruption(ALONE, None) as interruption:
        assert interruption.agreed() == 0
        signal.raise_signal(number)
        assert interruption.agreed() == number
        says(capfd.readouterr().err, f"{signal.Signals(number).name}: once more")
        with pytest.raises(EndedError) as ended:
            signal.raise_signal(number)
        assert ended.value.args == (128 + number,)


def test_torchrun_may_pass_on_the_same_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which Slurm, for one, has sent to every process before."""
    with Interruption(World(1, 2, CPU), None):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        later = time.monotonic() + ECHO_SECONDS + 1
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(EndedError):
            signal.raise_signal(signal.SIGTERM)


def test_where_the_state_is_safe_a_signal_ends_the_process() -> None:
    with Interruption(ALONE, None) as interruption:
        with pytest.raises(SystemExit) as ended, interruption.at_once():
            signal.raise_signal(signal.SIGTERM)
        assert ended.value.code == 143
    with Interruption(ALONE, None) as interruption:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit) as ended, interruption.at_once():
            raise AssertionError
        assert ended.value.code == 130


def test_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    interruption = Interruption(ALONE, max_hours=2)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 7100)
    assert interruption.agreed() == 0
    monkeypatch.setattr(time, "monotonic", lambda: now + 7201)
    assert interruption.agreed() == TIME_IS_UP
