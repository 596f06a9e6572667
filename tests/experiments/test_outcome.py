"""What came out of a run, from lines written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from paper.outcome import has_ended, read_outcome

from tests.conftest import refuses
from vdvae.config import Config, save_config
from vdvae.errors import UserError
from vdvae.run.directory import RunDirectory


def report(step: int, **values: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    usual = {
        "bits_per_dim": 5.0,
        "layer_rate": [0.0, 0.001, 0.1],
        "grad_norm_max": 3.0,
        "skipped": 0,
        "skip_streak": 0,
        "images_per_second": 10.0,
    }
    return {"kind": "train", "step": step, **usual, **values}


TEST = {"kind": "test", "step": 100, "bits_per_dim": 4.0, "rate": 0.3}


def write(folder: Path, config: Config, *lines: dict[str, Any]) -> Path:
    folder.mkdir()
    save_config(config, RunDirectory(folder).config_file)
    RunDirectory(folder).metrics_file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_figures_of_a_run(tiny: Config, tmp_path: Path) -> None:
    lines = [report(10 * i, skipped=i % 2, grad_norm_max=float(i)) for i in range(1, 10)]
    last = [report(95, bits_per_dim=4.25, layer_rate=[0.0, 0.0005, 0.2]), report(100, bits_per_dim=4.75, skipped=2)]
    outcome = read_outcome(write(tmp_path / "run", tiny, *lines, *last, TEST))
    assert (outcome.updates, outcome.bits_per_dim, outcome.rate) == (100, 4.0, 0.3)
    assert outcome.train_bits_per_dim == 4.5  # of the last tenth: steps 91 to 100
    assert outcome.layer_rate == [0.0, 0.00075, pytest.approx(0.15)]
    assert (outcome.skipped, outcome.skipped_share, outcome.largest_norm) == (7, 7.0, 9.0)
    assert outcome.silent_layers == 2  # 784 x 0.00075 = 0.59 bits, with the third 118
    assert (outcome.depth, outcome.diverged) == (3, False)
    assert outcome.hours == pytest.approx(100 * 8 / 10 / 3600)  # batches of 8


def test_logs_of_which_nothing_can_be_said(tiny: Config, tmp_path: Path) -> None:
    with refuses("run no line metrics.jsonl", UserError):
        read_outcome(write(tmp_path / "run", tiny, TEST))
    line = report(100)
    del line["skipped"]
    with refuses("damaged metrics.jsonl without skipped remove", UserError):
        read_outcome(write(tmp_path / "damaged", tiny, report(50), line, TEST))


def test_parameters_are_those_of_the_model(tiny: Config, run: Path) -> None:
    from vdvae import VDVAE, load_pretrained

    outcome = read_outcome(run)
    assert outcome.parameters == sum(p.numel() for p in VDVAE(tiny.model).parameters())
    assert outcome.parameters == sum(p.numel() for p in load_pretrained(str(run)).parameters())


def test_a_run_whose_updates_were_all_skipped_diverged(tiny: Config, tmp_path: Path) -> None:
    streak = tiny.train.max_skip_streak
    run = write(tmp_path / "run", tiny, report(50), report(100, skipped=50, skip_streak=streak, bits_per_dim=None))
    assert has_ended(run)
    outcome = read_outcome(run)
    assert outcome.diverged
    assert (outcome.bits_per_dim, outcome.train_bits_per_dim, outcome.silent_layers) == (None, None, None)
    assert outcome.skipped == 50


def test_a_run_that_has_not_ended(tiny: Config, tmp_path: Path) -> None:
    for run in (write(tmp_path / "run", tiny, report(50)), write(tmp_path / "new", tiny), tmp_path / "nowhere"):
        assert not has_ended(run)
        with refuses(f"{run} ended", UserError):
            read_outcome(run)
