"""A model small enough to train inside a test, the commands people type, and what messages must hold."""

from __future__ import annotations

import io
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests of CUDA where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny models run faster on one, and several processes share two cores."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Config:
    """`tiny.yaml` as it is on a CPU."""
    config = load_config(str(TINY), [])
    return replace(config, train=config.train.resolved())


def live_model(config: Config) -> VDVAE:
    """With no weight at 0, as some are at first."""
    torch.manual_seed(0)
    model = VDVAE(config.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


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


def call_script(folder: Path, script: str, *arguments: object) -> CompletedProcess[str]:
    """As `run_command`, within this process: without the seconds that Python and PyTorch take to start, and with
    warnings as errors.
    """
    argv = [str(ROOT / script), *map(str, arguments)]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr("sys.argv", argv)
        patch.setattr("sys.path", sys.path.copy())
        patch.setattr("vdvae.fast.keep_freed_memory", lambda: None)  # it would hold for the other tests
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else bool(end.code)
    return CompletedProcess(argv, status, out.getvalue(), err.getvalue())


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """`run_command` in the test's own folder."""
    return partial(run_command, tmp_path)


@pytest.fixture
def call(tmp_path: Path) -> Command:
    """`call_script` in the test's own folder."""
    return partial(call_script, tmp_path)


def says(told: object, words: str) -> None:
    """A message has each of these words: the key, the file, the number, the remedy; how it puts them is free."""
    missing = [word for word in words.split() if word not in str(told)]
    assert not missing, f"{missing} are not in: {told}"


@contextmanager
def refuses(words: str, error: type[Exception] = ValueError) -> Iterator[None]:
    """What is inside raises this error, and its message has these words; see `says`."""
    with pytest.raises(error) as caught:
        yield
    says(caught.value, words)


def assert_refused(result: CompletedProcess[str], words: str) -> None:
    """A command ended with status 2 and nothing but a line that begins with `error:` and has these words."""
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    says(result.stderr, words)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `tiny.yaml`, for tests that only read it; see `run`."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("finished")
    result = call_script(folder, "train.py", "--hps", TINY, "--run_dir", "run")
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run in the test's own folder."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
