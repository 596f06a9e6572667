"""experiments/NAME.yaml: the runs of a table or figure, and what the paper says of them."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from paper.outcome import COLUMNS
from vdvae.config import Config, DataConfig, load_config
from vdvae.data.prepared import is_there
from vdvae.errors import UserError, did_you_mean
from vdvae.files import from_here
from vdvae.run.directory import RunDirectory

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAMS = {"photographs16": "photographs.py"}
"""The programs of experiments/ that prepare a data set; setup_data.sh does the official ones."""
Scale = Literal["full", "small"]
Drawing = Literal["by_setting", "cumulative_rate", "gradient_norms", "learning_curves", "reconstructions", "none"]


class Run(NamedTuple):
    """One training run."""

    dataset: str
    """What the experiment calls its data set."""
    name: str
    """Within the experiment."""
    seed: int
    hps: str
    overrides: tuple[str, ...]
    directory: Path

    @property
    def arguments(self) -> list[str]:
        """The command line of train.py."""
        return ["--hps", self.hps, "--run_dir", str(self.directory), *self.overrides]

    @property
    def config(self) -> Config:
        """Raises `UserError` or `ValueError` where it describes no run."""
        return load_config(self.hps, list(self.overrides))


class Claim(NamedTuple):
    """A sentence of the paper, as an order of runs or a bound."""

    text: str
    metric: str
    """A field of `Outcome`, of which less is better."""
    order: list[str]
    """Names of runs, the best first."""
    below: float | None = None
    """A bound that all of these runs must keep; then their order does not matter."""
    resolution: str | None = None
    """A field of `Outcome`: the least difference that a run can show. Above the bound, it decides nothing."""


@dataclass(frozen=True)
class Experiment:
    """A table or figure at one scale."""

    name: str
    title: str
    scale: Scale
    runs: list[Run]
    columns: list[str]
    """Fields of `Outcome` that the table shows."""
    figure: Drawing
    axis: str = ""
    """What the first words of the runs' names are, under a figure by setting."""
    claims: list[Claim] = field(default_factory=list)
    paper: dict[str, str] = field(default_factory=dict)
    """By run name, the paper's figure."""
    models: list[dict[str, str]] = field(default_factory=list)
    """Other models, as the paper gives them (Table 2): dataset, model, type, parameters, depth, sampling, nll."""
    makes_runs: bool = True
    """Whether runs that are missing are made; otherwise it is about those that there are."""

    @property
    def run_names(self) -> list[str]:
        """In the order of the file."""
        return list(dict.fromkeys(run.name for run in self.runs))

    def of(self, directory: Path) -> Experiment:
        """The same about another run, of which nothing is claimed.

        Raises:
            UserError: there is none.
        """
        config_file = RunDirectory(directory).config_file
        if not config_file.is_file():
            raise UserError(f"{directory} is no run directory")
        dataset = load_config(str(config_file), []).data.dataset
        run = Run(dataset, directory.resolve().name, 0, str(config_file), (), directory)
        return replace(self, runs=[run], claims=[], paper={}, models=[], makes_runs=False)


def load_experiment(folder: Path, name: str, scale: Scale, seeds: int | None, runs_folder: Path) -> Experiment:
    """Reads `folder/NAME.yaml`.

    A run is a mapping of `section.key` to value, on top of its data set's presets, or the name of another
    experiment's run, `table1-depth/48`, which is then made once for both.

    Args:
        folder: of the experiments.
        name: of one.
        scale: which of its scales.
        seeds: runs of each kind, with the seeds from 0 on; None: as many as the file says.
        runs_folder: below which runs are kept.

    Raises:
        UserError: no such experiment, or a file that cannot be read as one.
        ValueError: a run whose settings describe no model.
    """
    content = _read(folder, name)
    path = folder / f"{name}.yaml"
    try:
        at_scale, common = content.pop("scales")[scale], content.pop("runs", {})
        runs = [
            _run(folder, name, scale, dataset, run, seed, runs_folder)
            for dataset, its in at_scale["datasets"].items()
            for run in its.get("runs", common)
            for seed in range(seeds or at_scale["seeds"])
        ]
        content["claims"] = [Claim(**claim) for claim in content.get("claims", [])]
        experiment = Experiment(name=name, scale=scale, runs=runs, **content)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no experiment: {type(error).__name__}, {error}") from error
    _check(experiment, path)
    return experiment


def experiments_in(folder: Path) -> list[str]:
    """The names of the experiments that there are."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _read(folder: Path, name: str) -> Any:
    names = experiments_in(folder)
    if name not in names:
        raise UserError(f"no experiment {name!r}{did_you_mean(name, names)}; there are {', '.join(names)}")
    try:
        return yaml.safe_load((folder / f"{name}.yaml").read_bytes())
    except yaml.YAMLError as error:
        raise UserError(f"{folder / name}.yaml: not valid YAML: {error}") from error


def _run(folder: Path, owner: str, scale: Scale, dataset: str, name: str, seed: int, runs_folder: Path) -> Run:
    """A run by its name within its experiment; where that is another's, made of what that file says."""
    settings: Any = f"{owner}/{name}"
    while isinstance(settings, str):
        owner, _, key = settings.partition("/")
        content = _read(folder, owner)
        at_scale = content["scales"][scale]
        its = at_scale["datasets"][dataset]
        settings = its.get("runs", content.get("runs", {}))[key]
    hps = ",".join(as_typed(folder / part) if part.endswith(".yaml") else part for part in its["hps"].split(","))
    settings = {**at_scale.get("settings", {}), **settings, "train.seed": seed}
    overrides = tuple(f"{setting}={as_typed(value)}" for setting, value in settings.items())
    directory = runs_folder / scale / dataset / owner / f"{key.replace(' ', '-')}-seed{seed}"
    return Run(dataset, name, seed, hps, overrides, Path(its.get("run_dir", directory)))


def commands_for_data(runs: Iterable[Run]) -> list[list[str]]:
    """The commands that prepare those data sets of some runs that are not there."""
    missing = [data for run in runs if not is_there(data := run.config.data)]
    return [_command_for_data(data) for data in dict.fromkeys(missing)]


def _command_for_data(data: DataConfig) -> list[str]:
    to = [] if data.root == DataConfig.root else ["--to", data.root]
    if data.dataset in PROGRAMS:
        return ["python", as_typed(CHECKOUT / "experiments" / PROGRAMS[data.dataset]), *to]
    script = as_typed(CHECKOUT / "setup_data.sh")
    return [script if Path(script).is_absolute() else f"./{script}", data.dataset, *to]


def as_typed(value: object) -> str:
    """A setting, or a path below this folder, as one would type it here."""
    if isinstance(value, Path):
        value = from_here(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check(experiment: Experiment, path: Path) -> None:
    """Refuses, before anything runs for days, what would only be noticed at its end."""
    claimed = [metric for claim in experiment.claims for metric in (claim.metric, claim.resolution) if metric]
    for metric in [*experiment.columns, *claimed]:
        if metric not in COLUMNS:
            hint = did_you_mean(metric, list(COLUMNS))
            raise UserError(f"{path}: no figure {metric!r}{hint}; there are {', '.join(COLUMNS)}")
    for claim in experiment.claims:
        if unknown := [name for name in claim.order if name not in experiment.run_names]:
            hint = did_you_mean(unknown[0], experiment.run_names)
            raise UserError(f"{path}: claims: no run {unknown[0]!r}{hint}")
    if experiment.figure not in typing.get_args(Drawing):
        raise UserError(f"{path}: figure must be one of {', '.join(typing.get_args(Drawing))}")
    for run in experiment.runs:
        _ = run.config
