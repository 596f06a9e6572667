"""The recorder of a GPU: thousands of kernels for the price of one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

WARM_UPS = 3
"""Runs before the recording, in which libraries choose their kernels and buffers."""


def record(
    work: Callable[[], Any], inputs: Sequence[Tensor], changed: Sequence[Tensor], generator: torch.Generator
) -> tuple[Any, Callable[[Sequence[Tensor]], Any]]:
    """Records `work` on a GPU: its result, and a function that does the same again for other values of `inputs`.

    Args:
        work: the function to record; returns tensors, in any nesting.
        inputs: the tensors that it reads and whose values differ in each call.
        changed: the other tensors that it changes; recording restores them.
        generator: source of its noise, of the same device.
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
    # The loader's thread may pin memory meanwhile, which only a capture of this thread alone allows.
    with torch.cuda.graph(graph, pool=_pool(device), capture_error_mode="thread_local"):
        result = work()
    for tensor, value in zip(changed, before, strict=True):
        tensor.copy_(value)
    generator.set_state(state)

    def repeat(tensors: Sequence[Tensor]) -> Any:
        for place, tensor in zip(inputs, tensors, strict=True):
            place.copy_(tensor)
        graph.replay()
        return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), result)

    return repeat(inputs), repeat


@cache
def _pool(device: torch.device) -> Any:
    """One memory for all graphs of a device, of which never two run at a time."""
    return torch.cuda.graph_pool_handle()
