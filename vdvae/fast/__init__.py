"""All that makes the model and its step fast, applied from outside: without this folder, results stay the same.

What each idea saves is in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor, nn

from vdvae.fast.activation_checkpointing import checkpoint_blocks
from vdvae.fast.allocator import give_back_freed_memory, keep_freed_memory
from vdvae.fast.compiling import compile_blocks
from vdvae.fast.forwards import FastVDVAE, has_hooks, keep_states_in, swap_forwards
from vdvae.fast.layout import lay_out_channels_last
from vdvae.fast.low_precision import LowPrecisionWeights, convolutions
from vdvae.fast.record import Recorded
from vdvae.fast.threads import Threads
from vdvae.model.vdvae import VDVAE

__all__ = [
    "LowPrecisionWeights",
    "Recorded",
    "Threads",
    "checkpoint_blocks",
    "compile_blocks",
    "convolutions",
    "give_back_freed_memory",
    "keep_freed_memory",
    "keep_states_in",
    "lay_out_channels_last",
    "prepare",
    "recorded",
    "recorded_if_prepared",
]


Result = TypeVar("Result")


def prepare(model: VDVAE) -> VDVAE:
    """Makes a model fast, for training, evaluation and sampling, and returns it. Weights stay the same, and results but
    for rounding.

    A module of any class but the model's own keeps its forward pass. Such modules, and modules with hooks, are called
    as in a plain model, whether they come before or after. A subclass of `VDVAE` is left unchanged.
    """
    if type(model) is VDVAE:
        swap_forwards(model)
    return model


def recorded(
    function: Callable[..., Result], model: VDVAE, found: Sequence[Tensor] = (), changed: Sequence[Tensor] = ()
) -> Callable[..., Result]:
    """Records a function that calls a model, see `Recorded`. While the model has hooks, which are Python, the function
    itself is called.

    Args:
        function: takes tensors and numbers, and last a generator.
        model: the model whose weights and buffers the function reads.
        found: other tensors that the function reads besides its arguments.
        changed: tensors that the function changes.
    """
    record = Recorded(function, lambda: [*_parts(model), *found, *changed], changed, model.device)
    return lambda *arguments: function(*arguments) if has_hooks(model) else record(*arguments)


def recorded_if_prepared(function: Callable[..., Result], model: VDVAE) -> Callable[..., Result]:
    """`recorded`, where the model was prepared and is on a CPU; otherwise the function itself."""
    return recorded(function, model) if isinstance(model, FastVDVAE) and model.device.type == "cpu" else function


def _parts(model: nn.Module) -> list[object]:
    """Weights and buffers, and what decides which forward passes run; found faster than by `parameters`, because every
    call looks at them.
    """
    parts: list[object] = []
    for module in model.modules():
        parts += [tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None]
        parts.append((module, type(module), module.training, vars(module).get("forward")))
    return parts
