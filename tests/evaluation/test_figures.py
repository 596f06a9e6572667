"""Figures of a run: what the curves are, and that they are drawn whatever is logged."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from tests.conftest import TINY, Command, assert_refused, refuses, says
from vdvae.config import load_config
from vdvae.errors import UserError
from vdvae.evaluation import figures
from vdvae.evaluation.active_units import latent_variables

ALL = ["learning-curves", "gradient-norms", "cumulative-rate", "rate-and-active-units", "reconstructions"]


def train(step: int, norm: float | None = 1.0, **values: object) -> dict[str, Any]:
    known = {"bits_per_dim": 3.0, "distortion": 2.0, "rate": 1.0, "skipped": 0, "skip_threshold": 200.0}
    known["rate_per_resolution"] = {"1": 0.25, "7": 0.75}  # type: ignore[assignment]
    return {"kind": "train", "step": step, "grad_norm_max": norm, **known, **values}


def valid(step: int, **values: object) -> dict[str, Any]:
    return {"kind": "valid", "step": step, "bits_per_dim": 4.0, "distortion": 3.0, "rate": 1.0, **values}


def curve(figure: Figure, panel: int, i: int) -> tuple[list[float], list[float]]:
    line = figure.axes[panel].lines[i]
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize(
    ("every", "norms", "expected"),
    [
        (250, [1, 9, 2, 3, 4], [(500, 9), (1000, 3), (1250, 4)]),
        (300, [1, 9, 2, 3, 4], [(300, 1), (900, 9), (1500, 4)]),  # from 601 to 900 belongs where it ends
        (1000, [1, 9, 2], [(1000, 1), (2000, 9), (3000, 2)]),
        (300, [1, None, 2, math.nan], [(300, 1), (900, 2)]),
    ],
)
def test_window_maxima(every: int, norms: Sequence[float | None], expected: list[tuple[int, float]]) -> None:
    lines = [train(every * (i + 1), norm) for i, norm in enumerate(norms)]
    assert figures.window_maxima([*lines, valid(1)]) == expected


def test_gradient_norms() -> None:
    """Two runs, one of which finds its threshold by itself."""
    fixed = [train(500, 3.0), train(1000, 300.0, skipped=1), train(1500, 4.0)]
    auto = [train(500, 5.0, skip_threshold=None), *(train(step, 6.0, skip_threshold=step) for step in (1000, 1500))]
    figure = figures.gradient_norms({"fixed": fixed, "auto": auto})
    assert curve(figure, 0, 0) == ([500, 1000, 1500], [3, 300, 4])
    assert curve(figure, 0, 1) == ([500, 1000, 1500], [5, 6, 6])
    assert curve(figure, 0, 2)[1] == [200, 200]
    assert curve(figure, 0, 3) == ([1000, 1500], [1000, 1500])
    assert {figure.axes[0].lines[i].get_linestyle() for i in (2, 3)} == {"--"}
    assert figure.axes[0].get_yscale() == "log"
    assert legend(figure) == [
        "fixed: 1 of 1,500 updates skipped (0.067 %)",
        "auto: 0 of 1,500 updates skipped (0 %)",
        "skip threshold",
    ]
    assert "in 500 updates" in figure.axes[0].get_ylabel()
    assert "in 2,000 updates" in figures.gradient_norms({"rare": [train(2000)]}).axes[0].get_ylabel()


def test_cumulative_rate_ends_at_the_whole_rate() -> None:
    """With a band for every other resolution, and its name above the middle of its layers."""
    figure = figures.cumulative_rate({"a": [0.1, 0.2, 0.3, 0.4], "b": [0.5, 0.0, 0.0, 0.0]}, [1, 7, 7, 28])
    assert curve(figure, 0, 0)[1] == pytest.approx([0.1, 0.3, 0.6, 1.0])
    assert curve(figure, 0, 1) == ([1, 2, 3, 4], [0.5] * 4)
    above = figure.axes[0].child_axes[0]
    assert above.get_xticks().tolist() == [1, 2.5, 4]
    assert [tick.get_text() for tick in above.get_xticklabels()] == ["1", "7", "28"]
    (band,) = figure.axes[0].patches
    assert band.get_extents().transformed(figure.axes[0].transData.inverted()).intervalx == pytest.approx([1.5, 3.5])
    with pytest.raises(ValueError, match="same first dimension"):
        figures.cumulative_rate({"a": [0.1]}, [1, 7])


def test_rate_and_active_units() -> None:
    """Shares of the variables of a resolution; an older validation without counts is passed over."""
    lines = [train(1), valid(1), train(2), valid(2, active_units_per_resolution={"1": 4, "7": 20})]
    figure = figures.rate_and_active_units(lines, {1: 8, 7: 100})
    assert [curve(figure, 0, i) for i in (0, 1)] == [([1, 2], [0.25] * 2), ([1, 2], [0.75] * 2)]
    assert [curve(figure, 1, i) for i in (0, 1)] == [([2], [50]), ([2], [20])]
    assert legend(figure) == ["1x1: 4 of 8", "7x7: 20 of 100"]


def test_learning_curves() -> None:
    """A long run is thinned to means, and its first values don't press the others flat."""
    lines: list[dict[str, Any]] = [train(i, bits_per_dim=99.0 if i == 1 else 3.0 + i % 2) for i in range(1, 1201)]
    lines += [valid(1200), {**valid(1200), "kind": "test", "bits_per_dim": 5.0}]
    figure = figures.learning_curves(lines)
    steps, values = curve(figure, 0, 0)
    assert steps == list(range(4, 1201, 4))
    assert values[0] == (99 + 3 + 4 + 3) / 4
    assert set(values[1:]) == {3.5}
    assert (curve(figure, 0, 1), curve(figure, 0, 2)) == (([1200], [4]), ([1200], [5]))
    assert figure.axes[0].get_ylim()[1] < 6
    assert [curve(figure, 1, i)[1][-1] for i in range(3)] == [2, 3, 3]  # distortion
    assert legend(figure) == ["training", "validation", "test"]
    early = figures.learning_curves([train(1)])
    assert legend(early) == ["training"]


