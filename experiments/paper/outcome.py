"""What came out of a run, from its directory."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch

from vdvae.config import load_config
from vdvae.errors import UserError
from vdvae.model.config import ModelConfig
from vdvae.model.vdvae import VDVAE
from vdvae.run.directory import METRICS, RunDirectory
from vdvae.run.log import read_log

LAST_SHARE = 0.1
"""The share of a run, at its end, over which its training figures are averaged."""


def column(heading: str, form: str = "g") -> dict[str, str]:
    """How tables show a field of `Outcome`: under this heading, in this format."""
    return {"heading": heading, "form": form}


@dataclass(frozen=True)
class Outcome:
    """Figures of a run that has ended."""

    parameters: int = field(metadata=column("parameters", ",d"))
    depth: int = field(metadata=column("stochastic depth"))
    """Stochastic depth: latent layers that depend on one another."""
    updates: int = field(metadata=column("updates", ",d"))
    bits_per_dim: float | None = field(metadata=column("test bits/dim", ".4f"))
    """On the test images; None where the run diverged."""
    train_bits_per_dim: float | None = field(metadata=column("training bits/dim", ".4f"))
    """Mean loss of the last tenth of its updates, on the images they were made with; None where the run diverged."""
    rate: float | None = field(metadata=column("rate, bits/dim", ".4f"))
    """bits/dim, on the test images"""
    skipped: int = field(metadata=column("skipped updates"))
    """How many updates were skipped."""
    skipped_share: float = field(metadata=column("skipped, %", ".3f"))
    """Skipped updates, in percent of all."""
    share_of_an_update: float = field(metadata=column("one update, %"))
    """One update, in percent of all."""
    largest_norm: float = field(metadata=column("largest gradient norm", ".3g"))
    """The largest norm of a gradient before clipping."""
    silent_layers: int | None = field(metadata=column("silent first layers"))
    """First layers, from the top, that together encode less than one bit of an image."""
    diverged: bool
    """Whether it ended because every update was skipped (paper Table 3, "Diverged")."""
    layer_rate: list[float]
    """bits/dim of each layer, top-down, over the last tenth of its updates"""
    hours: float = field(metadata=column("hours", ".3f"))
    """Hours of training."""


COLUMNS = {each.name: each.metadata for each in fields(Outcome) if each.metadata}
"""The fields of `Outcome` that are one number, which tables can show and claims be about; see `column`."""


def has_ended(directory: Path) -> bool:
    """Whether a run was measured on its test images, or diverged."""
    lines = read_lines(directory)
    return bool(_of_kind("test", lines)) or _diverged(directory, lines)


REPORTED = ("skipped", "layer_rate", "images_per_second", "bits_per_dim", "grad_norm_max")
"""What every line of training has."""


def read_outcome(directory: Path) -> Outcome:
    """The figures of a run.

    Raises:
        UserError: it has not ended, or there is none.
    """
    lines = read_lines(directory)
    reports, tests, diverged = _of_kind("train", lines), _of_kind("test", lines), _diverged(directory, lines)
    if not (tests or diverged):
        raise UserError(f"{directory} holds no run that has ended")
    if not reports:
        raise UserError(f"{directory} has no line of its training in {METRICS}; nothing can be said of it")
    if missing := {key for line in reports for key in REPORTED if key not in line}:
        raise UserError(f"{directory} has a line in {METRICS} without {missing.pop()}; remove that line")
    test = {"bits_per_dim": None, "rate": None} if diverged else tests[0]
    config = load_config(str(RunDirectory(directory).config_file), [])
    updates, skipped = reports[-1]["step"], sum(line["skipped"] for line in reports)
    last = [line for line in reports if line["step"] > updates * (1 - LAST_SHARE)]
    layer_rate = [sum(rates) / len(last) for rates in zip(*(line["layer_rate"] for line in last), strict=True)]
    bits_of_an_image = [rate * config.model.dims for rate in accumulate(layer_rate)]
    steps = [after - before for before, after in pairwise([0, *(line["step"] for line in reports)])]
    seconds = [n * config.train.batch_size / line["images_per_second"] for n, line in zip(steps, reports, strict=True)]
    return Outcome(
        parameters=count_parameters(config.model),
        depth=config.model.stochastic_depth,
        updates=updates,
        bits_per_dim=test["bits_per_dim"],
        train_bits_per_dim=None if diverged else sum(line["bits_per_dim"] for line in last) / len(last),
        rate=test["rate"],
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


def _of_kind(kind: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == kind]


def _diverged(directory: Path, lines: list[dict[str, Any]]) -> bool:
    """Whether the run ended because of a long streak of skipped updates."""
    reports = _of_kind("train", lines)
    if not reports:
        return False
    limit = load_config(str(RunDirectory(directory).config_file), []).train.max_skip_streak
    return bool(reports[-1]["skip_streak"] >= limit)
