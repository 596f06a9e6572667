"""Turns images into latents: an .npz with `latents`, float32 [N, D], a row per image in the order of `flatten`.

python scripts/encode.py imagenet64-iter-1600000-model-ema.th photos --layers 31 --mode mean --out latents.npz
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vdvae import VDVAE, command_line
from vdvae.command_line import ModelCommandLine
from vdvae.data.loader import read_ahead
from vdvae.data.prepared import Split
from vdvae.errors import exit_on_interrupt, exit_on_user_error
from vdvae.files import write_npz


@exit_on_interrupt()
def main() -> None:
    """Writes the latents, however many, in little memory, and prints what there is."""
    parser = ModelCommandLine(description="Turns images into an .npz of latents.")
    parser.add_images(nargs="+")
    parser.add_layers()
    posterior = "take a sample of each posterior, or its mean"
    parser.add_argument("--mode", choices=("sample", "mean"), default="sample", help=posterior)
    parser.add_argument("--batch_size", type=int, default=16, help="images that are encoded at once")
    parser.add_argument("--out", type=Path, default="latents.npz", help=".npz file to write")
    with exit_on_user_error():
        args = parser.parse_args()
        command_line.check_at_least_one(args, "batch_size")
        command_line.check_file(args.out, ".npz")
        model = command_line.open_model(args)
        layers = command_line.layers_of(args, model)
        split, names = command_line.open_images(args, model.config)
        shapes = model.latent_shapes[:layers]
        size = sum(math.prod(shape) for shape in shapes)
        others = {"names": np.array(names), "shapes": np.array(shapes)}
        write_npz(args.out, "latents", (len(split), size), "float32", encoded(model, split, layers, args), others)
    print(f"{args.out}: latents of {len(split):,} images, {size:,} numbers each from the first {layers} layers")


@torch.no_grad()
def encoded(model: VDVAE, split: Split, layers: int, args: argparse.Namespace) -> Iterator[NDArray[np.float32]]:
    """The flat latents of one batch after the other, [n, D]."""
    rows = torch.arange(len(split)).split(args.batch_size)
    batches = read_ahead(split, (batch.numpy() for batch in rows), model.device)
    for images, noise in command_line.with_noise(batches, len(rows), args.seed, model.device, "encoding"):
        yield model.flatten(model.encode(images, layers, args.mode, generator=noise)).cpu().numpy()


if __name__ == "__main__":
    main()
