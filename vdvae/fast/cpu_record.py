"""The recorder of a CPU: a list of operations, without the Python, the autograd graph, the views and the allocator
around them. Each has the tensors that it reads and writes, in memory that was dealt out beforehand.
"""

from __future__ import annotations

import weakref
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vdvae.fast.allocator import give_back_freed_memory

aten = torch.ops.aten
COPIES = {aten.clone.default, aten._to_copy.default}
ALIGNMENT = 64
"""The alignment of memory in bytes, that of PyTorch's own allocator."""
EMPTY = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default}


def record(
    work: Callable[[], Any], inputs: Sequence[Tensor], changed: Sequence[Tensor], generator: torch.Generator
) -> tuple[Any, Callable[[Sequence[Tensor]], Any]]:
    """Records `work` on a CPU: its result, and a function that does the same again for other values of `inputs`.

    Args:
        work: the function to record; returns tensors, in any nesting.
        inputs: the tensors that it reads and whose values differ in each call.
        changed: the other tensors that it changes.
        generator: the one that an operation may draw numbers from, besides PyTorch's own.

    Raises:
        ValueError: it did what no record can repeat.
    """
    seen = _Record(inputs, changed, generator)
    with seen:
        returned = tree_map_only(Tensor, torch.detach, work())
    seen.returned = tree_map_only(Tensor, seen.view, returned)
    return tree_map_only(Tensor, torch.clone, returned), _Planned(seen)


class _Planned:
    """A record that is given memory when it is repeated for the first time, because some kinds of inputs come once."""

    def __init__(self, seen: _Record) -> None:
        self._made: _Record | _Program = seen

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        if isinstance(self._made, _Record):
            self._made = _Program(self._made)
        return self._made(tensors)


@dataclass(frozen=True)
class _View:
    """A tensor of the recorded work: how it looked at which memory."""

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
    """An operation that read or wrote memory; views did not. Arguments have a `_View` in the place of every tensor."""

    function: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[_View | None]
    """The tensors that it returned; None for those on the memory of its arguments."""

    @property
    def new(self) -> list[_View]:
        """Results on memory that it began."""
        return [view for view in self.results if view is not None]

    @property
    def writing_form(self) -> tuple[OpOverload, list[str]] | None:
        """The form that `_writing_form` finds; None also for several results, which not every such form writes as it
        should, and where the operation returned none.
        """
        form = _writing_form(self.function)
        return form if form and len(form[1]) == len(self.new) == 1 else None

    @property
    def writes_where_told(self) -> bool:
        """Whether its results can be put on memory that is there."""
        return self.function in COPIES | EMPTY or self.writing_form is not None

    def views(self) -> Iterator[_View]:
        """The views among its arguments and results."""
        return (leaf for leaf in tree_leaves((self.args, self.kwargs, self.results)) if isinstance(leaf, _View))


class _Record(TorchDispatchMode):
    """The operations of this thread from entering to leaving, in order."""

    def __init__(self, inputs: Sequence[Tensor], changed: Sequence[Tensor], generator: torch.Generator) -> None:
        super().__init__()
        self.inputs = inputs
        """The tensors that the function was given, and is given anew every time."""
        self.generator = generator
        self.operations: list[_Operation] = []
        self.bytes: list[int] = []
        """The size of each memory."""
        self.outside: dict[int, Tensor] = {}
        """A tensor on each memory that an operation found but none made; kept, so that it is not given away."""
        self.returned: Any = None
        """The value that the function returned, with a `_View` in the place of every tensor."""
        self._memories: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}  # by address, while they live
        self._may_change = {_address(tensor) for tensor in (*inputs, *changed)}  # the former are looked at later

    def view(self, tensor: Tensor) -> _View:
        """The view that a tensor is, of memory that is known from then on."""
        if tensor.device.type != "cpu":
            raise ValueError(f"a function that works on {tensor.device.type} cannot be recorded on a CPU")
        if tensor.is_conj() or tensor.is_neg():
            raise ValueError("a function that conjugates tensors without computing it cannot be recorded")
        memory = self._memory(tensor)
        if memory is None:
            self.outside[len(self.bytes)] = tensor
            memory = self._begin_memory(tensor)
        return _View(memory, tensor.dtype, int(tensor.storage_offset()), tensor.size(), tensor.stride())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.inplace_view in function.tags:
            raise ValueError(f"a function that changes the shape of a tensor in place cannot be recorded: {function}")
        if function is aten.lift_fresh.default:  # a constant made by Python, which the function may change
            function = aten.clone.default
        args_views, kwargs_views = tree_map_only(Tensor, self.view, (args, kwargs))
        given = {_address(tensor) for tensor in _tensors((args, kwargs))}
        for tensor in _written(function, args, kwargs):
            if self._memory(tensor) in self.outside and _address(tensor) not in self._may_change:
                raise ValueError(
                    "a recorded function changes a tensor from elsewhere that it was not told of: "
                    f"{function.name()} on {list(tensor.shape)}"
                )
        returned = (function if kwargs.get("generator") is None else partial(self._draw, function))(*args, **kwargs)
        results: list[_View | None] = []
        for tensor in _tensors(returned):
            is_new = _address(tensor) not in given
            if is_new:
                self._begin_memory(tensor)
            results.append(self.view(tensor) if is_new else None)
        if function._schema.is_mutable or any(results):
            self.operations.append(_Operation(function, args_views, kwargs_views, results))
        return returned

    def _draw(self, function: OpOverload, *args: Any, **kwargs: Any) -> Any:
        """What an operation with a generator returns. That arrives here as another object: its state tells which."""
        before = self.generator.get_state()
        returned = function(*args, **kwargs)
        if any(tensor.numel() for tensor in _tensors(returned)) and torch.equal(before, self.generator.get_state()):
            raise ValueError("a recorded function draws its noise from the generator it is given, and no other")
        return returned

    def _memory(self, tensor: Tensor) -> int | None:
        """The memory of a tensor, if an operation has seen it."""
        memory, storage = self._memories.get(_address(tensor), (None, None))
        return memory if storage and storage() is not None else None  # another may be where one was that is gone

    def _begin_memory(self, tensor: Tensor) -> int:
        self._memories[_address(tensor)] = len(self.bytes), weakref.ref(tensor.untyped_storage())
        self.bytes.append(tensor.untyped_storage().nbytes())
        return len(self.bytes) - 1


