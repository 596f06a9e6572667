"""The same training from recorded and compiled steps as from those that Python goes through, skipped updates included.

A GPU adds up in another order each time, so that two runs of one kind differ too; that difference is measured as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from checking.modes import overrides
from checking.setting import DEMO, CheckFailedError, Figures, Setting
from checking.trajectory import Trajectory, demo_batches, travel
from vdvae.config import load_config
from vdvae.runtime.processes import World

LOSS = 1e-3
"""Tolerance of the losses, relative."""
DISTANCE = 5e-2
"""Tolerance of the weights: their distance after the updates, over how far they moved; or three times that of two runs
of one kind. Adam makes a whole step of the sign of a gradient that is nearly 0, so that rounding alone shows."""
WHITE_EVERY = 3
NEVER = 1e30
"""A threshold that skips nothing."""
UNEVEN = ["train.batch_size=5", "train.micro_batch=2"]
"""Micro-batches of 2, 2 and 1 images: two kinds of step."""


def check(setting: Setting, modes: Sequence[str]) -> Iterator[Figures]:
    """The demo in fp32, with white images now and then, whose updates are skipped."""
    steps = 24 if setting.on_gpu else 6
    world = World(0, 1, setting.device)

    def run(mode: str, threshold: float) -> Trajectory:
        return travel_with_skips(UNEVEN, mode, threshold, steps, world)

    threshold = in_the_widest_gap(run("eager", NEVER).norms)
    eager, again = run("eager", threshold), run("eager", threshold)
    yield {"steps": steps, "skip_threshold": threshold, "skipped": eager.skipped, "bits_per_dim": eager.bits_per_dim}
    yield {"eager again": (spread := differences(eager, again))}
    told, failed = [f"eager again {spread['weights']:.1e}"], []
    most = max(DISTANCE, 3 * spread["weights"])
    for mode in modes:
        found = differences(eager, other := run(mode, threshold))
        yield {mode: found}
        told.append(f"{mode} {found['weights']:.1e}")
        yield {"told": f"{sum(eager.skipped)} of {steps} updates skipped; weights differ by {', '.join(told)}"}
        failed += [f"{mode}: {fault}" for fault in faults(eager, other, found, most)]
    if not 0 < sum(eager.skipped) < steps:
        failed.append(f"{sum(eager.skipped)} of {steps} updates were skipped, so that nothing was compared")
    if failed:
        raise CheckFailedError("; ".join(failed))


def travel_with_skips(sizes: Sequence[str], mode: str, threshold: float, steps: int, world: World) -> Trajectory:
    """The demo in some updates from the start, with batches of these sizes. Every process must call this."""
    keys = ["train.precision=fp32", "train.lr=1e-3", "train.warmup_steps=1", f"train.skip_threshold={threshold}"]
    config = load_config(DEMO, [*keys, *sizes, *overrides(mode, world.device)])
    return travel(config, demo_batches(config, world, WHITE_EVERY), range(steps), world)


def in_the_widest_gap(norms: Sequence[float]) -> float:
    """A threshold that no rounding brings a norm across: in the middle of the largest ratio between neighbours."""
    ordered = sorted(norms)
    low, high = max(pairwise(ordered), key=lambda pair: pair[1] / pair[0])
    return float((low * high) ** 0.5)


def differences(expected: Trajectory, found: Trajectory) -> Figures:
    """Relative differences of losses and weights."""
    return {"losses": expected.loss_difference(found), "weights": expected.distance(found), "skipped": found.skipped}


def faults(expected: Trajectory, found: Trajectory, difference: Figures, most: float = DISTANCE) -> list[str]:
    """What is beyond its tolerance, or not a number."""
    told = []
    if found.skipped != expected.skipped:
        told.append(f"other updates were skipped: {found.skipped}, not {expected.skipped}")
    if not difference["losses"] <= LOSS:
        told.append(f"losses differ by {difference['losses']:.1e}, more than {LOSS:g}")
    if not difference["weights"] <= most:
        told.append(f"weights differ by {difference['weights']:.1e} of their way, more than {most:g}")
    return told
