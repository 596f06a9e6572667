"""Which part operations belong to, and what tensors hold."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vdvae.counting.cards import CARDS
from vdvae.counting.tally import Tally


@pytest.fixture
def tally() -> Tally:
    return Tally(CARDS["h100"])


def test_backward_is_told_apart(tally: Tally) -> None:
    weight = torch.ones(3, requires_grad=True)
    with tally:
        loss = (weight * 2).sum()
        tally.part = "update"
        loss.backward()
        weight.grad.zero_()  # type: ignore[union-attr]
    assert set(tally.items) == {
        ("forward", "mul"),
        ("forward", "sum"),
        ("update", "ones_like"),
        ("backward", "mul"),
        ("update", "zero_"),
    }


def test_held_and_peak(tally: Tally) -> None:
    """Views hold nothing of their own, and what is saved for the backward pass is there until then."""
    with FakeTensorMode(), tally:
        x = torch.empty(250, requires_grad=True)
        assert tally.held == 1000
        y = x.exp()  # which saves its result
        z = y.view(10, 25) + 1
        assert tally.held == 3000
        del y
        assert tally.held == 3000
        loss = z.sum()
        del z
        assert tally.held == 1000 + 1000 + 4
        loss.backward()
        del loss
        assert tally.held == 2000  # x and its gradient
        assert tally.peak >= 3000


def test_nothing_is_computed(tally: Tally) -> None:
    """A product for which no machine has memory."""
    with FakeTensorMode(), tally:
        a = torch.empty(1 << 20, 1 << 20)
        a @ a
    assert tally.items["forward", "mm"].flops == 2 << 60
    assert tally.peak == 2 * 4 << 40


def test_products_by_type(tally: Tally) -> None:
    """Products of a size that arithmetic bounds: bf16 runs faster than fp32."""
    seconds = {}
    with FakeTensorMode(), tally:
        for dtype in (torch.float32, torch.bfloat16):
            a = torch.empty(1 << 14, 1 << 14, dtype=dtype)
            tally.items.clear()
            a @ a
            seconds[dtype] = tally.items["forward", "mm"].seconds
    flops = CARDS["h100"].flops
    assert seconds[torch.float32] / seconds[torch.bfloat16] == pytest.approx(flops["bf16"] / flops["fp32"])
