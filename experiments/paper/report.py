"""What an experiment showed: its figures as JSON, its table, and a verdict on each claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from paper.markdown import markdown
from paper.outcome import COLUMNS, Outcome, count_parameters, has_ended, read_outcome
from paper.spec import Claim, Experiment, Run
from vdvae.errors import UserError

Verdict = Literal["reproduced", "not reproduced", "not decided at this size", "within the seeds' spread"]
WITHIN: Literal["within the seeds' spread"] = "within the seeds' spread"
FEWEST_SEEDS = 2
"""A run needs so many for its spread to be known."""
ROUNDING = 1e-9
"""By which differences of figures are uncertain."""
LEGEND = """A verdict holds every seed of one run against every seed of another. *By chance*: how often the seeds would
come out in the order of the claim if the runs did not differ. *Within the seeds' spread*: they are in an order, but the
runs are nearer to each other than the seeds of one of them are. *By seed*: of the pairs of runs with the same seed, how
many differ as claimed, and the mean difference, above 0 where it is as claimed."""


class Finished(NamedTuple):
    """A run that has ended."""

    run: Run
    outcome: Outcome


class Pairs(NamedTuple):
    """Two runs that a claim puts in an order, seed by seed."""

    better: str
    worse: str
    differences: list[float]
    """How far the worse is above the better, for each seed that both have; infinite where one diverged, NaN where both
    did."""

    @property
    def as_claimed(self) -> int:
        """How many of the pairs differ as claimed."""
        return sum(difference > 0 for difference in self.differences)

    @property
    def all_against(self) -> bool:
        """Whether every pair differs the other way round."""
        return bool(self.differences) and all(difference < 0 for difference in self.differences)

    @property
    def mean(self) -> float | None:
        """The mean difference where neither diverged."""
        known = [difference for difference in self.differences if math.isfinite(difference)]
        return statistics.fmean(known) if known else None


class Judged(NamedTuple):
    """A claim, on one data set."""

    claim: Claim
    dataset: str
    verdict: Verdict
    why: str
    one_in: int | None = None
    """Among how many comparisons of runs that do not differ one would be in the claim's order, by chance."""
    pairs: tuple[Pairs, ...] = ()
    """Each run of the claim's order and the next."""


def gather(experiment: Experiment) -> list[Finished]:
    """The outcomes of all runs; of those that have ended, where the experiment makes none.

    Raises:
        UserError: some have not ended.
    """
    missing = [run.directory for run in experiment.runs if not has_ended(run.directory)]
    if missing and experiment.makes_runs:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{experiment.name}: {missing[0]}{more} of {len(experiment.runs)} runs have not ended; without --gather "
            "they are made"
        )
    return [Finished(run, read_outcome(run.directory)) for run in experiment.runs if run.directory not in missing]


def by_dataset(finished: Iterable[Finished]) -> dict[str, list[Finished]]:
    """The runs on each data set."""
    groups: dict[str, list[Finished]] = {}
    for entry in finished:
        groups.setdefault(entry.run.dataset, []).append(entry)
    return groups


def values_by_name(metric: str, finished: Iterable[Finished], diverged: float) -> dict[str, list[float]]:
    """A field of `Outcome`, of every seed by the run's name; `diverged` where the run did."""
    values: dict[str, list[float]] = {}
    for run, outcome in finished:
        values.setdefault(run.name, []).append(_known(getattr(outcome, metric), diverged))
    return values


def _known(value: float | None, diverged: float) -> float:
    """A figure of a run, or `diverged` where it has none, or one that is no number."""
    return diverged if value is None or math.isnan(value) else value


def judge(claims: Sequence[Claim], finished: Sequence[Finished]) -> list[Judged]:
    """Holds every claim against the runs on each data set.

    One run is better than another if every seed of it is. A claim is reproduced if each run in its order is better
    than the next, by no less than the seeds of either differ, and not reproduced if one of them is that much worse than
    the next. If all are in an order, but some are nearer, that is within the seeds' spread. Otherwise the seeds
    overlap, or a run is not there, and nothing is decided.
    """
    groups = by_dataset(finished)
    return [_judged(claim, name, entries) for claim in claims for name, entries in groups.items()]


