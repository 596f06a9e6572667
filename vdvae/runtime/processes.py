"""Ranks and reductions: one process, or as many as torchrun started."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.utils._pytree import tree_map_only

from vdvae.errors import UserError
from vdvae.launch import TORCHRUN, read_launch, read_local_size, read_restarts
from vdvae.runtime.device import available_cores


def cores_per_process() -> int:
    """The cores that this process may use, divided among the processes that torchrun started on this machine."""
    return max(1, available_cores() // read_local_size())


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over all processes, in place on every one of them."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def smallest(self, number: int) -> int:
        """The smallest of a whole number that each process has."""
        if self.size == 1:
            return number
        smallest = torch.tensor(number, device=self.device)
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return int(smallest)

    def broadcast(self, value: Any) -> Any:
        """Gives every process the `value` of the main process: nested dictionaries, lists and tuples of tensors
        and plain values. The others' own `value` does not matter; they get tensors on their devices.
        """
        if self.size == 1:
            return value
        outline = [tree_map_only(torch.Tensor, lambda tensor: torch.empty_like(tensor, device="meta"), value)]
        dist.broadcast_object_list(outline, device=self.device)

        def send(tensor: torch.Tensor) -> None:
            dist.broadcast(tensor.to(self.device).contiguous(), 0)

        def receive(like: torch.Tensor) -> torch.Tensor:
            received = torch.empty(like.shape, dtype=like.dtype, device=self.device)
            dist.broadcast(received, 0)
            # Laid out as it was: Adam's moments must lie in memory as their parameters do.
            return torch.empty_like(like, device=self.device).copy_(received)

        if self.is_main:
            tree_map_only(torch.Tensor, send, value)
            return value
        return tree_map_only(torch.Tensor, receive, outline[0])


def start(device: torch.device, timeout_minutes: float = 30) -> World:
    """Joins the processes that torchrun started (NCCL on CUDA, gloo on CPU); alone without torchrun.

    A process that waits longer than the timeout for another, whose machine may have gone, ends with an error.

    Raises:
        ValueError: torchrun's environment is incomplete or impossible, see `read_launch`.
        UserError: the processes cannot meet where that says.
    """
    launch = read_launch()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        backend = "nccl" if device.type == "cuda" else "gloo"
        device_id = device if device.type == "cuda" else None
        timeout = timedelta(minutes=timeout_minutes)
        try:
            store, rank, size = next(rendezvous("env://", timeout=timeout))
        except RuntimeError as error:
            if told := _why_nobody_meets(error, timeout_minutes):
                raise UserError(told) from error
            raise
        store = PrefixStore(f"start-{_restarts()}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout, device_id=device_id)
    return World(*launch, device)


def _why_nobody_meets(error: RuntimeError, minutes: float) -> str:
    """What a person must change, if anything, where the store of all processes cannot be opened, or some don't come."""
    address, port, size = (os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"))
    if "address already in use" in str(error).lower():
        return f"MASTER_PORT={port} is taken by another program; give torchrun another --master_port, or --standalone"
    if TORCHRUN in os.environ:
        return ""  # the others may have lost a machine: torchrun tries again
    return (
        f"not all of WORLD_SIZE={size} processes met at MASTER_ADDR={address}, MASTER_PORT={port} within {minutes:g} "
        "minutes; start them with torchrun, which sets these, see docs/cluster.md"
    )


def _restarts() -> int:
    """The number of times that torchrun has restarted the processes of one machine. It keeps its store, in which they
    would find the addresses of those that died. Each machine counts for itself; docs/cluster.md has the setting for
    several.
    """
    return read_restarts() if os.environ.get("GROUP_WORLD_SIZE") == "1" else 0


def stop() -> None:
    """Leaves the process group, if there is one, when all processes have come to the end.

    Not for clean-up after an error, where the others would never come.
    """
    if dist.is_initialized():
        dist.barrier()  # with torch 2.6, gloo can hang where one process leaves before the other
        dist.destroy_process_group()


@contextmanager
def exit_at_once(again: str) -> Iterator[None]:
    """Ends this process at once where something goes wrong and others belong to it, which torchrun then ends; decorates
    the `main` of a command that several processes may run, and stands outside all else that ends them.

    Python's own way out takes the process group apart, and in that NCCL can wait for the others for ever (NVIDIA/nccl
    #1777). A traceback is printed as ever. Where another process is gone, which says itself why, that is one line.

    Args:
        again: what the same command does when it is started again.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, RuntimeError) and is_lost_process(error):
            rank, reason = read_launch().rank, " ".join(str(error).split())[:200]
            told = f"error: process {rank} lost the others; where none of them says why, the same command {again}"
            print(f"{told} ({reason})", file=sys.stderr)
            status = 1
        elif not dist.is_initialized():
            raise
        elif isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        else:
            traceback.print_exc()
            status = 1
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def is_lost_process(error: RuntimeError) -> bool:
    """Whether this is what gloo, NCCL or the store say where another process is gone or silent for too long."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "closed by peer" in str(error)
