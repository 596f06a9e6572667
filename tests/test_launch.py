"""What torchrun tells a process: read where it is right, and refused in one line where it is not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, Command, assert_refused, refuses, says
from vdvae.errors import UserError
from vdvae.launch import OTHER_LAUNCHERS, is_first, read_launch
from vdvae.runtime.device import pick_device
from vdvae.runtime.processes import start

HERE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **HERE}
STORE = "TORCHELASTIC_USE_AGENT_STORE"
RANKS = [rank for _, rank in OTHER_LAUNCHERS.values()]
NAMES = [*TWO, STORE, "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID", *OTHER_LAUNCHERS, *RANKS, "SLURM_NTASKS"]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def tell(monkeypatch: pytest.MonkeyPatch, told: dict[str, str]) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, (0, 1)),
        (HERE, (0, 1)),  # which a cluster may set for every job
        (TWO, (1, 2)),
        ({"RANK": "3", "WORLD_SIZE": "8", **HERE}, (3, 8)),
        ({**TWO, "MASTER_ADDR": "::1"}, (1, 2)),
        ({**TWO, "MASTER_ADDR": "nowhere.invalid", "TORCHELASTIC_RUN_ID": "none"}, (1, 2)),  # it may come back
        ({**TWO, "SLURM_STEP_NUM_TASKS": "4", "OMPI_COMM_WORLD_SIZE": "4"}, (1, 2)),  # torchrun under srun
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, (0, 1)),  # srun --ntasks=1
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, (0, 1)),  # an sbatch script
        ({"PMI_SIZE": "1"}, (0, 1)),
        ({"PMI_SIZE": "unknown"}, (0, 1)),
    ],
)
def test_what_is_right(told: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, told)
    assert read_launch() == expected
    assert is_first() == (expected[0] == 0)


WRONG = [
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 RANK"),
    ({"RANK": "0"}, "RANK=0 WORLD_SIZE"),
    ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 RANK"),
    ({"LOCAL_WORLD_SIZE": "2"}, "LOCAL_WORLD_SIZE=2 RANK"),
    ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
    ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT"),
    *(({**TWO, name: ""}, name) for name in TWO),
    *(({name: ""}, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")),
    *(({**TWO, name: "two"}, f"{name}=two") for name in TWO),
    *(({**TWO, name: "-1"}, f"{name}=-1") for name in TWO),
    *(({**TWO, name: "1.5"}, f"{name}=1.5") for name in TWO if name != "MASTER_ADDR"),
    *(({**TWO, name: "9" * 5000}, name) for name in TWO),
    ({**TWO, "RANK": "2"}, "RANK=2 WORLD_SIZE=2"),
    ({**TWO, "LOCAL_RANK": "2"}, "LOCAL_RANK=2 LOCAL_WORLD_SIZE=2"),
    ({**TWO, "LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3 WORLD_SIZE=2"),
    ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "2", **HERE}, "LOCAL_RANK=2 WORLD_SIZE=2"),
    ({**TWO, "WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
    ({**TWO, "LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0"),
    ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0"),
    ({**TWO, "MASTER_PORT": "0"}, "MASTER_PORT=0"),
    ({**TWO, "MASTER_PORT": "65536"}, "MASTER_PORT=65536"),
    ({**TWO, "MASTER_ADDR": "nowhere.invalid"}, "MASTER_ADDR=nowhere.invalid"),
    ({**TWO, STORE: "True"}, STORE),
    ({**TWO, "TORCHELASTIC_RESTART_COUNT": "abc"}, "TORCHELASTIC_RESTART_COUNT=abc"),
    ({"TORCHELASTIC_RESTART_COUNT": ""}, "TORCHELASTIC_RESTART_COUNT"),
    ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "srun SLURM_STEP_NUM_TASKS=2 docs/cluster.md"),
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "mpiexec OMPI_COMM_WORLD_SIZE=2 docs/cluster.md"),
    ({"PMI_SIZE": "16"}, "mpiexec PMI_SIZE=16 docs/cluster.md"),
]


@pytest.mark.parametrize(("told", "words"), WRONG)
def test_what_is_wrong(
    told: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, call: Command, tmp_path: Path
) -> None:
    """By the process that met it, whatever its rank; before anything is written, in train.py and evaluate.py."""
    tell(monkeypatch, told)
    with refuses(f"{words} torchrun"):
        read_launch()
    for line in (f"train.py --hps {TINY}", "scripts/evaluate.py nowhere --json=new/x.json"):
        assert_refused(call(*line.split()), f"{words} torchrun")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("launcher", "rank"), [(name, rank) for name, (_, rank) in OTHER_LAUNCHERS.items()])
def test_one_of_several_speaks(launcher: str, rank: str, monkeypatch: pytest.MonkeyPatch, call: Command) -> None:
    tell(monkeypatch, {launcher: "2", rank: "1"})
    result = call("train.py", "--hps", TINY)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "")


def test_scripts_of_one_process_look_at_their_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, {"RANK": "0", "PMI_SIZE": "2"})
    assert pick_device("cpu").type == "cpu"


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch, call: Command) -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        tell(monkeypatch, {**TWO, "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": port})
        with refuses(f"MASTER_PORT={port} --master_port --standalone", UserError):
            start(pick_device("cpu"), timeout_minutes=0.05)
        assert_refused(call("train.py", "--hps", TINY), f"MASTER_PORT={port} --master_port --standalone")


@pytest.mark.parametrize("rank", ["0", pytest.param("1", marks=pytest.mark.long)])
def test_others_that_never_come(rank: str, tmp_path: Path) -> None:
    """In a process of its own, whose stderr PyTorch writes to too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {**TWO, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--hps",
        str(TINY),
        "--run_dir=run",
        "train.timeout_minutes=0.02",
    ]
    result = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **told}, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 2
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    says(line, f"WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT={port} 0.02 torchrun")
    assert "Traceback" not in result.stderr
