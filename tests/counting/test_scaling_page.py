"""docs/scaling.md: its figures follow from the count of memory and from its formulas."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from measuring.flops import flops_per_image

from tests.conftest import ROOT
from vdvae.config import load_config
from vdvae.counting.cards import CARDS, GIB
from vdvae.counting.memory import memory_of_step
from vdvae.run.auto import CONTEXT_BYTES, USABLE

PAGE = (ROOT / "docs/scaling.md").read_text()
PARAMETERS = 119_280_868


class Row(NamedTuple):
    """A row of the table of memory; GB of 10^9 bytes."""

    preset: str
    recompute_from: str
    state: float
    constant: float
    per_image: float
    chosen: dict[int, int]
    """Images at once on each of 8 cards, by their GB."""


def rows() -> list[Row]:
    number = r" ([0-9.]+) \|"
    found = re.findall(
        rf"^\| `(\w+)` \| (none|32) \|{number} ([0-9.]+) \+ ([0-9.]+) n \|{3 * number}$", PAGE, re.MULTILINE
    )
    return [
        Row(
            preset, start, float(state), float(constant), float(each), dict(zip((24, 32, 80), map(int, n), strict=True))
        )
        for preset, start, state, constant, each, *n in found
    ]


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.preset}-{row.recompute_from}")
def test_what_each_card_takes(row: Row) -> None:
    """By the rule that the page tells, which is that of `vdvae.run.auto`."""
    share = load_config(row.preset).train.batch_size // 8
    for gigabytes, chosen in row.chosen.items():
        usable = USABLE * (gigabytes * GIB - CONTEXT_BYTES) / 1e9
        fit = [n for n in range(1, share + 1) if share % n == 0 and row.constant + n * row.per_image <= usable]
        assert chosen == fit[-1]


def test_the_table_has_all_presets() -> None:
    presets = ("cifar10", "imagenet32", "imagenet64", "ffhq256", "ffhq1024")
    assert [(row.preset, row.recompute_from) for row in rows()] == [(p, r) for p in presets for r in ("none", "32")]


@pytest.mark.long
@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.preset}-{row.recompute_from}")
def test_memory_is_what_is_counted(row: Row) -> None:
    """Within 1 %; the exact figures are in the message."""
    config = load_config(row.preset, ["train.precision=bf16", f"train.recompute_from={row.recompute_from}"])
    config = replace(config, train=config.train.resolved())
    two, four = (memory_of_step(config, n) for n in (2, 4))
    per_image = (four.peak - two.peak) / 2e9
    counted = [two.state / 1e9, two.peak / 1e9 - 2 * per_image, per_image]
    assert [row.state, row.constant, row.per_image] == pytest.approx(counted, rel=0.01), counted


def test_the_exchange_of_a_gradient() -> None:
    """2 (n - 1) / n times its bytes, over the link's, in milliseconds."""
    table = re.findall(r"^\| (\d+) \| ([0-9.]+) \| ([0-9.]+) \| ([0-9.]+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert [int(n) for n, *_ in table] == [8, 16, 32, 64, 256]
    for n, *milliseconds in table:
        ring = 2 * (int(n) - 1) / int(n) * 4 * PARAMETERS
        for told, bandwidth in zip(milliseconds, (400e9, 50e9, 12.5e9, 3.125e9, 1.25e9), strict=True):
            assert float(told) == pytest.approx(1000 * ring / bandwidth, abs=0.051 if "." in told else 0.51)


def counted(name: str, way: str = "compiled") -> dict[str, Any]:
    """What `benchmark.py count` wrote into results/count/."""
    figures: dict[str, Any] = json.loads((ROOT / f"results/count/{name}.json").read_text())[way]
    return figures


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_arithmetic() -> None:
    """GFLOP of each preset as it is written, and images per second by the data sheets."""
    cards = [CARDS["h100"].flops["bf16"], CARDS["a100"].flops["bf16"], CARDS["v100"].flops["fp16"]]
    cards.append(CARDS["rtx4090"].flops["bf16"])
    cell = r" ([0-9,]+)(?: images/s)? \|"
    table = re.findall(rf"^  \| `(\w+)` \|{5 * cell}$", PAGE, re.MULTILINE)
    assert len(table) == 5
    for preset, gflop, *speeds in table:
        flops = flops_per_image(load_config(preset).model)
        assert number(gflop) == round(flops / 1e9)
        for told, rate in zip(speeds, cards, strict=True):
            assert number(told) == round(rate / flops)


def test_one_gpu() -> None:
    """An H100's images per second are counted ones."""
    cells = re.findall(r"^\| `(\w+)` \| (\d+) at (\d+) images", PAGE, re.MULTILINE)
    assert {"cifar10", "imagenet32", "imagenet64"} <= {preset for preset, *_ in cells}
    for preset, told, images in cells:
        assert int(told) == round(counted(f"{preset}-h100-{images}")["images_per_second_bound"])


def test_several_gpus() -> None:
    """Images per second by the counted step of each GPU's share, and the exchange."""
    table = re.findall(
        r"^\| (\d+) \| (\d+) \| ([0-9.]+) ms \| ([0-9.]+) ms \| ([0-9,]+) \| ([0-9.]+) \|$", PAGE, re.MULTILINE
    )
    assert [int(gpus) for gpus, *_ in table] == [8, 16, 32, 64, 256]
    for gpus, images, step, exchange, told, times in table:
        assert int(gpus) * int(images) == 256
        assert float(step) == round(counted(f"imagenet32-h100-{images}")["milliseconds_bound"], 1)
        assert number(told) == pytest.approx(256_000 / (float(step) + float(exchange)), abs=1)
        assert float(times) == pytest.approx(number(told) / number(table[0][4]), abs=0.005)


def test_days() -> None:
    table = re.findall(r"^\| (`\w+`).* \| ([0-9.]+) M \| ([0-9.]+) \|", PAGE, re.MULTILINE)
    assert len(table) == 4
    for name, millions, days in table:
        train = load_config(name.strip("`")).train
        assert float(millions) == train.max_steps * train.batch_size / 1e6
        assert float(days) == pytest.approx(train.max_steps * train.batch_size / 1000 / 86_400, abs=0.005)
