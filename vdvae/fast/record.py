"""A function of tensors that is recorded once and then repeated from its record: one class, two recorders.

A deep and narrow model spends much of its time not on arithmetic but around it: in Python, in autograd's graph, in the
allocator, in launching kernels. None of that depends on the values, so it need not be done again. On a CPU the record
is a list of operations (`cpu_record`), on a GPU a CUDA graph (`cuda_graph`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from vdvae.fast import cpu_record, cuda_graph
from vdvae.runtime.precision import matmul_precision

Result = TypeVar("Result")
MOST_KINDS = 64
_thread = threading.local()


class Recorded(Generic[Result]):
    """A function that runs once for each kind of arguments, and is then repeated from its record, to the same bits.

    Arguments are of one kind if their tensors have the same shapes, strides and dtypes, their numbers the same types
    and values, and grad mode and autocast are the same. The result belongs to the caller: no gradient flows through it,
    and no later call changes it. Other tensors that the function reads or changes must stay at their addresses;
    `watched` lists them, and if one has moved, everything is recorded anew. Python objects are not looked at again,
    except those that `watched` lists too. Records of the last `MOST_KINDS` kinds are kept. Threads take turns. Inside
    another recording, the function itself is called.

    Args:
        function: takes tensors and numbers, and last a generator, the source of all its noise; returns tensors,
            in any nesting, or None.
        watched: lists the tensors that the function reads besides its arguments, such as weights and gradients, and
            any other objects that must equal what they were.
        changed: the tensors of `watched` that the function changes.
        device: the device of all tensors; the CPU if None.

    Raises:
        ValueError: in the first call of a kind, for what no record can repeat: the function reads a value out of a
            tensor (`item`, `tolist`, `numpy`, `equal`), makes a tensor whose shape depends on values, changes an
            argument or a tensor that is not in `changed`, or takes or returns anything else than above.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        watched: Callable[[], Iterable[object]],
        changed: Sequence[Tensor] = (),
        device: torch.device | None = None,
    ) -> None:
        self.function = function
        self.watched = watched
        self.changed = changed
        self.device = device or torch.device("cpu")
        self.generator = torch.Generator(self.device)
        self._lock = threading.Lock()
        self._found: list[object] = []
        self._records: dict[object, Callable[[Sequence[Tensor]], Any]] = {}

    def __call__(self, *arguments: Any) -> Result:
        """Returns function(*arguments)."""
        if getattr(_thread, "is_recording", False):
            return self.function(*arguments)
        with self._lock:
            return self._call(arguments)

    def _call(self, arguments: tuple[Any, ...]) -> Result:
        inputs, generator = arguments[:-1], arguments[-1]
        if not isinstance(generator, torch.Generator):
            raise ValueError(f"a recorded function takes a torch.Generator last, not {type(generator).__name__}")
        leaves, structure = tree_flatten(inputs)
        kind = (structure, _ambient(self.device), *map(_kind, leaves))
        found = list(map(_place, self.watched()))
        if found != self._found:
            self._records.clear()
            self._found = found
        self.generator.set_state(generator.get_state())
        if kind in self._records:
            result = self._records[kind]([leaf for leaf in leaves if isinstance(leaf, Tensor)])
        else:
            result = self._record(inputs, kind)
        generator.set_state(self.generator.get_state())
        return cast("Result", result)

    def _record(self, inputs: tuple[Any, ...], kind: object) -> Any:
        own = tree_map_only(Tensor, torch.clone, inputs)
        tensors = [leaf for leaf in tree_leaves(own) if isinstance(leaf, Tensor)]
        recorder = cuda_graph.record if self.device.type == "cuda" else cpu_record.record

        def work() -> Any:
            without = [t for t in self.watched() if isinstance(t, Tensor) and t.is_leaf and t.grad is None]
            with _without_numbers() if self.device.type == "cpu" else nullcontext():
                result = self.function(*own, self.generator)
            if any(tensor.grad is not None for tensor in without):
                raise ValueError("a recorded function adds to gradients that are there; give weights a .grad before")
            for leaf in tree_leaves(result):
                if not (leaf is None or isinstance(leaf, Tensor)):
                    raise ValueError(f"a recorded function returns tensors, and no {type(leaf).__name__} among them")
            if any(not tensor.is_inference() and tensor._version for tensor in tensors):
                raise ValueError("a recorded function must not change its arguments; have it return the result")
            return result

        torch.clear_autocast_cache()  # whose copies of weights are no weights
        _thread.is_recording = True
        try:
            result, record = recorder(work, tensors, self.changed, self.generator)
        finally:
            _thread.is_recording = False
        if len(self._records) == MOST_KINDS:
            del self._records[next(iter(self._records))]
        self._records[kind] = record
        return result


LOOKS = "a function that looks at a number cannot be recorded, because the next one can be another"
LEAVING = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.__deepcopy__}
"""Methods that take numbers out of a tensor without an operation."""
MASKS = (torch.bool, torch.uint8)


@contextmanager
def _without_numbers() -> Iterator[None]:
    """Refuses what looks at numbers, on a CPU. A CUDA graph refuses it by itself, and would be one of eager operations:
    torch.compile leaves aside what runs in such a mode.
    """
    with _Closed(), _Steady():
        yield


class _Closed(TorchFunctionMode):
    """Lets no number out of a tensor past the operations."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in LEAVING:
            raise ValueError(f"{LOOKS}: {function.__name__}")
        return function(*args, **(kwargs or {}))


class _Steady(TorchDispatchMode):
    """Refuses operations that look at numbers, or whose results have a shape that depends on them."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.data_dependent_output in function.tags:
            raise ValueError(f"{LOOKS}: {function.name()}")
        indexes = function is torch.ops.aten.index.Tensor and not any(
            i.dtype in MASKS for i in args[1] if i is not None
        )
        if torch.Tag.dynamic_output_shape in function.tags and not indexes:
            raise ValueError(f"a function that makes a shape of numbers cannot be recorded: {function.name()}")
        return function(*args, **(kwargs or {}))


def _place(thing: object) -> object:
    if isinstance(thing, Tensor):
        return thing.data_ptr(), thing.requires_grad, thing.dtype, thing.stride()
    return thing


def _kind(value: object) -> object:
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(
                "arguments of a recorded function must not require gradients, which end there; detach them"
            )
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (bool, int, float, str, type(None))):
        return type(value), repr(value)  # 0.0 and -0.0 are equal
    raise ValueError(f"a recorded function takes tensors, numbers and a generator, not {type(value).__name__}")


def _ambient(device: torch.device) -> object:
    """The modes of PyTorch that change what a function does with its arguments."""
    autocast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()
    return modes, autocast, matmul_precision()
