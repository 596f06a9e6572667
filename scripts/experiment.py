"""Reruns a table or figure of the paper: its runs, their figures, the table, the pictures.

python scripts/experiment.py table1-depth                     small, for two CPU cores
python scripts/experiment.py table1-depth --scale full        as in the paper
python scripts/experiment.py figure5-collapse --seeds 4       resumes what was interrupted, and adds seeds
python scripts/experiment.py figure4 --run runs/fashion       about any other run
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

from vdvae.command_line import check_at_least_one
from vdvae.errors import CommandLine, exit_on_user_error
from vdvae.evaluation.figures import check_matplotlib
from vdvae.evaluation.grids import save_png
from vdvae.files import atomic_write
from vdvae.runtime.device import pick_device
from vdvae.runtime.results import made_on

sys.path.append(str(Path(__file__).resolve().parent.parent / "experiments"))

from paper.draw import draw
from paper.report import gather, judge, table, table_of_models, to_json, verdicts
from paper.runner import train_all
from paper.spec import Experiment, load_experiment

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Trains what is missing, then gathers, draws and prints."""
    try:
        with exit_on_user_error():
            args = command_line().parse_args()
            check_at_least_one(args, "seeds", "jobs")
            experiment = load_experiment(ROOT / "experiments", args.name, args.scale, args.seeds, args.runs)
            if args.commands:
                for run in experiment.runs:
                    print(shlex.join(["python", "train.py", *run.arguments]))
                return
            check_matplotlib()
            if args.run:
                experiment = experiment.of(args.run)
            if experiment.makes_runs and not args.gather:
                train_all(ROOT / "train.py", experiment.runs, args.jobs)
            show(experiment, args.out or (args.run / "figures" if args.run else Path("results")))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        sys.exit(130)


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
    parser.add_argument("--out", type=Path, metavar="DIR", help="where table, pictures and JSON go; default: results")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--commands", action="store_true", help="only print the commands, for a cluster's queue")
    choice.add_argument("--gather", action="store_true", help="make no run; all must be there")
    choice.add_argument("--run", type=Path, metavar="RUN", help="draw this run instead; results go to RUN/figures")
    return parser


def show(experiment: Experiment, out: Path) -> None:
    """Prints what came out, and writes it to a folder: page and pictures for this scale, JSON beside the other's."""
    finished = gather(experiment)
    judged = judge(experiment.claims, finished)
    stem, data = f"{experiment.name}-{experiment.scale}", out / f"{experiment.name}.json"
    page = [f"# {experiment.title} ({experiment.scale} scale)"]
    page.append(table_of_models(experiment, finished) if experiment.models else table(experiment, finished))
    if judged:
        page.append(verdicts(judged))
    for dataset, picture in draw(experiment, finished, pick_device()).items():
        path = out / f"{stem}-{re.sub(r'[^a-z0-9]+', '-', dataset.lower())}.png"
        save_png(picture, path)
        page.append(f"![{dataset}]({path.name})")
    text = "\n\n".join(page)
    scales = json.loads(data.read_text()) if data.is_file() else {}
    scales[experiment.scale] = {**made_on(pick_device()), **to_json(experiment, finished, judged)}
    out.mkdir(parents=True, exist_ok=True)
    for path, content in {out / f"{stem}.md": text, data: json.dumps(scales, indent=1)}.items():
        with atomic_write(path) as file:
            file.write(f"{content}\n".encode())
    print(text)
    print(f"\n{out / stem}.md, its pictures, and {data}")


if __name__ == "__main__":
    main()
