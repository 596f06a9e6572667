"""Runs side by side, and a whole experiment with the smallest of models."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch
from paper.draw import draw
from paper.report import gather, judge, table
from paper.runner import train_all
from paper.spec import Experiment, experiments_in, load_experiment

from tests.conftest import ROOT, TINY, Command, assert_refused, refuses
from vdvae.errors import UserError

TINY_EXPERIMENT = f"""
title: groups
scales: {{small: {{seeds: 2, settings: {{train.max_steps: 4}}, datasets: {{fashion: {{hps: {TINY}}}}}}}}}
runs: {{"3": {{}}, "1": {{model.stochastic_group: 3}}}}
columns: [depth, bits_per_dim]
figure: by_setting
claims: [{{text: depth helps, metric: bits_per_dim, order: ["3", "1"]}}]
"""
FAKE_TRAIN = """
import json, os, shutil, sys, time
from pathlib import Path

run = Path(sys.argv[sys.argv.index("--run_dir") + 1])
if "train.seed=1" in sys.argv and Path("breaks").exists():
    sys.exit("error: the disk is on fire")
with open("calls", "a") as file:
    file.write(f"{run.name} {os.environ['OMP_NUM_THREADS']} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
run.mkdir()
(run / "config.yaml").write_text(Path("config.yaml").read_text())
(run / "metrics.jsonl").write_text(json.dumps({"kind": "test", "step": 1}) + "\\n")
"""


def tiny_experiment(folder: Path) -> Experiment:
    (folder / "tiny.yaml").write_text(TINY_EXPERIMENT)
    return load_experiment(folder, "tiny", "small", None, folder / "runs")


@pytest.mark.long
def test_a_whole_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = tiny_experiment(tmp_path)
    train_all(ROOT / "train.py", experiment.runs, jobs=2)
    finished = gather(experiment)
    assert [(f.run.name, f.run.seed, f.outcome.depth, f.outcome.updates) for f in finished] == [
        ("3", 0, 3, 4),
        ("3", 1, 3, 4),
        ("1", 0, 1, 4),
        ("1", 1, 1, 4),
    ]
    bits = [f.outcome.bits_per_dim for f in finished]
    assert len(set(bits)) == 4
    assert len(judge(experiment.claims, finished)) == 1
    assert table(experiment, finished).count("\n| fashion |") == 2
    for run in experiment.runs:
        assert f"{run.directory}: " in run.directory.with_name(f"{run.directory.name}.log").read_text()
    for figure in ("by_setting", "cumulative_rate", "gradient_norms", "learning_curves", "reconstructions"):
        about = Experiment(**{**vars(experiment), "figure": figure})
        assert draw(about, finished, torch.device("cpu"))["fashion"].std() > 5
    assert draw(Experiment(**{**vars(experiment), "figure": "none"}), finished, torch.device("cpu")) == {}


def test_what_has_ended_is_not_run_again_and_what_failed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    Path("config.yaml").write_text((run / "config.yaml").read_text())
    Path("train.py").write_text(FAKE_TRAIN)
    experiment = tiny_experiment(tmp_path)
    Path("breaks").touch()
    with refuses("seed1 status 1 fire .log", UserError):
        train_all(Path("train.py"), experiment.runs, jobs=1)
    Path("breaks").unlink()
    train_all(Path("train.py"), experiment.runs, jobs=1)
    train_all(Path("train.py"), experiment.runs, jobs=1)
    calls = [line.split() for line in Path("calls").read_text().splitlines()]
    assert sorted(name for name, *_ in calls) == ["1-seed0", "1-seed1", "3-seed0", "3-seed1"]
    assert {threads for _, threads, _ in calls} == {"7"}  # of the environment: one run at a time shares no cores


def test_each_gpu_has_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    """Only those that this process may use, by the names that it knows them by."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text((run / "config.yaml").read_text())
    Path("train.py").write_text(FAKE_TRAIN.replace("import json", "import time; time.sleep(0.5); import json"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    train_all(Path("train.py"), tiny_experiment(tmp_path).runs, jobs=None)
    calls = [line.split()[2] for line in Path("calls").read_text().splitlines()]
    assert sorted(calls) == ["4", "4", "7", "7"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table1-dept"], "'table1-dept' 'table1-depth'"),
        (["table1-depth", "--gather"], "20 --gather"),
        (["table1-depth", "--seeds", "0"], "--seeds 1 0"),
        (["table1-depth", "--jobs", "-1"], "--jobs 1 -1"),
        (["table1-depth", "--scale", "medium"], "--scale 'medium'"),
        (["figure4", "--run", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_on_the_command_line(call: Command, tmp_path: Path, arguments: list[str], words: str) -> None:
    assert_refused(call("scripts/experiment.py", *arguments), words)
    assert list(tmp_path.iterdir()) == []


def test_commands_for_a_queue(call: Command, tmp_path: Path) -> None:
    """As they are typed where they are printed; first what prepares the data set, unless it is there."""
    arguments = ["scripts/experiment.py", "table1-depth", "--scale", "full", "--commands"]
    data, *lines = call(*arguments).stdout.splitlines()
    assert data == f"{ROOT}/setup_data.sh imagenet32"
    assert len(lines) == 5
    assert lines[1].startswith(f"python {ROOT}/train.py --hps ")
    assert lines[1].endswith(
        "48-layers.yaml --run_dir runs/experiments/full/imagenet32/table1-depth/6-seed0 "
        "model.stochastic_group=8 train.seed=0"
    )
    (tmp_path / "data/imagenet32").mkdir(parents=True)
    (tmp_path / "data/imagenet32/dataset.json").touch()
    assert call(*arguments).stdout.splitlines() == lines


@pytest.mark.parametrize("name", [name for name in experiments_in(ROOT / "experiments") if name != "table2"])
def test_every_small_experiment_says_how_its_photographs_are_made(name: str, call: Command) -> None:
    """The demo's images come with the package."""
    first, second, *_ = call("scripts/experiment.py", name, "--commands").stdout.splitlines()
    assert first == f"python {ROOT}/experiments/photographs.py"
    assert second.startswith(f"python {ROOT}/train.py ")
    assert_refused(call("scripts/experiment.py", name), f"missing python {ROOT}/experiments/photographs.py")


def test_the_committed_results_stay_as_they_are(call: Command, run: Path) -> None:
    """Unless --out says so: the table goes where the runs are."""
    (run.parent / "runs").mkdir()
    run.rename(run.parent / "runs/fashion")
    committed = run.parent / "results/table2.json"
    committed.parent.mkdir()
    committed.write_text('{"small": {"runs": []}}')
    result = call("scripts/experiment.py", "table2", "--gather")
    assert result.returncode == 0, result.stderr
    assert committed.read_text() == '{"small": {"runs": []}}'
    written = {path.name for path in (run.parent / "runs/experiments").iterdir()}
    assert written == {"table2.json", "table2-small.md"}
    assert call("scripts/experiment.py", "table2", "--gather", "--out", "results").returncode == 0
    assert json.loads(committed.read_text())["small"]["runs"][0]["bits_per_dim"] > 0
    (run.parent / "runs/fashion").rename(run)
    assert_refused(
        call("scripts/experiment.py", "table2", "--gather", "--out", "results"), "table2.json 1 runs 0 --out"
    )
    assert json.loads(committed.read_text())["small"]["runs"]


@pytest.mark.parametrize("told", [{"WORLD_SIZE": "2"}, {"RANK": ""}, {"LOCAL_RANK": "x"}])
def test_results_need_to_know_the_number_of_processes(
    told: dict[str, str], call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is measured or run."""
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    (name,) = told
    assert_refused(call("scripts/experiment.py", "table1-depth", "--gather"), f"{name} torchrun")
    assert_refused(call("scripts/benchmark.py", "train", "--hps", "fashion", "--json", "b.json"), f"{name} torchrun")


@pytest.mark.parametrize("script", ["experiment.py table2 --gather --out file", "figures.py run --out file"])
def test_a_file_in_the_place_of_a_folder(script: str, call: Command, run: Path) -> None:
    (run.parent / "file").touch()
    name, *arguments = script.split()
    assert_refused(call(f"scripts/{name}", *arguments), "--out folder file")


def test_a_table_is_made_again_from_its_json(call: Command, tmp_path: Path) -> None:
    """With the verdicts of today; figures and what they were made on stay."""
    (tmp_path / "results").mkdir()
    text = (ROOT / "results/table1-depth.json").read_text()
    before = json.loads(text)["small"]
    before["claims"] = []
    (tmp_path / "results/table1-depth.json").write_text(json.dumps({"small": before}))
    result = call("scripts/experiment.py", "table1-depth", "--judge", "--out", "results")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "results/table1-depth.json").read_text() == text
    page = (ROOT / "results/table1-depth-small.md").read_text()
    assert (tmp_path / "results/table1-depth-small.md").read_text().rstrip() == page.partition("\n\n![")[0].rstrip()
    assert_refused(call("scripts/experiment.py", "table1-depth", "--judge"), "runs/experiments/table1-depth.json --out")


def test_figure_4_of_any_run(run: Path, call: Command) -> None:
    result = call("scripts/experiment.py", "figure4", "--run", run)
    assert result.returncode == 0, result.stderr
    written = {path.name for path in (run / "figures").iterdir()}
    assert written == {"figure4.json", "figure4-small.md", "figure4-small-fashion-mnist-9k-1k.png"}
    assert iio.imread(run / "figures/figure4-small-fashion-mnist-9k-1k.png").std() > 5
    figures = json.loads((run / "figures/figure4.json").read_text())["small"]
    assert figures["runs"][0]["bits_per_dim"] > 0
    assert figures["hardware"]
