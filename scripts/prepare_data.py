"""Prepares a data set: an official one, or images of your own.

./setup_data.sh cifar10
python scripts/prepare_data.py folder ~/photos --size 64 --crop center --name photos
python scripts/prepare_data.py verify data/photos
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import torch

from vdvae.command_line import add_fitting
from vdvae.config import PRESETS, DataConfig
from vdvae.data.manifest import Manifest
from vdvae.data.prepare.folder import FolderOptions, drawn, prepare_folder
from vdvae.data.prepare.fragment import BASE, check_fragment, is_checkouts, write_fragment
from vdvae.data.prepare.official import prepare_official
from vdvae.data.prepare.table import FORMS
from vdvae.data.prepare.write import verify
from vdvae.errors import CommandLine, exit_on_interrupt, exit_on_user_error
from vdvae.files import from_here

TRAIN = Path(__file__).resolve().parent.parent / "train.py"


@exit_on_interrupt("the same command goes on")
def main() -> None:
    """Prepares, and prints what there is now."""
    with exit_on_user_error():
        args = command_line().parse_args()
        if args.what == "verify":
            print(f"{args.folder}: every file is as it was prepared, {counts(verify(args.folder))}")
        elif args.what == "folder":
            prepare_own(args)
        else:
            print_summary(*prepare_official(args.what, args.given, args.to, args.partial), args.to)
            if not (is_checkouts(args.to) and is_default(args.to)):
                print(f"to train on it, set {shlex.quote(f'data.root={args.to.absolute()}')}")


def command_line() -> CommandLine:
    """A sub-command for each official set, one for images of your own, and one to verify either."""
    parser = CommandLine(description="Prepares a data set for training.")
    sets = parser.add_subparsers(dest="what", required=True, metavar="|".join((*FORMS, "folder", "verify")))
    for name in FORMS:
        official = sets.add_parser(name, help=f"prepare {name} from its official archives")
        given = "archives, folders that have them, or the address of a mirror; default: the official address"
        official.add_argument("--from", dest="given", nargs="+", default=[], metavar="PATH", help=given)
        official.add_argument("--partial", action="store_true", help="accept a part of the set, and say so in results")
    folder = sets.add_parser("folder", help="prepare a folder of your own images")
    source = "folder of PNG, JPEG, WebP and BMP files, at any depth; folders train, valid and test at its top, in "
    source += "any usual spelling, are the splits"
    folder.add_argument("source", type=Path, metavar="SRC", help=source)
    folder.add_argument("--name", required=True, help="name of the set")
    folder.add_argument("--size", type=int, help="pixels that larger images are scaled down to; default: as they are")
    add_fitting(folder)
    skip = "leave out and list images that cannot be taken, as damaged, small or transparent ones; default: refuse all"
    folder.add_argument("--skip_bad", action="store_true", help=skip)
    folder.add_argument("--seed", type=int, default=0, help="seed of the splits that are no folders")
    folder.add_argument("--held_out", type=float, default=0.1, help="share of validation and test images together")
    folder.add_argument("--bits", type=int, default=8, help="bits at which the NLL is measured")
    folder.add_argument("--config", type=Path, metavar="FILE", help="preset to write; default: configs/NAME.yaml")
    for one in sets.choices.values():
        one.add_argument("--to", type=Path, default=DataConfig.root, metavar="DIR", help="folder of prepared sets")
    check = sets.add_parser("verify", help="compare a prepared set with its checksums")
    check.add_argument("folder", type=Path, help="folder of the prepared set, such as data/cifar10")
    return parser


def prepare_own(args: argparse.Namespace) -> None:
    """Prepares a folder of images, and writes the preset that goes with it."""
    torch.set_num_threads(1)  # scaling one image is so little that threads mostly wait for each other
    config = args.config or PRESETS / f"{args.name}.yaml"
    check_fragment(config, args.name, args.to)
    crop = args.crop is not None
    options = FolderOptions(
        args.name, args.size, crop, args.background, args.seed, args.held_out, args.bits, args.skip_bad
    )
    manifest, before = prepare_folder(args.source, args.to, options)
    print_summary(manifest, before, args.to, drawn(manifest))
    write_fragment(manifest, args.to, config)
    hps = config.stem if config.parent == PRESETS else config
    command = ["python", str(from_here(TRAIN)), "--hps", f"{BASE},{hps}"]
    if is_checkouts(args.to) and not is_default(args.to):  # then the preset does not say where the set is
        command.append(f"data.root={args.to.absolute()}")
    print(f"{from_here(config)}: for {shlex.join(command)}")


def is_default(root: Path) -> bool:
    """Whether train.py, started in this directory, looks there without being told."""
    return root.resolve() == Path(DataConfig.root).resolve()


def print_summary(manifest: Manifest, before: bool, root: Path, more: str = "") -> None:
    """Prints where a set is, and what it has."""
    already = "prepared before; " if before else ""
    print(f"{root / manifest.name}: {already}{manifest}, {counts(manifest)}{more}")


def counts(manifest: Manifest) -> str:
    """How many images of which kind there are, in words."""
    size = " x ".join(map(str, manifest.image_shape))
    images = ", ".join(f"{rule.count:,} {split}" for split, rule in manifest.splits.items())
    return f"{images} images of {size}, {manifest.bits} bits"


if __name__ == "__main__":
    main()
