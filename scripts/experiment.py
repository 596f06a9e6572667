"""Reruns a table or figure of the paper: its runs, their figures, the table, the pictures.

python scripts/experiment.py table1-depth                     small, for two CPU cores
python scripts/experiment.py table1-depth --scale full        as in the paper
python scripts/experiment.py figure5-collapse --seeds 4       resumes what was interrupted, and adds seeds
python scripts/experiment.py figure4 --run runs/fashion       about any other run
python scripts/experiment.py table2 --gather --out results    what is committed; otherwise it goes where the runs are
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdvae.command_line import check_at_least_one, check_folder
from vdvae.errors import CommandLine, UserError, exit_on_interrupt, exit_on_user_error
from vdvae.evaluation.figures import check_matplotlib
from vdvae.evaluation.grids import save_png
from vdvae.files import atomic_write
from vdvae.launch import read_launch
from vdvae.runtime.device import pick_device
from vdvae.runtime.results import made_on

sys.path.append(str(Path(__file__).resolve().parent.parent / "experiments"))

from paper.draw import draw
from paper.outcome import has_ended
from paper.report import Finished, Judged, from_json, gather, judge, page, to_json
from paper.runner import train_all
from paper.spec import Experiment, as_typed, commands_for_data, load_experiment

ROOT = Path(__file__).resolve().parent.parent


@exit_on_interrupt("the same command goes on")
def main() -> None:
    """Trains what is missing, then gathers, draws and prints."""
    with exit_on_user_error():
        args = command_line().parse_args()
        check_at_least_one(args, "seeds", "jobs")
        read_launch()  # which results say
        experiment = load_experiment(ROOT / "experiments", args.name, args.scale, args.seeds, args.runs)
        if args.commands:
            train = ["python", as_typed(ROOT / "train.py")]
            commands = [*commands_for_data(experiment.runs), *([*train, *run.arguments] for run in experiment.runs)]
            print("\n".join(map(shlex.join, commands)))
            return
        check_matplotlib()
        out = args.out or (args.run / "figures" if args.run else args.runs)
        check_folder(out)
        if args.run:
            experiment = experiment.of(args.run)
        if args.judge:
            judge_again(experiment, out)
            return
        if experiment.makes_runs and not args.gather:
            if first := commands_for_data(run for run in experiment.runs if not has_ended(run.directory)):
                raise UserError(f"a data set is missing; first {' and '.join(map(shlex.join, first))}")
            train_all(ROOT / "train.py", experiment.runs, args.jobs)
        show(experiment, gather(experiment), out)


def command_line() -> CommandLine:
    """What can be asked for."""
    parser = CommandLine(description="Reruns a table or figure of the paper.")
    parser.add_argument("name", help="a file of experiments/, without .yaml")
    parser.add_argument("--scale", choices=("full", "small"), default="small", help="scale of the runs")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each kind; default: as the experiment says")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once; default: one per GPU, or per CPU core")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/experiments"), metavar="DIR", help="where runs are kept"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where all that is made goes; default: that of --runs")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--commands", action="store_true", help="only print the commands, for a cluster's queue")
    choice.add_argument("--gather", action="store_true", help="make no run; all must be there")
    choice.add_argument("--judge", action="store_true", help="make the table again from the JSON in --out")
    choice.add_argument("--run", type=Path, metavar="RUN", help="draw this run instead; results go to RUN/figures")
    return parser


def show(experiment: Experiment, finished: Sequence[Finished], out: Path) -> None:
    """Prints what came out, and writes it to a folder: page and pictures for this scale, JSON beside the other's.

    Raises:
        UserError: figures of more runs are there.
    """
    before = figures_in(experiment, out)
    if before and len(before["runs"]) > len(finished):
        raise UserError(
            f"{json_file(experiment, out)} has figures of {len(before['runs'])} runs at {experiment.scale} scale, and "
            f"these are of {len(finished)}; move it away, or choose another --out"
        )
    for dataset, picture in draw(experiment, finished, pick_device()).items():
        save_png(picture, picture_file(experiment, out, dataset))
    out.mkdir(parents=True, exist_ok=True)
    judged = judge(experiment.claims, finished)
    figures = {**made_on(pick_device()), **to_json(experiment, finished, judged)}
    write(experiment, finished, judged, out, figures)


def judge_again(experiment: Experiment, out: Path) -> None:
    """The same from the figures in the JSON, which stay as they are, as do the pictures.

    Raises:
        UserError: there are none at this scale.
    """
    figures = figures_in(experiment, out)
    if figures is None:
        where = json_file(experiment, out)
        raise UserError(f"{where} has no figures at {experiment.scale} scale; --out says where they are")
    finished = from_json(experiment, figures)
    judged = judge(experiment.claims, finished)
    figures["claims"] = to_json(experiment, finished, judged)["claims"]
    write(experiment, finished, judged, out, figures)


def write(
    experiment: Experiment, finished: Sequence[Finished], judged: Sequence[Judged], out: Path, figures: dict[str, Any]
) -> None:
    """Writes the page, and the figures of this scale into the JSON, and prints the page."""
    pictures = {run.dataset: picture_file(experiment, out, run.dataset) for run in experiment.runs}
    text = page(experiment, finished, judged, {name: path.name for name, path in pictures.items() if path.is_file()})
    stem, data = out / f"{experiment.name}-{experiment.scale}", json_file(experiment, out)
    scales = json.loads(data.read_text()) if data.is_file() else {}
    scales[experiment.scale] = figures
    for path, content in {Path(f"{stem}.md"): text, data: json.dumps(scales, indent=1)}.items():
        with atomic_write(path) as file:
            file.write(f"{content}\n".encode())
    print(text)
    print(f"\n{stem}.md, its pictures, and {data}")


def json_file(experiment: Experiment, out: Path) -> Path:
    """Where the figures are, of both scales."""
    return out / f"{experiment.name}.json"


def figures_in(experiment: Experiment, out: Path) -> dict[str, Any] | None:
    """The figures at this scale that a folder has."""
    data = json_file(experiment, out)
    figures: dict[str, Any] | None = json.loads(data.read_text()).get(experiment.scale) if data.is_file() else None
    return figures


def picture_file(experiment: Experiment, out: Path, dataset: str) -> Path:
    """Where the picture of a data set is."""
    return out / f"{experiment.name}-{experiment.scale}-{re.sub(r'[^a-z0-9]+', '-', dataset.lower())}.png"


if __name__ == "__main__":
    main()
