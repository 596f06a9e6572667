"""What one operation costs a GPU: kernel launches, bytes read and written, floating-point operations.

An operation reads each of its tensors once and writes each result once; a dimension along which a tensor is expanded
counts once. Nothing is taken to stay in a cache between two operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Cost(NamedTuple):
    """What an operation costs."""

    launches: int = 0
    """Kernels, and fills and copies of memory, that the host launches."""
    bytes: int = 0
    """What is read from the device's memory and written to it."""
    flops: int = 0
    """Those of matrix products and convolutions, a multiply-add being two; all else is bound by its bytes."""


WRITES_ONLY = {"copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_", "normal_", "uniform_"}
"""Operations that do not read what they overwrite."""
MAKES = {"zeros", "ones", "full", "scalar_tensor", "arange"}
"""Besides all `new_...` and `..._like`: operations that only write."""
NO_KERNEL = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
SEVERAL = {"constant_pad_nd": 2, "slice_backward": 2, "select_backward": 2, "logsumexp": 9}
"""Kernels of operations that on CUDA are a few others one after the other."""
CHUNK = 65_536
MOST_TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
MOST_CHUNKS = 320
"""One launch of an operation on lists of tensors does so many tensors, by the number of lists, and so many chunks of
numbers: ATen/native/cuda/MultiTensorApply.cuh of PyTorch 2.13, before CUDA 13, with which it is 7 times as many."""


def cost_of(function: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> Cost:
    """The cost on a GPU of an operation of ATen, from its arguments and its result, on any device.

    Args:
        function: an `OpOverload`, as `__torch_dispatch__` is given it.
        args: its arguments.
        kwargs: its arguments by name.
        result: what it returned.
    """
    space, _, name = function._schema.name.partition("::")
    if space not in ("aten", "prims") or name in NO_KERNEL:
        return Cost()
    given = _tensors((args, kwargs))
    changed = list(_changed(function, args, kwargs))
    storages = {tensor.untyped_storage()._cdata for tensor in given}
    made = [tensor for tensor in _tensors(result) if tensor.untyped_storage()._cdata not in storages]
    if not made and not changed:
        return Cost()  # a view, or a question
    read = [] if name in MAKES or name.startswith("new_") or name.endswith("_like") else given
    if name in WRITES_ONLY:
        read = [tensor for tensor in given if all(tensor is not one for one in changed)]
    launches, moved = 1, sum(map(touched, (*read, *made, *changed)))
    if name.startswith(("_foreach_", "_fused_", "_amp_foreach_")):
        launches = list_launches([*_lists(args, kwargs), *([made] if isinstance(result, (list, tuple)) else [])], name)
    elif name == "convolution":
        if args[2] is not None:
            launches, moved = 2, moved + 2 * touched(made[0])  # it is added to what the convolution wrote
        copied = _copied(args[0], args[1])
        launches, moved = launches + len(copied), moved + 2 * sum(map(touched, copied))
    elif name == "convolution_backward":
        of_input, of_weight, of_bias = args[-1]
        launches = of_input + of_weight + of_bias
        moved += (launches - 1) * touched(args[0])
        moved -= touched(args[1]) * (not of_weight) + touched(args[2]) * (not of_input)
        copied = _copied(args[1], *args[: 3 if of_input else 1 : 2])
        launches, moved = launches + len(copied), moved + 2 * sum(map(touched, copied))
    elif name in ("addmm", "baddbmm") and args[0].dim() > 1:
        launches, moved = 2, moved + 2 * touched(made[0])  # the sum is copied to where the product is added
    elif name in ("gather", "index", "index_select"):
        moved += touched(made[0]) - touched(args[0])  # reads what it takes
    elif name in SEVERAL:
        launches, moved = SEVERAL[name], moved + 2 * (SEVERAL[name] - 2) * touched(args[0])
        if name == "constant_pad_nd" or name.endswith("backward"):  # zeros, and a copy into them
            moved += touched(args[0])
    return Cost(launches, moved, flops_of(function, args, kwargs, result))


def flops_of(function: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> int:
    """The floating-point operations of a matrix product or convolution, forward or backward; 0 of all else."""
    packet = function.overloadpacket
    if packet is torch.ops.aten.addmm_:
        packet = torch.ops.aten.addmm
    formula = flop_registry.get(packet)
    return int(formula(*args, **kwargs, out_val=result)) if formula else 0


def touched(tensor: Tensor) -> int:
    """Bytes of a tensor's numbers, those that an expanded dimension repeats once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size() if tensor.numel() else 0


def list_launches(lists: Sequence[Sequence[Tensor]], name: str = "") -> int:
    """Kernels of an operation on lists of tensors: few if the tensors of a place have one shape, the same strides, and
    all one type, which a copy may change; else, as on CUDA, one for each tensor.
    """
    types = [{tensor.dtype for tensor in one} for one in lists]
    mixed = any(len(one) > 1 for one in types) or (len(set.union(*types)) > 1 and name != "_foreach_copy_")
    if mixed or any(len({(t.shape, t.stride()) for t in place}) > 1 for place in zip(*lists, strict=True)):
        return len(lists[0])
    launches = tensors = chunks = 0
    for tensor in lists[0]:
        tensors += bool(tensor.numel())
        left = -(-tensor.numel() // CHUNK)
        while left:
            done = min(left, MOST_CHUNKS - chunks)
            left, chunks = left - done, chunks + done
            if chunks == MOST_CHUNKS or (tensors == MOST_TENSORS[len(lists)] and not left):
                launches, tensors, chunks = launches + 1, int(left > 0), 0
    return launches + bool(chunks)


def _copied(images: Tensor, *others: Tensor) -> list[Tensor]:
    """The tensors that cuDNN gets a copy of, because they do not lie in memory as the images do, with the channels of a
    pixel side by side.
    """
    last = torch.channels_last
    if images.dim() != 4 or images.is_contiguous() or not images.is_contiguous(memory_format=last):
        return []
    return [tensor for tensor in others if not tensor.is_contiguous(memory_format=last)]


def _tensors(nested: Any) -> list[Tensor]:
    """The tensors in some arguments or results, each once."""
    return list({id(leaf): leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)}.values())


def _lists(args: Sequence[Any], kwargs: dict[str, Any]) -> list[list[Tensor]]:
    """The lists of tensors among some arguments, without those of one number for each tensor, such as AdamW's steps."""
    lists = [list(value) for value in (*args, *kwargs.values()) if isinstance(value, (list, tuple)) and value]
    return [one for i, one in enumerate(lists) if not i or [t.shape for t in one] == [t.shape for t in lists[0]]]


def _changed(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that an operation writes in place."""
    schema = function._schema
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            fused = schema.name.startswith("aten::_fused_")
            if argument.name == "grads" and fused and kwargs.get("grad_scale") is None:
                continue  # only gradients that are scaled are written back
            yield from _tensors(value)
