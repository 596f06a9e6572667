"""Measures the exact NLL of a run, a checkpoint or released weights.

python scripts/evaluate.py runs/fashion
python scripts/evaluate.py imagenet64-iter-1600000-model-ema.th data.root=/scratch/data
python scripts/evaluate.py runs/fashion --importance_samples 100 --prior_layers 3
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vdvae import fast
from vdvae.command_line import SPLITS, ModelCommandLine, add_json, check_at_least_one, find_model
from vdvae.errors import UserError, exit_on_bad_image, exit_on_interrupt, exit_on_user_error
from vdvae.evaluation.nll import NLL, ImportanceWeighted, evaluate, evaluate_importance_weighted
from vdvae.launch import read_launch
from vdvae.released.releases import release_of
from vdvae.runtime import processes
from vdvae.runtime.device import pick_device
from vdvae.runtime.precision import set_matmul_precision
from vdvae.runtime.results import prepare_result, write_result


@processes.exit_at_once("begins again")
@exit_on_interrupt()
def main() -> None:
    """Prints a table, and writes it as JSON where asked to."""
    parser = ModelCommandLine(description="Measures the exact NLL, in fp32: every image of a split once.")
    parser.add_argument("--split", choices=SPLITS, default="test", help="split to measure")
    parser.add_argument("--batch_size", type=int, help="images that are measured at once; default: train.eval_batch")
    parser.add_argument(
        "--importance_samples", type=int, metavar="K", help="add the tighter bound from K samples per image"
    )
    prior = "add the bound with the lowest K layers, nearest to the image, from the prior (out-of-distribution)"
    parser.add_argument("--prior_layers", type=int, metavar="K", help=prior)
    binning = "arithmetic of the likelihood; default: the model's own"
    parser.add_argument("--binning", choices=("exact", "released"), help=binning)
    add_json(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="data.key=value", help="setting, such as data.root=/scratch/data"
    )
    fast.keep_freed_memory()
    with exit_on_user_error():
        args = parser.parse_intermixed_args()
        check_at_least_one(args, "batch_size", "importance_samples", "prior_layers")
        read_launch()
        prepare_result(args.json)
        found = find_model(args)
        if args.binning:
            found = replace(found, model_config=replace(found.model_config, binning=args.binning))
        num_layers = len(found.model_config.decoder_specs)
        if args.prior_layers and args.prior_layers >= num_layers:
            raise UserError(f"--prior_layers must be below the model's {num_layers} layers, not {args.prior_layers}")
        batch_size = args.batch_size or found.config().train.eval_batch
        splits = found.splits(args.overrides)
        device = pick_device(args.device)
    bounds: dict[str, NLL | ImportanceWeighted] = {}
    figures: dict[str, Any] = {}
    with exit_on_bad_image():
        world = processes.start(device)
        set_matmul_precision("fp32")
        model = fast.prepare(found.model(world.device))
        what = (model, getattr(splits, args.split), batch_size, world)
        nll = evaluate(*what, args.seed, show_progress=True)
        if k := args.importance_samples:
            weighted = evaluate_importance_weighted(*what, k, args.seed, show_progress=True)
            bounds[f"importance-weighted, {k} samples per image"] = weighted
            figures["importance_weighted"] = weighted._asdict()
        if k := args.prior_layers:
            partial = evaluate(*what, args.seed, show_progress=True, layers=num_layers - k)
            bounds[f"the lowest {k} of {num_layers} layers from the prior"] = partial
            figures["lowest_layers_from_the_prior"] = {"prior_layers": k, **partial._asdict()}
    processes.stop()
    if not world.is_main:
        return
    which = f"{found.weights} weights" if found.weights else f"weights of {found.hps}"
    print(f"{found.path}, {which}, {splits.manifest}, {args.split} images")
    print_summary(nll, model.config.binning)
    for name, bound in bounds.items():
        print(name)
        print(f"bits/dim        {bound.bits_per_dim:.4f} +- {bound.standard_error:.4f}")
    if published := release_of(found.path):
        print(f"published       {published[0].published}, test images")
    if args.json:
        about = {"checkpoint": str(found.path), "step": found.step, **splits.manifest.facts()}
        about |= {"split": args.split, "weights": found.weights, "batch_size": batch_size, "seed": args.seed}
        write_result(args.json, device, {**about, "binning": model.config.binning}, {**nll._asdict(), **figures})


def print_summary(nll: NLL, binning: str) -> None:
    """The ELBO and its parts; under both binnings where they differ."""
    print(f"bits/dim        {nll.bits_per_dim:.4f} +- {nll.standard_error:.4f} (standard error)")
    if len(nll.bits_per_dim_by_binning) > 1:
        for name, bits_per_dim in nll.bits_per_dim_by_binning.items():
            note = ", the one above" if name == binning else ""
            print(f"  {name:9}     {bits_per_dim:.4f} (binning {name}{note})")
    print(f"nats/dim        {nll.nats_per_dim:.4f}")
    print(f"distortion      {nll.distortion:.4f} bits/dim")
    print(f"rate            {nll.rate:.4f} bits/dim")
    for resolution, rate in nll.rate_per_resolution.items():
        print(f"  at {resolution:4}x{resolution:<4}  {rate:.4f}")
    print(f"images          {nll.num_images:,}")


if __name__ == "__main__":
    main()
