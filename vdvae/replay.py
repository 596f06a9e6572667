"""Work on tensors, recorded in one run and repeated from the record: to a CPU what a CUDA graph is to a GPU.

Much of what a deep and narrow model does is not arithmetic but what surrounds it: Python, autograd's graph, views, the
allocator. None of that depends on the numbers, so it need not be done again. A record has the operations only, each
with the tensors that it reads and writes, in memory that was shared out among them beforehand.
"""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vdvae.allocator import give_back_freed_memory

aten = torch.ops.aten
COPIES = {aten.clone.default, aten._to_copy.default}
ALIGNMENT = 64
"""Bytes; as PyTorch's own allocator."""
EMPTY = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default}


Result = TypeVar("Result", bound=Tensor | None)


class Replay(Generic[Result]):
    """A function that, on a CPU, is run once for tensors of certain shapes and then repeated from its record, to the
    same bits. On other devices it is run every time.

    What is repeated is what the function did with tensors. So whatever else it depends on must stay as it is, grad
    mode and autocast included; tensors that it reads from elsewhere, such as weights, may change in place, and it may
    change tensors in place itself. No gradient flows through what it returns.

    Args:
        function: takes tensors and numbers, and a generator as the source of all its noise; returns one tensor or None.

    Raises:
        ValueError: in the first call, the function looks at a number in a tensor, which can be another the next time.
    """

    def __init__(self, function: Callable[..., Result]) -> None:
        self.function = function
        self.generator = torch.Generator()
        self._known: dict[tuple[object, ...], _Record | _Program] = {}

    def __call__(self, *arguments: Any) -> Result:
        """function(*arguments): tensors of the same dtypes every time, numbers, and last the generator."""
        inputs, generator = arguments[:-1], arguments[-1]
        kind = tuple(value.shape if isinstance(value, Tensor) else value for value in inputs)
        known = self._known.get(kind)
        if generator.device.type != "cpu" or (isinstance(known, _Record) and not known.is_on_cpu):
            return self.function(*arguments)
        self.generator.set_state(generator.get_state())
        if known is None:
            own = tree_map_only(Tensor, torch.clone, inputs)
            record = _Record(_tensors(own))
            with record:
                result: Tensor | None = self.function(*own, self.generator)
            if result is not None:
                result = result.detach()
                record.result = record.view(result)
            self._known[kind] = record
        else:
            if isinstance(known, _Record):  # planned only now, because some shapes come once
                known = self._known[kind] = _Program(known)
            result = known(_tensors(inputs))
        generator.set_state(self.generator.get_state())
        return cast("Result", result)