def _judged(claim: Claim, dataset: str, entries: Sequence[Finished]) -> Judged:
    """What diverged is above everything."""
    values = values_by_name(claim.metric, entries, math.inf)
    if absent := [name for name in claim.order if name not in values]:
        return Judged(claim, dataset, "not decided at this size", f"{', '.join(absent)} was not run")
    if claim.below is not None:
        return Judged(claim, dataset, *_verdict_on_bound(claim, claim.below, values, entries))
    seeds = [len(values[name]) for name in claim.order]
    steps = [(better, _compare(values[better], values[worse]), worse) for better, worse in pairwise(claim.order)]
    relations, why = {relation for _, relation, _ in steps}, ", ".join(_in_words(*step) for step in steps)
    verdict: Verdict = "reproduced"
    if ">" in relations:
        verdict = "not reproduced"
    elif "~" in relations:
        verdict = "not decided at this size"
    elif relations & {"<~", ">~"}:
        verdict = WITHIN
    if min(seeds) < FEWEST_SEEDS:
        verdict, why = "not decided at this size", "one seed has no spread to compare with"
    one_in = math.factorial(sum(seeds)) // math.prod(map(math.factorial, seeds))
    pairs = tuple(_pairs(claim.metric, entries, better, worse) for better, worse in pairwise(claim.order))
    return Judged(claim, dataset, verdict, why, one_in, pairs)


def _verdict_on_bound(
    claim: Claim, below: float, values: dict[str, list[float]], entries: Sequence[Finished]
) -> tuple[Verdict, str]:
    most = max(max(values[name]) for name in claim.order)
    if most >= below:
        return "not reproduced", f"up to {most:g}"
    chosen = [outcome for run, outcome in entries if run.name in claim.order]
    finest = max(getattr(outcome, claim.resolution) for outcome in chosen) if claim.resolution else 0
    if finest >= below:
        return "not decided at this size", f"up to {most:g}, and the next is {finest:g}"
    return "reproduced", f"up to {most:g}"


Relation = Literal["<", "<~", "~", ">~", ">"]


def _compare(a: Sequence[float], b: Sequence[float]) -> Relation:
    """Whether all of `a` are below all of `b`, or above; with `~`, by less than the seeds of either differ."""
    spread = max(_spread(a), _spread(b))
    if max(a) < min(b):
        return "<~" if min(b) - max(a) < spread - ROUNDING else "<"
    if min(a) > max(b):
        return ">~" if min(a) - max(b) < spread - ROUNDING else ">"
    return "~"


def _spread(values: Sequence[float]) -> float:
    """How far the seeds of a run are apart, those that diverged aside."""
    known = [value for value in values if math.isfinite(value)]
    return max(known) - min(known) if known else 0.0


def _in_words(better: str, relation: Relation, worse: str) -> str:
    is_near = relation in ("<~", ">~")
    return f"{better} {relation[0]} {worse}{f' {WITHIN}' if is_near else ''}"


def _pairs(metric: str, entries: Sequence[Finished], better: str, worse: str) -> Pairs:
    values: dict[str, dict[int, float]] = {better: {}, worse: {}}
    for run, outcome in entries:
        if run.name in values:
            values[run.name][run.seed] = _known(getattr(outcome, metric), math.inf)
    seeds = sorted(values[better].keys() & values[worse].keys())
    return Pairs(better, worse, [values[worse][seed] - values[better][seed] for seed in seeds])


def verdicts(judged: Sequence[Judged]) -> str:
    """Markdown: a line for each claim and data set, and how to read them."""
    lines = []
    for claim, dataset, verdict, why, one_in, pairs in judged:
        by_chance = f" By chance: 1 in {one_in:,}." if one_in else ""
        by_seed = f" By seed: {'; '.join(_by_seed(pair, claim.metric) for pair in pairs)}." if pairs else ""
        lines.append(f"- {claim.text} ({dataset}): **{verdict}** ({why}).{by_chance}{by_seed}")
    return "\n".join(lines)


def _by_seed(pair: Pairs, metric: str) -> str:
    form = COLUMNS[metric]["form"].replace("d", ".0f")
    mean = f" ({pair.mean:+{form}})" if pair.mean is not None else ""
    against = ", all against the paper" if pair.all_against else ""
    return f"{pair.better} below {pair.worse} in {pair.as_claimed} of {len(pair.differences)}{mean}{against}"


def page(
    experiment: Experiment, finished: Sequence[Finished], judged: Sequence[Judged], pictures: dict[str, str]
) -> str:
    """Markdown: the title, the table, the verdicts, and pictures, by data set."""
    parts = [f"# {experiment.title} ({experiment.scale} scale)"]
    parts.append(table_of_models(experiment, finished) if experiment.models else table(experiment, finished))
    if judged:
        parts += [verdicts(judged), LEGEND]
    parts += [f"![{dataset}]({name})" for dataset, name in pictures.items()]
    return "\n\n".join(parts)


