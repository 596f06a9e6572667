"""What torchrun told this process in its environment, checked once: its rank, and how many processes there are."""

from __future__ import annotations

import os
import re
import socket
from typing import NamedTuple

HOW = "torchrun sets it: torchrun --nproc_per_node N train.py ..., see docs/cluster.md"
TORCHRUN = "TORCHELASTIC_RUN_ID"
"""The variable that torchrun alone sets."""
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""With this, PyTorch looks for a store that torchrun has opened."""
RESTARTS = "TORCHELASTIC_RESTART_COUNT"
PLACE = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a process must know to find the others."""
OTHER_LAUNCHERS = {
    "SLURM_STEP_NUM_TASKS": ("srun", "SLURM_PROCID"),
    "OMPI_COMM_WORLD_SIZE": ("mpiexec", "OMPI_COMM_WORLD_RANK"),
    "PMI_SIZE": ("mpiexec", "PMI_RANK"),
    "MV2_COMM_WORLD_SIZE": ("mpiexec", "MV2_COMM_WORLD_RANK"),
}
"""What tells the number of processes that something else started, its name, and what tells their ranks. SLURM_NTASKS is
no such thing: an sbatch script has it too, and is one process."""


class Launch(NamedTuple):
    """This process among those of its run."""

    rank: int = 0
    size: int = 1


def read_launch() -> Launch:
    """This process's rank and the number of processes; rank 0 of 1 without torchrun.

    Raises:
        ValueError: one line that names the variable, where they are incomplete, impossible, or several processes were
            started by something else.
    """
    local_rank, local_size, _ = read_local_rank(), read_local_size(), read_restarts()
    told = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE") if name in os.environ]
    if not told:
        if found := _other_launcher():
            name, launcher, _ = found
            raise ValueError(
                f"{launcher} started several processes ({name}={os.environ[name]}), and only torchrun tells them of "
                f"each other: let {launcher} start one torchrun per machine, see docs/cluster.md; for separate runs, "
                f"unset {name}"
            )
        return Launch()
    for name in PLACE:
        if name not in os.environ:
            is_set = f"{told[0]}={os.environ[told[0]]}"
            raise ValueError(f"{is_set} is set, but not {name}; {HOW}; for one process, unset {', '.join(told)}")
    rank, size = _whole_number("RANK", 0), _whole_number("WORLD_SIZE", 1)
    for name, number, limit in (
        ("RANK", rank, size),
        ("LOCAL_RANK", local_rank, local_size if "LOCAL_WORLD_SIZE" in os.environ else size),
        ("LOCAL_WORLD_SIZE", local_size, size + 1),
    ):
        if number >= limit:
            raise ValueError(f"{name}={number} cannot be with {_sizes()}; {HOW}")
    if TORCHRUN not in os.environ and AGENT_STORE in os.environ:
        raise ValueError(f"{AGENT_STORE} is set, but torchrun did not start this process; unset it, or use torchrun")
    address, port = os.environ["MASTER_ADDR"], _whole_number("MASTER_PORT", 1)
    if port > 65535:
        raise ValueError(f"MASTER_PORT={port} must be at most 65535; {HOW}")
    if not address or not (TORCHRUN in os.environ or _is_known(address)):
        is_set = f"MASTER_ADDR={address} is" if address else "MASTER_ADDR is empty,"
        raise ValueError(f"{is_set} not the name or address of a machine; {HOW}")
    return Launch(rank, size)


def read_restarts() -> int:
    """The number of times that torchrun has restarted this process, 0 without torchrun; raises `ValueError` where it is
    none.
    """
    return _whole_number(RESTARTS, 0) if RESTARTS in os.environ else 0


def is_first() -> bool:
    """Whether this process speaks for all: rank 0, by whatever started it, or one that cannot know."""
    try:
        return read_launch().rank == 0
    except ValueError:
        found = None if "RANK" in os.environ else _other_launcher()
        return found is None or os.environ.get(found[2], "0") == "0"


def read_local_rank() -> int:
    """This process's number among those on its machine, 0 without torchrun; raises `ValueError` where it is none."""
    return _whole_number("LOCAL_RANK", 0) if "LOCAL_RANK" in os.environ else 0


def read_local_size() -> int:
    """The number of processes on this machine, 1 without torchrun; raises `ValueError` where it is none."""
    return _whole_number("LOCAL_WORLD_SIZE", 1) if "LOCAL_WORLD_SIZE" in os.environ else 1


def _whole_number(name: str, least: int) -> int:
    text = os.environ[name].strip()
    if not re.fullmatch(r"-?[0-9]{1,9}", text) or int(text) < least:
        told = f"{name}={text}" if text else f"{name} is empty and"
        raise ValueError(f"{told} must be a whole number, at least {least}; {HOW}")
    return int(text)


def _is_known(address: str) -> bool:
    """Whether a machine's name leads anywhere; PyTorch would go on asking until its timeout."""
    try:
        return bool(socket.getaddrinfo(address, None))
    except (OSError, UnicodeError):
        return False


def _sizes() -> str:
    return ", ".join(f"{name}={os.environ[name]}" for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE") if name in os.environ)


def _other_launcher() -> tuple[str, str, str] | None:
    """What tells that something else started several processes, its name, and what tells this one's rank."""
    for name, (launcher, rank) in OTHER_LAUNCHERS.items():
        if re.fullmatch(r"[0-9]{1,9}", text := os.environ.get(name, "")) and int(text) > 1:
            return name, launcher, rank
    return None
