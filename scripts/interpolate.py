"""Images between two, along a straight line through their latents: a strip or a GIF.

python scripts/interpolate.py imagenet64-iter-1600000-model-ema.th a.png b.png --resolution 16 --out strip.png
python scripts/interpolate.py runs/fashion a.png b.png --steps 30 --out between.gif
"""

from __future__ import annotations

from pathlib import Path

from vdvae.data.inputs import open_inputs
from vdvae.data.loader import first_images
from vdvae.errors import UserError, exit_on_user_error
from vdvae.evaluation.images import LOW_TEMPERATURE, grid, interpolation, save_gif, save_png
from vdvae.released.command_line import ModelCommandLine, add_images, add_layers, check_file, layers_of, open_model


def main() -> None:
    """Writes the picture and prints its path."""
    parser = ModelCommandLine(description="A strip (.png) or an animation (.gif) between two images.")
    add_images(parser, nargs="+")
    add_layers(parser)
    parser.add_argument("--steps", type=int, default=9, help="images, the two ends included")
    parser.add_argument("--temperature", type=float, default=LOW_TEMPERATURE, help="the prior's, in the other layers")
    parser.add_argument("--out", type=Path, default=Path("interpolation.png"), help="a .png or .gif file")
    with exit_on_user_error():
        args = parser.parse_args()
        if args.steps < 2:
            raise UserError(f"--steps must be at least 2, not {args.steps}")
        check_file(args.out, ".png", ".gif")
        model = open_model(args)
        layers = layers_of(args, model)
        split, names = open_inputs(args.images, model.config, args.crop is not None, args.background)
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
