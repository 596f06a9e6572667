"""What `benchmark.py count` says of the training step, without a GPU, against what was measured on this one."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measuring.memory import MEGABYTE

from checking.parts import COUNTED, name_of_speed
from checking.setting import CheckFailedError, Figures, NotMeasuredError, Setting
from vdvae.counting.cards import CARDS
from vdvae.errors import one_line
from vdvae.runtime.device import describe
from vdvae.runtime.precision import best_precision

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmark.py"
COUNTED_MODES = ("eager", "compiled")
TOLERANCE = 0.25
"""Share by which launches and memory may differ from the count."""
MEMORY_TOLERANCE = 0.1
"""Share by which a card's memory may differ from its data sheet's: some is reserved."""


def check(setting: Setting) -> Iterator[Figures]:
    """Kernels, peak memory and images per second of the eager and the compiled step at micro-batch 32."""
    earlier = speeds_of(setting)
    card = card_of(*facts_of(setting.device))
    counts = count(setting, card or "h100")
    yield {"count": counts}
    failed, told = [], []
    for mode in COUNTED_MODES:
        compared = compare(counts.get(mode, {}), earlier.get(mode, {}), has_bound=card is not None)
        yield {mode: compared}
        told.append(f"{mode} " + ", ".join(f"{name} {one['ratio']:.2f}" for name, one in compared.items()))
        yield {"told": f"measured over counted: {'; '.join(told)}"}
        failed += [f"{mode}: {fault}" for fault in faults(compared)]
    if failed:
        raise CheckFailedError("; ".join(failed))


def count(setting: Setting, card: str) -> dict[str, Any]:
    """The figures of `benchmark.py count`.

    Raises:
        NotMeasuredError: this version of it cannot count.
        CheckFailedError: it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "count.json")
        asked = ["count", "--hps", setting.hps, "--batch", str(COUNTED), "--card", card, "--json", str(path)]
        keys = [f"train.precision={best_precision(setting.device)}", f"train.micro_batch={COUNTED}"]
        command = [sys.executable, str(BENCHMARK), *asked, *keys]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            counts = json.loads(path.read_text())
            return {way: {**counts[way], "items": None} for way in COUNTED_MODES if way in counts}
    if "invalid choice: 'count'" in done.stderr:
        raise NotMeasuredError("this version of scripts/benchmark.py has no `count`")
    raise CheckFailedError(f"benchmark.py count: {one_line(done.stderr)[-300:]}")


def speeds_of(setting: Setting) -> dict[str, Figures]:
    """What earlier parts of this check's file measured of the preset, by mode."""
    path = Path(setting.json)
    parts = json.loads(path.read_text())["parts"] if path.exists() else {}
    found = {mode: parts.get(name_of_speed(COUNTED, mode), {}) for mode in COUNTED_MODES}
    return {mode: part["figures"] for mode, part in found.items() if part.get("hps") == setting.hps}


def facts_of(device: torch.device) -> tuple[str, int, int]:
    """The name of a GPU, the number of its processors, and the bytes of its memory."""
    properties = torch.cuda.get_device_properties(device)
    return describe(device), properties.multi_processor_count, properties.total_memory


def card_of(name: str, processors: int, memory: int) -> str | None:
    """The card to count for; None of one whose bounds nobody has written down, such as a smaller one of the name."""
    for key, card in CARDS.items():
        is_whole = processors == card.processors and abs(memory / card.memory_bytes - 1) < MEMORY_TOLERANCE
        if key in name.lower().replace(" ", "") and is_whole:
            return key
    return None


def compare(counted: dict[str, Any], measured: Figures, has_bound: bool = True) -> dict[str, dict[str, float]]:
    """Both figures of each kind, and the ratio of measured to counted; without those that one side does not have."""
    trace = measured.get("trace", {})
    pairs = {
        "launches": (counted.get("launches"), trace.get("kernels", 0) + trace.get("copies", 0)),
        "peak_mb": (counted.get("peak_bytes", 0) / MEGABYTE, measured.get("peak_memory_mb")),
        "images_per_second": (has_bound and counted.get("images_per_second_bound"), measured.get("images_per_second")),
    }
    return {
        name: {"counted": one, "measured": other, "ratio": other / one}
        for name, (one, other) in pairs.items()
        if one and other
    }


def faults(compared: dict[str, dict[str, float]]) -> list[str]:
    """What the count does not foresee: launches or memory, or a speed above its bound."""
    told = []
    for name in ("launches", "peak_mb"):
        if name in compared and abs(compared[name]["ratio"] - 1) > TOLERANCE:
            told.append("{0} are {measured:,.0f}, and {counted:,.0f} were counted".format(name, **compared[name]))
    if "images_per_second" in compared and compared["images_per_second"]["ratio"] > 1:
        told.append(
            "{measured:,.0f} images/s, above the bound of {counted:,.0f}".format(**compared["images_per_second"])
        )
    return told
