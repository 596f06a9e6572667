"""What torch.compile would run on a GPU, as its compiler plans it: counted, neither generated nor run.

Each graph is traced, differentiated and partitioned as always, on CPU tensors. Then it is turned into one of CUDA
tensors, lowered and scheduled by Inductor for a given card, and what its scheduler plans is counted whenever the graph
is called: fused kernels by the bytes that they read and write, products and convolutions as in `cost_of`. This needs
neither a GPU nor Triton nor a C++ compiler, but the insides of one version of PyTorch.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import flop_registry

from vdvae.counting.cards import Card
from vdvae.counting.cost import Cost, cost_of
from vdvae.counting.tally import Tally

VERSION = "2.13"
"""The PyTorch whose insides these are."""
CUDA = torch.device("cuda:0")


class Kernel(NamedTuple):
    """One kernel, or one call of a library."""

    name: str
    cost: Cost
    dtype: torch.dtype | None
    """What it multiplies."""


class Output(NamedTuple):
    """One result of a graph: a view of one of its inputs, or of memory that it takes."""

    name: str
    """The memory's name, which several results may share."""
    input: int | None
    memory: tuple[int, torch.dtype]
    """Numbers that it holds, and their type."""
    view: tuple[tuple[int, ...], tuple[int, ...], int]
    """Size, strides, offset."""


class Plan(NamedTuple):
    """What a call of a graph does."""

    kernels: list[Kernel]
    outputs: list[Output | None]
    extra_bytes: int
    """The most that it holds at a time beyond what is there when it is called."""


class _Planned(Exception):  # noqa: N818  # no error
    """Ends the compiler's work when the plan is there."""


def can_plan() -> bool:
    """Whether this is a PyTorch whose compiler can be asked for its plan."""
    return torch.__version__.startswith(f"{VERSION}.")


@contextmanager
def planned(tally: Tally) -> Iterator[None]:
    """Inside, what torch.compile compiles is counted by `tally` as planned for its card; results have no numbers, so
    that all tensors must be fake ones.
    """
    with _silence():
        from torch._inductor import compile_fx, decomposition

    original = compile_fx.compile_fx

    def plan(module: fx.GraphModule, inputs: Sequence[Any], **settings: Any) -> Callable[[list[Any]], list[Any]]:
        context = torch._guards.TracingContext.try_get()
        made = plan_of(module, inputs, settings, tally.card)
        if context is not None and context.output_strides is not None:  # by which the backward graph takes them
            context.output_strides.extend(None if one is None else one.view[1] for one in made.outputs)
        return _stand_in(made, tally)

    def compile_by_plan(module: Any, inputs: Any, **settings: Any) -> Any:
        return original(module, inputs, **{"inner_compile": plan, **settings})

    torch._dynamo.reset()  # what was compiled before would run, and what is planned here must not run later
    try:
        with (
            _silence(),
            patch.object(compile_fx, "compile_fx", compile_by_plan),
            patch.object(decomposition, "is_gpu", lambda kind: True),  # a bias gets its gradient by a sum of its own
            torch._functorch.config.patch(enable_autograd_cache=False),
        ):
            yield
    finally:
        torch._dynamo.reset()


@contextmanager
def _silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PyTorch says of its own compiler
        yield


def plan_of(module: fx.GraphModule, inputs: Sequence[Any], settings: dict[str, Any], card: Card) -> Plan:
    """The plan of a traced graph on a card.

    Args:
        module: the graph, of CPU tensors.
        inputs: what it is called with.
        settings: what Inductor gets to know besides.
        card: the GPU that is planned for.
    """
    from torch._inductor import compile_fx, scheduler
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.runtime.hints import DeviceProperties
    from torch._inductor.utils import BoxedBool

    properties = DeviceProperties(
        type="cuda",
        index=0,
        multi_processor_count=card.processors,
        cc=10 * card.capability[0] + card.capability[1],
        major=card.capability[0],
        regs_per_multiprocessor=65_536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
    )
    plans: list[Plan] = []

    def stop(graph: Any) -> None:
        graph.init_wrapper_code()
        graph._update_scheduler()
        plans.append(_read(graph))
        raise _Planned

    settings = {name: value for name, value in settings.items() if name != "compile_region_name"}
    settings["cudagraphs"] = BoxedBool(False)
    with ExitStack() as stack:
        for context in (
            _disable_current_modes(),
            torch._guards.tracing(None),
            DebugContext(),
            patch.object(GraphLowering, "compile_to_module", stop),
            patch.object(DeviceProperties, "create", staticmethod(lambda device: properties)),
            patch.object(scheduler, "has_triton", lambda *device: True),
            patch.object(torch._C, "_conv_determine_backend_memory_format", _memory_format),
            patch.object(Tensor, "copy_", lambda tensor, *source: tensor),  # the one operation that asks for the device
            patch.object(compile_fx, "_check_triton_bf16_support", lambda graph: None),
            _choice_of_kernels(card),
        ):
            stack.enter_context(context)
        module, inputs = _on_cuda(module, inputs)
        try:
            compile_fx._InProcessFxCompile().codegen_and_compile(module, inputs, (), settings)  # type: ignore[arg-type]
        except _Planned:
            return plans[0]
    raise AssertionError("the compiler made no plan")


