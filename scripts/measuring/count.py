"""What a training step or a batch of samples costs a GPU, counted without one; docs/performance.md says how."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from measuring.planned import can_plan, planned
from vdvae import fast
from vdvae.config import Config
from vdvae.counting.cards import BANDWIDTH_SHARE, CONVOLUTION_SHARE, GIB, LAUNCH_SECONDS, PRODUCT_SHARE, Card
from vdvae.counting.cost import Cost
from vdvae.counting.memory import FakeTensors
from vdvae.counting.tally import Item, Tally
from vdvae.model.vdvae import VDVAE
from vdvae.runtime.noise import Purpose, generator
from vdvae.runtime.precision import autocast, set_matmul_precision
from vdvae.runtime.processes import World
from vdvae.training.update import Update

FEW = 2
"""Images of the step that the counted one is compared with, to tell what grows with the images."""
SHOWN = 12
"""Kinds of operations that are listed."""
CPU = torch.device("cpu")
ASSUMPTIONS = {
    "bandwidth_share": BANDWIDTH_SHARE,
    "convolution_share": CONVOLUTION_SHARE,
    "product_share": PRODUCT_SHARE,
    "launch_seconds": LAUNCH_SECONDS,
}
"""What of a card's data sheet is taken to be reached."""


@dataclass(frozen=True)
class Counted:
    """What one update, with one micro-batch, or one batch of samples costs."""

    batch: int
    launches: int
    """Kernels, and fills and copies of memory."""
    bytes_per_image: float
    """Memory traffic that each image adds."""
    bytes_per_update: float
    """Memory traffic that does not grow with the images: of weights, gradients, moments."""
    flops_per_image: float
    """Those of matrix products and convolutions, a multiply-add being two."""
    saved_bytes_per_image: float
    """Activations that each image adds to what is there when the forward pass is over."""
    peak_bytes: int
    """The most that all tensors hold at a time, without what the allocator and libraries take besides."""
    all_reduce_bytes: int
    """What each process gives into the sum over all processes."""
    milliseconds_bound: float
    images_per_second_bound: float
    """What one card can do at most: by the times that all operations take at least, one after the other."""
    parts: dict[str, Item]
    """Forward pass, backward pass, and the rest of the update."""
    items: list[dict[str, Any]]
    """Part, operation, launches, bytes, FLOPs and seconds of each kind of operation, longest first."""


def count_update(config: Config, card: Card, compiled: bool) -> Counted:
    """One update on `config.train.batch_size` images, as train.py makes it; without a CUDA graph, which would launch
    the same kernels.

    Args:
        config: of the preset, see `setting_of`.
        card: the GPU whose bounds count.
        compiled: whether blocks are compiled, as `config.train.compile` says if it is not false.
    """
    compile_blocks = compiled and (config.train.compile or True)
    train = replace(config.train, replay=False, cuda_graph=False, compile=compile_blocks)

    def prepare(step: _Step) -> Callable[[int], None]:
        step.tally.part = "update"
        model = VDVAE(config.model)
        update = Update(model, train, _Alone(step))
        model.forward = step.of_forward(model.forward)  # type: ignore[method-assign]
        return lambda size: update(_images(config, size), 0)

    return _count(prepare, config.train.batch_size, card, train.precision, compiled)


def count_samples(config: Config, card: Card) -> Counted:
    """`config.train.batch_size` samples, not compiled, with convolutions in `config.train.precision`."""
    batch, precision = config.train.batch_size, config.train.precision

    def prepare(step: _Step) -> Callable[[int], None]:
        set_matmul_precision(precision)
        model = VDVAE(config.model)
        if config.train.fast:
            fast.prepare(model)

        @torch.no_grad()
        def sample(size: int) -> None:
            with autocast(CPU, precision):
                model.sample(size, generator=generator(CPU, 0, Purpose.PICTURES))

        return sample

    return _count(prepare, batch, card, precision, compiled=False)


def count(config: Config, card: Card, of: str) -> dict[str, Counted]:
    """What each way costs that there is: "eager" and, of an update, "compiled" where the card can have it."""
    if of == "sample":
        return {"eager": count_samples(config, card)}
    ways = {"eager": count_update(config, card, compiled=False)}
    if config.train.fast and card.has_triton and can_plan():
        ways["compiled"] = count_update(config, card, compiled=True)
    return ways


def best_of(ways: dict[str, Counted]) -> str:
    """The way with the highest bound."""
    return max(ways, key=lambda way: ways[way].images_per_second_bound)


def print_counts(ways: dict[str, Counted], card: Card) -> None:
    """Prints a column for each way, and the operations of each that take longest."""
    print(f"{'':34}" + "".join(f"{way:>14}" for way in ways))
    for label, value in ROWS.items():
        print(f"{label:34}" + "".join(f"{value(one):>14}" for one in ways.values()))
    if any(one.peak_bytes > card.memory_bytes for one in ways.values()):
        print(f"{card.title} has {card.memory_bytes / GIB:.0f} GiB: too little where the peak is above it")
    for way, one in ways.items():
        print(f"\n{way + ', longest':60}{'launches':>10}{'GB':>10}{'ms':>10}")
        for item in one.items[:SHOWN]:
            name = f"{item['part']}: {item['operation']}"
            figures = f"{item['launches']:10,}{item['bytes'] / 1e9:10.2f}{1000 * item['seconds']:10.2f}"
            print(f"{name[:59]:60}{figures}")


