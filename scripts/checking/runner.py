"""Runs one part in a process of its own, with a time limit: whatever it does, the check goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from checking.child import FAILED
from checking.parts import Part
from checking.setting import Figures, Setting
from vdvae.errors import one_line

SCRIPTS = Path(__file__).resolve().parents[1]
SKIPPED = "skipped"
LAST_LINES = 30
"""Lines of its output that are kept of a part that failed."""


@dataclass
class Outcome:
    """What became of a part."""

    verdict: str
    """ok, FAILED, not measured or skipped."""
    reason: str = ""
    """One line; empty where it is ok."""
    seconds: float = 0.0
    figures: Figures = field(default_factory=dict)
    """What it measured, up to where it came."""
    output: list[str] = field(default_factory=list)
    """Its last lines, where it failed."""

    @property
    def told(self) -> str:
        """One line for the table."""
        return "; ".join(filter(None, (self.reason, self.figures.get("told", ""))))


def run_part(part: Part, setting: Setting, left: float) -> Outcome:
    """Runs a part within its own seconds and those that are `left` of the whole check."""
    limit = min(part.seconds, left)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder, _ends_where_asked():
        out, log = Path(folder, "figures.json"), Path(folder, "output")
        told = json.dumps(asdict(setting)), json.dumps(part.arguments)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "checking.child", part.module, str(out), *told],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": _python_path(), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # so that its own processes end with it
            )
            try:
                status: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        content = json.loads(out.read_text()) if out.exists() else {"verdict": None, "figures": {}}
        lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    verdict, reason = content["verdict"], content.get("reason", "")
    if verdict is None:
        verdict, reason = _why_it_has_none(status, limit, limit < part.seconds, lines)
    seconds = round(time.monotonic() - start, 1)
    return Outcome(verdict, reason, seconds, content["figures"], lines if verdict == FAILED else [])


def _why_it_has_none(status: int | None, limit: float, time_is_up: bool, lines: list[str]) -> tuple[str, str]:
    """Verdict and reason of a part that did not come to its end; a status of None is one that took too long."""
    if status is None:
        if time_is_up:
            return SKIPPED, f"cut off after {limit:.0f} s, when the time of the whole check was up"
        return FAILED, f"not done after its {limit:.0f} s"
    how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return FAILED, f"{how}: {one_line(lines[-1])[:300]}" if lines else how


@contextmanager
def _ends_where_asked() -> Iterator[None]:
    """Has SIGTERM end this process as an exception does, so that the part ends with it."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _python_path() -> str:
    """Where this repository's packages are, also where it is not installed."""
    return os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])


def as_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome in the file, without what is empty."""
    return {name: value for name, value in asdict(outcome).items() if value or name == "seconds"}