@dataclass(frozen=True)
class _View:
    """A tensor of the recorded run: how it looked at which memory."""

    memory: int
    dtype: torch.dtype
    offset: int
    size: torch.Size
    stride: tuple[int, ...]

    def set(self, tensor: Tensor, storage: torch.UntypedStorage, begin: int = 0) -> None:
        """Has a tensor look in this way at memory that begins so many bytes into a storage."""
        tensor.set_(storage, self.offset + begin // self.dtype.itemsize, self.size, self.stride)


@dataclass
class _Operation:
    """One that read or wrote memory; views did not. Arguments have a `_View` in the place of every tensor."""

    function: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[_View | None]
    """What it returned; None for tensors on the memory of its arguments."""

    @property
    def new(self) -> list[_View]:
        """Results on memory that it began."""
        return [view for view in self.results if view is not None]

    @property
    def writing_form(self) -> tuple[OpOverload, list[str]] | None:
        """See the function of this name; None also where it returned fewer tensors than that would write."""
        form = _writing_form(self.function)
        return form if form and len(form[1]) == len(self.new) else None

    @property
    def writes_where_told(self) -> bool:
        """Whether its results can be put on memory that is there."""
        return self.function in COPIES | EMPTY or self.writing_form is not None

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
        self.is_on_cpu = True
        """Whether all of it is."""
        self._memories: dict[int, int] = {}

    def view(self, tensor: Tensor) -> _View:
        """Of a tensor that the function knows."""
        self.is_on_cpu &= tensor.device.type == "cpu"
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
        given = {_address(tensor) for tensor in _tensors((args, kwargs))}
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


class _Heap:
    """Where to put memory that is needed for a while, in one piece that is as long as it has to be."""

    def __init__(self) -> None:
        self.length = 0
        """bytes"""
        self._holes: list[tuple[int, int]] = []  # from where to where, in order, none next to another

    def take(self, size: int) -> int:
        """The first byte of `size` free ones: of the smallest hole that has them."""
        size = _rounded(size)
        fitting = [(end - begin, begin) for begin, end in self._holes if end - begin >= size]
        if fitting:
            length, begin = min(fitting)
            i = self._holes.index((begin, begin + length))
            self._holes[i : i + 1] = [(begin + size, begin + length)] if length > size else []
            return begin
        begin = self.length
        if self._holes and self._holes[-1][1] == self.length:
            begin, _ = self._holes.pop()
        self.length = begin + size
        return begin

    def give_back(self, begin: int, size: int) -> None:
        """What was taken with this size."""
        end = begin + _rounded(size)
        if end == begin:
            return
        i = bisect(self._holes, (begin, end))
        if i < len(self._holes) and self._holes[i][0] == end:
            end = self._holes.pop(i)[1]
        if i > 0 and self._holes[i - 1][1] == begin:
            i -= 1
            begin = self._holes.pop(i)[0]
        self._holes.insert(i, (begin, end))


class _Program:
    """A record with memory: the calls that repeat it.

    Memory whose last reader has run goes to a next operation. Where an operation has no form that writes where it is
    told to, its results come on memory of their own.
    """

    def __init__(self, record: _Record) -> None:
        self.inputs = record.inputs
        self._calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
        self._tensors: dict[_View, Tensor] = {}
        self._onlookers: dict[int, list[tuple[Tensor, _View]]] = {}  # tensors on the memory of results

        last_uses = {view.memory: i for i, operation in enumerate(record.operations) for view in operation.views()}
        if record.result is not None:
            last_uses.pop(record.result.memory, None)
        ending = defaultdict(list)
        for memory, i in last_uses.items():
            if memory not in record.outside:
                ending[i].append(memory)

        heap, begins = _Heap(), dict[int, int]()
        for i, operation in enumerate(record.operations):
            if operation.writes_where_told:
                begins |= {view.memory: heap.take(record.bytes[view.memory]) for view in operation.new}
            for memory in ending[i]:
                if memory in begins:
                    heap.give_back(begins[memory], record.bytes[memory])
        give_back_freed_memory()  # that of the recorded run
        own = torch.UntypedStorage(heap.length)
        self._places = {memory: (own, begin) for memory, begin in begins.items()}
        self._places |= {memory: (tensor.untyped_storage(), 0) for memory, tensor in record.outside.items()}

        for i, operation in enumerate(record.operations):
            self._add(operation)
            self._calls += [(_free, (self._onlookers[m],), {}) for m in ending[i] if m in self._onlookers]
        self._result = None if record.result is None else self._tensor(record.result)

    @torch.no_grad()
    def __call__(self, tensors: Sequence[Tensor]) -> Tensor | None:
        for place, tensor in zip(self.inputs, tensors, strict=True):
            place.copy_(tensor)
        for function, args, kwargs in self._calls:
            function(*args, **kwargs)
        return None if self._result is None else self._result.clone()

    def _add(self, operation: _Operation) -> None:
        function, new = operation.function, operation.new
        if not operation.writes_where_told:
            self._onlookers |= {view.memory: [] for view in new}
        args, kwargs = tree_map_only(_View, self._tensor, (operation.args, operation.kwargs))
        if function in COPIES:
            self._calls.append((aten.copy_.default, (self._tensor(new[0]), args[0]), {}))
        elif form := operation.writing_form:
            places = dict(zip(form[1], map(self._tensor, new), strict=True))
            self._calls.append((form[0], args, kwargs | places))
        elif function not in EMPTY:
            onlookers = [None if view is None else self._onlookers[view.memory] for view in operation.results]
            self._calls.append((_showing(function, onlookers) if new else function, args, kwargs))

    def _tensor(self, view: _View) -> Tensor:
        if view not in self._tensors:
            tensor = self._tensors[view] = torch.empty(0, dtype=view.dtype)
            if view.memory in self._places:
                view.set(tensor, *self._places[view.memory])
            else:
                self._onlookers[view.memory].append((tensor, view))
        return self._tensors[view]


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


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
