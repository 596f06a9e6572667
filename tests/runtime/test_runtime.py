"""The machine: noise by its key, precisions, devices, and what one process of several has."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, refuses
from vdvae import __version__
from vdvae.runtime import results
from vdvae.runtime.device import available_cores, describe, pick_device
from vdvae.runtime.noise import Purpose, generator, generator_seed
from vdvae.runtime.precision import PRECISIONS, autocast, set_matmul_precision
from vdvae.runtime.processes import World, cores_per_process
from vdvae.runtime.results import git_revision, prepare_result, write_result

CPU = torch.device("cpu")


def test_noise_is_a_function_of_its_key() -> None:
    """Seeds, purposes and places in the batch are kept apart, also where their numbers are alike."""
    keys = list(itertools.product((0, 1), Purpose, (0, 1), (0, 1)))
    assert len({generator_seed(*key) for key in keys}) == len(keys)
    once, again = (torch.randn(5, generator=generator(CPU, 3, Purpose.TRAINING, 0, 7)) for _ in range(2))
    assert torch.equal(once, again)


def test_seeds_stay_as_they_are() -> None:
    """Or a run of before could not be resumed to the same bits."""
    assert generator_seed(0, Purpose.TRAINING, 0, 0) == 7_896_617_691_693_857_887


@pytest.fixture
def precision_is_put_back() -> Iterator[None]:
    yield
    set_matmul_precision("fp32")


@pytest.mark.usefixtures("precision_is_put_back")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(precision: str) -> None:
    """Products are rounded in bf16 and fp16 alone; tf32 is a setting of the GPU."""
    set_matmul_precision(precision)
    assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
    with autocast(CPU, precision):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


NEWER_SETTINGS = """
import torch
from vdvae.runtime.precision import in_fp32, matmul_precision
if hasattr(torch.backends, "fp32_precision"):  # since PyTorch 2.9, which then refuses to tell the older settings
    torch.backends.fp32_precision = "tf32"
    with in_fp32():
        assert matmul_precision() == ("ieee", "ieee")
    assert matmul_precision() == ("tf32", "tf32")
"""


def test_fp32_whichever_settings_of_pytorch_were_used() -> None:
    """In a process of its own, where nobody has used the others."""
    subprocess.run([sys.executable, "-c", NEWER_SETTINGS], cwd=ROOT, check=True)


KERNELS = """
import os, torch
from vdvae.runtime.kernels import REPEATABLE, WORKSPACE, choose_kernels
from vdvae.runtime.precision import in_fp32
choose_kernels()
assert torch.backends.cudnn.benchmark and not torch.are_deterministic_algorithms_enabled()
assert not torch.backends.cudnn.deterministic and WORKSPACE not in os.environ
with in_fp32():  # figures must not hang on which algorithm was faster
    assert not torch.backends.cudnn.benchmark
assert torch.backends.cudnn.benchmark
for given, then in (("", REPEATABLE[0]), (":16:8", ":16:8")):
    os.environ[WORKSPACE] = given
    choose_kernels(deterministic=True)
    assert os.environ[WORKSPACE] == then
assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
"""


def test_the_fastest_kernels_or_those_that_repeat_themselves() -> None:
    """In a process of its own, because settings are of the whole process."""
    subprocess.run([sys.executable, "-c", KERNELS], cwd=ROOT, check=True)


FAILS = """
import atexit, sys, torch
from vdvae.runtime import processes
atexit.register(print, "Python's own way out")

@processes.exit_at_once("begins again")
def main():
    if sys.argv[2] == "several":
        processes.start(torch.device("cpu"))
    print("said before", end="")
    exec(sys.argv[1])

main()
"""


@pytest.mark.parametrize("processes", ["one", "several"])
@pytest.mark.parametrize(
    ("what", "status", "told"),
    [
        ("1 / 0", 1, "ZeroDivisionError"),
        ("sys.exit(130)", 130, ""),
        ("sys.exit('words')", 1, ""),
        ("raise RuntimeError('gloo: Connection closed by peer')", 1, "error: process 0 lost the others"),
        ("processes.stop()", 0, ""),
    ],
)
def test_a_process_that_fails_beside_others_ends_at_once(what: str, status: int, told: str, processes: str) -> None:
    """Without Python's clean-up, in which NCCL would wait for the others; nothing that was said is lost."""
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-c", FAILS, what, processes]
    settings = {**os.environ, **place}
    result = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    assert result.returncode == status, result.stderr
    assert told in result.stderr
    assert ("Traceback" in result.stderr) == (what == "1 / 0")
    assert result.stdout.startswith("said before")
    at_once = "lost" in told or (processes == "several" and status > 0)
    assert ("Python's own way out" in result.stdout) != at_once


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


