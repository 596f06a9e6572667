"""Loss curves of the demo's first updates, in each precision and kind of step, over each other."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from checking.modes import overrides
from checking.setting import DEMO, CheckFailedError, Figures, Setting
from checking.trajectory import demo_batches, travel
from vdvae.config import load_config
from vdvae.errors import one_line
from vdvae.runtime.precision import best_precision
from vdvae.runtime.processes import World

LAST = 20
"""Updates whose mean is the final loss."""
MOST = 0.15
"""Bits/dim by which the final loss may differ from that of fp32. On a CPU another seed moved it by 0.06, bf16 by 0.03,
bf16 states by 0.01."""


def check(setting: Setting) -> Iterator[Figures]:
    """The same images and noise for all; a picture where matplotlib is there."""
    steps = 200 if setting.on_gpu else 3
    world, batch = World(0, 1, setting.device), 16 if setting.on_gpu else 2
    sizes = [f"train.batch_size={batch}", f"train.micro_batch={batch}"]
    curves: dict[str, list[float]] = {}
    compared: dict[str, dict[str, float]] = {}
    failed: list[str] = []
    for name, keys in options(world.device).items():
        config = load_config(DEMO, [*sizes, *keys])
        try:
            curves[name] = travel(config, demo_batches(config, world), range(steps), world).bits_per_dim
        except Exception as error:  # the other curves are worth having
            traceback.print_exc()
            failed.append(f"{name}: {type(error).__name__}: {one_line(str(error))[:200]}")
            continue
        compared[name] = difference(curves[name], next(iter(curves.values())))
        yield {"steps": steps, "curves": curves, "compared": compared}
        if not abs(compared[name]["final"]) <= MOST:
            failed.append(
                f"{name}: the final loss differs by {compared[name]['final']:+.3f} bits/dim, more than {MOST}"
            )
    told = ", ".join(f"{name} {one['final']:+.4f}" for name, one in list(compared.items())[1:])
    yield {"told": f"final loss against that of fp32, bits/dim: {told}"}
    if drawn := draw(curves, setting.picture("curves")):
        yield {"picture": drawn}
    if failed:
        raise CheckFailedError("; ".join(failed))


def options(device: torch.device) -> dict[str, list[str]]:
    """Overrides of each curve; the first is what the others are compared with."""
    half = best_precision(device) if device.type == "cuda" else "bf16"
    eager, both = overrides("eager", device), overrides("both" if device.type == "cuda" else "recorded", device)
    both_told = "recorded and compiled" if device.type == "cuda" else "recorded"
    found = {
        "fp32": [*eager, "train.precision=fp32"],
        half: [*eager, f"train.precision={half}"],
        f"{half}, {both_told}": [*both, f"train.precision={half}"],
    }
    if half == "bf16":
        found["bf16, states too"] = [*eager, "train.precision=bf16", "train.bf16_states=true"]
    return found


def difference(curve: list[float], reference: list[float]) -> dict[str, float]:
    """How far a curve is from another in bits/dim: at most, and in the mean of its last updates."""
    ways = np.array(curve) - np.array(reference)
    return {"largest": float(np.abs(ways).max()), "final": float(ways[-LAST:].mean())}


def draw(curves: dict[str, list[float]], path: Path) -> str | None:
    """Draws the curves, and returns the file's name; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    axes = (figure := Figure(figsize=(8, 5), layout="constrained")).subplots()
    for name, curve in curves.items():
        axes.plot(range(1, 1 + len(curve)), curve, label=name, linewidth=1)
    axes.set(
        xlabel="update",
        ylabel="loss, bits/dim",
        title=f"the first {len(next(iter(curves.values())))} updates of the demo",
    )
    axes.legend()
    figure.savefig(path, dpi=120)
    return path.name
