"""`skip_threshold: auto`: a running quantile, on the device."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from vdvae.training.gradient_skipping import FACTOR, FIRST, QUANTILE, WINDOW, SkipThreshold

CPU = torch.device("cpu")


def after(norms: Iterable[float], threshold: SkipThreshold | None = None) -> SkipThreshold:
    threshold = threshold or SkipThreshold("auto", CPU)
    for step, norm in enumerate(norms):
        threshold.add(torch.tensor(norm), step)
    return threshold


def usual(count: int, scale: float = 1.0) -> list[float]:
    return list(np.random.default_rng(0).lognormal(size=count).astype(np.float32) * scale)


def test_a_number_stays() -> None:
    assert after([1e15, 1.0], SkipThreshold(300.0, CPU)).value == 300


def test_ten_times_the_quantile_of_the_last_norms() -> None:
    norms = usual(WINDOW + 300)
    assert after(norms).value.item() == pytest.approx(FACTOR * np.quantile(norms[-WINDOW:], QUANTILE), rel=1e-5)


def test_nothing_is_skipped_before_enough_was_seen() -> None:
    norms = [math.nan, math.inf, *usual(FIRST - 1)]
    assert after(norms).value == math.inf
    assert after([*norms, 1.0]).value < math.inf


def test_a_burst_of_huge_norms_is_kept_out() -> None:
    """50 in a row, and NaN between them, hardly move it, and are all above it."""
    threshold = after(usual(WINDOW))
    before = threshold.value.item()
    after([1e15, math.nan] * 50, threshold)
    assert threshold.value.item() < 2 * before


def test_it_follows_where_the_usual_norm_moves_for_good() -> None:
    """Sooner than the default `max_skip_streak` of 500 ends the run."""
    threshold = after(usual(WINDOW))
    streak = 0
    for step, norm in enumerate(usual(500, scale=100.0)):
        streak += bool(norm >= threshold.value)
        threshold.add(torch.tensor(norm), step)
    assert 50 < streak < 300
    assert threshold.value > 500


def test_it_goes_on_from_a_checkpoint() -> None:
    norms = usual(300)
    threshold = after(norms)
    resumed = SkipThreshold("auto", CPU)
    resumed.load_state_dict(threshold.state_dict())
    threshold.add(torch.tensor(3.0), 300)
    resumed.add(torch.tensor(3.0), 300)
    assert torch.equal(resumed.value, threshold.value)
    changed = SkipThreshold(200.0, CPU)
    changed.load_state_dict(threshold.state_dict())
    assert changed.value == 200
    anew = SkipThreshold("auto", CPU)
    anew.load_state_dict(changed.state_dict())
    assert anew.value == math.inf
