"""A run directory is used by one process at a time, and by the next as soon as that one is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import refuses
from vdvae.errors import UserError
from vdvae.run.lock import lock

HOLD = "import sys, time; from vdvae.run.lock import lock; from pathlib import Path; "
HOLD += "held = lock(Path(sys.argv[1]), 0); print('held', flush=True); time.sleep(60)"


def test_a_second_one_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    for _ in range(2):
        with lock(path, patience=0), refuses(f"{tmp_path} process {os.getpid()} since --run_dir", UserError):
            lock(path, patience=60)


def test_kill_9_gives_it_back(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with refuses(f"process {other.pid}", UserError):
            lock(path, patience=0)
        other.send_signal(signal.SIGKILL)
    lock(path, patience=0).close()


def test_a_restart_of_the_same_job_waits_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as it has patience; torchrun's name for jobs without a name is none."""
    path = tmp_path / ".lock"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1234")
    held = lock(path, patience=0)
    with refuses("in use", UserError):
        lock(path, patience=0.3)
    threading.Timer(0.5, held.close).start()
    began = time.monotonic()
    lock(path, patience=30).close()
    assert 0.4 < time.monotonic() - began < 10
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with lock(path, patience=0), refuses("in use", UserError):
        lock(path, patience=60)