def test_devices() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert "cores" in describe(CPU)
    with refuses("'cuda:99' auto cpu"):
        pick_device("cuda:99")


V1, V2 = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "max 100000"}, 8),
        ({"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "200000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "150000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "1000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "9000000 100000"}, 8),
        ({"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "nonsense"}, 8),
        ({"proc/self/cgroup": "0::/a/b", f"{V2}/a/b/cpu.max": "max 100000", f"{V2}/a/cpu.max": "300000 100000"}, 3),
        ({"proc/self/cgroup": "0::/a/b", f"{V2}/a/b/cpu.max": "100000 50000", f"{V2}/a/cpu.max": "max 50000"}, 2),
        ({"proc/self/cgroup": "0::/docker/0a1b", f"{V2}/cpu.max": "400000 100000"}, 4),
        ({"proc/self/cgroup": "0::/../../other", f"{V2}/cpu.max": "400000 100000"}, 4),
        ({"proc/self/cgroup": "1:name=systemd:/\n0::/", f"{V2}/unified/cpu.max": "500000 100000"}, 5),
        (
            {
                "proc/self/cgroup": "11:memory:/x\n4:cpu,cpuacct:/docker/0a\n1:name=systemd:/x\n0::/",
                f"{V1}/docker/0a/cpu.cfs_quota_us": "250000",
                f"{V1}/docker/0a/cpu.cfs_period_us": "100000",
                f"{V1}/cpu.cfs_quota_us": "-1",
                f"{V1}/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/docker/0a",
                f"{V2}/cpu/cpu.cfs_quota_us": "100000",
                f"{V2}/cpu/cpu.cfs_period_us": "100000",
            },
            1,
        ),
    ],
)
def test_the_cores_that_a_quota_leaves(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: range(8))
    assert available_cores(tmp_path) == cores


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """As taskset and Slurm have it; the machine's where nothing is held back."""
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {3, 5, 7})
    assert available_cores() <= 3
    monkeypatch.setattr("vdvae.runtime.device._cpu_quotas", lambda _root: iter(()))
    assert (available_cores(), cores_per_process()) == (3, 3)
    assert describe(CPU).startswith("3 of 64 cores of ")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cores_per_process() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert cores_per_process() == 1
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: range(64))
    assert describe(CPU).startswith("64 cores of ")
    monkeypatch.delattr("os.sched_getaffinity")
    assert available_cores() == 64


def test_a_process_that_is_bound_to_a_core() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_process_alone_has_what_it_gives() -> None:
    alone = World(0, 1, CPU)
    state = {"a": torch.ones(3)}
    assert alone.is_main
    assert alone.broadcast(state) is state
    assert torch.equal(alone.sum(torch.ones(3)), torch.ones(3))


def test_results_say_what_they_were_made_on(tmp_path: Path) -> None:
    path = tmp_path / "new/a.json"
    prepare_result(path)
    write_result(path, CPU, {"hps": "tiny"}, {"seconds": 3})
    told = json.loads(path.read_text())
    facts = ["time", "command", "git", "vdvae", "torch", "python", "hardware", "processes"]
    assert list(told) == ["hps", *facts, "seconds"]
    assert (told["torch"], told["vdvae"], told["processes"]) == (torch.__version__, __version__, 1)
    for kind, wrong in {"folder": tmp_path, "device": Path("/dev/null")}.items():
        with refuses(f"--json {wrong} {kind}"):
            prepare_result(wrong)
    with pytest.raises(OSError, match="name too long"):  # before anything is measured
        prepare_result(tmp_path / ("a" * 252))
    assert [one.name for one in tmp_path.iterdir()] == ["new"]


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    told = subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True)
    return told.stdout.strip()


def test_the_revision_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mark for changes; none for a folder within it, such as that of an installed package."""
    (tmp_path / "a").write_text("1")
    (tmp_path / "site-packages").mkdir()
    git(tmp_path, "init")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    git(tmp_path, "tag", "-a", "v1", "-m", "a")
    head = git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "elsewhere")  # as within a hook
    assert git_revision(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert git_revision(tmp_path) == f"{head}-dirty"
    assert git_revision(tmp_path / "site-packages") is None


@pytest.mark.parametrize("script", [None, "exit 128", "exec sleep 60"])
def test_a_git_that_is_missing_refuses_or_hangs(
    script: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    if script:
        (tmp_path / "git").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if script else str(tmp_path))
    monkeypatch.setattr(results, "GIT_SECONDS", 0.2)
    assert git_revision(tmp_path) is None
