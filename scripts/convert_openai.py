"""Takes over a run of the released code, or hands one over to it.

python scripts/convert_openai.py import imagenet32-iter-1700000 runs/imagenet32
python scripts/convert_openai.py export runs/imagenet32 imagenet32-latest
"""

from __future__ import annotations

import shlex
from pathlib import Path

from vdvae.config import Config
from vdvae.data.datasets import DATASETS
from vdvae.data.splits import load_splits
from vdvae.errors import CommandLine, UserError, exit_on_user_error
from vdvae.released.exporting import export_run
from vdvae.released.four_files import ReleasedSet
from vdvae.released.importing import import_released


def main() -> None:
    """Converts, and prints what there is now."""
    parser = CommandLine(description="Converts runs from and to the four files of the released code.")
    ways = parser.add_subparsers(dest="way", required=True, metavar="import|export")
    into = ways.add_parser("import", help="a released set becomes a run directory that train.py resumes")
    into.add_argument(
        "prefix", metavar="PREFIX", help="what the files -model.th, -model-ema.th, -opt.th and -log.jsonl begin with"
    )
    into.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="must not exist, or be empty")
    into.add_argument("--hps", help="presets as for train.py; default: the one that has these tensors")
    into.add_argument("overrides", nargs="*", metavar="section.key=value", help="e.g. train.weight_decay=0.01")
    out = ways.add_parser("export", help="a run becomes the four files, for the released code")
    out.add_argument("run", type=Path, metavar="RUN", help="run directory or checkpoint")
    out.add_argument("prefix", metavar="PREFIX", help="what the names of the four files begin with")
    with exit_on_user_error():
        args, rest = parser.parse_known_args()
        if args.way == "import":
            # argparse gives an empty `overrides` away before an option, and does not know those behind it.
            if unknown := [argument for argument in rest if argument.startswith("-") or "=" not in argument]:
                parser.error(f"unrecognized arguments: {' '.join(unknown)}")
            import_run(args.prefix, args.run_dir, args.hps, [*args.overrides, *rest])
        else:
            if rest:
                parser.error(f"unrecognized arguments: {' '.join(rest)}")
            found = export_run(args.run, args.prefix, training_images)
            print(f"{found.path}: step {found.step:,}")
            print("\n".join(map(str, ReleasedSet.at(args.prefix))))


def import_run(prefix: str, run_dir: Path, hps: str | None, overrides: list[str]) -> None:
    """Makes the run directory, and tells how to go on with it, and what will differ from the released code."""
    made = import_released(prefix, run_dir, hps, overrides)
    resume = ["python", "train.py", "--hps", made.hps, "--run_dir", str(run_dir), *overrides]
    print(f"{run_dir}: step {made.step:,}, epoch {made.epoch:,}, {made.parameters:,} parameters")
    print(f"resume: {shlex.join(resume)}")
    for key, value in made.settings.items():
        print(f"note: the released optimiser had {key} {value:g}; train.{key}={value:g} goes on as it did")
    if made.step == made.config.train.max_steps:
        print(f"note: train.max_steps is {made.step:,}, so only the test is left; a larger train.max_steps= trains on")


def training_images(config: Config) -> int:
    """The images in an epoch, from the data set, or from the table of data sets where it is not here.

    Raises:
        UserError: the data set is neither here nor in the table.
    """
    try:
        return len(load_splits(config.data, config.model).train)
    except UserError as error:
        name = config.data.dataset
        if name in DATASETS:
            return DATASETS[name].rules(DATASETS[name].counts)["train"].count
        raise UserError(f"to tell the epoch, the training images of {name} must be counted, but {error}") from error


if __name__ == "__main__":
    main()
