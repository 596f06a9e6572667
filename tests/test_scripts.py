"""The command lines over a run directory or a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as iio
import pytest

from tests.conftest import Command


def test_evaluate_gives_one_number_however_it_is_run(run: Path, command: Command) -> None:
    """In the run, from its directory, from its checkpoint, and in two processes: the same to the last digit."""
    at_the_end = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    results = []
    for path, processes in ((run, 0), (run / "checkpoints/step-00000006.pt", 0), (run, 2)):
        result = command("scripts/evaluate.py", path, "--json", "new/nll.json", processes=processes)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("bits/dim") >= 3
        results.append(json.loads((run.parent / "new/nll.json").read_text()))
    assert {r["bits_per_dim"] for r in results} == {at_the_end["bits_per_dim"]}
    assert {r["standard_error"] for r in results} == {at_the_end["standard_error"]}
    assert results[0]["rate_per_resolution"] == at_the_end["rate_per_resolution"]
    facts = {"dataset": "fashion_mnist_9k_1k", "variant": None, "partial": False, "bits": 8, "num_images": 1000}
    assert {key: results[0][key] for key in facts} == {key: at_the_end[key] for key in facts} == facts


def test_sample(run: Path, command: Command) -> None:
    """A row per temperature; the same seed gives the same picture."""
    arguments = ["scripts/sample.py", run, "--temperatures", 1.0, 0.5, "--columns", 3, "--out", "grids/a.png"]
    result = command(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "grids/a.png\n"
    picture = iio.imread(run.parent / "grids/a.png")
    assert picture.shape == (2 * 58 + 2, 3 * 58 + 2)
    command(*arguments)
    assert (iio.imread(run.parent / "grids/a.png") == picture).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scripts/evaluate.py", "run", "--batch_size", 0], "--batch_size must be at least 1"),
        (["scripts/evaluate.py", "run", "--device", "cuda:7"], "there is no device 'cuda:7' here; use auto or cpu"),
        (["scripts/sample.py", "run", "--temperatures", -1], "temperatures must be finite and not negative"),
        (["scripts/sample.py", "run", "--columns", 0], "--columns must be at least 1"),
        (["scripts/sample.py", "run", "--out", "a.gif"], "--out must end in .png"),
    ],
)
def test_bad_input(arguments: list[object], said: str, run: Path, command: Command) -> None:
    result = command(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in run.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("script", ["scripts/evaluate.py", "scripts/sample.py"])
def test_nothing_there(script: str, command: Command, tmp_path: Path) -> None:
    result = command(script, "nowhere")
    assert result.returncode == 2
    assert (
        result.stderr
        == "error: there is nothing at nowhere; give a run directory, a checkpoint or a released .th file\n"
    )
    (tmp_path / "empty").mkdir()
    assert "has no checkpoints/step-*.pt" in command(script, "empty").stderr
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
