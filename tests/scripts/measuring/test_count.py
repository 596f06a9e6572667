"""What a step costs a GPU, counted: of a tiny model against what is known, of imagenet32 against what it may cost."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from measuring.count import Counted, best_of, count, count_samples, count_update
from measuring.flops import flops_per_image
from measuring.planned import can_plan
from measuring.work import setting_of

from vdvae.config import Config, load_config
from vdvae.counting.cards import CARDS
from vdvae.model.vdvae import VDVAE

CPU = torch.device("cpu")
H100 = CARDS["h100"]
MOST: dict[str, dict[str, float]] = {
    "eager": {
        "launches": 13_520,
        "bytes_per_image": 6260e6,
        "bytes_per_update": 12000e6,
        "saved_bytes_per_image": 554e6,
        "peak_bytes": 21100e6,
    },
    "compiled": {
        "launches": 9_000,
        "bytes_per_image": 4630e6,
        "bytes_per_update": 12000e6,
        "saved_bytes_per_image": 388e6,
        "peak_bytes": 16100e6,
    },
    "compiled, states in bf16": {
        "launches": 9_000,
        "bytes_per_image": 3955e6,
        "bytes_per_update": 12000e6,
        "saved_bytes_per_image": 385e6,
        "milliseconds_bound": 71.0,
    },
    "autotuned, states in bf16": {
        "launches": 8_440,
        "bytes_per_image": 3465e6,
        "bytes_per_update": 11500e6,
        "saved_bytes_per_image": 381e6,
        "milliseconds_bound": 65.1,
    },
}
"""The most that an update of imagenet32 in bf16 may cost, with a micro-batch of 32 images. Lower what becomes less."""


def of_32(way: str) -> Counted:
    compiler = {"compiled": "true", "autotuned": "autotune"}.get(way.partition(",")[0], "false")
    states = str("states" in way).lower()
    overrides = ["train.precision=bf16", f"train.compile={compiler}", f"train.bf16_states={states}"]
    config = setting_of(load_config("imagenet32", overrides), CPU, 32, card=H100)
    return count_update(config, H100, compiled=way != "eager")


@pytest.mark.long
@pytest.mark.parametrize("way", MOST)
def test_imagenet32_costs_no_more(way: str) -> None:
    if way != "eager" and not can_plan():
        pytest.skip("this PyTorch's compiler cannot be asked for its plan")
    counted = of_32(way)
    figures = {name: getattr(counted, name) for name in MOST[way]}
    assert {name: value for name, value in figures.items() if value > MOST[way][name]} == {}, figures
    config = load_config("imagenet32", []).model
    assert counted.flops_per_image == pytest.approx(flops_per_image(config), rel=1e-2)  # merged products have zeros
    assert counted.all_reduce_bytes == pytest.approx(4 * 119_280_868, rel=1e-3)  # and what aligns them


def with_train(config: Config, **values: Any) -> Config:
    """With other values in the `train` section."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **values))


@pytest.mark.parametrize("is_fast", [False, True])
def test_what_is_known_of_a_step(is_fast: bool, tiny: Config) -> None:
    counted = count_update(setting_of(with_train(tiny, fast=is_fast), CPU), H100, compiled=False)
    assert counted.flops_per_image == flops_per_image(tiny.model)
    numbers = sum(parameter.numel() for parameter in VDVAE(tiny.model).parameters())
    assert numbers <= counted.all_reduce_bytes / 4 < 1.2 * numbers
    assert counted.peak_bytes > 4 * 5 * numbers + 8 * counted.saved_bytes_per_image  # weights, EMA, gradient, moments
    assert set(counted.parts) == {"forward", "backward", "update"}
    assert counted.launches == sum(item["launches"] for item in counted.items)
    assert counted.images_per_second_bound == pytest.approx(8000 / counted.milliseconds_bound)


def test_half_of_the_bits(tiny: Config) -> None:
    """bf16 saves smaller activations, by little more arithmetic: merged products have zeros among their weights."""
    full, half = (
        count_update(setting_of(with_train(tiny, precision=precision), CPU), H100, compiled=False)
        for precision in ("fp32", "bf16")
    )
    assert half.saved_bytes_per_image < full.saved_bytes_per_image
    assert full.flops_per_image < half.flops_per_image < 1.05 * full.flops_per_image


def test_checkpointing_saves_less_and_computes_more(tiny: Config) -> None:
    plain, checkpointed = (
        count_update(setting_of(with_train(tiny, recompute_from=start), CPU), H100, compiled=False)
        for start in (None, 7)
    )
    assert checkpointed.saved_bytes_per_image < 0.8 * plain.saved_bytes_per_image
    assert checkpointed.flops_per_image > 1.1 * plain.flops_per_image


def test_samples(tiny: Config) -> None:
    """Less than a forward pass: there is no encoder."""
    counted = count_samples(setting_of(tiny, CPU), H100)
    assert set(counted.parts) == {"forward"}
    assert 0 < counted.flops_per_image < flops_per_image(tiny.model, backward=False)
    assert (counted.saved_bytes_per_image, counted.all_reduce_bytes) == (0, 0)


@pytest.mark.skipif(not can_plan(), reason="this PyTorch's compiler cannot be asked for its plan")
@pytest.mark.parametrize(
    ("card", "ways"), [("v100", ["eager"]), pytest.param("a100", ["eager", "compiled"], marks=pytest.mark.long)]
)
def test_what_has_no_triton_is_not_compiled(card: str, ways: list[str], tiny: Config) -> None:
    assert list(count(setting_of(with_train(tiny, precision="fp16"), CPU, 2), CARDS[card], "train")) == ways


@pytest.mark.long
@pytest.mark.skipif(not can_plan(), reason="this PyTorch's compiler cannot be asked for its plan")
def test_a_compiled_step_does_the_same_with_less(tiny: Config) -> None:
    half = setting_of(with_train(tiny, precision="bf16"), CPU)  # in which both merge products
    eager, compiled = (count_update(half, H100, compiled=way) for way in (False, True))
    assert compiled.flops_per_image == eager.flops_per_image
    assert compiled.all_reduce_bytes == eager.all_reduce_bytes
    assert compiled.launches < eager.launches
    assert compiled.bytes_per_image < eager.bytes_per_image
    assert best_of({"eager": eager, "compiled": compiled}) == "compiled"
