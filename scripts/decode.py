"""Turns latents of scripts/encode.py, or anybody's in the same form, back into images.

python scripts/decode.py imagenet64-iter-1600000-model-ema.th latents.npz --temperature 0.7 --out images.npz
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vdvae import VDVAE
from vdvae.errors import UserError, exit_on_user_error
from vdvae.evaluation.images import to_uint8
from vdvae.evaluation.output import check_output, write_images
from vdvae.files import NpzArray, open_npz
from vdvae.model.arguments import Temperature
from vdvae.released.command_line import ModelCommandLine, check_at_least_one, open_model, parse_temperature
from vdvae.runtime.noise import Purpose, generator


def main() -> None:
    """Writes the images and prints where."""
    parser = ModelCommandLine(description="Latents to images; layers that are not given come from the prior.")
    parser.add_argument("latents", type=Path, help=".npz with `latents`, floats [N, D], as scripts/encode.py writes it")
    parser.add_argument(
        "--temperature", type=parse_temperature, default=1.0, help="the prior's: a number, or as in 1:1.0,16:0.8"
    )
    parser.add_argument("--pixels", choices=("sample", "mean"), default="sample", help="drawn from p(x|z), or its mean")
    parser.add_argument("--batch_size", type=int, default=16, help="images at once")
    parser.add_argument("--columns", type=int, default=8, help="columns of the grid")
    parser.add_argument("--out", type=Path, default=Path("decoded.png"), help="a .png, an .npz, or a folder")
    with exit_on_user_error():
        args = parser.parse_args()
        check_at_least_one(args, "batch_size", "columns")
        check_output(args.out)
        latents = open_npz(args.latents, "latents")
        if len(latents.shape) != 2 or latents.dtype.kind != "f":
            raise UserError(f"latents in {args.latents} must be floats [N, D], not {latents.dtype} {latents.shape}")
        model = open_model(args)
        images = decoded(model, latents, args.temperature, args.pixels, args.batch_size, args.seed)
        write_images(args.out, images, model.image_shape, latents.shape[0], args.columns)
    print(args.out)


@torch.no_grad()
def decoded(
    model: VDVAE, latents: NpzArray, temperature: Temperature, pixels: str, batch_size: int, seed: int
) -> Iterator[Tensor]:
    """The images, uint8 [n, C, H, W] at a time; a batch's noise depends on (seed, its index)."""
    total = -(-latents.shape[0] // batch_size)
    for b, rows in enumerate(
        tqdm(latents.chunks(batch_size), "decoding", total, unit="batch", leave=False, disable=None)
    ):
        z = model.unflatten(torch.from_numpy(rows.astype(np.float32)))
        noise = generator(model.device, seed, Purpose.PICTURES, b)
        if pixels == "sample":
            yield model.decode(z, temperature, generator=noise)
        else:
            yield to_uint8(model.decode(z, temperature, output="mean", generator=noise))


if __name__ == "__main__":
    main()
