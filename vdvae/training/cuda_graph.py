"""Work on a batch, recorded once as a CUDA graph and replayed: thousands of kernels for the price of one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UPS = 3
"""Before recording, so that libraries have chosen their kernels and buffers."""


class Graphed:
    """A function of images and noise that only changes tensors in place, on one CUDA device.

    Args:
        function: takes images `[B, C, H, W]` and the generator of its noise.
        changes: every tensor that it changes; recording leaves them as they were.
        device: of CUDA.
    """

    def __init__(
        self, function: Callable[[Tensor, torch.Generator], None], changes: Sequence[Tensor], device: torch.device
    ) -> None:
        self.function = function
        self.changes = changes
        self.generator = torch.Generator(device)
        self.recorded: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def __call__(self, images: Tensor, seed: int) -> None:
        """Does what the function does with a generator of this seed."""
        if images.shape not in self.recorded:
            self.recorded[images.shape] = self._record(images)
        graph, place = self.recorded[images.shape]
        place.copy_(images)
        self.generator.manual_seed(seed)  # read when the graph is replayed
        graph.replay()

    def _record(self, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        before = [tensor.clone() for tensor in self.changes]
        place = images.clone()
        aside = torch.cuda.Stream(images.device)
        aside.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self.function(place, self.generator)
        torch.cuda.current_stream(images.device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph):
            self.function(place, self.generator)
        for tensor, value in zip(self.changes, before, strict=True):
            tensor.copy_(value)
        return graph, place
