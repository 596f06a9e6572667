"""Prepares a data set: an official one, or images of your own.

./setup_data.sh cifar10
python scripts/prepare_data.py folder ~/photos --size 64 --crop center --name photos
python scripts/prepare_data.py verify data/photos
"""

from __future__ import annotations

import sys
from pathlib import Path

from vdvae.config import PRESETS, DataConfig
from vdvae.data.manifest import Manifest
from vdvae.data.pictures import BACKGROUNDS
from vdvae.data.prepare.folder import FolderOptions, prepare_folder
from vdvae.data.prepare.fragment import BASE, check_fragment, write_fragment
from vdvae.data.prepare.official import prepare_official
from vdvae.data.prepare.table import FORMS
from vdvae.data.prepare.write import verify
from vdvae.errors import CommandLine, exit_on_user_error


def main() -> None:
    """Prepares, and prints what there is now."""
    parser = CommandLine(description="Prepares a data set for training.")
    sets = parser.add_subparsers(dest="what", required=True, metavar="|".join((*FORMS, "folder", "verify")))
    for name in FORMS:
        official = sets.add_parser(name, help="from its official archives")
        official.add_argument(
            "--from",
            dest="given",
            nargs="+",
            default=[],
            metavar="PATH",
            help="archives, folders that have them, or the address of a mirror; default: the official address",
        )
        _add_root(official)
        official.add_argument("--partial", action="store_true", help="accept a part of the set, and say so in results")
    folder = sets.add_parser("folder", help="from a folder of your own images")
    folder.add_argument(
        "source",
        type=Path,
        metavar="SRC",
        help="PNG, JPEG, WebP and BMP, at any depth; if it has folders train, valid and test, they are the splits",
    )
    folder.add_argument("--name", required=True, help="what the set is called from now on")
    folder.add_argument("--size", type=int, help="pixels; larger images are scaled down. Default: as they are")
    folder.add_argument("--crop", choices=("center",), help="take the middle square of images that are not square")
    folder.add_argument("--background", choices=tuple(BACKGROUNDS), help="behind transparent images")
    folder.add_argument("--seed", type=int, default=0, help="what the split is drawn with, without such folders")
    folder.add_argument("--held_out", type=float, default=0.1, help="share of validation and test images together")
    folder.add_argument("--bits", type=int, default=8, help="at which the NLL is measured")
    folder.add_argument("--config", type=Path, metavar="FILE", help="default: configs/NAME.yaml")
    _add_root(folder)
    check = sets.add_parser("verify", help="compare a prepared set with its checksums")
    check.add_argument("folder", type=Path)
    try:
        with exit_on_user_error():
            args = parser.parse_args()
            if args.what == "verify":
                print(f"{args.folder}: every file is as it was prepared, {_counts(verify(args.folder))}")
            elif args.what == "folder":
                config = args.config or PRESETS / f"{args.name}.yaml"
                check_fragment(config)
                options = FolderOptions(
                    args.name, args.size, args.crop is not None, args.background, args.seed, args.held_out, args.bits
                )
                manifest, before = prepare_folder(args.source, args.to, options)
                write_fragment(manifest, args.to, config)
                _tell(manifest, before, args.to)
                hps = args.name if config.parent == PRESETS else config
                shown = config.relative_to(Path.cwd()) if config.is_relative_to(Path.cwd()) else config
                print(f"{shown}: for python train.py --hps {BASE},{hps}")
            else:
                _tell(*prepare_official(args.what, args.given, args.to, args.partial), args.to)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        sys.exit(130)


def _add_root(parser: CommandLine) -> None:
    parser.add_argument("--to", type=Path, default=Path(DataConfig.root), metavar="DIR", help="default: data")


def _tell(manifest: Manifest, before: bool, root: Path) -> None:
    already = "prepared before; " if before else ""
    print(f"{root / manifest.name}: {already}{manifest}, {_counts(manifest)}")


def _counts(manifest: Manifest) -> str:
    size = " x ".join(map(str, manifest.image_shape))
    images = ", ".join(f"{rule.count:,} {split}" for split, rule in manifest.splits.items())
    return f"{images} images of {size}, {manifest.bits} bits"


if __name__ == "__main__":
    main()
