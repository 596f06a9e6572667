"""Draws samples: a grid with a row for each temperature, or as many images as an FID evaluator wants.

python scripts/sample.py runs/fashion --temperatures 1.0 0.9 0.8 0.7 --columns 8 --out grid.png
python scripts/sample.py runs/fashion --temperatures 1:1.0,14:0.7 --out grid.png     0.7 from 14x14 on
python scripts/sample.py imagenet64-iter-1600000-model-ema.th --num_images 50000 --out samples.npz
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from vdvae import VDVAE, fast
from vdvae.errors import UserError, exit_on_user_error
from vdvae.evaluation.images import sample_grid, save_png
from vdvae.evaluation.output import check_output, write_images
from vdvae.model.arguments import Temperature
from vdvae.released.command_line import ModelCommandLine, check_at_least_one, open_model, parse_temperature
from vdvae.runtime.noise import Purpose, generator
from vdvae.runtime.precision import PRECISIONS, autocast, set_matmul_precision


def main() -> None:
    """Writes the samples and prints where."""
    parser = ModelCommandLine(description="Samples, as a grid, a folder of PNGs, or an .npz.")
    parser.add_argument(
        "--temperatures",
        type=parse_temperature,
        nargs="+",
        metavar="T",
        help="numbers, or by resolution as in 1:1.0,16:0.8, each from that resolution on. Default: 1, 0.9, 0.8, 0.7 "
        "for a grid, 1 otherwise",
    )
    parser.add_argument(
        "--columns", type=int, default=8, help="columns of the grid, which has a row for each temperature"
    )
    parser.add_argument("--num_images", type=int, default=1000, help="in the folder or .npz")
    parser.add_argument("--batch_size", type=int, default=16, help="images at once")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="how convolutions multiply")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="a .png, an .npz, or a folder")
    fast.keep_freed_memory()
    with exit_on_user_error():
        args = parser.parse_args()
        check_at_least_one(args, "columns", "num_images", "batch_size")
        check_output(args.out)
        is_grid = args.out.suffix == ".png"
        temperatures = args.temperatures or ([1.0, 0.9, 0.8, 0.7] if is_grid else [1.0])
        if not is_grid and len(temperatures) > 1:
            raise UserError("a folder or .npz takes one temperature, such as 0.9 or 1:1.0,16:0.8; a grid takes several")
        model = fast.prepare(open_model(args))
        set_matmul_precision(args.precision)
        with autocast(model.device, args.precision):
            if is_grid:
                save_png(sample_grid(model, temperatures, args.columns, args.seed), args.out)
            else:
                images = batches(model, temperatures[0], args.num_images, args.batch_size, args.seed)
                write_images(args.out, images, model.image_shape, args.num_images, args.columns)
    print(args.out)


@torch.no_grad()
def batches(model: VDVAE, temperature: Temperature, count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """`count` samples, uint8 [n, C, H, W] at a time; a batch's noise depends on (seed, its index)."""
    starts = range(0, count, batch_size)
    sample = fast.recorded_if_prepared(lambda number, noise: model.sample(number, temperature, generator=noise), model)
    for b, start in enumerate(tqdm(starts, "sampling", unit="batch", leave=False, disable=None)):
        noise = generator(model.device, seed, Purpose.PICTURES, b)
        yield sample(min(batch_size, count - start), noise)


if __name__ == "__main__":
    main()
