"""What the benchmark counts, and in which order it measures."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from measuring.flops import flops_per_image, matmul_rate
from measuring.memory import memory_of_step
from measuring.speed import Measured, take_turns
from measuring.work import Setting, Training, evaluation, sampling

from vdvae.config import Config, load_config

CPU = torch.device("cpu")


@pytest.mark.parametrize(("preset", "gflop"), [("cifar10", 44.8), ("imagenet32", 140.7)])
def test_flops_of_the_presets(preset: str, gflop: float) -> None:
    assert flops_per_image(load_config(preset, []).model, backward=False) / 1e9 == pytest.approx(gflop, rel=0.01)


def test_flops_by_hand(tiny: Config) -> None:
    """Two per weight and place; backward twice as many, but for the gradient with respect to the image."""

    def bottleneck(inputs: int, outputs: int, side: int, kernel: int) -> int:
        return (inputs * 4 + 2 * 4 * 4 * kernel**2 + 4 * outputs) * side**2

    first = 1 * 8 * 3**2 * 28**2
    encoder = sum(bottleneck(8, 8, side, kernel) for side, kernel in ((28, 3), (7, 3), (7, 3), (1, 1)))
    decoder = sum(
        bottleneck(16, 4, side, kernel) + bottleneck(8, 12, side, kernel) + bottleneck(8, 8, side, kernel)
        + 2 * 8 * side**2
        for side, kernel in ((1, 1), (7, 3), (28, 3))
    )  # fmt: skip
    out = 8 * 6 * 28**2  # two components: a logit, a mean and a scale each
    forward = 2 * (first + encoder + decoder + out)
    assert flops_per_image(tiny.model, backward=False) == forward
    assert flops_per_image(tiny.model) == 3 * forward - 2 * first


def test_settings_take_turns() -> None:
    calls = []

    def block(name: str, seconds: float, repeats: int) -> list[float]:
        calls.append((name, repeats))
        return [seconds] * repeats

    a, b = (lambda n: block("A", 1.0, n)), (lambda n: block("B", 2.0, n))
    assert take_turns([a, b], warmup=1, repeats=2, rounds=3) == [[1.0] * 6, [2.0] * 6]
    assert calls == [("A", 1), ("B", 1), *[("A", 2), ("B", 2)] * 3]


def test_figures_follow_from_the_seconds(tiny: Config) -> None:
    """By the median, of whole grids too; no step has its number twice."""
    numbers: list[int] = []
    measured = Measured(Setting.of(tiny), lambda setting, model: numbers.append, CPU, rows=4)
    assert len(measured.run(3)) == 3
    assert numbers == [0, 1, 2, 3]
    speed = measured.speed([1.0, 3.0, 2.0])
    assert (speed.images_per_second, speed.milliseconds_per_step) == (4 * 8 / 2, 2000)
    assert speed.milliseconds_quartiles == (1500, 2500)
    assert (speed.flops, speed.phases, speed.peak_memory_mb) == (None, None, None)


def with_train(config: Config, **values: Any) -> Config:
    """With other values in the `train` section."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **values))


@pytest.mark.parametrize("is_fast", [False, True])
def test_a_training_step_is_an_update(is_fast: bool, tiny: Config) -> None:
    """None is skipped, or it would have less to do; fast and plain ones begin with the same weights."""
    setting = Setting.of(with_train(tiny, fast=is_fast, skip_threshold=1e-9))
    model = setting.model(CPU)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    for old, new in zip(start, Setting.of(tiny).model(CPU).parameters(), strict=True):
        assert torch.equal(old, new)
    training = Training(setting, model)
    training(0)
    assert any(not torch.equal(old, new) for old, new in zip(start, model.parameters(), strict=True))


@pytest.mark.parametrize("is_fast", [False, True])
def test_phases_are_those_of_updates(is_fast: bool, tiny: Config) -> None:
    """Made in phases, an update leaves the weights that it leaves otherwise."""
    setting = Setting.of(with_train(tiny, fast=is_fast, warmup_steps=0))
    whole, parted = (Training(setting, setting.model(CPU)) for _ in range(2))
    whole(0)
    assert all(milliseconds > 0 for milliseconds in dataclasses.asdict(parted.phases(range(1))).values())
    for a, b in zip(whole.update.model.parameters(), parted.update.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_settings_have_the_images_and_the_precision_in_force(tiny: Config) -> None:
    config = with_train(tiny, micro_batch=4, precision="bf16")
    assert Setting.of(config).config.train.batch_size == 4
    assert Setting.of(config).config.train.precision == "bf16"
    assert Setting.of(config, 5).pixels().shape == (5, 28, 28, 1)
    still = Setting.of(config, 5, trains=False).config.train
    assert (still.batch_size, still.micro_batch, still.precision) == (5, None, "fp32")


def test_fast_and_plain_do_the_same_work(tiny: Config) -> None:
    """The same NLL of the same images; as many samples."""
    settings = [Setting.of(with_train(tiny, fast=is_fast), trains=False) for is_fast in (True, False)]
    a, b = (evaluation(setting, setting.model(CPU))(0) for setting in settings)
    torch.testing.assert_close(a, b)
    for temperatures in (None, [1.0, 0.5]):
        pictures: list[Any] = [sampling(setting, setting.model(CPU), temperatures)(0) for setting in settings]
        shapes = {tuple(picture.shape) for picture in pictures}
        assert shapes == ({(8, 1, 28, 28)} if temperatures is None else {(2 * 58 + 2, 8 * 58 + 2, 1)})


def test_matmul_rate() -> None:
    assert 0 < matmul_rate(CPU, "fp32") < math.inf


@pytest.mark.long
def test_memory_grows_with_the_batch(tiny: Config) -> None:
    """And a step alone takes less than the whole process."""
    small, large = (memory_of_step(Setting.of(tiny, batch), CPU) for batch in (1, 512))
    assert 0 < small.step_mb <= small.peak_mb
    assert large.step_mb > 2 * small.step_mb
