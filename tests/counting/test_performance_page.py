"""docs/performance.md: what is counted there is what `benchmark.py count` wrote into results/count/."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT
from tests.counting.test_scaling_page import counted

PAGE = (ROOT / "docs/performance.md").read_text()
ROWS = {
    "now, eager": ("imagenet32-h100-32", "eager"),
    "now, `train.compile=true`": ("imagenet32-h100-32", "compiled"),
    "`train.compile=true train.bf16_states=true`": ("imagenet32-h100-32-states", "compiled"),
    "`train.compile=autotune`": ("imagenet32-h100-32-autotune", "compiled"),
    "`train.compile=autotune train.bf16_states=true`": ("imagenet32-h100-32-states-autotune", "compiled"),
}


@pytest.mark.parametrize("label", ROWS)
def test_counts(label: str) -> None:
    name, way = ROWS[label]
    (row,) = re.findall(
        rf"^\| {re.escape(label)} \| ([0-9,]+) \| ([0-9.]+) \| ([0-9.]+) \| (\d+) \|$", PAGE, re.MULTILINE
    )
    told = counted(name, way)
    assert row == (
        f"{told['launches']:,}",
        f"{told['bytes_per_image'] / 1e9:.2f}",
        f"{told['saved_bytes_per_image'] / 1e9:.2f}",
        f"{told['images_per_second_bound']:.0f}",
    )
