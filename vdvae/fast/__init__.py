"""All that makes the model and its step fast, applied from outside: without this folder, results stay the same.

What each idea saves is in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vdvae.fast.allocator import give_back_freed_memory, keep_freed_memory
from vdvae.fast.checkpointing import checkpoint_blocks
from vdvae.fast.compiling import compile_blocks
from vdvae.fast.forwards import FastVDVAE, swap_forwards
from vdvae.fast.recorded import Recorded
from vdvae.model.vdvae import VDVAE

__all__ = [
    "Recorded",
    "checkpoint_blocks",
    "compile_blocks",
    "give_back_freed_memory",
    "keep_freed_memory",
    "prepare",
    "recorded",
]


Result = TypeVar("Result")


def prepare(model: VDVAE) -> VDVAE:
    """Makes a model fast, for training, evaluation and sampling, and returns it. Weights, and results but for rounding,
    stay; hooks, wrappers and pruning that come later are for models that were not prepared.

    Modules that are not exactly the model's own keep their forward pass, and so does what would go past them; a
    subclass of `VDVAE` is left as it is.
    """
    if type(model) is VDVAE:
        swap_forwards(model)
    return model


def recorded(function: Callable[..., Result], model: VDVAE) -> Callable[..., Result]:
    """A function of tensors, numbers and a generator that asks a model, as `Recorded` where the model was prepared and
    is on a CPU; otherwise the function itself.
    """
    if isinstance(model, FastVDVAE) and model.device.type == "cpu":
        return Recorded(function, lambda: [*model.parameters(), *model.buffers()])
    return function
