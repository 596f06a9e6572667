"""Takes over a run of the released code, or hands one over to it.

python scripts/convert_openai.py import imagenet32-iter-1700000 runs/imagenet32
python scripts/convert_openai.py export runs/imagenet32 imagenet32-latest
"""

from __future__ import annotations

import shlex
from pathlib import Path

from vdvae.config import Config
from vdvae.data.prepared import load_splits
from vdvae.data.splits import DATASETS
from vdvae.errors import CommandLine, UserError, exit_on_interrupt, exit_on_user_error
from vdvae.files import from_here
from vdvae.released.exporting import export_run
from vdvae.released.four_files import ReleasedSet
from vdvae.released.importing import import_released

TRAIN = Path(__file__).resolve().parent.parent / "train.py"


@exit_on_interrupt()
def main() -> None:
    """Converts, and prints what there is now."""
    parser = CommandLine(description="Converts runs from and to the four files of the released code.")
    ways = parser.add_subparsers(dest="way", required=True, metavar="import|export")
    into = ways.add_parser("import", help="make a run directory, which train.py resumes, from a released set")
    prefix = "what the names of the four files begin with: -model.th, -model-ema.th, -opt.th and -log.jsonl follow"
    into.add_argument("prefix", metavar="PREFIX", help=prefix)
    into.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run directory to make; may be there if empty")
    into.add_argument("--hps", help="presets, as for train.py; default: the one that has these tensors")
    override = "setting of the run, such as train.weight_decay=0.01"
    into.add_argument("overrides", nargs="*", metavar="section.key=value", help=override)
    out = ways.add_parser("export", help="make the four files, for the released code, from a run")
    out.add_argument("run", type=Path, metavar="RUN", help="run directory or checkpoint")
    out.add_argument("prefix", metavar="PREFIX", help=prefix)
    with exit_on_user_error():
        # argparse gives an empty `overrides` away before an option, and does not know those behind it.
        args, rest = parser.parse_known_args()
        is_import = args.way == "import"
        if unknown := [text for text in rest if not is_import or text.startswith("-") or "=" not in text]:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        if is_import:
            import_run(args.prefix, args.run_dir, args.hps, [*args.overrides, *rest])
        else:
            found = export_run(args.run, args.prefix, training_images)
            print(f"{found.path}: step {found.step:,}", *ReleasedSet.at(args.prefix), sep="\n")


def import_run(prefix: str, run_dir: Path, hps: str | None, overrides: list[str]) -> None:
    """Makes the run directory, and tells how to go on with it, and what will differ from the released code."""
    made = import_released(prefix, run_dir, hps, overrides)
    resume = ["python", str(from_here(TRAIN)), "--hps", made.hps, "--run_dir", str(run_dir), *overrides]
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
