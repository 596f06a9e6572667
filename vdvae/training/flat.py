"""Many tensors in one piece of memory, so that what is done to all of them is one operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

ALIGNMENT = 16
"""Numbers: every tensor begins at 64 bytes, as vector units and matrix products like it."""


class Place(NamedTuple):
    """Where one tensor lies."""

    size: torch.Size
    stride: tuple[int, ...]
    first: int


class Layout:
    """The places of fp32 tensors in a flat one, each with the strides that it has.

    Args:
        tensors: dense, on one device.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.places: list[Place] = []
        self.length = 0
        for tensor in tensors:
            self.places.append(Place(tensor.size(), tensor.stride(), self.length))
            self.length += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
        self.device = tensors[0].device

    def zeros(self) -> Tensor:
        """A flat tensor [length]; between the tensors it stays 0."""
        return torch.zeros(self.length, device=self.device)

    def views(self, flat: Tensor) -> list[Tensor]:
        """The tensors that lie in it."""
        return [flat.as_strided(*place) for place in self.places]


def flatten_parameters(module: nn.Module) -> tuple[Tensor, Layout]:
    """Moves the parameters of a module into one flat tensor, which it returns; they are views of it from now on."""
    parameters = list(module.parameters())
    layout = Layout(parameters)
    flat = layout.zeros()
    for parameter, view in zip(parameters, layout.views(flat), strict=True):
        parameter.data = view.copy_(parameter.data)
    return flat, layout