def test_compared_curves() -> None:
    """Each setting beside the first with the same seed, at the updates that both have; and that one's seeds."""
    plain = [[train(1, bits_per_dim=a), train(2, bits_per_dim=b)] for a, b in ((4.0, 3.0), (4.5, 3.25))]
    other = [[train(1, bits_per_dim=4.25), train(2, bits_per_dim=None)], [train(2, bits_per_dim=3.0), train(3)]]
    figure = figures.compared_curves({"fp32": plain, "bf16": other})
    assert [curve(figure, 0, i) for i in range(2)] == [([1, 2], [4.0, 3.0]), ([1, 2], [4.5, 3.25])]
    assert [curve(figure, 1, i) for i in range(3)] == [([1, 2], [0.5, 0.25]), ([1], [0.25]), ([2], [-0.25])]
    assert figure.axes[1].get_title() == "difference from fp32"
    assert legend(figure) == ["fp32", "bf16", "fp32, another seed"]
    with refuses("no bits/dim", UserError):
        figures.compared_curves({"fp32": plain, "bf16": [[valid(1)], [valid(1)]]})


def test_by_setting() -> None:
    """A line for each kind of setting, over the means of seeds; what diverged is a gap."""
    values = {"15 with": [3.0, 3.5], "75 with": [2.0, 2.5], "15 without": [3.0], "75 without": [math.nan, 2.0]}
    figure = figures.by_setting(values, "bits/dim", "layers")
    assert curve(figure, 0, 0) == ([0, 1], [3.25, 2.25])
    assert curve(figure, 0, 1) == ([0, 0, 1, 1], [3.0, 3.5, 2.0, 2.5])
    means = curve(figure, 0, 2)[1]
    assert means[0] == 3.0
    assert math.isnan(means[1])
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["15", "75"]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["with", "without"]  # type: ignore[union-attr]
    assert figures.by_setting({"48": [1.0], "24": [2.0]}, "bits/dim", "depth").axes[0].get_legend() is None


def test_cumulative_shares_of_ffhq256() -> None:
    """The paper's Figure 4: by far the most latent variables are at the high resolutions."""
    shares = figures.cumulative_shares(latent_variables(load_config("ffhq256", []).model))
    below_32 = 16 * (2 * 1 + 4 * 4**2 + 5 * 8**2 + 10 * 16**2)
    assert shares[16] == pytest.approx(below_32 / 4_470_816)
    assert 100 * shares[16] == pytest.approx(1.05, abs=0.01)
    assert list(shares)[-1] == 256
    assert shares[256] == 1
    assert list(shares.values()) == sorted(shares.values())


