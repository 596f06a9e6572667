"""Turns latents of scripts/encode.py, or anybody's in the same form, back into images.

python scripts/decode.py imagenet64-iter-1600000-model-ema.th latents.npz --temperature 0.7 --out images.npz
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vdvae import VDVAE
from vdvae.command_line import ModelCommandLine, check_at_least_one, open_model, parse_temperature, with_noise
from vdvae.errors import UserError, exit_on_interrupt, exit_on_user_error
from vdvae.evaluation.grids import to_uint8
from vdvae.evaluation.image_output import check_output, write_images
from vdvae.files import NpzArray, open_npz


@exit_on_interrupt()
def main() -> None:
    """Writes the images and prints where."""
    parser = ModelCommandLine(description="Turns latents into images; layers without latents come from the prior.")
    parser.add_argument("latents", type=Path, help=".npz with `latents`, floats [N, D], as scripts/encode.py writes it")
    prior = "temperature of the prior: a number, or one from each resolution on, as in 1:1.0,16:0.8"
    parser.add_argument("--temperature", type=parse_temperature, default=1.0, help=prior)
    parser.add_argument(
        "--pixels", choices=("sample", "mean"), default="sample", help="draw from p(x|z), or take its mean"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="images that are decoded at once")
    parser.add_argument("--columns", type=int, default=8, help="columns of a .png grid")
    parser.add_argument("--out", type=Path, default="decoded.png", help="a .png grid, an .npz, or a folder")
    with exit_on_user_error():
        args = parser.parse_args()
        check_at_least_one(args, "batch_size", "columns")
        check_output(args.out)
        latents = open_npz(args.latents, "latents")
        if len(latents.shape) != 2 or latents.dtype.kind != "f":
            raise UserError(f"latents in {args.latents} must be floats [N, D], not {latents.dtype} {latents.shape}")
        model = open_model(args)
        write_images(args.out, decoded(model, latents, args), model.image_shape, latents.shape[0], args.columns)
    print(args.out)


@torch.no_grad()
def decoded(model: VDVAE, latents: NpzArray, args: argparse.Namespace) -> Iterator[Tensor]:
    """The images, uint8 [n, C, H, W] at a time."""
    total = -(-latents.shape[0] // args.batch_size)
    for rows, noise in with_noise(latents.chunks(args.batch_size), total, args.seed, model.device, "decoding"):
        z = model.unflatten(torch.from_numpy(rows.astype(np.float32)))
        if args.pixels == "sample":
            yield model.decode(z, args.temperature, generator=noise)
        else:
            yield to_uint8(model.decode(z, args.temperature, output="mean", generator=noise))


if __name__ == "__main__":
    main()
