"""What torch.compile would run on a GPU, on functions whose kernels can be counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from measuring.planned import can_plan, planned
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vdvae.counting.cards import CARDS
from vdvae.counting.tally import Tally
from vdvae.fast.compiling import AUTOTUNE

pytestmark = pytest.mark.skipif(not can_plan(), reason="this PyTorch's compiler cannot be asked for its plan")

N = 64
SQUARE = 4 * N * N
"""Bytes of [N, N] in fp32."""


def plan(
    function: Callable[..., Any], *shapes: tuple[int, ...], grad: bool = False, options: dict[str, Any] | None = None
) -> tuple[Tally, Any]:
    """What a compiled function costs on tensors of these shapes, and what it returns."""
    tally = Tally(CARDS["h100"])
    with planned(tally), FakeTensorMode(allow_non_fake_inputs=True), tally:
        tensors = [torch.empty(shape, requires_grad=grad) for shape in shapes]
        compiled = torch.compile(function, dynamic=False, options=options)
        result = compiled(*tensors)
        tally.items.clear()
        del result
        result = compiled(*tensors)  # the second call plans nothing
        if grad:
            result.backward()
    return tally, result


def figures(tally: Tally, part: str = "forward") -> list[tuple[int, int, int]]:
    """Launches, bytes and FLOPs of each kind of kernel, in the order in which they run."""
    return [(i.launches, i.bytes, i.flops) for (its_part, _), i in tally.items.items() if its_part == part]


def test_pointwise_operations_are_one_kernel() -> None:
    tally, result = plan(lambda x: (x.sin() + 1) * 2, (N, N))
    assert figures(tally) == [(1, 2 * SQUARE, 0)]
    assert (result.shape, result.device.type) == ((N, N), "cpu")


def test_a_product_and_what_follows_it() -> None:
    tally, _ = plan(lambda x, w: (x @ w).relu(), (N, N), (N, N))
    assert figures(tally) == [(1, 3 * SQUARE, 2 * N**3), (1, 2 * SQUARE, 0)]


def test_an_autotuned_product_takes_in_what_follows_it() -> None:
    """Reads both factors and the state, and writes the next state and what is done to it, but not the product."""

    def function(x: Tensor, w: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = state + torch.addmm(b, x, w)
        return state, state.relu()

    tally, _ = plan(function, (N, N), (N, N), (N,), (N, N), options=AUTOTUNE)
    assert figures(tally) == [(1, 5 * SQUARE + 4 * N, 2 * N**3)]
    assert list(tally.items) == [("forward", "mm and add addmm relu")]


def test_autotuning_leaves_convolutions_to_the_library() -> None:
    tally, _ = plan(lambda x, w: torch.conv2d(x, w).relu(), (2, 4, N, N), (8, 4, 3, 3), options=AUTOTUNE)
    assert {"convolution", "fused relu"} < {name for _, name in tally.items}  # besides, weights are laid out


def test_a_convolution_keeps_channels_last() -> None:
    """Its weights are laid out first; its bias is added by a fused kernel."""

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.relu(torch.conv2d(x.permute(0, 3, 1, 2), w, b, padding=1))

    tally, y = plan(function, (2, N, N, 4), (8, 4, 3, 3), (8,))
    pixels, weights = 4 * 2 * N * N, 4 * 8 * 4 * 9
    assert sorted(figures(tally)) == [
        (1, 2 * weights, 0),
        (1, pixels * 4 + weights + pixels * 8, 2 * 2 * N * N * 8 * 4 * 9),
        (1, 2 * pixels * 8 + 4 * 8, 0),
    ]
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_results_that_are_inputs_or_share_memory() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = x + 1
        return x, y, y.t()

    tally, (x, y, transposed) = plan(function, (N, 2 * N))
    assert figures(tally) == [(1, 2 * 2 * SQUARE, 0)]
    assert x.shape == y.shape == (N, 2 * N)
    assert (transposed.shape, transposed.stride()) == ((2 * N, N), (1, 2 * N))
    assert transposed.untyped_storage()._cdata == y.untyped_storage()._cdata


def test_the_backward_graph_is_counted_as_such() -> None:
    """It reads the incoming number and what was saved, and writes a gradient."""
    tally, _ = plan(lambda x: x.sin().sum(), (N, N), grad=True)
    assert figures(tally, "backward")[0] == (1, 4 + 2 * SQUARE, 0)
    forward = sum(moved for _, moved, _ in figures(tally))
    assert SQUARE < forward < 1.1 * SQUARE  # it reads x, and writes little: a sum's parts, and the sum


def test_memory_inside_a_graph() -> None:
    """Two products are there together; the graph's results outlive it."""
    before, _ = plan(lambda x: x + 1, (N, N))
    inside, _ = plan(lambda x: (x @ x) @ (x @ x + x).relu() + 1, (N, N))
    assert before.peak < inside.peak <= before.peak + 3 * SQUARE


def test_the_compiler_is_given_back() -> None:
    with planned(Tally(CARDS["h100"])):
        from torch._inductor import compile_fx

        inside = compile_fx.compile_fx
    assert compile_fx.compile_fx is not inside
    assert compile_fx.compile_fx.__module__ == "torch._inductor.compile_fx"
