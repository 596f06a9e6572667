"""Adds up what all operations cost that run inside it, and what their tensors hold."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vdvae.counting.cards import Card
from vdvae.counting.cost import Cost, cost_of
from vdvae.counting.held import Held

PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16"}
"""What products of tensors of a type multiply in; those of fp32 as was set."""


@dataclass
class Item:
    """What all operations of a name cost together."""

    launches: int = 0
    bytes: int = 0
    flops: int = 0
    seconds: float = 0.0
    """The bound by the card, summed over operations."""

    def add(self, cost: Cost, seconds: float) -> None:
        """Adds one operation."""
        self.launches += cost.launches
        self.bytes += cost.bytes
        self.flops += cost.flops
        self.seconds += seconds


class Tally(TorchDispatchMode):
    """Operations that run inside it are counted, on tensors of any device, fake ones too: those have no numbers, so
    that nothing is computed and no memory is taken.

    Args:
        card: the GPU that the operations are taken to run on.
        precision: what products of fp32 tensors multiply in, "fp32" or "tf32".
    """

    def __init__(self, card: Card, precision: str = "fp32") -> None:
        super().__init__()
        self.card = card
        self.precision = precision
        self.part = "forward"
        """What operations outside of a backward pass belong to."""
        self.items: defaultdict[tuple[str, str], Item] = defaultdict(Item)
        """By (part, operation); the part is "backward" wherever autograd runs it."""
        self.peak = 0
        """The most that `held` has been."""
        self._held = Held()

    @property
    def held(self) -> int:
        """Bytes of all storages that were made inside and are still there."""
        return self._held.bytes

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Lets torch.compile compile inside, as it does outside."""
        return True

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation and counts it."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function.namespace == "prim":
            return result
        cost = cost_of(function, args, kwargs, result)
        if cost.launches:
            name = function._schema.name.partition("::")[2]
            self.add(name, cost, next((t.dtype for t in tree_leaves(args) if isinstance(t, Tensor)), None))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._held.add(leaf)
        self.reach(self.held)
        return result

    def add(self, name: str, cost: Cost, dtype: torch.dtype | None) -> None:
        """Counts an operation on tensors of a type as part of what runs now."""
        part = "backward" if torch._C._current_graph_task_id() != -1 else self.part
        seconds = self.card.seconds(name, cost, PRECISIONS.get(dtype, self.precision))  # type: ignore[arg-type]
        self.items[part, name].add(cost, seconds)

    def reach(self, held: int) -> None:
        """Takes note that so many bytes are held for a moment."""
        self.peak = max(self.peak, held)
