"""Work on tensors, recorded in one run and repeated from the record: to a CPU what a CUDA graph is to a GPU.

Much of what a deep and narrow model does is not arithmetic but what surrounds it: Python, autograd's graph, views, the
allocator. None of that depends on the numbers, so it need not be done again. A record has the operations only, each
with the tensors that it reads and writes, in memory that was shared out among them beforehand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
COPIES = {aten.clone.default, aten._to_copy.default}
EMPTY = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default}


class Replay:
    """A function that, on a CPU, is run once for tensors of certain shapes and then repeated from its record, to the
    same bits. On other devices it is run every time.

    What is repeated is what the function did with tensors. So whatever else it depends on must stay as it is, grad
    mode and autocast included; tensors that it reads from elsewhere, such as weights, may change in place, and it may
    change tensors in place itself.

    Args:
        function: takes tensors and numbers, and a generator as the source of all its noise; returns one tensor or None.

    Raises:
        ValueError: in the first call, the function looks at a number in a tensor, which can be another the next time.
    """

    def __init__(self, function: Callable[..., Tensor | None]) -> None:
        self.function = function
        self.generator = torch.Generator()
        self._known: dict[tuple[object, ...], _Record | _Program] = {}

    def __call__(self, *arguments: Any) -> Tensor | None:
        """function(*arguments): tensors of the same dtypes every time, numbers, and last the generator."""
        inputs, generator = arguments[:-1], arguments[-1]
        if generator.device.type != "cpu" or any(tensor.device.type != "cpu" for tensor in _tensors(inputs)):
            return self.function(*arguments)
        kind = tuple(value.shape if isinstance(value, Tensor) else value for value in inputs)
        known = self._known.get(kind)
        self.generator.set_state(generator.get_state())
        if known is None:
            own = tree_map_only(Tensor, torch.clone, inputs)
            record = _Record(_tensors(own))
            with record:
                result = self.function(*own, self.generator)
            record.result = None if result is None else record.view(result)
            self._known[kind] = record
        else:
            if isinstance(known, _Record):  # planned only now, because some shapes come once
                known = self._known[kind] = _Program(known)
            result = known(_tensors(inputs))
        generator.set_state(self.generator.get_state())
        return result


@dataclass(frozen=True)
class _View:
    """A tensor of the recorded run: how it looked at which memory."""

    memory: int
    dtype: torch.dtype
    offset: int
    size: torch.Size
    stride: tuple[int, ...]

    def set(self, tensor: Tensor, storage: torch.UntypedStorage) -> None:
        """Has a tensor look at this storage in this way."""
        tensor.set_(storage, self.offset, self.size, self.stride)


@dataclass
class _Operation:
    """One that read or wrote memory; views did not. Arguments have a `_View` in the place of every tensor."""

    function: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[_View | None]
    """What it returned; None for tensors on the memory of its arguments."""

    def views(self) -> Iterator[_View]:
        """All of arguments and results."""
        return (leaf for leaf in tree_leaves((self.args, self.kwargs, self.results)) if isinstance(leaf, _View))


class _Record(TorchDispatchMode):
    """The operations of this thread from entering to leaving, in order."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.inputs = inputs
        """What the function was given, and is given anew every time."""
        self.operations: list[_Operation] = []
        self.bytes: list[int] = []
        """of each memory"""
        self.outside: dict[int, Tensor] = {}
        """A tensor on each memory that an operation found but none made; kept, so that it is not given away."""
        self.result: _View | None = None
        self._memories: dict[int, int] = {}

    def view(self, tensor: Tensor) -> _View:
        """Of a tensor that the function knows."""
        address = _address(tensor)
        if address not in self._memories:
            self.outside[len(self.bytes)] = tensor
            self._begin_memory(tensor)
        size, stride = tensor.size(), tensor.stride()
        return _View(self._memories[address], tensor.dtype, int(tensor.storage_offset()), size, stride)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is aten._local_scalar_dense.default:
            raise ValueError("a function that looks at a number cannot be replayed: the next one can be another")
        kwargs = kwargs or {}
        args_views, kwargs_views = tree_map_only(Tensor, self.view, (args, kwargs))
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        returned = function(*args, **kwargs)
        results: list[_View | None] = []
        for tensor in _tensors(returned):
            is_new = _address(tensor) not in given
            if is_new:  # even at an address that is known: what was there is gone
                self._begin_memory(tensor)
            results.append(self.view(tensor) if is_new else None)
        if function._schema.is_mutable or any(results):
            self.operations.append(_Operation(function, args_views, kwargs_views, results))
        return returned

    def _begin_memory(self, tensor: Tensor) -> None:
        self._memories[_address(tensor)] = len(self.bytes)
        self.bytes.append(tensor.untyped_storage().nbytes())


