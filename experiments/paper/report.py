"""What an experiment showed: its figures as JSON, its table, and a verdict on each claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from paper.outcome import Outcome, count_parameters, has_ended, read_outcome
from paper.spec import Claim, Experiment, Run
from vdvae.errors import UserError

Verdict = Literal["reproduced", "not reproduced", "not decided at this size"]

FORMATS = {
    "parameters": ",d",
    "updates": ",d",
    "skipped_share": ".3f",
    "largest_norm": ".3g",
    "bits_per_dim": ".4f",
    "train_bits_per_dim": ".4f",
    "rate": ".4f",
    "hours": ".3f",
}
HEADINGS = {
    "parameters": "parameters",
    "depth": "stochastic depth",
    "updates": "updates",
    "bits_per_dim": "test bits/dim",
    "train_bits_per_dim": "training bits/dim",
    "rate": "rate, bits/dim",
    "skipped": "skipped updates",
    "skipped_share": "skipped, %",
    "largest_norm": "largest gradient norm",
    "silent_layers": "silent first layers",
    "hours": "hours",
}


class Finished(NamedTuple):
    """A run that has ended."""

    run: Run
    outcome: Outcome


class Judged(NamedTuple):
    """A claim, on one data set."""

    claim: Claim
    images: str
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


def judge(claims: Sequence[Claim], finished: Sequence[Finished]) -> list[Judged]:
    """Holds every claim against the runs on each data set.

    One run is better than another if every seed of it is. A claim is reproduced if each run in its order is better
    than the next, and not reproduced if one of them is worse than the next; otherwise the seeds overlap, or a run is
    not there, and nothing is decided.
    """
    judged = []
    for claim in claims:
        for images in dict.fromkeys(entry.run.images for entry in finished):
            entries = [entry for entry in finished if entry.run.images == images]
            if claim.below is None:
                judged.append(_judge_order(claim, images, _values(claim.metric, entries)))
            else:
                judged.append(_judge_bound(claim, claim.below, images, entries))
    return judged


def table(experiment: Experiment, finished: Sequence[Finished]) -> str:
    """Markdown: a row for each data set and run, with the mean and the range over seeds, and the paper's figure."""
    head = ["images", "run", "seeds", *(HEADINGS[column] for column in experiment.columns)]
    head += ["paper"] * bool(experiment.paper)
    rows = []
    for images in experiment.images:
        for name in experiment.run_names:
            entries = [entry for entry in finished if (entry.run.images, entry.run.name) == (images, name)]
            if entries:
                cells = [_cell(column, [entry.outcome for entry in entries]) for column in experiment.columns]
                paper = [experiment.paper.get(name, "")] * bool(experiment.paper)
                rows.append([images, name, str(len(entries)), *cells, *paper])
    return _markdown(head, rows)


def table_of_models(experiment: Experiment, finished: Sequence[Finished]) -> str:
    """Markdown: the paper's rows of other models, and ours on the same images, measured or not (paper Table 2)."""
    measured = {entry.run.directory: entry.outcome for entry in finished}
    rows = []
    for images in experiment.images:
        rows += [list(model.values()) for model in experiment.models if model["images"] == images]
        for run in experiment.runs:
            if run.images == images:
                config = run.config.model
                outcome = measured.get(run.directory)
                nll = "not measured" if outcome is None else f"≤ {_cell('bits_per_dim', [outcome])}"
                rows.append(
                    [images, run.name, "VAE", f"{count_parameters(config):,}", str(config.stochastic_depth), "1", nll]
                )
    return _markdown(
        ["images", "model", "type", "parameters", "depth", "evaluations per sample", "NLL, bits/dim"], rows
    )


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_json(experiment: Experiment, finished: Sequence[Finished], judged: Sequence[Judged]) -> dict[str, Any]:
    """All figures of all runs, and the counts of a table of models, which need none."""
    models = {run.images: run.config.model for run in experiment.runs if experiment.models}
    counts = {
        images: {"parameters": count_parameters(model), "depth": model.stochastic_depth}
        for images, model in models.items()
    }
    return {
        "title": experiment.title,
        **({"counted": counts} if counts else {}),
        "hours_of_training": sum({entry.run.directory: entry.outcome.hours for entry in finished}.values()),
        "claims": [
            {"claim": entry.claim.text, "images": entry.images, "verdict": entry.verdict, "why": entry.why}
            for entry in judged
        ],
        "runs": [
            {
                "images": entry.run.images,
                "run": entry.run.name,
                "seed": entry.run.seed,
                "command": f"python train.py {' '.join(entry.run.arguments)}",
                **asdict(entry.outcome),
            }
            for entry in finished
        ],
    }