ROWS: dict[str, Callable[[Counted], str]] = {
    "launches": lambda one: f"{one.launches:,}",
    **{f"  {part}": partial(lambda part, one: _of_part(one, part), part) for part in ("forward", "backward", "update")},
    "memory traffic an image": lambda one: f"{one.bytes_per_image / 1e9:.3f} GB",
    "  and whatever the images": lambda one: f"{one.bytes_per_update / 1e9:.3f} GB",
    "arithmetic an image": lambda one: f"{one.flops_per_image / 1e9:,.1f} GFLOP",
    "saved activations an image": lambda one: f"{one.saved_bytes_per_image / 1e9:.3f} GB",
    "peak of all tensors": lambda one: f"{one.peak_bytes / GIB:.2f} GiB",
    "all-reduce": lambda one: f"{one.all_reduce_bytes / 1e6:,.1f} MB",
    "time, at least": lambda one: f"{one.milliseconds_bound:,.2f} ms",
    "images per second, at most": lambda one: f"{one.images_per_second_bound:,.1f}",
}
"""What is printed of each way."""


def _of_part(one: Counted, part: str) -> str:
    item = one.parts.get(part, Item())
    return f"{item.launches:,}"


class _Step:
    """What is learnt of one step while it runs."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.begin()

    def begin(self) -> None:
        """Forgets the steps before."""
        self.tally.items.clear()
        self.tally.peak = self.tally.held
        self.saved = self.summed = 0

    def of_forward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Counts what a function does as forward pass, and what is still there when it returns as saved."""

        def call(*args: Any, **kwargs: Any) -> Any:
            before, self.tally.part = self.tally.held, "forward"
            result = function(*args, **kwargs)
            self.tally.part = "update"
            self.saved += self.tally.held - before
            return result

        return call


class _Alone(World):
    """One process, which notes how much it would exchange with others."""

    def __init__(self, step: _Step) -> None:
        super().__init__(0, 1, CPU)
        object.__setattr__(self, "step", step)

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        self.step.summed += tensor.numel() * tensor.element_size()  # type: ignore[attr-defined]
        return tensor


def _count(
    prepare: Callable[[_Step], Callable[[int], None]], batch: int, card: Card, precision: str, compiled: bool
) -> Counted:
    """Counts a step of `batch` images; one of a few before it makes the optimiser's state, and tells what grows with
    the images.
    """
    few = FEW if batch > FEW else batch + 1
    tally = Tally(card, "tf32" if precision == "tf32" else "fp32")
    step = _Step(tally)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # which copying a model does
        if compiled:
            stack.enter_context(planned(tally))
        stack.enter_context(FakeTensors(allow_non_fake_inputs=True))
        stack.enter_context(tally)  # inside, so that it sees what fake tensors are asked to do
        work = prepare(step)
        step.begin()
        work(few)
        begun = _Totals.of(step)
        step.begin()
        work(batch)
        done = _Totals.of(step)
    parts: defaultdict[str, Item] = defaultdict(Item)
    for (part, _), item in tally.items.items():
        parts[part].add(Cost(item.launches, item.bytes, item.flops), item.seconds)
    bytes_per_image, flops_per_image, saved_bytes_per_image = (
        (b - a) / (batch - few) for a, b in zip(begun, done, strict=True)
    )
    seconds = sum(part.seconds for part in parts.values())
    longest = sorted(tally.items.items(), key=lambda one: -one[1].seconds)
    return Counted(
        batch=batch,
        launches=sum(part.launches for part in parts.values()),
        bytes_per_image=bytes_per_image,
        bytes_per_update=sum(part.bytes for part in parts.values()) - batch * bytes_per_image,
        flops_per_image=flops_per_image,
        saved_bytes_per_image=saved_bytes_per_image,
        peak_bytes=tally.peak,
        all_reduce_bytes=step.summed,
        milliseconds_bound=1000 * seconds,
        images_per_second_bound=batch / seconds,
        parts=dict(parts),
        items=[{"part": part, "operation": name, **asdict(item)} for (part, name), item in longest],
    )


class _Totals(NamedTuple):
    """Sums of forward and backward pass alone: of the rest, nothing to speak of grows with the images."""

    bytes: int
    flops: int
    saved: int

    @classmethod
    def of(cls, step: _Step) -> _Totals:
        passes = [item for (part, _), item in step.tally.items.items() if part != "update"]
        return cls(sum(item.bytes for item in passes), sum(item.flops for item in passes), step.saved)


def _images(config: Config, size: int) -> Tensor:
    """Images without numbers, `[size, C, H, W]`, laid out as the loader's are."""
    model = config.model
    shape = (size, model.image_size, model.image_size, model.image_channels)
    return torch.empty(shape, dtype=torch.uint8).permute(0, 3, 1, 2)
