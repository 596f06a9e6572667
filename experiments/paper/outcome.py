"""What came out of a run, from its directory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from vdvae.config import load_config
from vdvae.errors import UserError
from vdvae.model.config import ModelConfig
from vdvae.model.vdvae import VDVAE
from vdvae.run.directory import RunDirectory
from vdvae.run.log import read_log

LAST_SHARE = 0.1
"""The share of a run, at its end, over which its training figures are averaged."""


@dataclass(frozen=True)
class Outcome:
    """Figures of a run that has ended."""

    parameters: int
    depth: int
    """Stochastic depth: latent layers that depend on one another."""
    updates: int
    bits_per_dim: float | None
    """On the test images; None where the run diverged."""
    train_bits_per_dim: float | None
    """Mean loss of the last tenth of its updates, on the images they were made with; None where the run diverged."""
    rate: float | None
    """bits/dim, on the test images"""
    skipped: int
    """How many updates were skipped."""
    skipped_share: float
    """Skipped updates, in percent of all."""
    share_of_an_update: float
    """One update, in percent of all."""
    largest_norm: float
    """The largest norm of a gradient before clipping."""
    silent_layers: int | None
    """First layers, from the top, that together encode less than one bit of an image."""
    diverged: bool
    """Whether it ended because every update was skipped."""
    layer_rate: list[float]
    """bits/dim of each layer, top-down, over the last tenth of its updates"""
    hours: float
    """Hours of training."""


def has_ended(directory: Path) -> bool:
    """Whether a run was measured on its test images, or diverged."""
    lines = read_lines(directory)
    return any(line["kind"] == "test" for line in lines) or _diverged(directory, lines)


def read_outcome(directory: Path) -> Outcome:
    """The figures of a run.

    Raises:
        UserError: it has not ended, or there is none.
    """
    lines = read_lines(directory)
    test = next((line for line in lines if line["kind"] == "test"), None)
    diverged = _diverged(directory, lines)
    if test is None and not diverged:
        raise UserError(f"{directory} holds no run that has ended")
    config = load_config(str(RunDirectory(directory).config_file), [])
    reports = [line for line in lines if line["kind"] == "train"]
    updates = reports[-1]["step"]
    last = [line for line in reports if line["step"] > updates * (1 - LAST_SHARE)]
    layer_rate = [sum(rates) / len(last) for rates in zip(*(line["layer_rate"] for line in last), strict=True)]
    skipped = sum(line["skipped"] for line in reports)
    bits_of_an_image = [rate * config.model.dims for rate in accumulate(layer_rate)]
    steps = [b["step"] - a for a, b in zip([0, *(line["step"] for line in reports)], reports, strict=False)]
    seconds = [n * config.train.batch_size / line["images_per_second"] for n, line in zip(steps, reports, strict=True)]
    return Outcome(
        parameters=count_parameters(config.model),
        depth=config.model.stochastic_depth,
        updates=updates,
        bits_per_dim=test["bits_per_dim"] if test and not diverged else None,
        train_bits_per_dim=None if diverged else sum(line["bits_per_dim"] for line in last) / len(last),
        rate=test["rate"] if test and not diverged else None,
        skipped=skipped,
        skipped_share=100 * skipped / updates,
        share_of_an_update=100 / updates,
        largest_norm=max(line["grad_norm_max"] for line in reports),
        silent_layers=None if diverged else sum(bits < 1 for bits in bits_of_an_image),
        diverged=diverged,
        layer_rate=layer_rate,
        hours=sum(seconds) / 3600,
    )


def count_parameters(config: ModelConfig) -> int:
    """Weights of a model, which is not made."""
    with torch.device("meta"):
        return sum(p.numel() for p in VDVAE(config).parameters())


def read_lines(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none where there is no run, or it has just begun."""
    try:
        return read_log(RunDirectory(directory))
    except UserError:
        return []


def _diverged(directory: Path, lines: list[dict[str, Any]]) -> bool:
    """Whether the run ended because of a long streak of skipped updates (paper Table 3, "Diverged")."""
    reports = [line for line in lines if line["kind"] == "train"]
    if not reports:
        return False
    limit = load_config(str(RunDirectory(directory).config_file), []).train.max_skip_streak
    return bool(reports[-1]["skip_streak"] >= limit)
