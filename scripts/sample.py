"""Draws samples: a grid with a row for each temperature, or as many images as are wanted.

python scripts/sample.py runs/fashion --temperatures 1.0 0.9 0.8 0.7 --columns 8 --out grid.png
python scripts/sample.py runs/fashion --num_images 20 --temperatures 0.8 --out samples.png
python scripts/sample.py runs/fashion --temperatures 1:1.0,14:0.7 --out grid.png     0.7 from 14x14 on
python scripts/sample.py imagenet64-iter-1600000-model-ema.th --num_images 50000 --out samples.npz
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vdvae import VDVAE, fast
from vdvae.command_line import ModelCommandLine, check_at_least_one, open_model, parse_temperature, with_noise
from vdvae.errors import UserError, exit_on_interrupt, exit_on_user_error
from vdvae.evaluation.grids import TEMPERATURES, sample_grid, save_png
from vdvae.evaluation.image_output import check_output, write_images
from vdvae.model.arguments import Temperature
from vdvae.runtime.precision import PRECISIONS, autocast, set_matmul_precision


@exit_on_interrupt()
def main() -> None:
    """Writes the samples and prints where."""
    parser = ModelCommandLine(description="Draws samples: a .png grid, an .npz, or a folder of PNGs.")
    parser.add_argument(
        "--temperatures",
        type=parse_temperature,
        nargs="+",
        metavar="T",
        help="temperatures: numbers, or one from each resolution on, as in 1:1.0,16:0.8; default: 1, 0.9, 0.8, 0.7 for "
        "a .png without --num_images, which has a row for each, and 1 otherwise",
    )
    parser.add_argument("--columns", type=int, default=8, help="columns of a .png grid")
    wanted = "samples of one temperature; default: 1000, or in a .png --columns for each temperature"
    parser.add_argument("--num_images", type=int, metavar="N", help=wanted)
    parser.add_argument("--batch_size", type=int, default=16, help="most images of --num_images that are drawn at once")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="precision of convolutions")
    parser.add_argument("--out", type=Path, default="samples.png", help="a .png grid, an .npz, or a folder")
    fast.keep_freed_memory()
    with exit_on_user_error():
        args = parser.parse_args()
        check_at_least_one(args, "columns", "num_images", "batch_size")
        check_output(args.out)
        is_grid = args.out.suffix == ".png" and args.num_images is None
        temperatures = args.temperatures or (list(TEMPERATURES) if is_grid else [1.0])
        if not is_grid and len(temperatures) > 1:
            what = "--num_images" if args.out.suffix == ".png" else "a folder or .npz"
            raise UserError(
                f"{what} takes one temperature, such as 0.9 or 1:1.0,16:0.8; a .png without --num_images takes several"
            )
        model = fast.prepare(open_model(args))
        set_matmul_precision(args.precision)
        with autocast(model.device, args.precision):
            if is_grid:
                save_png(sample_grid(model, temperatures, args.columns, args.seed), args.out)
            else:
                count = args.num_images or 1000
                images = drawn(model, temperatures[0], count, args.batch_size, args.seed)
                write_images(args.out, images, model.image_shape, count, args.columns)
    print(args.out)


@torch.no_grad()
def drawn(model: VDVAE, temperature: Temperature, count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """`count` samples, uint8 [n, C, H, W] at a time."""
    sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
    sample = fast.recorded_if_prepared(lambda number, noise: model.sample(number, temperature, generator=noise), model)
    for size, noise in with_noise(sizes, len(sizes), seed, model.device, "sampling"):
        yield sample(size, noise)


if __name__ == "__main__":
    main()