def test_reconstructions() -> None:
    """A bar beside every row but that of the originals, and its share in words."""
    figure = figures.reconstructions(np.zeros((3 * 58 + 2, 2 * 58 + 2, 1), np.uint8), {1: 1, 28: 7})
    bars = figure.axes[0].child_axes[0]
    assert [bar.get_width() for bar in bars.patches] == [12.5, 100]  # type: ignore[attr-defined]
    assert [text.get_text() for text in bars.texts] == ["12.5 %", "100 %"]
    middles = [bar.get_y() + bar.get_height() / 2 for bar in bars.patches]  # type: ignore[attr-defined]
    assert middles == pytest.approx([176 / 2, 176 * 5 / 6])
    assert figures.pixels(figure).shape[2] == 3


def test_whatever_is_logged() -> None:
    """One line, one resolution, no rate at all: drawn without a warning, at the size that was asked for."""
    line = train(1, rate_per_resolution={"1": 0.0}, rate=0.0)
    drawn = [
        figures.learning_curves([line]),
        figures.gradient_norms({"one": [line]}),
        figures.compared_curves({"one": [[line]]}),
        figures.cumulative_rate({"one": [0.0]}, [1]),
        figures.rate_and_active_units([line], {1: 2}),
        figures.reconstructions(np.zeros((118, 60, 3), np.uint8), {1: 2}),
    ]
    for figure in drawn:
        picture = figures.pixels(figure)
        assert picture.dtype == np.uint8
        assert picture.shape[1] == round(figure.get_figwidth() * figures.DPI)
        assert len(np.unique(picture)) > 10


def test_nothing_to_draw() -> None:
    for lines in ([], [{"kind": "train", "step": 1}], [train(1, None, bits_per_dim=None, rate_per_resolution=None)]):
        with refuses("no bits/dim", UserError):
            figures.learning_curves(lines)
        with refuses("no gradient norms", UserError):
            figures.gradient_norms({"run": lines})
        with refuses("no rates", UserError):
            figures.rate_and_active_units(lines, {1: 2})


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with refuses("matplotlib: pip install", UserError):
        figures.check_matplotlib()


def events(folder: Path) -> dict[str, list[int]]:
    """The steps of every picture that TensorBoard shows."""
    board = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {tag: [event.step for event in board.Images(tag)] for tag in board.Tags()["images"]}


def test_figures_of_a_run(run: Path, call: Command) -> None:
    """After a validation, which counts active units; then again, over what is there."""
    longer = ("train.py", "--hps", TINY, "--run_dir", "run", "train.max_steps=8", "train.valid_every=8")
    assert call(*longer).returncode == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (validation,) = [line for line in lines if line["kind"] == "valid"]
    assert list(validation["active_units_per_resolution"]) == ["1", "7", "28"]
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    for _ in range(2):
        drawn = call("scripts/figures.py", run)
        assert drawn.stderr == ""
        assert drawn.stdout.splitlines() == [f"{run}/figures/{name}.png" for name in ALL]
        pictures = {name: iio.imread(run / f"figures/{name}.png") for name in ALL}
        assert {picture.shape[2] for picture in pictures.values()} == {3}
        assert min(picture.shape[1] for picture in pictures.values()) > 1000
        (run / "figures/gradient-norms.png").write_bytes(b"")
    assert events(run / "figures") == {f"figures/{name}": [8] for name in ALL}
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_run_that_is_training(run: Path, tmp_path: Path, call: Command) -> None:
    """Without checkpoint yet, with the newest line half-written: drawn as far as it goes, where it was asked for."""
    shutil.rmtree(run / "checkpoints")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    drawn = call("scripts/figures.py", run, "--out", tmp_path / "new/folder")
    assert drawn.stdout.splitlines() == [f"{tmp_path}/new/folder/{name}.png" for name in ALL[:-1]]
    damaged, left_out = drawn.stderr.splitlines()
    says(damaged, f"warning: {run}/metrics.jsonl 1 damaged")
    says(left_out, f"reconstructions {run} checkpoints/step-*.pt")
    assert not (run / "figures").exists()


def test_bad_input(tmp_path: Path, call: Command) -> None:
    (tmp_path / "imagenet64-model-ema.th").write_bytes(b"")
    (tmp_path / "new").mkdir()
    (tmp_path / "new/metrics.jsonl").touch()
    before = sorted(tmp_path.rglob("*"))
    for name, words in (
        ("nowhere", "nowhere/metrics.jsonl --run_dir"),
        ("imagenet64-model-ema.th", "imagenet64-model-ema.th no run"),
        ("new", "new/metrics.jsonl train.print_every"),
    ):
        assert_refused(call("scripts/figures.py", name), words)
    assert sorted(tmp_path.rglob("*")) == before
