"""What the benchmark counts, and in which order it measures."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from measuring.flops import flops_per_image, matmul_rate
from measuring.memory import memory_of_step
from measuring.speed import Measured, begin, take_turns, timed
from measuring.work import evaluation, new_model, random_images, sampling, setting_of, training

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


def test_no_step_has_its_number_twice(tiny: Config) -> None:
    numbers: list[int] = []
    assert begin(setting_of(with_train(tiny, fast=False), CPU), lambda setting, model: numbers.append, CPU) >= 0
    assert len(timed(range(1, 4), CPU)) == 3
    assert numbers == [0, 1, 2, 3]


def test_figures_follow_from_the_seconds(tiny: Config) -> None:
    """By the median, of whole grids too."""
    measured = Measured(setting_of(tiny, CPU), evaluation, CPU)
    assert len(measured.run(2)) == 2
    assert measured.steps == 3
    speed = measured.speed([1.0, 3.0, 2.0], rows=4, trains=False)
    assert (speed.images_per_second, speed.milliseconds_per_step) == (4 * 8 / 2, 2000)
    assert speed.milliseconds_quartiles == (1500, 2500)
    assert (speed.flops, speed.peak_memory_mb) == (None, None)


def with_train(config: Config, **values: Any) -> Config:
    """With other values in the `train` section."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **values))


@pytest.mark.parametrize("is_fast", [False, True])
def test_a_training_step_is_an_update(is_fast: bool, tiny: Config) -> None:
    """None is skipped, or it would have less to do; fast and plain ones begin with the same weights."""
    setting = setting_of(with_train(tiny, fast=is_fast, skip_threshold=1e-9), CPU)
    model = new_model(setting, CPU)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    for old, new in zip(start, new_model(setting_of(tiny, CPU), CPU).parameters(), strict=True):
        assert torch.equal(old, new)
    training(setting, model)(0)
    assert any(not torch.equal(old, new) for old, new in zip(start, model.parameters(), strict=True))


def test_settings_have_the_images_and_the_precision_in_force(tiny: Config) -> None:
    config = with_train(tiny, micro_batch=4, precision="bf16")
    assert setting_of(config, CPU).train.batch_size == 4
    assert setting_of(config, CPU).train.precision == "bf16"
    assert random_images(setting_of(config, CPU, 5), CPU).shape == (5, 1, 28, 28)
    still = setting_of(config, CPU, 5, trains=False).train
    assert (still.batch_size, still.micro_batch, still.precision) == (5, None, "fp32")


def test_fast_and_plain_do_the_same_work(tiny: Config) -> None:
    """The same NLL of the same images; as many samples."""
    settings = [setting_of(with_train(tiny, fast=is_fast), CPU, trains=False) for is_fast in (True, False)]
    a, b = (evaluation(setting, new_model(setting, CPU))(0) for setting in settings)
    torch.testing.assert_close(a, b)
    for temperatures in (None, [1.0, 0.5]):
        pictures: list[Any] = [sampling(setting, new_model(setting, CPU), temperatures)(0) for setting in settings]
        shapes = {tuple(picture.shape) for picture in pictures}
        assert shapes == ({(8, 1, 28, 28)} if temperatures is None else {(2 * 58 + 2, 8 * 58 + 2, 1)})


def test_matmul_rate() -> None:
    assert 0 < matmul_rate(CPU, "fp32") < math.inf


@pytest.mark.long
def test_memory_grows_with_the_batch(tiny: Config) -> None:
    """And a step alone takes less than the whole process."""
    small, large = (memory_of_step(setting_of(tiny, CPU, batch), CPU) for batch in (1, 512))
    assert 0 < small.step_mb <= small.peak_mb
    assert large.step_mb > 2 * small.step_mb
