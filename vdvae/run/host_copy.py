"""A copy of a run's state in host memory, in so few pieces that a thread can write it beside busy Python code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


class HostCopy:
    """Copies one state after the other into the same host memory: a copy lasts until the next.

    The tensors of a part of the state, such as the EMA, are views of one for each dtype. torch.save makes a record of
    each piece of memory, and at each record waits for Python's lock, which code that never waits gives up every 5 ms:
    with a piece for each of the thousands of tensors, that is most of the time. A file of views is read as any other.
    """

    def __init__(self) -> None:
        self._pieces: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, state: dict[str, Any]) -> dict[str, Any]:
        """A copy of a nested dictionary of tensors and plain values, with the same layouts in memory."""
        return {part: self._copy(part, content) for part, content in state.items()}

    def _copy(self, part: str, content: Any) -> Any:
        sizes: dict[torch.dtype, int] = {}
        for leaf in tree_leaves(content):
            if isinstance(leaf, Tensor):
                sizes[leaf.dtype] = sizes.get(leaf.dtype, 0) + leaf.numel()
        for dtype, size in sizes.items():
            if (piece := self._pieces.get((part, dtype))) is None or len(piece) != size:
                self._pieces[part, dtype] = torch.empty(size, dtype=dtype)
        taken = dict.fromkeys(sizes, 0)

        def copy(tensor: Tensor) -> Tensor:
            strides = torch.empty_like(tensor, device="meta").stride()  # those of the tensor, without its gaps
            piece, first = self._pieces[part, tensor.dtype], taken[tensor.dtype]
            taken[tensor.dtype] += tensor.numel()
            return piece.as_strided(tensor.shape, strides, first).copy_(tensor.detach())

        return tree_map_only(Tensor, copy, content)
