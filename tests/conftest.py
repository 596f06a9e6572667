"""A model small enough to train inside a test, and the commands people type."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from vdvae import VDVAE, ModelConfig
from vdvae.config import PRESETS, Config, load_config
from vdvae.data.prepare.fragment import MARK

ROOT = Path(__file__).parent.parent
TINY = Path(__file__).parent / "tiny.yaml"
PRESET_NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml") if not path.read_text().startswith(MARK))
"""Without the fragments that scripts/prepare_data.py put there for sets of one's own."""

Command = Callable[..., CompletedProcess[str]]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny models run faster on one, and several processes share two cores."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Config:
    return load_config(str(TINY), [])


def random_model(config: ModelConfig, std: float = 0.3) -> VDVAE:
    """With normal weights everywhere, so that no layer is at its zero initialisation."""
    torch.manual_seed(0)
    model = VDVAE(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def run_command(folder: Path, script: str, *arguments: object, processes: int = 0) -> CompletedProcess[str]:
    """Runs a file of the repository in a folder, under torchrun if a number of processes is given."""
    launch = [sys.executable]
    if processes:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*launch, str(ROOT / script), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """`run_command` in the test's own folder."""
    return partial(run_command, tmp_path)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `tiny.yaml`, for tests that only read it; see `run`."""
    folder = tmp_path_factory.mktemp("finished")
    result = run_command(folder, "train.py", "--hps", TINY, "--run_dir", "run")
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run in the test's own folder."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
