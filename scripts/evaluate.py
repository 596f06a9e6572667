"""Measures the exact NLL of a run or a checkpoint.

python scripts/evaluate.py runs/fashion
"""

from __future__ import annotations

from pathlib import Path

from vdvae import distributed
from vdvae.data.splits import load_splits
from vdvae.errors import CommandLine, UserError, exit_on_bad_image, exit_on_user_error
from vdvae.evaluation.nll import evaluate
from vdvae.precision import set_matmul_precision
from vdvae.pretrained import find_pretrained
from vdvae.results import write_result


def main() -> None:
    """Prints a table, and writes it as JSON where asked to."""
    parser = CommandLine(description="Exact NLL of a run directory or a checkpoint, in fp32.")
    parser.add_argument("run", help="run directory or checkpoint")
    parser.add_argument("--split", choices=("test", "valid", "train"), default="test")
    parser.add_argument("--weights", choices=("ema", "model"), default="ema")
    parser.add_argument("--batch_size", type=int, help="default: train.eval_batch of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the posterior samples")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    with exit_on_user_error():
        args = parser.parse_args()
        if args.batch_size is not None and args.batch_size < 1:
            raise UserError(f"--batch_size must be at least 1, not {args.batch_size}")
        found = find_pretrained(args.run, weights=args.weights)
        config = found.config()
        splits = load_splits(config.data, config.model)
        device = distributed.pick_device(args.device)
    world = distributed.start(device)
    set_matmul_precision("fp32")
    model = found.model(world.device)
    batch_size = args.batch_size or config.train.eval_batch
    split = getattr(splits, args.split)
    with exit_on_bad_image():
        nll = evaluate(model, split, batch_size, world, args.seed, show_progress=True)
    distributed.stop()
    if not world.is_main:
        return
    print(f"{found.path}, {args.weights} weights, {splits.manifest}, {args.split} images")
    print(f"bits/dim        {nll.bits_per_dim:.4f} +- {nll.standard_error:.4f} (standard error)")
    print(f"nats/dim        {nll.nats_per_dim:.4f}")
    print(f"distortion      {nll.distortion:.4f} bits/dim")
    print(f"rate            {nll.rate:.4f} bits/dim")
    for resolution, rate in nll.rate_per_resolution.items():
        print(f"  at {resolution:4}x{resolution:<4}  {rate:.4f}")
    print(f"images          {nll.num_images:,}")
    if args.json:
        about = {"checkpoint": str(found.path), "step": found.step, **splits.manifest.facts()}
        about |= {"split": args.split, "weights": args.weights, "batch_size": batch_size, "seed": args.seed}
        write_result(args.json, device, about, nll._asdict())


if __name__ == "__main__":
    main()
