"""A model small enough to train inside a test, and the commands people type."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vdvae.config import Config, load_config

ROOT = Path(__file__).parent.parent
TINY = Path(__file__).parent / "tiny.yaml"

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny models run faster on one, and several processes share two cores."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Config:
    return load_config(str(TINY), [])


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs a file of the repository in an empty folder: `command("train.py", "--hps", ..., processes=2)`."""

    def run(script: str, *arguments: object, processes: int = 0) -> subprocess.CompletedProcess[str]:
        launch = [sys.executable]
        if processes:
            launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        return subprocess.run(
            [*launch, str(ROOT / script), *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
