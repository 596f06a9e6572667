"""Images between two, along a straight line through their latents: a strip or a GIF.

python scripts/interpolate.py imagenet64-iter-1600000-model-ema.th a.png b.png --resolution 16 --out strip.png
python scripts/interpolate.py runs/fashion a.png b.png --steps 30 --out between.gif
"""

from __future__ import annotations

from pathlib import Path

from vdvae.command_line import ModelCommandLine, check_file, layers_of, open_images, open_model
from vdvae.data.loader import first_images
from vdvae.errors import UserError, exit_on_interrupt, exit_on_user_error
from vdvae.evaluation.grids import LOW_TEMPERATURE, grid, interpolation, save_gif, save_png


@exit_on_interrupt()
def main() -> None:
    """Writes the picture and prints its path."""
    parser = ModelCommandLine(description="Draws a strip (.png) or an animation (.gif) between two images.")
    parser.add_images(nargs="+")
    parser.add_layers()
    parser.add_argument("--steps", type=int, default=9, help="number of images, the two ends included")
    prior = "temperature of the prior, which the other layers come from"
    parser.add_argument("--temperature", type=float, default=LOW_TEMPERATURE, help=prior)
    parser.add_argument("--out", type=Path, default="interpolation.png", help=".png or .gif file to write")
    with exit_on_user_error():
        args = parser.parse_args()
        if args.steps < 2:
            raise UserError(f"--steps must be at least 2, not {args.steps}")
        check_file(args.out, ".png", ".gif")
        model = open_model(args)
        layers = layers_of(args, model)
        split, names = open_images(args, model.config)
        if len(names) != 2:
            raise UserError(f"an interpolation is between 2 images, and these are {len(names)}")
        images = first_images(split, 2, model.device)
        frames = interpolation(model, images, args.steps, layers, args.seed, args.temperature)
        if args.out.suffix == ".png":
            save_png(grid([frames]), args.out)
        else:
            save_gif([grid([frame[None]]) for frame in frames], args.out)
    print(args.out)


if __name__ == "__main__":
    main()
