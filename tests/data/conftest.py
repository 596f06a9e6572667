"""Running the set-up scripts, and looking at what they left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import prepare_data
import pytest

from tests.conftest import ROOT

Prepare = Callable[..., tuple[int, str, str]]


def set_up(folder: Path, *arguments: object, largest_file_kb: int | None = None) -> CompletedProcess[str]:
    """Runs setup_data.sh in a folder, with this Python where the repository has no .venv; maybe with a limit like that
    of a full disk.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(ROOT / "setup_data.sh"), *map(str, arguments)]
    return subprocess.run(
        ["bash", "-c", f'ulimit -f {largest_file_kb or "unlimited"}; exec "$@"', "", *command],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def tiny_model(size: int, channels: int) -> list[str]:
    """Settings for a model that is as small as can be."""
    quarter = size // 4
    blocks = [
        f"model.enc_blocks={size}d4,{quarter}d{quarter},1x1",
        f"model.dec_blocks=1x1,{quarter}m1,{size}m{quarter}",
    ]
    widths = ["model.width=2", "model.bottleneck_multiple=0.5", "model.zdim=1", "model.num_mixtures=1"]
    return [f"model.image_size={size}", f"model.image_channels={channels}", "model.custom_width_str=", *blocks, *widths]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prepare:
    """scripts/prepare_data.py in this process and the test's folder: (exit status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["prepare_data.py", *map(str, arguments)])
        status = 0
        try:
            prepare_data.main()
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            status = stop.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return run