class _Program:
    """A record with memory: the calls that repeat it.

    Memory whose last reader has run goes to the next operation that needs as much, so that it is still in the cache.
    Where an operation has no form that writes where it is told to, its results come on memory of their own.
    """

    def __init__(self, record: _Record) -> None:
        self.inputs = record.inputs
        self._calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
        self._bytes = record.bytes
        self._storages = {memory: tensor.untyped_storage() for memory, tensor in record.outside.items()}
        self._unused: dict[int, list[torch.UntypedStorage]] = defaultdict(list)  # by bytes
        self._tensors: dict[_View, Tensor] = {}
        self._onlookers: dict[int, list[tuple[Tensor, _View]]] = {}  # tensors on the memory of results

        last_uses = {view.memory: i for i, operation in enumerate(record.operations) for view in operation.views()}
        for memory in record.outside:
            last_uses.pop(memory, None)
        if record.result is not None:
            last_uses.pop(record.result.memory, None)
        ending = defaultdict(list)
        for memory, i in last_uses.items():
            ending[i].append(memory)
        for i, operation in enumerate(record.operations):
            self._add(operation)
            for memory in ending[i]:
                self._end(memory)
        self._result = None if record.result is None else self._tensor(record.result)

    @torch.no_grad()
    def __call__(self, tensors: Sequence[Tensor]) -> Tensor | None:
        for place, tensor in zip(self.inputs, tensors, strict=True):
            place.copy_(tensor)
        for function, args, kwargs in self._calls:
            function(*args, **kwargs)
        return None if self._result is None else self._result.clone()

    def _add(self, operation: _Operation) -> None:
        function, new = operation.function, [view for view in operation.results if view is not None]
        writes = _writing_form(function)
        is_simple = function in COPIES or function in EMPTY
        if not (writes or is_simple):
            self._onlookers |= {view.memory: [] for view in new}
        else:
            for view in new:
                size = self._bytes[view.memory]
                unused = self._unused[size]
                self._storages[view.memory] = unused.pop() if unused else torch.UntypedStorage(size)
        args, kwargs = tree_map_only(_View, self._tensor, (operation.args, operation.kwargs))
        if function in COPIES:
            self._calls.append((aten.copy_.default, (self._tensor(new[0]), args[0]), {}))
        elif writes:
            form, names = writes
            places = dict(zip(names, map(self._tensor, new), strict=True))
            self._calls.append((form, args, kwargs | places))
        elif not is_simple:
            onlookers = [None if view is None else self._onlookers[view.memory] for view in operation.results]
            self._calls.append((_showing(function, onlookers) if new else function, args, kwargs))

    def _end(self, memory: int) -> None:
        if memory in self._storages:
            self._unused[self._bytes[memory]].append(self._storages[memory])
        else:
            self._calls.append((_free, (self._onlookers[memory],), {}))

    def _tensor(self, view: _View) -> Tensor:
        if view not in self._tensors:
            tensor = self._tensors[view] = torch.empty(0, dtype=view.dtype)
            if view.memory in self._storages:
                view.set(tensor, self._storages[view.memory])
            else:
                self._onlookers[view.memory].append((tensor, view))
        return self._tensors[view]


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@cache
def _writing_form(function: OpOverload) -> tuple[OpOverload, list[str]] | None:
    """The same operation with results written to given tensors, and the names of these arguments; None where there is
    none, or one that copies what the operation returns.
    """
    if function._schema.is_mutable:
        return None
    arguments = [(a.name, str(a.type)) for a in function._schema.arguments]
    for name in function.overloadpacket.overloads():
        form = getattr(function.overloadpacket, name)
        places = [a.name for a in form._schema.arguments if a.is_out]
        others = [(a.name, str(a.type)) for a in form._schema.arguments if not a.is_out]
        if places and others == arguments and torch.Tag.generated not in form.tags:
            return form, places
    return None


def _showing(
    function: Callable[..., Any], onlookers: Sequence[list[tuple[Tensor, _View]] | None]
) -> Callable[..., None]:
    """The function, whose results are then seen by tensors that are there already."""

    def run(*args: Any, **kwargs: Any) -> None:
        for result, looking in zip(_leaves(function(*args, **kwargs)), onlookers, strict=True):
            for tensor, view in looking or ():
                view.set(tensor, result.untyped_storage())

    return run


def _leaves(returned: Any) -> list[Tensor]:
    """The tensors among what an operation returns; `_tensors` without its price."""
    if isinstance(returned, Tensor):
        return [returned]
    return [value for value in returned if isinstance(value, Tensor)]


def _free(onlookers: Sequence[tuple[Tensor, _View]]) -> None:
    """Gives back the memory of a result that nothing needs any more."""
    if onlookers:
        onlookers[0][0].untyped_storage().resize_(0)
