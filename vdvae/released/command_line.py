"""The arguments that the scripts around a trained model share."""

from __future__ import annotations

import argparse
from pathlib import Path

from vdvae.data.pictures import BACKGROUNDS
from vdvae.errors import CommandLine, UserError
from vdvae.model.arguments import Temperature, check_layers
from vdvae.model.vdvae import VDVAE
from vdvae.released.pretrained import Pretrained, find_pretrained
from vdvae.runtime.device import pick_device
from vdvae.runtime.precision import set_matmul_precision


class ModelCommandLine(CommandLine):
    """A parser that begins with a model, and has whatever else a script adds."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description)
        self.add_argument("model", help="run directory, checkpoint, or released .th file")
        self.add_argument("--hps", help="preset of a released file, where it is not recognised: as for train.py")
        self.add_argument(
            "--weights", choices=("ema", "model"), help="which weights of a run or checkpoint; default: ema"
        )
        self.add_argument("--device", default="auto", help="default: CUDA where there is one")
        self.add_argument("--seed", type=int, default=0, help="what all noise is drawn with")


def find_model(args: argparse.Namespace) -> Pretrained:
    """The weights that the arguments name.

    Raises:
        UserError: none there, or none that fit.
    """
    if args.seed < 0:
        raise UserError(f"--seed must not be negative, not {args.seed}")
    return find_pretrained(args.model, args.hps, args.weights)


def open_model(args: argparse.Namespace, found: Pretrained | None = None) -> VDVAE:
    """The model that the arguments name, on its device, multiplying in fp32; errors as for `find_model`, which may
    have been called before.
    """
    set_matmul_precision("fp32")
    device = pick_device(args.device)
    return (found or find_model(args)).model(device)


def add_images(parser: CommandLine, nargs: str, instead: str = "") -> None:
    """The images that a script works on, for `data.inputs.open_inputs`; `instead` is what it takes without any."""
    default = f"; default: {instead}" if instead else ""
    parser.add_argument(
        "images",
        type=Path,
        nargs=nargs,
        metavar="IMAGES",
        help=f"image files and folders, or one .npy or .npz (arr_0) of uint8 [N, H, W, C]{default}",
    )
    parser.add_argument("--crop", choices=("center",), help="take the middle square of images that are not square")
    parser.add_argument("--background", choices=tuple(BACKGROUNDS), help="behind transparent images")


def add_layers(parser: CommandLine) -> None:
    """How many layers, said in one of two ways."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--layers", type=int, metavar="N", help="the first N layers from the top; default: all")
    choice.add_argument("--resolution", type=int, metavar="R", help="the layers up to R x R")


def layers_of(args: argparse.Namespace, model: VDVAE) -> int:
    """The number of layers that `add_layers` was told.

    Raises:
        ValueError: the model has not so many, or none of that resolution.
    """
    if args.resolution is not None:
        return model.layers_up_to(args.resolution)
    return check_layers(args.layers, model.num_layers)


def parse_temperature(text: str) -> Temperature:
    """A number, or `resolution:number` pairs as in `1:1.0,16:0.8`.

    Raises:
        ArgumentTypeError: it is neither.
    """
    try:
        if ":" not in text:
            return float(text)
        pairs = [pair.split(":") for pair in text.split(",")]
        return {int(resolution): float(number) for resolution, number in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor like 1:1.0,16:0.8") from error


def check_file(out: Path, *endings: str) -> None:
    """Raises `UserError` unless `out` is a file to be, with one of these endings."""
    if out.suffix not in endings or out.is_dir():
        raise UserError(f"--out must be a file that ends in {' or '.join(endings)}, not {out}")


def check_at_least_one(args: argparse.Namespace, *names: str) -> None:
    """Raises `UserError` where one of these options is given and below 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
