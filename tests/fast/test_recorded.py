"""Functions repeated from their record against the functions themselves, to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdvae.replay import Replay, _Heap


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=noise(seed))


class Work:
    """Forward and backward pass of a small network with views, noise, a sum on the way, and several dtypes."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 8, 1))
        self.gradients = [torch.zeros_like(p) for p in self.net.parameters()]
        self.seen = torch.zeros(())

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        y = self.net(x)
        mean, log_std = y.chunk(2, 1)
        z = mean + log_std.exp() * torch.randn(mean.shape, generator=generator)
        pooled = F.avg_pool2d(F.pad(z, (1, 1, 1, 1)), 2).permute(0, 2, 3, 1).reshape(len(x), -1)
        loss = torch.where(pooled > 0, pooled, pooled.square()).sum() + (y[:, :2].double() ** 2).mean()
        found = torch.autograd.grad(loss, list(self.net.parameters()))
        for gradient, new in zip(self.gradients, found, strict=True):
            gradient += new
        self.seen += len(x)
        return pooled.detach()


def test_the_same_bits_as_the_function() -> None:
    """Results, what is changed in place, and the generator's state; on new numbers, new weights, a second shape."""
    work, replayed = Work(), Work()
    replay = Replay(replayed)
    for step, batch in enumerate([4, 4, 2, 4, 2, 4]):
        x = random(batch, 3, 6, 6, seed=step)
        generators = noise(step), noise(step)
        expected, result = work(x, generators[0]), replay(x, generators[1])
        assert result is not None
        assert torch.equal(expected, result)
        assert torch.equal(generators[0].get_state(), generators[1].get_state())
        assert torch.equal(work.seen, replayed.seen)
        for a, b in zip(work.gradients, replayed.gradients, strict=True):
            assert torch.equal(a, b)
        with torch.no_grad():
            for net, gradients in ((work.net, work.gradients), (replayed.net, replayed.gradients)):
                for p, gradient in zip(net.parameters(), gradients, strict=True):
                    p.sub_(0.01 * gradient)


def test_the_function_runs_once_for_each_shape_and_number() -> None:
    calls = []

    def times(x: Tensor, factor: int, generator: torch.Generator) -> Tensor:
        calls.append((len(x), factor))
        return factor * x

    replay = Replay(times)
    for batch, factor in ((3, 2), (3, 2), (5, 2), (3, 4), (3, 2), (5, 2), (3, 4)):
        result = replay(torch.full((batch,), 7.0), factor, noise(0))
        assert result is not None
        assert torch.equal(result, torch.full((batch,), 7.0 * factor))
    assert calls == [(3, 2), (5, 2), (3, 4)]


def test_a_result_outlives_the_next_call() -> None:
    weight = torch.ones(4, requires_grad=True)
    replay = Replay(lambda x, generator: x + weight)
    results = [replay(torch.full((4,), float(i)), noise(0)) for i in range(4)]
    assert torch.equal(torch.stack([r for r in results if r is not None])[:, 0], torch.arange(1.0, 5.0))
    assert not any(r.requires_grad for r in results if r is not None)


def test_memory_is_shared_out() -> None:
    """A long chain needs no more than the two tensors of which one is made from the other."""

    def chain(x: Tensor, generator: torch.Generator) -> Tensor:
        for _ in range(50):
            x = x + 1
        return x.sum()

    replay = Replay(chain)
    for _ in range(2):
        assert replay(torch.zeros(1000), noise(0)) == 50_000
    (program,) = replay._known.values()
    (length,) = {storage.nbytes() for storage, _ in program._places.values()} - {4000}  # type: ignore[union-attr]
    assert length == 2 * 4032


def test_places_in_a_heap_do_not_overlap() -> None:
    """And all of it is one hole when everything is given back."""
    heap, taken = _Heap(), dict[int, int]()
    sizes = torch.randint(0, 2000, (500,), generator=noise(0)).tolist()
    for i, size in enumerate(sizes):
        taken[heap.take(size)] = size
        if i % 3:
            begin = sorted(taken)[i % len(taken)]
            heap.give_back(begin, taken.pop(begin))
        ends = [begin + size for begin, size in sorted(taken.items())]
        assert all(end <= begin for end, begin in zip(ends, sorted(taken)[1:], strict=False))
        assert not ends or ends[-1] <= heap.length
    assert heap.length < sum(sizes) / 2
    for begin, size in taken.items():
        heap.give_back(begin, size)
    assert heap._holes == [(0, heap.length)]


def test_a_function_that_works_elsewhere_is_run_every_time() -> None:
    """Here on the device that has no numbers; the noise may come from a CPU generator all the same."""
    calls = []

    def work(generator: torch.Generator) -> Tensor:
        calls.append(torch.randn(4, generator=generator).to("meta") + 1)
        return calls[-1]

    replay = Replay(work)
    for _ in range(3):
        result = replay(noise(0))
        assert result is not None
        assert result.device.type == "meta"
    assert len(calls) == 3


def test_a_function_that_looks_at_a_number_is_refused() -> None:
    replay = Replay(lambda x, generator: x * 2 if x.sum() > 0 else x)
    with pytest.raises(ValueError, match="looks at a number cannot be replayed"):
        replay(torch.ones(3), noise(0))
