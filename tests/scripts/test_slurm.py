"""scripts/slurm.sbatch, with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

STAND_INS = {
    "scontrol": 'echo "$@" >> scontrol; echo first; echo second',
    "scancel": 'echo "$@" >> scancel',
    "srun": 'echo "$@" > srun; kill -USR1 $PPID; sleep 0.5; exit "$STATUS"',
}


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder where srun ends after half a second with `STATUS`, when time was nearly up."""
    for name, script in STAND_INS.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def run_job(cluster: Path, **variables: str) -> None:
    path = f"{cluster / 'bin'}:{os.environ['PATH']}"
    job = {"PATH": path, "SLURM_JOB_NODELIST": "n", "SLURM_JOB_ID": "12345", "STATUS": "1", **variables}
    subprocess.run(["bash", ROOT / "scripts/slurm.sbatch", "--hps", "x"], cwd=cluster, env=job, check=True)


@pytest.mark.parametrize(("cores", "passed"), [({"SLURM_CPUS_PER_TASK": "32"}, True), ({}, False)])
def test_srun_is_told_the_cores(cores: dict[str, str], passed: bool, cluster: Path) -> None:
    """Since 22.05 it does not take them over from sbatch."""
    run_job(cluster, **cores)
    told = (cluster / "srun").read_text()
    assert ("--cpus-per-task 32 bash" in told) == passed
    assert told.split()[-3:] == ["first", "--hps", "x"]


@pytest.mark.parametrize(("status", "queued"), [("1", True), ("0", False)])
def test_a_run_that_is_not_done_is_queued_again(status: str, queued: bool, cluster: Path) -> None:
    run_job(cluster, STATUS=status)
    assert (cluster / "scancel").read_text() == "--signal TERM 12345\n"
    assert ("requeue 12345" in (cluster / "scontrol").read_text()) == queued
