"""Reconstructs images: originals in the first row, then from the latents up to each resolution, the rest from the
prior at a low temperature (paper Figure 4).

python scripts/reconstruct.py runs/fashion                                  images of its validation split
python scripts/reconstruct.py imagenet64-iter-1600000-model-ema.th a.png photos --crop center
"""

from __future__ import annotations

from pathlib import Path

from vdvae.data.inputs import open_inputs
from vdvae.data.loader import first_images
from vdvae.errors import exit_on_user_error
from vdvae.evaluation.images import LOW_TEMPERATURE, reconstruction_grid, save_png
from vdvae.released.command_line import (
    ModelCommandLine,
    add_images,
    check_at_least_one,
    check_file,
    find_model,
    open_model,
)


def main() -> None:
    """Writes a PNG and prints its path."""
    parser = ModelCommandLine(description="Reconstructions from the latents up to each resolution, as a grid.")
    add_images(parser, nargs="*", instead="the split")
    parser.add_argument("--split", choices=("test", "valid", "train"), default="valid")
    parser.add_argument("--columns", type=int, default=8, help="the most images")
    parser.add_argument("--temperature", type=float, default=LOW_TEMPERATURE, help="the prior's")
    parser.add_argument("--out", type=Path, default=Path("reconstructions.png"), help="a .png file")
    with exit_on_user_error():
        args = parser.parse_args()
        check_at_least_one(args, "columns")
        check_file(args.out, ".png")
        found = find_model(args)
        if args.images:
            split, _ = open_inputs(args.images, found.model_config, args.crop is not None, args.background)
        else:
            split = getattr(found.splits(), args.split)
        model = open_model(args, found)
        images = first_images(split, args.columns, model.device)
        save_png(reconstruction_grid(model, images, args.seed, args.temperature), args.out)
    print(args.out)


if __name__ == "__main__":
    main()
