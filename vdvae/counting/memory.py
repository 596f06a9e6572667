"""What a training step holds in memory, counted by taking it on fake tensors, which have shapes and no numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vdvae.config import Config
from vdvae.counting.held import Held
from vdvae.model.vdvae import VDVAE
from vdvae.runtime.precision import in_fp32
from vdvae.runtime.processes import World
from vdvae.training.update import Update


class StepBytes(NamedTuple):
    """Bytes of tensors on one device. What libraries and allocators take besides is not counted: workspaces of cuDNN,
    buffers of NCCL, gaps between tensors.
    """

    state: int
    """Held between two steps: weights, EMA, gradient, Adam's moments, working copies of any of them."""
    saved: int
    """Held besides at the end of the forward pass, for the backward pass: activations, and in half precision copies of
    the weights. A constant and a multiple of the batch."""
    peak: int
    """The most that is held at any moment of a step, the state included."""


def memory_of_step(config: Config, batch: int) -> StepBytes:
    """Counts an update with `batch` images at once on one device; it takes as long for any batch, in seconds.

    What is counted is the update itself, without recording and compiling. Compiled blocks hold as much or less, by
    `scripts/benchmark.py count`; a CUDA graph as much, and what its passes need it keeps from the optimiser.

    Args:
        config: with no "auto" for the hardware in its `train` section, see `TrainConfig.resolved`.
        batch: images of the micro-batch, the only one here; the pixels of others are not counted.
    """
    train = replace(config.train, batch_size=batch, micro_batch=None, compile=False, replay=False, cuda_graph=False)
    shape = (batch, config.model.image_channels, config.model.image_size, config.model.image_size)
    with in_fp32(), FakeTensors(), (live := Live()):  # in_fp32, as an update sets the precision of the whole process
        with warnings.catch_warnings():  # a model is copied, and PyTorch asks for the addresses of its weights
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            update = Update(VDVAE(config.model), train, World(0, 1, torch.device("cpu")))
        return live.count(lambda: update(torch.zeros(shape, dtype=torch.uint8), 0))


class FakeTensors(FakeTensorMode):
    """Fake tensors that can be copied with the module that they are in."""

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeTensors:
        return self


class Live(TorchDispatchMode):
    """Follows how many bytes of tensors are alive that were made in this mode, fake or real; views count nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.held = Held()
        self._passes = _Passes()

    def count(self, step: Callable[[], object]) -> StepBytes:
        """Takes the first step of an optimiser, and counts it as one that begins with the moments that it makes."""
        before, self._passes = self.held.bytes, (passes := _Passes())
        step()
        peak = max(passes.peak + self.held.bytes - before, passes.peak_of_optimiser)
        return StepBytes(self.held.bytes, passes.end_of_forward - before, peak)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._passes.enter(self.held.bytes)
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.held.add(tensor)
        self._passes.reach(self.held.bytes)
        return result


class _Passes:
    """The passes of a step, forward, backward and the optimiser's, told apart by whether autograd is at work."""

    def __init__(self) -> None:
        self.end_of_forward = 0
        self.peak = 0
        """The most bytes alive in the forward and the backward pass."""
        self.peak_of_optimiser = 0
        self._went_backward = False
        self._goes_backward = False

    def enter(self, live: int) -> None:
        """Takes in how much is alive before an operation."""
        self._goes_backward = torch._C._current_graph_task_id() != -1
        if self._goes_backward and not self._went_backward:
            self.end_of_forward, self._went_backward = live, True

    def reach(self, live: int) -> None:
        """Takes in how much is alive after it."""
        if self._went_backward and not self._goes_backward:
            self.peak_of_optimiser = max(self.peak_of_optimiser, live)
        else:
            self.peak = max(self.peak, live)
