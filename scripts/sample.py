"""Draws a grid of samples: a row for each temperature.

python scripts/sample.py runs/fashion --temperatures 1.0 0.9 0.8 0.7 --columns 8 --out grid.png
"""

from __future__ import annotations

from pathlib import Path

from vdvae.errors import CommandLine, UserError, exit_on_user_error
from vdvae.evaluation.images import sample_grid, save_png
from vdvae.precision import set_matmul_precision
from vdvae.pretrained import load_pretrained


def main() -> None:
    """Writes a PNG and prints its path."""
    parser = CommandLine(description="Samples of a run directory or a checkpoint, as a grid.")
    parser.add_argument("run", help="run directory or checkpoint")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.9, 0.8, 0.7])
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", choices=("ema", "model"), default="ema")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="a .png file")
    set_matmul_precision("fp32")
    with exit_on_user_error():
        args = parser.parse_args()
        if args.out.suffix != ".png":
            raise UserError(f"--out must end in .png, not {args.out}")
        if args.columns < 1:
            raise UserError(f"--columns must be at least 1, not {args.columns}")
        model = load_pretrained(args.run, args.device, weights=args.weights)
        save_png(sample_grid(model, args.temperatures, args.columns, args.seed), args.out)
    print(args.out)


if __name__ == "__main__":
    main()
