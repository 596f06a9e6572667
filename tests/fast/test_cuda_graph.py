"""The recorder of a GPU with stand-ins for CUDA's streams and graphs: what it asks of them, and what it says."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import refuses
from vdvae.errors import UserError
from vdvae.fast import Recorded, cuda_graph


class Stream:
    def __init__(self, *_: object) -> None: ...

    def wait_stream(self, _other: object) -> None: ...


class Graph:
    """A CUDA graph that does its work at once, and again when it is replayed."""

    number = 0

    def __init__(self) -> None:
        self.its_pool: object = None

    def register_generator_state(self, _generator: torch.Generator) -> None: ...

    def pool(self) -> object:
        return self.its_pool

    def replay(self) -> None: ...


@contextmanager
def capture(graph: Graph, pool: object, capture_error_mode: str) -> Iterator[None]:
    """Whose end fails too where something within it has failed, as that of PyTorch does."""
    assert capture_error_mode == "thread_local"
    Graph.number += 1
    graph.its_pool = pool or f"pool {Graph.number}"
    try:
        yield
    except BaseException:
        raise RuntimeError("CUDA error: the capture was invalidated")  # noqa: B904


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.Stream", Stream)
    monkeypatch.setattr("torch.cuda.current_stream", Stream)
    monkeypatch.setattr("torch.cuda.stream", nullcontext)
    monkeypatch.setattr("torch.cuda.CUDAGraph", Graph)
    monkeypatch.setattr("torch.cuda.graph", capture)


def record(work: Callable[[], Any], changed: Sequence[Tensor] = ()) -> Callable[[Sequence[Tensor]], Any]:
    return cuda_graph.record(work, [], changed, torch.Generator())[1]


def pool_of(repeat: Any) -> object:
    (graph,) = (cell.cell_contents for cell in repeat.__closure__ if isinstance(cell.cell_contents, Graph))
    return graph.pool()


def test_recording_changes_nothing_that_stays() -> None:
    total = torch.ones(2)
    record(lambda: total.add_(1), [total])
    assert total.tolist() == [1, 1]


def test_graphs_that_are_in_use_share_their_memory() -> None:
    """A pool whose graphs are all gone is not used again, which PyTorch ends on: `use_count > 0 INTERNAL ASSERT`."""
    first = record(lambda: None)
    second = record(lambda: None)
    assert pool_of(first) == pool_of(second)
    old = pool_of(second)
    del first
    assert pool_of(record(lambda: None)) == old
    del second
    gc.collect()
    assert pool_of(record(lambda: None)) != old


def test_what_cannot_be_captured_is_one_line() -> None:
    """The first error, not that of the capture's end; the runs before the capture are without it."""
    runs = 0

    def work() -> None:
        nonlocal runs
        runs += 1
        if runs > cuda_graph.WARM_UPS:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")

    with refuses("CUDA graph: not permitted when stream is capturing; train.cuda_graph=false", UserError) as _:
        record(work)


def test_what_is_compiled_stays_compiled_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile steps aside where a dispatch mode sees each operation, as it does in the record of a CPU."""
    compiled = []

    def compiler(module: torch.fx.GraphModule, _inputs: object) -> Callable[..., Any]:
        compiled.append(module)
        return module.forward

    @torch.compile(backend=compiler)
    def double(x: Tensor) -> Tensor:
        return 2 * x

    monkeypatch.setattr(cuda_graph, "record", lambda work, *_: (work(), lambda _tensors: None))
    recorded = Recorded(lambda x, _generator: double(x), list)
    recorded.device = torch.device("cuda")
    assert recorded(torch.ones(2), torch.Generator()).tolist() == [2, 2]
    assert len(compiled) == 1