def verdicts(judged: Sequence[Judged]) -> str:
    """Markdown: a line for each claim and data set."""
    return "\n".join(f"- {j.claim.text} ({j.images}): **{j.verdict}** ({j.why})." for j in judged)


def _judge_order(claim: Claim, images: str, values: dict[str, list[float | None]]) -> Judged:
    verdict: Verdict = "reproduced"
    reasons = []
    for better, worse in pairwise(claim.order):
        if better not in values or worse not in values:
            return Judged(claim, images, "not decided at this size", f"{better} or {worse} was not run")
        relation = _compare(values[better], values[worse])
        reasons.append(f"{better} {relation} {worse}")
        if relation == ">":
            verdict = "not reproduced"
        elif relation == "~" and verdict == "reproduced":
            verdict = "not decided at this size"
    return Judged(claim, images, verdict, ", ".join(reasons))


def _judge_bound(claim: Claim, bound: float, images: str, entries: Sequence[Finished]) -> Judged:
    outcomes = [entry.outcome for entry in entries if entry.run.name in claim.order]
    if absent := set(claim.order) - {entry.run.name for entry in entries}:
        return Judged(claim, images, "not decided at this size", f"{', '.join(sorted(absent))} was not run")
    most = max(_or_infinite(getattr(outcome, claim.metric)) for outcome in outcomes)
    if most >= bound:
        return Judged(claim, images, "not reproduced", f"up to {most:g}")
    finest = max(getattr(outcome, claim.resolution) for outcome in outcomes) if claim.resolution else 0
    if finest >= bound:
        return Judged(claim, images, "not decided at this size", f"up to {most:g}, and the next is {finest:g}")
    return Judged(claim, images, "reproduced", f"up to {most:g}")


def _compare(a: list[float | None], b: list[float | None]) -> Literal["<", "~", ">"]:
    """Whether all of `a` are below all of `b`, or above; what diverged is above everything."""
    first, second = [_or_infinite(value) for value in a], [_or_infinite(value) for value in b]
    if max(first) < min(second):
        return "<"
    return ">" if min(first) > max(second) else "~"


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value


def _values(metric: str, entries: Sequence[Finished]) -> dict[str, list[float | None]]:
    values: dict[str, list[float | None]] = {}
    for entry in entries:
        values.setdefault(entry.run.name, []).append(getattr(entry.outcome, metric))
    return values


def _cell(column: str, outcomes: Sequence[Outcome]) -> str:
    """Mean and range over seeds; one value where they agree."""
    values = [getattr(outcome, column) for outcome in outcomes]
    known = [value for value in values if value is not None]
    diverged = f"{len(values) - len(known)} of {len(values)} diverged" if len(known) < len(values) else ""
    if not known:
        return "diverged"
    form = FORMATS.get(column, "g")
    if min(known) == max(known):
        text = f"{known[0]:{form}}"
    else:
        mean = statistics.fmean(known)
        text = f"{mean:{form.replace('d', '.0f')}} ({min(known):{form}} to {max(known):{form}})"
    return f"{text}; {diverged}" if diverged else text
