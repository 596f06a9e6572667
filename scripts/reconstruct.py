"""Reconstructs images: originals in the first row, then from the latents up to each resolution, the rest from the
prior at a low temperature (paper Figure 4).

python scripts/reconstruct.py runs/fashion                                  images of its validation split
python scripts/reconstruct.py imagenet64-iter-1600000-model-ema.th a.png photos --crop center
"""

from __future__ import annotations

import sys
from pathlib import Path

from vdvae import command_line
from vdvae.command_line import SPLITS, ModelCommandLine
from vdvae.data.loader import first_images
from vdvae.errors import exit_on_interrupt, exit_on_user_error
from vdvae.evaluation.grids import LOW_TEMPERATURE, reconstruction_grid, save_png


@exit_on_interrupt()
def main() -> None:
    """Writes a PNG and prints its path."""
    parser = ModelCommandLine(description="Reconstructs images from the latents up to each resolution, as a grid.")
    parser.add_images(nargs="*", instead="the images of --split")
    parser.add_argument(
        "--split", choices=SPLITS, default="valid", help="split to reconstruct where no images are given"
    )
    parser.add_argument("--columns", type=int, default=8, help="most images to reconstruct, a column for each")
    parser.add_argument("--temperature", type=float, default=LOW_TEMPERATURE, help="temperature of the prior")
    parser.add_argument("--out", type=Path, default="reconstructions.png", help=".png file to write")
    with exit_on_user_error():
        args = parser.parse_args()
        command_line.check_at_least_one(args, "columns")
        command_line.check_file(args.out, ".png")
        found = command_line.find_model(args)
        if args.images:
            split, _ = command_line.open_images(args, found.model_config)
            if len(split) > args.columns:
                print(f"the first {args.columns} of {len(split):,} images; --columns N for more", file=sys.stderr)
        else:
            split = getattr(found.splits(), args.split)
        model = command_line.open_model(args, found)
        images = first_images(split, args.columns, model.device)
        save_png(reconstruction_grid(model, images, args.seed, args.temperature), args.out)
    print(args.out)


if __name__ == "__main__":
    main()