@contextmanager
def _choice_of_kernels(card: Card) -> Iterator[None]:
    """Inside, kernels for products are written and chosen without Triton and a GPU, on which they would be timed."""
    from torch._inductor import codecache, select_algorithm
    from torch._inductor.choices import InductorChoices
    from torch._inductor.template_heuristics import triton
    from torch.utils import _triton

    def configuration(heuristic: Any, num_stages: int, num_warps: int, **settings: int) -> SimpleNamespace:
        return SimpleNamespace(kwargs=settings, num_stages=num_stages, num_warps=num_warps)

    def one_of_each(_: Any, by_template: dict[str, Iterator[Any]], *others: Any) -> list[Any]:
        return [one for choices in by_template.values() for one in islice(choices, 1)]  # the others are other tilings

    with (
        patch.object(torch.cuda, "get_device_capability", lambda *device: card.capability),
        patch.object(_triton, "triton_hash_with_backend", lambda: ""),
        patch.object(triton.BaseConfigHeuristic, "triton_config", configuration),
        patch.object(codecache.PyCodeCache, "load", lambda *code, **how: SimpleNamespace(__file__="", key="")),
        patch.object(InductorChoices, "_finalize_template_configs", one_of_each),
        patch.object(select_algorithm.AlgorithmSelectorCache, "__call__", _select),
    ):
        yield


def _select(cache: Any, name: str, choices: list[Any], *arguments: Any, **settings: Any) -> Any:
    """The kernel of a product: Triton's, which takes in what follows it, or where there is none, the library's."""
    from torch._inductor import select_algorithm

    for kind in (select_algorithm.TritonTemplateCaller, select_algorithm.ExternKernelCaller):
        if found := next((choice for choice in choices if isinstance(choice, kind)), None):
            return found.output_node(), found
    raise AssertionError(f"{name}: no kernel")


def _memory_format(images: Tensor, weight: Tensor, backend: Any) -> torch.memory_format:
    """How cuDNN lays out what a convolution returns; a PyTorch without it would answer for another library."""
    last = torch.channels_last
    return last if last in map(torch._prims_common.suggest_memory_format, (images, weight)) else torch.contiguous_format


def _on_cuda(module: fx.GraphModule, inputs: Sequence[Any]) -> tuple[fx.GraphModule, list[Any]]:
    """The same graph, and inputs of the same layout, of CUDA tensors: fake ones, which without autograd need no GPU."""

    def moved(thing: Any) -> Any:
        return CUDA if isinstance(thing, torch.device) else thing

    def like(one: Any) -> Any:
        is_tensor = isinstance(one, Tensor)
        return torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=CUDA) if is_tensor else one

    module = copy.deepcopy(module)
    for node in module.graph.nodes:
        node.meta.pop("val", None)
        node.args, node.kwargs = (fx.node.map_aggregate(given, moved) for given in (node.args, node.kwargs))
    module.recompile()
    with FakeTensorMode(allow_non_fake_inputs=True):
        given = [like(one) for one in inputs]
    return module, given


def _read(graph: Any) -> Plan:
    """The plan of a graph that is scheduled."""
    from torch._inductor import ir
    from torch._inductor.memory import prepare_planning_info
    from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode
    from torch.utils._ordered_set import OrderedSet

    kernels = []
    for node in graph.scheduler.nodes:
        is_extern = isinstance(node, ExternKernelSchedulerNode)
        if isinstance(node, NopKernelSchedulerNode) or (is_extern and isinstance(node.node, ir.MultiOutput)):
            continue
        kernels.append(_extern(node) if is_extern else _template(node) if node.is_template() else _fused(node))
    names = list(graph.graph_inputs)
    peak, freeable = prepare_planning_info(
        graph.scheduler.nodes,
        graph.scheduler.name_to_buf,
        graph.scheduler.name_to_fused_node,
        OrderedSet(names),
        OrderedSet(graph.get_output_names()),
    )
    before = sum(one.mpi_buffer.size_free for one in freeable.values())
    return Plan(kernels, [_output(graph, names, one) for one in graph.graph_outputs], peak - before)


