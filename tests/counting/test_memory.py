"""The count of memory is that of real tensors, to the byte, and close to what a process takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from measuring.count import count_update
from measuring.memory import MEGABYTE
from measuring.memory import memory_of_step as measured_memory
from measuring.work import setting_of

from vdvae import VDVAE
from vdvae.config import Config, load_config
from vdvae.counting.cards import CARDS
from vdvae.counting.memory import Live, StepBytes, memory_of_step
from vdvae.runtime.processes import World
from vdvae.training.update import Update

CPU = torch.device("cpu")


def on_real_tensors(config: Config, batch: int) -> StepBytes:
    """As `memory_of_step`, of the second step of a real update."""
    train = replace(config.train, batch_size=batch, micro_batch=None, replay=False)
    with Live() as live:
        update = Update(VDVAE(config.model), train, World(0, 1, CPU))
        shape = batch, *update.model.image_shape
        update(torch.zeros(shape, dtype=torch.uint8), 0)
        return live.count(lambda: update(torch.zeros(shape, dtype=torch.uint8), 1))


@pytest.mark.parametrize(
    "settings", [{}, {"precision": "bf16"}, {"fast": False}, {"recompute_from": 7}, {"precision": "fp16"}]
)
def test_real_tensors_take_as_much(tiny: Config, settings: dict[str, object]) -> None:
    config = replace(tiny, train=replace(tiny.train, **settings))  # type: ignore[arg-type]
    assert memory_of_step(config, 3) == on_real_tensors(config, 3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_count_of_launches_and_traffic_has_the_same_peak(tiny: Config, precision: str) -> None:
    """`benchmark.py count` follows the same tensors by itself."""
    config = replace(tiny, train=replace(tiny.train, precision=precision))  # type: ignore[arg-type]
    counted = count_update(setting_of(config, CPU, 8), CARDS["h100"], compiled=False)
    assert counted.peak_bytes == pytest.approx(memory_of_step(config, 8).peak, rel=0.001)


def test_the_state_is_five_times_the_weights(tiny: Config) -> None:
    """Weights, EMA, gradient, two moments; and little numbers: metrics, norms, the steps of moments."""
    weights = 4 * sum(p.numel() for p in VDVAE(tiny.model).parameters())
    assert 5 * weights <= memory_of_step(tiny, 1).state <= 5 * weights + 30_000


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_linear_in_the_batch(tiny: Config, precision: str) -> None:
    """Exactly, from two images on; one alone saves a few copies. So is the peak, where activations outweigh what the
    optimiser needs.
    """
    config = replace(tiny, train=replace(tiny.train, precision=precision))  # type: ignore[arg-type]
    counts = {n: memory_of_step(config, n) for n in (1, 2, 3, 16, 64)}
    assert len({count.state for count in counts.values()}) == 1
    saved, peak = counts[3].saved - counts[2].saved, counts[64].peak - counts[16].peak
    assert peak % 48 == 0
    for n, count in counts.items():
        assert count.peak >= count.state + count.saved
        if n > 1:
            assert count.saved == counts[2].saved + (n - 2) * saved
            assert count.peak == counts[2].peak + (n - 2) * peak // 48
    assert counts[1].saved == pytest.approx(counts[2].saved - saved, abs=100)


def test_half_precision_and_checkpointing_hold_less() -> None:
    config = load_config("fashion", [])

    def count(precision: str, recompute_from: int | None) -> StepBytes:
        train = replace(config.train, precision=precision, recompute_from=recompute_from)  # type: ignore[arg-type]
        return memory_of_step(replace(config, train=train), 16)

    full, half, checkpointed = count("fp32", None), count("bf16", None), count("fp32", 14)
    weights = sum(p.numel() for p in VDVAE(config.model).parameters())
    assert full.state == checkpointed.state
    assert 0 < half.state - full.state <= 2 * 2 * weights + 60_000  # copies of weights, and their gradient; alignment
    assert half.saved < 0.8 * full.saved
    assert checkpointed.saved < 0.5 * full.saved
    assert checkpointed.peak < 0.7 * full.peak


def test_counting_leaves_the_process_as_it_was(tiny: Config) -> None:
    """Random numbers and the precision of matrix products."""
    state, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    memory_of_step(replace(tiny, train=replace(tiny.train, precision="tf32")), 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_float32_matmul_precision() == precision
    assert type(torch.zeros(1)) is torch.Tensor


def test_what_is_left_to_the_hardware_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match=r"train\.precision .*auto"):
        memory_of_step(load_config("fashion", []), 1)


@pytest.mark.long
def test_a_process_takes_somewhat_more() -> None:
    """Up to a quarter: libraries that are loaded, scratch memory of oneDNN, gaps in the allocator."""
    config = load_config("fashion", ["train.replay=false", "train.precision=fp32"])
    counted = memory_of_step(config, 64).peak / MEGABYTE
    assert counted < measured_memory(setting_of(config, CPU, 64), CPU).peak_mb < 1.25 * counted
