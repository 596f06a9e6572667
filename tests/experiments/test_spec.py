"""experiments/*.yaml against the paper, and files that are none."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from paper.spec import Experiment, Scale, experiments_in, load_experiment

from tests.conftest import ROOT, refuses
from vdvae.errors import UserError

FOLDER = ROOT / "experiments"


def load(name: str, scale: Scale = "full", folder: Path = FOLDER, seeds: int | None = None) -> Experiment:
    return load_experiment(folder, name, scale, seeds, Path("runs"))


def layers_of(experiment: Experiment, dataset: str) -> dict[str, list[int]]:
    """The layers at each resolution, the highest first, of each run."""
    found = {}
    for run in experiment.runs:
        if run.dataset == dataset:
            counts = Counter(spec.resolution for spec in run.config.model.decoder_specs)
            found[run.name] = [counts[r] for r in sorted(counts, reverse=True)]
    return found


@pytest.mark.parametrize("scale", ["full", "small"])
@pytest.mark.parametrize("name", experiments_in(FOLDER))
def test_every_experiment_describes_runs_that_can_be(name: str, scale: Scale) -> None:
    experiment = load(name, scale)
    assert experiment.runs
    assert len({(run.dataset, run.name, run.seed) for run in experiment.runs}) == len(experiment.runs)
    assert {run.config.train.seed for run in experiment.runs} == {run.seed for run in experiment.runs}
    assert set(experiment.paper) <= set(experiment.run_names)


def test_table_1_left() -> None:
    experiment = load("table1-depth")
    depths = {run.name: run.config.model.stochastic_depth for run in experiment.runs}
    assert depths == {"48": 48, "24": 24, "12": 12, "6": 6, "3": 3}
    assert experiment.paper == {"3": "4.30", "6": "4.18", "12": "4.06", "24": "3.98", "48": "3.95"}
    assert {run.config.data.dataset for run in experiment.runs} == {"imagenet32"}


def test_table_1_right() -> None:
    experiment = load("table1-distribution")
    assert layers_of(experiment, "imagenet32") == {
        "most": [16, 16, 10, 4, 2],
        "many": [14, 14, 10, 6, 4],
        "some": [12, 12, 10, 8, 6],
        "even": [10, 10, 10, 10, 8],
    }
    assert experiment.paper == {"even": "3.98", "some": "3.97", "many": "3.96", "most": "3.95"}


@pytest.mark.parametrize("dataset", ["fashion", "photographs"])
def test_small_scale_has_48_layers_too(dataset: str) -> None:
    for name in ("table1-depth", "table1-distribution", "figure5-collapse", "figure6-skips"):
        assert {sum(layers) for layers in layers_of(load(name, "small"), dataset).values()} == {48}


@pytest.mark.parametrize(("scale", "dataset"), [("full", "cifar10"), ("small", "fashion"), ("small", "photographs")])
def test_table_3(scale: Scale, dataset: str) -> None:
    experiment = load("table3-scaling", scale)
    depths = {name: sum(layers) for name, layers in layers_of(experiment, dataset).items()}
    assert depths == {f"{depth} {how}": depth for how in ("with", "without") for depth in (15, 30, 45, 60, 75)}
    for run in experiment.runs:
        assert run.config.model.residual_scaling == run.name.endswith(" with")
    layers = layers_of(experiment, dataset)
    assert all(layers[f"{depth} with"] == layers[f"{depth} without"] for depth in (15, 30, 45, 60, 75))
    assert scale == "small" or {run.config.train.max_steps for run in experiment.runs} == {80_000}


def test_figure_5_has_73_layers_in_three_designs() -> None:
    experiment = load("figure5-collapse")
    assert {sum(layers) for layers in layers_of(experiment, "imagenet32").values()} == {73}
    designs = {run.name: (run.config.model.unpool, run.config.model.topdown_residual) for run in experiment.runs}
    assert designs == {"nearest": ("nearest", True), "conv": ("conv", True), "FFN": ("nearest", False)}


def test_precision_is_all_that_differs() -> None:
    runs = load("precision", "small").runs
    told = {run.name: (run.config.train.precision, run.config.train.bf16_states) for run in runs}
    assert told == {"fp32": ("fp32", False), "bf16": ("bf16", False), "bf16 states": ("bf16", True)}
    for dataset, seed in product(("fashion", "photographs"), (0, 1)):
        same = [run.config for run in runs if (run.dataset, run.seed) == (dataset, seed)]
        alike = [replace(one, train=replace(one.train, precision="fp32", bf16_states=False)) for one in same]
        assert alike == [same[0]] * 3
        assert same[0].train.max_steps >= 2000


def test_a_run_of_another_experiment_is_made_once() -> None:
    shared = {run.directory for run in load("table1-depth").runs} & {
        run.directory for run in load("table1-distribution").runs
    }
    assert shared == {Path("runs/full/imagenet32/table1-depth/48-seed0")}


def test_seeds() -> None:
    assert {run.seed for run in load("table1-depth", "small").runs} == {0, 1}
    assert {run.seed for run in load("table1-depth", "small", seeds=3).runs} == {0, 1, 2}


def write(folder: Path, **changes: str) -> Path:
    """An experiment with two runs of the demo, and something else in the place of some lines."""
    lines = {
        "title": "title: two",
        "scales": "scales: {small: {seeds: 1, datasets: {fashion: {hps: fashion}}}}",
        "runs": "runs: {a: {}, b: {model.zdim: 4}}",
        "columns": "columns: [bits_per_dim]",
        "figure": "figure: by_setting",
        "claims": "claims: [{text: a is better, metric: bits_per_dim, order: [a, b]}]",
        **changes,
    }
    (folder / "two.yaml").write_text("\n".join(lines.values()))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"title": ""}, "two.yaml 'title'"),
        ({"title": "title: [1"}, "two.yaml YAML"),
        ({"scales": "scales: {small: {datasets: {fashion: {hps: fashion}}}}"}, "two.yaml 'seeds'"),
        ({"scales": "scales: {small: 3}"}, "two.yaml TypeError"),
        ({"runs": "runs: {a: {}, b: {model.zdin: 4}}"}, "model.zdin 'zdim'"),
        ({"runs": "runs: {a: {}, b: {model.stochastic_group: 3}}"}, "stochastic_group 10 3 1, 2, 5"),
        ({"runs": "runs: {a: {}, b: three/c}"}, "'three'"),
        ({"runs": "runs: {a: {}, b: two/c}"}, "two.yaml 'c'"),
        ({"columns": "columns: [bits_per_din]"}, "'bits_per_din' 'bits_per_dim'"),
        ({"claims": "claims: [{text: t, metric: bits_per_dim, order: [a, c]}]"}, "claims 'c'"),
        ({"claims": "claims: [{text: t, metric: loss, order: [a, b]}]"}, "'loss'"),
        ({"claims": "claims: [{text: t}]"}, "two.yaml TypeError"),
        ({"figure": "figure: pie"}, "figure by_setting"),
    ],
)
def test_files_that_are_no_experiment(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    with refuses(words):
        load("two", "small", write(tmp_path, **changes))


def test_names_that_are_no_experiment(tmp_path: Path) -> None:
    assert [run.name for run in load("two", "small", write(tmp_path)).runs] == ["a", "b"]
    with refuses("'table1-dept' 'table1-depth'", UserError):
        load("table1-dept")
    with refuses("two.yaml 'full'", UserError):
        load("two", "full", tmp_path)
