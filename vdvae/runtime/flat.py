"""Many tensors as views of one, so that what concerns all of them is one operation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 16
"""Numbers: in fp32 every view begins at 64 bytes, as vector units like it."""


def flat_like(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A tensor of zeros, and views of it that lie in it as each of `tensors` lies in its memory, in their order.

    What is between the views is to stay 0.
    """
    sizes = [-(-tensor.numel() // ALIGNMENT) * ALIGNMENT for tensor in tensors]
    flat = torch.zeros(sum(sizes), device=tensors[0].device, dtype=tensors[0].dtype)
    places = zip(tensors, flat.split(sizes), strict=True)
    return flat, [place.as_strided(tensor.shape, tensor.stride()) for tensor, place in places]