def _fused(node: Any) -> Kernel:
    """A kernel that Inductor would write itself, named for the operations that are in it."""
    kind = "sum of" if node.is_reduction() else "fused"
    return Kernel(f"{kind} {' '.join(_operations(node.get_nodes()))}", Cost(1, _traffic(node)), None)


def _template(node: Any) -> Kernel:
    """A product by a kernel that Inductor would write itself, with what is done to its result before it is written."""
    nodes = node.get_nodes()
    name, cost, dtype = _product(next(one for one in nodes if one.is_template()))
    others = _operations([one for one in nodes if not one.is_template()])
    return Kernel(" ".join([name, *(["and", *others] if others else [])]), Cost(1, _traffic(node), cost.flops), dtype)


def _extern(node: Any) -> Kernel:
    """A call of a library: a matrix product, a convolution."""
    if not any(map(_multiplies, node.node.get_origins())):
        return Kernel(str(node.node.get_operation_name()), Cost(1, _traffic(node)), None)
    name, cost, dtype = _product(node)
    if name == "convolution":  # its bias is added, and its weights are laid out, by kernels of their own
        cost = cost._replace(launches=1, bytes=_traffic(node))
    return Kernel(name, cost, dtype)


def _product(node: Any) -> Kernel:
    """A product or convolution as the operation it was traced from."""
    origin = next(one for one in node.node.get_origins() if _multiplies(one))
    args, kwargs = (fx.node.map_arg(given, lambda one: one.meta.get("val")) for given in (origin.args, origin.kwargs))
    name = origin.target._schema.name.partition("::")[2]
    cost = cost_of(origin.target, args, kwargs, origin.meta["val"])
    return Kernel(name, cost, next(one.dtype for one in args if isinstance(one, Tensor)))


def _operations(nodes: Iterable[Any]) -> list[str]:
    """The names of what some nodes do, in the order of the alphabet."""
    origins = (origin.meta.get("original_aten") for one in nodes for origin in one.node.get_origins())
    operations = (one for one in origins if isinstance(one, torch._ops.OpOverload) and not one.is_view)
    return sorted({one._overloadpacket.__name__ for one in operations})


def _traffic(node: Any) -> int:
    return int(node.get_read_write_buffers_sizes())


def _multiplies(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.overloadpacket in flop_registry


def _output(graph: Any, names: list[str], node: Any) -> Output | None:
    from torch._inductor import ir

    if not isinstance(node, ir.IRNode) or not node.has_tensor_output():
        return None
    layout, name = node.get_layout(), node.get_name()
    view = tuple(map(int, layout.size)), tuple(map(int, layout.stride)), int(layout.offset)
    if name in names:
        return Output(name, names.index(name), (0, layout.dtype), view)
    memory = graph.get_buffer(name).get_layout()
    held = 1 + sum((int(size) - 1) * int(stride) for size, stride in zip(memory.size, memory.stride, strict=True))
    return Output(name, None, (held, memory.dtype), view)


def _stand_in(plan: Plan, tally: Tally) -> Callable[[list[Any]], list[Any]]:
    """What is called for the compiled graph: counts its plan, and returns tensors of the right kind."""

    def call(inputs: list[Any]) -> list[Any]:
        given = list(inputs)
        inputs.clear()
        tally.reach(tally.held + plan.extra_bytes)
        for kernel in plan.kernels:
            tally.add(*kernel)
        memories: dict[str, Tensor] = {}
        results: list[Tensor | None] = []
        for output in plan.outputs:
            if output is None:
                results.append(None)
            elif output.input is not None:
                one = given[output.input]
                same = (tuple(one.shape), one.stride(), one.storage_offset()) == output.view
                results.append(one if same else one.as_strided(*output.view))
            else:
                if output.name not in memories:
                    memories[output.name] = torch.empty(output.memory[0], dtype=output.memory[1])
                results.append(memories[output.name].as_strided(*output.view))
        return results

    call._boxed_call = True  # type: ignore[attr-defined]  # it empties the list of its inputs
    return call
