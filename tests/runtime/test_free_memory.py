"""Free memory: the system's, what limits of containers leave, a GPU's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vdvae.runtime.free_memory import free_memory

CPU = torch.device("cpu")
V2 = "sys/fs/cgroup"
GB = 10**9
SYSTEM = {"proc/meminfo": "MemTotal:  99 kB\nMemAvailable:   8000000 kB\n"}
V1_LIMIT = {
    "proc/self/cgroup": "4:memory:/docker/0a\n0::/",
    f"{V2}/memory/docker/0a/memory.limit_in_bytes": f"{4 * GB}",
    f"{V2}/memory/docker/0a/memory.usage_in_bytes": f"{GB}",
    f"{V2}/memory/docker/0a/memory.stat": "cache 7\ntotal_inactive_file 9\n",
}


def v2(group: str, limit: object, current: int, inactive: int = 0) -> dict[str, str]:
    stat = f"anon 1\ninactive_file {inactive}\n"
    return {f"{group}/memory.max": f"{limit}", f"{group}/memory.current": f"{current}", f"{group}/memory.stat": stat}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8_192_000_000),
        ({"proc/self/cgroup": "0::/", **v2(V2, "max", GB)}, 8_192_000_000),
        ({"proc/self/cgroup": "0::/", **v2(V2, 3 * GB, GB)}, 2 * GB),
        ({"proc/self/cgroup": "0::/", **v2(V2, 3 * GB, 3 * GB, 2 * GB)}, 2 * GB),  # files in the cache give way
        ({"proc/self/cgroup": "0::/", **v2(V2, 3 * GB, 4 * GB)}, 0),
        ({"proc/self/cgroup": "0::/", **v2(V2, 30 * GB, GB)}, 8_192_000_000),
        ({"proc/self/cgroup": "0::/a/b", **v2(f"{V2}/a", 5 * GB, GB), **v2(f"{V2}/a/b", 9 * GB, GB)}, 4 * GB),
        (V1_LIMIT, 3 * GB),
    ],
)
def test_free_memory_of_the_system_and_its_limits(files: dict[str, str], free: int, tmp_path: Path) -> None:
    for name, content in {**SYSTEM, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert free_memory(CPU, tmp_path) == free


def test_processes_of_a_machine_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(SYSTEM["proc/meminfo"])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(CPU, tmp_path) == 2_048_000_000


def test_a_system_that_does_not_tell_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS: what there is."""
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert free_memory(CPU, tmp_path) == 4_096_000


def test_this_machine() -> None:
    assert 10**7 < free_memory(CPU) < 10**14


def test_a_gpu_tells_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (device.index, 99))
    assert free_memory(torch.device("cuda", 3)) == 3
