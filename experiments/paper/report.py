"""What an experiment showed: its figures as JSON, its table, and a verdict on each claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from paper.markdown import markdown
from paper.outcome import COLUMNS, Outcome, count_parameters, has_ended, read_outcome
from paper.spec import Claim, Experiment, Run
from vdvae.errors import UserError

Verdict = Literal["reproduced", "not reproduced", "not decided at this size"]


class Finished(NamedTuple):
    """A run that has ended."""

    run: Run
    outcome: Outcome


class Judged(NamedTuple):
    """A claim, on one data set."""

    claim: Claim
    dataset: str
    verdict: Verdict
    why: str


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
        value = getattr(outcome, metric)
        values.setdefault(run.name, []).append(diverged if value is None else value)
    return values


def judge(claims: Sequence[Claim], finished: Sequence[Finished]) -> list[Judged]:
    """Holds every claim against the runs on each data set.

    One run is better than another if every seed of it is. A claim is reproduced if each run in its order is better
    than the next, and not reproduced if one of them is worse than the next; otherwise the seeds overlap, or a run is
    not there, and nothing is decided.
    """
    groups = by_dataset(finished)
    return [Judged(claim, name, *_verdict(claim, entries)) for claim in claims for name, entries in groups.items()]


def _verdict(claim: Claim, entries: Sequence[Finished]) -> tuple[Verdict, str]:
    """The verdict and why; what diverged is above everything."""
    values = values_by_name(claim.metric, entries, math.inf)
    if absent := [name for name in claim.order if name not in values]:
        return "not decided at this size", f"{', '.join(absent)} was not run"
    if claim.below is None:
        steps = [(better, _compare(values[better], values[worse]), worse) for better, worse in pairwise(claim.order)]
        relations, why = {relation for _, relation, _ in steps}, ", ".join(map(" ".join, steps))
        if ">" in relations:
            return "not reproduced", why
        return "not decided at this size" if "~" in relations else "reproduced", why
    most = max(max(values[name]) for name in claim.order)
    if most >= claim.below:
        return "not reproduced", f"up to {most:g}"
    chosen = [outcome for run, outcome in entries if run.name in claim.order]
    finest = max(getattr(outcome, claim.resolution) for outcome in chosen) if claim.resolution else 0
    if finest >= claim.below:
        return "not decided at this size", f"up to {most:g}, and the next is {finest:g}"
    return "reproduced", f"up to {most:g}"


def _compare(a: Sequence[float], b: Sequence[float]) -> Literal["<", "~", ">"]:
    """Whether all of `a` are below all of `b`, or above."""
    if max(a) < min(b):
        return "<"
    return ">" if min(a) > max(b) else "~"


def verdicts(judged: Sequence[Judged]) -> str:
    """Markdown: a line for each claim and data set."""
    return "\n".join(f"- {j.claim.text} ({j.dataset}): **{j.verdict}** ({j.why})." for j in judged)


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
        "claims": [
            {"claim": entry.claim.text, "dataset": entry.dataset, "verdict": entry.verdict, "why": entry.why}
            for entry in judged
        ],
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