def table(experiment: Experiment, finished: Sequence[Finished]) -> str:
    """Markdown: a row for each data set and run, with the mean and the range over seeds, and the paper's figure."""
    head = ["data set", "run", "seeds", *(COLUMNS[column]["heading"] for column in experiment.columns)]
    rows = []
    for dataset, entries in by_dataset(finished).items():
        for name in experiment.run_names:
            if outcomes := [entry.outcome for entry in entries if entry.run.name == name]:
                cells = [_cell(column, outcomes) for column in experiment.columns]
                rows.append([dataset, name, str(len(outcomes)), *cells])
    if experiment.paper:
        head.append("paper")
        rows = [[*row, experiment.paper.get(row[1], "")] for row in rows]
    return markdown(head, rows)


def _cell(column: str, outcomes: Sequence[Outcome]) -> str:
    """Mean and range over seeds; one value where they agree."""
    values = [getattr(outcome, column) for outcome in outcomes]
    known = [value for value in values if value is not None]
    if not known:
        return "diverged"
    form = COLUMNS[column]["form"]
    text = f"{known[0]:{form}}"
    if min(known) < max(known):
        mean = statistics.fmean(known)
        text = f"{mean:{form.replace('d', '.0f')}} ({min(known):{form}} to {max(known):{form}})"
    diverged = len(values) - len(known)
    return f"{text}; {diverged} of {len(values)} diverged" if diverged else text


def table_of_models(experiment: Experiment, finished: Sequence[Finished]) -> str:
    """Markdown: the paper's rows of other models, and ours on the same images, measured or not (paper Table 2)."""
    measured = {entry.run.directory: entry.outcome for entry in finished}
    rows = []
    for dataset in dict.fromkeys(run.dataset for run in experiment.runs):
        rows += [list(model.values()) for model in experiment.models if model["dataset"] == dataset]
        for run in (run for run in experiment.runs if run.dataset == dataset):
            nll = (
                f"≤ {_cell('bits_per_dim', [measured[run.directory]])}" if run.directory in measured else "not measured"
            )
            counts = {key: f"{count:,}" for key, count in _counts(run).items()}
            rows.append([dataset, run.name, "VAE", *counts.values(), "1", nll])
    head = ["data set", "model", "type", "parameters", "depth", "evaluations per sample", "NLL, bits/dim"]
    return markdown(head, rows)


def _counts(run: Run) -> dict[str, int]:
    """What a table of models says of ours before it has run."""
    config = run.config.model
    return {"parameters": count_parameters(config), "depth": config.stochastic_depth}


def to_json(experiment: Experiment, finished: Sequence[Finished], judged: Sequence[Judged]) -> dict[str, Any]:
    """All figures of all runs, and the counts of a table of models, which need none."""
    counted = {run.dataset: _counts(run) for run in experiment.runs} if experiment.models else {}
    return {
        "title": experiment.title,
        **({"counted": counted} if counted else {}),
        "hours_of_training": sum({entry.run.directory: entry.outcome.hours for entry in finished}.values()),
        "claims": [_claim_to_json(entry) for entry in judged],
        "runs": [
            {
                "dataset": run.dataset,
                "run": run.name,
                "seed": run.seed,
                "command": f"python train.py {' '.join(run.arguments)}",
                **asdict(outcome),
            }
            for run, outcome in finished
        ],
    }


def _claim_to_json(judged: Judged) -> dict[str, Any]:
    told: dict[str, Any] = {"claim": judged.claim.text, "dataset": judged.dataset}
    told |= {"verdict": judged.verdict, "why": judged.why}
    if judged.one_in is not None:
        told["by_chance"] = 1 / judged.one_in
        told["pairs"] = [
            {
                "better": pair.better,
                "worse": pair.worse,
                "differences": [d if math.isfinite(d) else None for d in pair.differences],
                "as_claimed": pair.as_claimed,
                "all_against": pair.all_against,
                "mean": pair.mean,
            }
            for pair in judged.pairs
        ]
    return told


def from_json(experiment: Experiment, figures: dict[str, Any]) -> list[Finished]:
    """The runs whose figures `to_json` kept.

    Raises:
        UserError: some are none of the experiment.
    """
    runs = {(run.dataset, run.name, run.seed): run for run in experiment.runs}
    names = [field.name for field in fields(Outcome)]
    try:
        return [
            Finished(runs[line["dataset"], line["run"], line["seed"]], Outcome(**{name: line[name] for name in names}))
            for line in figures["runs"]
        ]
    except KeyError as error:
        raise UserError(f"{experiment.name}: the figures are not those of its runs: there is no {error}") from error
