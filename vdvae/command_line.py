"""What the scripts around a trained model share: their arguments, and how they go through batches."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from vdvae import fast
from vdvae.data.image_files import BACKGROUNDS
from vdvae.data.prepared import Split
from vdvae.data.user_images import open_inputs
from vdvae.errors import CommandLine, UserError
from vdvae.model.arguments import Temperature, check_layers
from vdvae.model.config import ModelConfig
from vdvae.model.vdvae import VDVAE
from vdvae.released.pretrained import Pretrained, find_pretrained
from vdvae.runtime.device import pick_device
from vdvae.runtime.noise import Purpose, generator
from vdvae.runtime.precision import set_matmul_precision

SPLITS = ("test", "valid", "train")

Batch = TypeVar("Batch")


class ModelCommandLine(CommandLine):
    """A parser that begins with a model, and has whatever else a script adds."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description)
        self.add_argument("model", help="run directory, checkpoint, or released .th file")
        self.add_argument("--hps", help="preset, as for train.py, of a released file that is not recognised by itself")
        self.add_argument("--weights", choices=("ema", "model"), help="weights of a run or checkpoint; default: ema")
        add_device(self)
        self.add_argument("--seed", type=int, default=0, help="seed of all noise")

    def add_images(self, nargs: str, instead: str = "") -> None:
        """The images that a script works on, for `open_images`; `instead` is what it takes without any."""
        default = f"; default: {instead}" if instead else ""
        self.add_argument(
            "images",
            type=Path,
            nargs=nargs,
            metavar="IMAGES",
            help=f"image files and folders, or one .npy or .npz (arr_0) of uint8 [N, H, W, C]{default}",
        )
        add_fitting(self)
        skip = "leave out image files that cannot be taken, and list them; default: refuse all"
        self.add_argument("--skip_bad", action="store_true", help=skip)

    def add_layers(self) -> None:
        """How many layers, for `layers_of`: said in one of two ways."""
        choice = self.add_mutually_exclusive_group()
        choice.add_argument("--layers", type=int, metavar="N", help="use the first N layers from the top; default: all")
        choice.add_argument("--resolution", type=int, metavar="R", help="use the layers up to R x R")


def add_device(parser: CommandLine) -> None:
    """Where a script computes, for `pick_device`."""
    parser.add_argument("--device", default="auto", help="device to compute on; default: CUDA where there is one")


def add_fitting(parser: CommandLine) -> None:
    """What is done to image files that are not square, or transparent."""
    parser.add_argument("--crop", choices=("center",), help="take the middle square of images that are not square")
    parser.add_argument("--background", choices=tuple(BACKGROUNDS), help="colour to put behind transparent images")


def add_json(parser: CommandLine) -> None:
    """The file that a script writes its figures to, for `prepare_result` and `write_result`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file, as JSON")


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


def open_images(args: argparse.Namespace, config: ModelConfig) -> tuple[Split, list[str]]:
    """The images that `add_images` was told, and a name for each; errors as for `open_inputs`."""
    return open_inputs(args.images, config, args.crop is not None, args.background, args.skip_bad)


def layers_of(args: argparse.Namespace, model: VDVAE) -> int:
    """The number of layers that `add_layers` was told.

    Raises:
        ValueError: the model has not so many, or none of that resolution.
    """
    if args.resolution is not None:
        return model.layers_up_to(args.resolution)
    return check_layers(args.layers, model.num_layers)


def with_noise(
    batches: Iterable[Batch], total: int, seed: int, device: torch.device, doing: str
) -> Iterator[tuple[Batch, torch.Generator]]:
    """Each of `total` batches with a source of noise, which depends on (seed, the batch's index); on a terminal, a bar
    says what is being done.
    """
    threads = fast.Threads(device)
    for index, batch in enumerate(tqdm(batches, doing, total, unit="batch", leave=False, disable=None)):
        with threads:
            yield batch, generator(device, seed, Purpose.PICTURES, index)


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


def check_folder(out: Path) -> None:
    """Raises `UserError` where `out` cannot be a folder, because there is a file."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out must be a folder, and {out} is a file")


def check_at_least_one(args: argparse.Namespace, *names: str) -> None:
    """Raises `UserError` where one of these options is given and below 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
