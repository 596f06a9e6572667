"""Costs that can be counted by hand, in fp32: 4 bytes a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vdvae.counting.cards import BANDWIDTH_SHARE, CARDS, CONVOLUTION_SHARE, LAUNCH_SECONDS, PRODUCT_SHARE
from vdvae.counting.cost import Cost, list_launches
from vdvae.counting.tally import Tally

M, K, N = 6, 5, 7
PIXELS = 2 * 4 * 4
X = PIXELS * 3
"""Numbers of images [2, 3, 4, 4], which a 3x3 convolution with weights [8, 3, 3, 3] makes [2, 8, 4, 4]."""
Y = PIXELS * 8
W = 8 * 3 * 9
CONVOLUTION = 2 * Y * 3 * 9
"""Its floating-point operations."""


def cost(work: Callable[..., Any], *shapes: tuple[int, ...]) -> Cost:
    """What all operations cost of a function of tensors of these shapes."""
    tensors = [torch.zeros(shape) for shape in shapes]
    with Tally(CARDS["h100"]) as tally:
        work(*tensors)
    items = tally.items.values()
    return Cost(*(sum(getattr(item, name) for item in items) for name in ("launches", "bytes", "flops")))


def backward(mask: list[bool]) -> Callable[[Tensor, Tensor, Tensor], object]:
    ones, zeros = [1, 1], [0, 0]
    return lambda g, x, w: torch.ops.aten.convolution_backward(g, x, w, [8], ones, ones, ones, False, zeros, 1, mask)


@pytest.mark.parametrize(
    ("work", "shapes", "expected"),
    [
        (lambda a, b: a + b, [(M, N), (N,)], Cost(1, 4 * (M * N + N + M * N))),
        (lambda a: a + 1, [(M, N)], Cost(1, 4 * 2 * M * N)),
        (lambda a: a.t().reshape(N, M)[1:].unbind(), [(M, N)], Cost()),  # views
        (lambda a: a.expand(M, N) * 2, [(1, N)], Cost(1, 4 * (N + M * N))),
        (lambda a: a.zero_(), [(M, N)], Cost(1, 4 * M * N)),
        (lambda a, b: a.copy_(b), [(M, N), (M, N)], Cost(1, 4 * 2 * M * N)),
        (lambda a, b: a.add_(b), [(M, N), (M, N)], Cost(1, 4 * 3 * M * N)),
        (lambda a: a * a, [(M, N)], Cost(1, 4 * 2 * M * N)),  # reads it once
        (torch.zeros_like, [(M, N)], Cost(1, 4 * M * N)),
        (torch.empty_like, [(M, N)], Cost()),
        (torch.mm, [(M, K), (K, N)], Cost(1, 4 * (M * K + K * N + M * N), 2 * M * K * N)),
        (torch.addmm, [(N,), (M, K), (K, N)], Cost(1, 4 * (N + M * K + K * N + M * N), 2 * M * K * N)),
        # A sum that is not a row is copied first.
        (torch.addmm, [(M, N), (M, K), (K, N)], Cost(2, 4 * (4 * M * N + M * K + K * N), 2 * M * K * N)),
        (Tensor.addmm_, [(M, N), (M, K), (K, N)], Cost(1, 4 * (2 * M * N + M * K + K * N), 2 * M * K * N)),
        (
            lambda x, w: F.conv2d(x, w, padding=1),
            [(2, 3, 4, 4), (8, 3, 3, 3)],
            Cost(1, 4 * (X + W + Y), CONVOLUTION),
        ),
        (
            lambda x, w, b: F.conv2d(x, w, b, padding=1),
            [(2, 3, 4, 4), (8, 3, 3, 3), (8,)],
            Cost(2, 4 * (X + W + 8 + Y + 2 * Y), CONVOLUTION),
        ),
        (
            backward([True, True, True]),
            [(2, 8, 4, 4), (2, 3, 4, 4), (8, 3, 3, 3)],
            Cost(3, 4 * (Y + W + X + Y + X + W + Y + 8), 2 * CONVOLUTION),
        ),
        (
            backward([False, True, False]),
            [(2, 8, 4, 4), (2, 3, 4, 4), (8, 3, 3, 3)],
            Cost(1, 4 * (Y + X + W), CONVOLUTION),
        ),
    ],
)
def test_by_hand(work: Callable[..., Any], shapes: list[tuple[int, ...]], expected: Cost) -> None:
    assert cost(work, *shapes) == expected


def test_weights_that_cudnn_would_lay_out() -> None:
    """Once forward and once backward, where images have their channels last and weights do not."""
    x = torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    w = torch.zeros(8, 3, 3, 3)
    y = F.conv2d(x, w, padding=1)
    costs = []
    for weight in (w, w.contiguous(memory_format=torch.channels_last)):
        costs.append(cost(lambda weight=weight: F.conv2d(x, weight, padding=1)))
        costs.append(cost(lambda weight=weight: backward([True, True, True])(y, x, weight)))
    forward, back, forward_last, back_last = costs
    assert forward == forward_last._replace(launches=2, bytes=forward_last.bytes + 2 * 4 * W)
    assert back == back_last._replace(launches=4, bytes=back_last.bytes + 2 * 4 * W)


def test_fused_adamw_writes_gradients_only_if_it_scales_them() -> None:
    """Weight, two moments and gradient of 10 numbers, and a step."""
    parameter = torch.nn.Parameter(torch.zeros(10))
    parameter.grad = torch.zeros(10)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    optimizer.step()
    for scale, passes in ((None, 4 + 3), (torch.ones(()), 4 + 4)):
        optimizer.grad_scale = scale  # type: ignore[attr-defined]
        with Tally(CARDS["h100"]) as tally:
            optimizer.step()
        item = tally.items["forward", "_fused_adamw_"]
        assert (item.launches, item.bytes) == (1, 4 * (10 * passes + 1 + (scale is not None)))


def test_launches_of_lists() -> None:
    """Up to 110 tensors of one list, 64 of two, 36 of four; up to 320 chunks of 65,536 numbers."""

    def lists(count: int, tensors: int, numbers: int = 1) -> list[list[Tensor]]:
        return [[torch.empty(numbers, device="meta") for _ in range(tensors)] for _ in range(count)]

    assert [list_launches(lists(1, n)) for n in (110, 111, 220, 221)] == [1, 2, 2, 3]
    assert [list_launches(lists(2, n)) for n in (64, 65)] == [1, 2]
    assert [list_launches(lists(4, n)) for n in (36, 37)] == [1, 2]
    assert [list_launches(lists(1, 1, n)) for n in (320 * 65_536, 320 * 65_536 + 1)] == [1, 2]
    assert list_launches(lists(1, 3, 200 * 65_536)) == 2  # 600 chunks


def test_lists_that_do_not_match_are_done_one_by_one() -> None:
    """As on CUDA: other strides, even of a dimension of one, or another type, but for a copy."""
    plain = [torch.empty(4, 3, 2, 2, device="meta") for _ in range(5)]
    last = [tensor.to(memory_format=torch.channels_last) for tensor in plain]
    half = [tensor.half() for tensor in plain]
    assert list_launches([plain, plain]) == 1
    assert list_launches([plain, last]) == 5
    assert list_launches([plain, half]) == 5
    assert list_launches([plain, half], "_foreach_copy_") == 1


def test_the_slowest_of_three_bounds_a_kernel() -> None:
    card = CARDS["h100"]
    assert card.seconds("add", Cost(3, 1, 0), "fp32") == 3 * LAUNCH_SECONDS
    assert card.seconds("add", Cost(1, 10**9, 0), "fp32") == 10**9 / (BANDWIDTH_SHARE * card.bandwidth)
    assert card.seconds("mm", Cost(1, 1, 10**12), "bf16") == 10**12 / (PRODUCT_SHARE * card.flops["bf16"])
    assert card.seconds("convolution", Cost(1, 1, 10**12), "fp32") == 10**12 / (CONVOLUTION_SHARE * card.flops["fp32"])
    assert "bf16" not in CARDS["v100"].flops