class _Heap:
    """Places for memory that is needed for a while, in one piece that is as long as it has to be."""

    def __init__(self) -> None:
        self.length = 0
        """The length of the piece, in bytes."""
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
        """Frees `size` bytes that `take` gave out at `begin`."""
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

    Memory is given to a later operation once its last reader has run. An operation that cannot write to given memory
    puts its results on memory of its own.
    """

    def __init__(self, record: _Record) -> None:
        self.inputs = record.inputs
        self._calls: list[Callable[[], Any]] = []
        self._tensors: dict[_View, Tensor] = {}
        self._onlookers: dict[int, list[tuple[Tensor, _View]]] = {}  # tensors on the memory of results

        last_uses = {view.memory: i for i, operation in enumerate(record.operations) for view in operation.views()}
        for view in tree_leaves(record.returned):
            if isinstance(view, _View):
                last_uses.pop(view.memory, None)
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
            self._calls += [partial(_free, self._onlookers[m]) for m in ending[i] if m in self._onlookers]
        self._returned = tree_map_only(_View, self._tensor, record.returned)

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        with torch.inference_mode():
            for place, tensor in zip(self.inputs, tensors, strict=True):
                place.copy_(tensor)
            for call in self._calls:
                call()
        return tree_map_only(Tensor, torch.clone, self._returned)

    def _add(self, operation: _Operation) -> None:
        function, new = operation.function, operation.new
        if not operation.writes_where_told:
            self._onlookers |= {view.memory: [] for view in new}
        args, kwargs = tree_map_only(_View, self._tensor, (operation.args, operation.kwargs))
        if function in COPIES:
            self._calls.append(partial(aten.copy_.default._op, self._tensor(new[0]), args[0]))
        elif form := operation.writing_form:
            places = dict(zip(form[1], map(self._tensor, new), strict=True))
            self._calls.append(partial(form[0]._op, *args, **kwargs, **places))
        elif function not in EMPTY:
            onlookers = [None if view is None else self._onlookers[view.memory] for view in operation.results]
            call = _showing(function._op, onlookers) if new else function._op
            self._calls.append(partial(call, *args, **kwargs))

    def _tensor(self, view: _View) -> Tensor:
        if view not in self._tensors:
            tensor = self._tensors[view] = torch.empty(0, dtype=view.dtype)
            if view.memory in self._places:
                view.set(tensor, *self._places[view.memory])
            else:
                self._onlookers[view.memory].append((tensor, view))
        return self._tensors[view]


def _written(function: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among its arguments that an operation writes to."""
    if not function._schema.is_mutable:
        return []
    places = {argument.name for argument in function._schema.arguments if argument.is_write}
    named = dict(zip((argument.name for argument in function._schema.arguments), args, strict=False)) | kwargs
    return _tensors([value for name, value in named.items() if name in places])


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@cache
def _writing_form(function: OpOverload) -> tuple[OpOverload, list[str]] | None:
    """The form of an operation that writes its results to given tensors, and the names of these arguments; None where
    there is none, or one that only copies the result.
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
