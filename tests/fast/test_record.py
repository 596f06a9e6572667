"""Functions repeated from their record against the functions themselves, to the last bit; and what has no record."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conftest import random_model, refuses
from vdvae import fast
from vdvae.config import Config
from vdvae.fast import Recorded
from vdvae.fast.cpu_record import _Heap
from vdvae.runtime.precision import in_fp32, set_matmul_precision


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
    replay = Recorded(replayed, replayed.net.parameters, [*replayed.gradients, replayed.seen])
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

    replay = Recorded(times, list)
    for batch, factor in ((3, 2), (3, 2), (5, 2), (3, 4), (3, 2), (5, 2), (3, 4)):
        result = replay(torch.full((batch,), 7.0), factor, noise(0))
        assert result is not None
        assert torch.equal(result, torch.full((batch,), 7.0 * factor))
    assert calls == [(3, 2), (5, 2), (3, 4)]


def test_a_result_outlives_the_next_call() -> None:
    weight = torch.ones(4, requires_grad=True)
    replay = Recorded(lambda x, generator: x + weight, lambda: [weight])
    results = [replay(torch.full((4,), float(i)), noise(0)) for i in range(4)]
    assert torch.equal(torch.stack([r for r in results if r is not None])[:, 0], torch.arange(1.0, 5.0))
    assert not any(r.requires_grad for r in results if r is not None)


def test_memory_is_shared_out() -> None:
    """A long chain needs no more than the two tensors of which one is made from the other."""

    def chain(x: Tensor, generator: torch.Generator) -> Tensor:
        for _ in range(50):
            x = x + 1
        return x.sum()

    replay = Recorded(chain, list)
    for _ in range(2):
        assert replay(torch.zeros(1000), noise(0)) == 50_000
    record: Any = next(iter(replay._records.values()))
    (length,) = {storage.nbytes() for storage, _ in record._made._places.values()} - {4000}
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


def test_a_function_that_works_elsewhere_is_refused() -> None:
    """Here on the device that has no numbers."""
    with refuses("meta CPU"):
        Recorded(lambda generator: torch.randn(4, generator=generator).to("meta") + 1, list)(noise(0))


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x * 2 if x.sum() > 0 else x,
        lambda x: x * x.sum().item(),
        lambda x: x * float(x[0]),
        lambda x: x * x.tolist()[0],
        lambda x: x * x.numpy()[0],
        lambda x: x * 2 if torch.equal(x, x + 1) else x,
        lambda x: x * 2 if torch.allclose(x, x + 1) else x,
        lambda x: x * 2 if 3.0 in x else x,
    ],
)
def test_a_function_that_looks_at_a_number_is_refused(look: Callable[[Tensor], Tensor]) -> None:
    replay = Recorded(lambda x, generator: look(x), list)
    for _ in range(2):  # nothing is kept of what was refused
        with refuses("looks number recorded"):
            replay(torch.ones(3), noise(0))


@pytest.mark.parametrize(
    "shape",
    [
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: torch.where(x > 0)[0],
        lambda x: x.repeat_interleave(x.long()),
    ],
)
def test_a_shape_that_depends_on_numbers_is_refused(shape: Callable[[Tensor], Tensor]) -> None:
    with refuses("shape recorded"):
        Recorded(lambda x, generator: shape(x), list)(torch.ones(3), noise(0))


def test_indices_that_are_numbers_have_a_shape() -> None:
    replay = Recorded(lambda x, i, generator: x[i] + 1, list)
    for shift in range(4):
        i = torch.tensor([0, 2]) + shift
        assert torch.equal(replay(torch.arange(6.0), i, noise(0)), torch.arange(6.0)[i] + 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.ones(3, requires_grad=True),), "require gradients"),
        (([object()],), "tensors numbers generator object"),
    ],
)
def test_arguments_that_are_refused(arguments: tuple[object, ...], words: str) -> None:
    with refuses(words):
        Recorded(lambda x, generator: torch.ones(3), list)(*arguments, noise(0))


def test_a_function_that_changes_its_argument_or_returns_a_number_is_refused() -> None:
    with refuses("change arguments"):
        Recorded(lambda x, generator: x.add_(1), list)(torch.ones(3), noise(0))
    with refuses("tensors int"):
        Recorded(lambda x, generator: (x, 3), list)(torch.ones(3), noise(0))


weight = torch.full((3,), 7.0)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, generator: x,
        lambda x, generator: x[1:],
        lambda x, generator: x.view(3, 1).t(),
        lambda x, generator: weight,
        lambda x, generator: (x + 1).expand(2, 3),
        lambda x, generator: torch.zeros(3),
    ],
)
def test_results_are_the_callers_own(function: Callable[..., Tensor]) -> None:
    """A view of an argument, a tensor from elsewhere, an intermediate: no call changes what an earlier one gave."""
    replay = Recorded(function, lambda: [weight])
    results = [replay(torch.full((3,), float(i)), noise(0)) for i in range(5)]
    for i, result in enumerate(results):
        assert torch.equal(result, function(torch.full((3,), float(i)), noise(0)))
    for result in results:
        result.fill_(99)  # of the caller
    assert torch.equal(weight, torch.full((3,), 7.0))
    assert torch.equal(replay(torch.full((3,), 5.0), noise(0)), function(torch.full((3,), 5.0), noise(0)))


def test_numbers_are_told_apart_by_their_types_and_signs() -> None:
    def typed(x: Tensor, number: Any, generator: torch.Generator) -> Tensor:
        return x + torch.tensor([len(str(number)), float(number)]) + (1 / x.new_tensor(number) if number == 0 else 0)

    replay = Recorded(typed, list)
    for _ in range(3):
        for number in (1, 1.0, True, 0.0, -0.0, 2**70, "12"):
            expected, found = (function(torch.ones(2), number, noise(0)) for function in (typed, replay))
            assert torch.equal(expected, found), repr(number)


def test_dtypes_and_layouts_are_told_apart() -> None:
    replay = Recorded(lambda x, generator: x.flatten() / 2, list)
    x = torch.arange(6.0).view(2, 3)
    for _ in range(3):
        for given in (x, x.double(), x.long(), x.t(), x.t().contiguous(), x[:, :1], x.expand(2, 2, 3)):
            assert torch.equal(replay(given, noise(0)), given.flatten() / 2)
            assert replay(given, noise(0)).dtype == (given / 2).dtype


def test_gradients_and_autocast_are_told_apart() -> None:
    layer = nn.Linear(3, 2)
    replay = Recorded(lambda x, generator: layer(x), lambda: layer.parameters())
    x = random(4, 3, seed=0)
    for _ in range(3):
        assert replay(x, noise(0)).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert replay(x, noise(0)).dtype == torch.bfloat16
        with torch.no_grad():
            assert replay(x, noise(0)).dtype == torch.float32
        with torch.inference_mode():
            assert torch.equal(replay(x, noise(0)), layer(x))


def test_precisions_of_products_are_told_apart() -> None:
    """A record keeps the kernels that were chosen when it was made."""
    layer = nn.Linear(3, 2)
    set_matmul_precision("fp32")
    calls: list[int] = []
    replay = Recorded(lambda x, generator: calls.append(len(x)) or layer(x), lambda: layer.parameters())  # type: ignore[func-returns-value]
    for _ in range(2):
        replay(random(4, 3, seed=0), noise(0))
        with in_fp32():
            replay(random(4, 3, seed=0), noise(0))
    assert calls == [4]
    set_matmul_precision("tf32")
    try:
        for _ in range(2):
            replay(random(4, 3, seed=0), noise(0))
            with in_fp32():
                replay(random(4, 3, seed=0), noise(0))
    finally:
        set_matmul_precision("fp32")
    assert calls == [4, 4]


def test_a_model_that_decodes_is_recorded(tiny: Config) -> None:
    """Its own checks of latents look at no number then, and its refusals are its own."""
    model = fast.prepare(random_model(tiny.model))
    images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    with torch.no_grad():
        z = model.encode(images)[0].z
        decode = fast.recorded(lambda z, noise: model.decode([z], output="mean", generator=noise), model)
        for _ in range(2):
            assert torch.equal(decode(z, noise(0)), model.decode([z], output="mean", generator=noise(0)))
        forward = fast.recorded(lambda images, noise: model(images, noise).nats_per_dim, model)
        with refuses("uint8 int64"):
            forward(images.long(), noise(0))


def test_weights_that_are_replaced_are_noticed() -> None:
    """By `.data`, by a load that assigns, by a new parameter, by another dtype; and one that is frozen."""
    linear = nn.Linear(3, 2)
    net = nn.Sequential(linear)
    replay = Recorded(lambda x, generator: net(x.to(linear.weight.dtype)), net.parameters)
    x = random(4, 3, seed=0)

    def check() -> None:
        for _ in range(3):
            assert torch.equal(replay(x, noise(0)), net(x.to(linear.weight.dtype)))

    check()
    linear.weight.data = linear.weight.data * 2
    check()
    net.load_state_dict({name: tensor * 3 for name, tensor in net.state_dict().items()}, assign=True)
    check()
    linear.bias = nn.Parameter(torch.ones(2))
    check()
    net.double()
    check()
    net.requires_grad_(False)
    check()
    with torch.no_grad():
        linear.weight.mul_(2)  # in place, which needs nothing
    check()


def test_constants_that_the_function_changes_begin_anew() -> None:
    def count(x: Tensor, generator: torch.Generator) -> Tensor:
        total, other = torch.tensor(0.0), x.new_tensor([1.0])
        for row in x:
            total += row.sum()
            other *= row.sum()
        return torch.cat([total[None], other])

    replay = Recorded(count, list)
    for i in range(4):
        expected = torch.tensor([6.0 * i, 9.0 * i * i])
        assert torch.equal(replay(torch.full((2, 3), float(i)), noise(0)), expected)


def test_a_tensor_that_is_changed_without_being_told_is_refused() -> None:
    """On a GPU it could not be put back after recording."""
    total = torch.zeros(3)
    with refuses("changes aten::add_ [3"):
        Recorded(lambda x, generator: total.add_(x), list)(torch.ones(3), noise(0))
    replay = Recorded(lambda x, generator: total.add_(x), list, [total])
    for _ in range(3):
        replay(torch.ones(3), noise(0))
    assert torch.equal(total, torch.full((3,), 3.0))


def test_results_in_any_nesting() -> None:
    replay = Recorded(lambda x, generator: {"a": [x + 1, None], "b": (x * 2,)}, list)
    for i in range(3):
        found = replay(torch.full((2,), float(i)), noise(0))
        assert found["a"][1] is None
        assert torch.equal(found["a"][0], torch.full((2,), i + 1.0))
        assert torch.equal(found["b"][0], torch.full((2,), 2.0 * i))


def test_an_error_of_the_function_is_its_own_and_leaves_no_record() -> None:
    calls: list[int] = []

    def fails_first(x: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(len(calls))
        if calls[-1] == 0:
            raise RuntimeError("out of luck")
        return x + 1

    replay = Recorded(fails_first, list)
    with pytest.raises(RuntimeError, match="out of luck"):
        replay(torch.ones(2), noise(0))
    for _ in range(3):
        assert torch.equal(replay(torch.ones(2), noise(0)), torch.full((2,), 2.0))
    assert calls == [0, 1]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x, generator: x.t_() + 1, "change"),
        (lambda x, generator: (x + 1).unsqueeze_(0), "shape place"),
        (lambda x, generator: (x + 1).quantile(torch.tensor([0.2, 0.5])), "shape place"),
        (lambda x, generator: torch.complex(x, x).conj() * 1j, "conjugates"),
        (lambda x, generator: copy.deepcopy(x), "looks number"),
        (lambda x, generator: x + torch.rand(3, generator=noise(1)), "generator given"),
    ],
)
def test_other_things_that_no_record_can_repeat(function: Callable[..., Tensor], words: str) -> None:
    with refuses(words):
        Recorded(function, list)(torch.ones(2, 3), noise(0))


def test_operations_with_several_results() -> None:
    replay = Recorded(lambda x, generator: [*torch.linalg.qr(x), *torch.linalg.svd(x), *x.max(0)], list)
    for seed in range(4):
        x = random(3, 3, seed=seed)
        expected = [*torch.linalg.qr(x), *torch.linalg.svd(x), *x.max(0)]
        assert all(torch.equal(a, b) for a, b in zip(replay(x, noise(0)), expected, strict=True))


def test_a_record_inside_a_record_is_none() -> None:
    inner = Recorded(lambda x, generator: x + torch.randn(x.shape, generator=generator), list)
    outer = Recorded(lambda x, generator: inner(x, generator) * 2, list)
    for seed in range(4):
        expected = (1 + torch.randn(3, generator=noise(seed))) * 2
        assert torch.equal(outer(torch.ones(3), noise(seed)), expected)


def test_gradients_that_are_not_there_are_refused() -> None:
    layer = nn.Linear(3, 2)
    changed = [torch.zeros(1)]

    def backward(x: Tensor, generator: torch.Generator) -> None:
        layer(x).sum().backward()

    with refuses(".grad"):
        Recorded(backward, layer.parameters, changed)(torch.ones(1, 3), noise(0))


def test_an_outer_autocast_leaves_no_old_weights() -> None:
    layer = nn.Linear(3, 2)
    replay = Recorded(lambda x, generator: layer(x), layer.parameters)
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            expected = layer(torch.ones(1, 3))
            assert torch.equal(replay(torch.ones(1, 3), noise(0)), expected)
        with torch.no_grad():
            layer.weight.add_(1)
