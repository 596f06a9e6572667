"""What is checked, in order of value: where time is up, the rest is skipped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from checking.modes import AUTOTUNED, COMPILED_MODES, MODES

COUNTED = 32
"""The micro-batch at which kernels are counted."""


@dataclass(frozen=True)
class Part:
    """One part: a module whose `check(setting, **arguments)` yields figures."""

    name: str
    module: str
    seconds: float
    """Its own time limit."""
    arguments: dict[str, Any] = field(default_factory=dict)
    needs_cuda: bool = False


def name_of_speed(batch: int, mode: str) -> str:
    """The name of the part that `throughput` returns."""
    return f"speed {batch} {mode}"


def throughput(batch: int, mode: str, profiled: bool = False) -> Part:
    """The speed of one kind of step. What must be compiled takes longest. A CPU has the smallest sizes, one of each."""
    seconds = {AUTOTUNED: 300, **dict.fromkeys(COMPILED_MODES, 120)}.get(mode, 60)
    arguments = {"batch": batch, "mode": mode, "profiled": profiled}
    needs_cuda = seconds > 60 or batch != COUNTED
    return Part(name_of_speed(batch, mode), "checking.throughput", seconds, arguments, needs_cuda)


PARTS = [
    Part("facts", "checking.facts", 40),
    Part("losses", "checking.losses", 60),
    Part("recorded step", "checking.steps", 60, {"modes": ["recorded"]}),
    *(throughput(COUNTED, mode, profiled=True) for mode in MODES),
    Part("tests", "checking.suite", 90, needs_cuda=True),
    Part("two processes", "checking.two_processes", 60),
    Part("compiled step", "checking.steps", 120, {"modes": list(COMPILED_MODES)}, needs_cuda=True),
    Part("curves", "checking.curves", 120),
    Part("count", "checking.counted", 240, needs_cuda=True),
    throughput(COUNTED, AUTOTUNED, profiled=True),
    *(throughput(batch, mode) for batch in (64, 8) for mode in ("eager", "recorded")),
    *(throughput(batch, mode) for batch in (64, 8) for mode in COMPILED_MODES),
]
