"""The recorder of a GPU: thousands of kernels for the price of one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from vdvae.errors import UserError

WARM_UPS = 3
"""Runs before the recording, in which libraries choose their kernels and buffers."""
_graphs: dict[torch.device, WeakSet[torch.cuda.CUDAGraph]] = {}
"""Those of each device that are still in use."""


def record(
    work: Callable[[], Any], inputs: Sequence[Tensor], changed: Sequence[Tensor], generator: torch.Generator
) -> tuple[Any, Callable[[Sequence[Tensor]], Any]]:
    """Records `work` on a GPU: its result, and a function that does the same again for other values of `inputs`.

    Args:
        work: the function to record; returns tensors, in any nesting.
        inputs: the tensors that it reads and whose values differ in each call.
        changed: the other tensors that it changes; recording restores them.
        generator: source of its noise, of the same device.

    Raises:
        UserError: `work` does what no graph can, such as to look at a number, or needs more memory than there is.
    """
    device = generator.device
    before, state = [tensor.clone() for tensor in changed], generator.get_state()
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    try:
        # It gives back the memory of the warm-ups first. The loader's thread may pin memory meanwhile, and NCCL's ask
        # for events, which only a capture of this thread alone allows.
        with torch.cuda.graph(graph, pool=_pool(device), capture_error_mode="thread_local"):
            result = work()
    except RuntimeError as error:
        raise UserError(
            f"the training step cannot be recorded as a CUDA graph: {_first_line(error)}; train.cuda_graph=false does "
            "without, and a smaller train.micro_batch needs less memory"
        ) from error
    _graphs.setdefault(device, WeakSet()).add(graph)
    for tensor, value in zip(changed, before, strict=True):
        tensor.copy_(value)
    generator.set_state(state)

    def repeat(tensors: Sequence[Tensor]) -> Any:
        for place, tensor in zip(inputs, tensors, strict=True):
            place.copy_(tensor)
        graph.replay()
        return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), result)

    return repeat(inputs), repeat


def _pool(device: torch.device) -> Any:
    """The memory of the graphs of a device, of which never two run at a time, and whose results are copied out; None
    where there is none yet. Not kept by itself: PyTorch refuses a pool that has outlived its graphs.
    """
    return next((graph.pool() for graph in _graphs.get(device, ())), None)


def _first_line(error: BaseException) -> str:
    """What went wrong first: the end of a capture that has failed fails too."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0].rstrip(".")
