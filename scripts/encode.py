"""Turns images into latents: an .npz with `latents`, float32 [N, D], a row per image in the order of `flatten`.

python scripts/encode.py imagenet64-iter-1600000-model-ema.th photos --layers 31 --mode mean --out latents.npz
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vdvae import VDVAE
from vdvae.data.inputs import open_inputs
from vdvae.data.loader import read_ahead
from vdvae.data.splits import Split
from vdvae.errors import exit_on_user_error
from vdvae.files import write_npz
from vdvae.released.command_line import (
    ModelCommandLine,
    add_images,
    add_layers,
    check_at_least_one,
    check_file,
    layers_of,
    open_model,
)
from vdvae.runtime.noise import Purpose, generator


def main() -> None:
    """Writes the latents, however many, in little memory, and prints what there is."""
    parser = ModelCommandLine(description="Images to an .npz of latents.")
    add_images(parser, nargs="+")
    add_layers(parser)
    parser.add_argument(
        "--mode", choices=("sample", "mean"), default="sample", help="samples of the posteriors, or their means"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="images at once")
    parser.add_argument("--out", type=Path, default=Path("latents.npz"), help="an .npz file")
    with exit_on_user_error():
        args = parser.parse_args()
        check_at_least_one(args, "batch_size")
        check_file(args.out, ".npz")
        model = open_model(args)
        layers = layers_of(args, model)
        split, names = open_inputs(args.images, model.config, args.crop is not None, args.background)
        shapes = model.latent_shapes[:layers]
        size = sum(math.prod(shape) for shape in shapes)
        chunks = encoded(model, split, layers, args.mode, args.batch_size, args.seed)
        others = {"names": np.array(names), "shapes": np.array(shapes)}
        write_npz(args.out, "latents", (len(split), size), "float32", chunks, others)
    print(f"{args.out}: latents of {len(split):,} images, {size:,} numbers each from the first {layers} layers")


@torch.no_grad()
def encoded(
    model: VDVAE, split: Split, layers: int, mode: Literal["sample", "mean"], batch_size: int, seed: int
) -> Iterator[NDArray[np.float32]]:
    """The flat latents of one batch after the other, [n, D]; a batch's noise depends on (seed, its index)."""
    positions = [np.arange(start, min(start + batch_size, len(split))) for start in range(0, len(split), batch_size)]
    bar = tqdm(positions, "encoding", unit="batch", leave=False, disable=None)
    for b, (_, images) in enumerate(zip(bar, read_ahead(split, positions, model.device), strict=True)):
        noise = generator(model.device, seed, Purpose.PICTURES, b)
        yield model.flatten(model.encode(images, layers, mode, generator=noise)).cpu().numpy()


if __name__ == "__main__":
    main()
