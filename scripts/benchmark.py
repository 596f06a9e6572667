"""Measures how fast this machine is at something, and what memory it takes, for one preset; or two ways against
each other, in turn.

python scripts/benchmark.py train --hps cifar10 --compare train.fast=false --json results/train-cifar10.json
python scripts/benchmark.py train --hps cifar10 --compare train.precision=bf16,train.compile=true
python scripts/benchmark.py sample --hps cifar10 --temperatures 1.0 0.9 0.8 0.7 --batch 8 --compare train.fast=false
python scripts/benchmark.py evaluate --hps cifar10 train.fast=false     the plain model alone
python scripts/benchmark.py memory --hps cifar10 --batch 1 --compare train.fast=false
python scripts/benchmark.py data --hps imagenet32 --made_up 700000     without having the set
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from measuring.loader import make_up, measure_loader
from measuring.memory import StepMemory, memory_of_step
from measuring.speed import Apart, Measured, Speed, take_turns
from measuring.work import Prepare, Setting, Training, evaluation, sampling

from vdvae.config import load_config
from vdvae.data.splits import load_splits
from vdvae.errors import CommandLine, UserError, exit_on_bad_image, exit_on_user_error
from vdvae.released.command_line import check_at_least_one
from vdvae.runtime.device import describe, pick_device
from vdvae.runtime.precision import PRECISIONS
from vdvae.runtime.results import prepare_result, write_result

HELP = {
    "train": "whole updates, as train.py makes them",
    "sample": "samples, or grids of them",
    "evaluate": "the likelihood terms of images, in fp32",
    "memory": "the peak memory of one training step, in a fresh process",
    "data": "the loader alone, against what the model can take",
}
LABELS = {"images_per_second": "images per second", "peak_mb": "peak memory"}
REPEATS = {"train": 20, "sample": 10, "evaluate": 10}


def main() -> None:
    """Reads the command line, measures, prints a table, and writes JSON where asked to."""
    with exit_on_user_error():
        args = command_line().parse_args()
    {"data": data, "memory": memory}.get(args.kind, speed)(args)


def command_line() -> CommandLine:
    """A sub-command for each thing that is measured."""
    parser = CommandLine(description="Measures how fast this machine is.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, told in HELP.items():
        one = kinds.add_parser(kind, help=told)
        one.add_argument("--hps", required=True, help="presets, as for train.py")
        one.add_argument("--device", default="auto")
        one.add_argument("--json", type=Path, metavar="FILE")
        one.add_argument("overrides", nargs="*", metavar="section.key=value")
        if kind == "data":
            one.add_argument("--made_up", type=int, metavar="N", help="measure on N random images instead of the set")
            one.add_argument("--seconds", type=int, default=5, help="how long the loader is measured")
            continue
        one.add_argument("--batch", type=int, metavar="N", help="images of a step; default: the preset's micro-batch")
        one.add_argument(
            "--compare",
            metavar="OVERRIDES",
            help="more overrides, separated by commas: measured in turn; train.fast=false is the plain model",
        )
        if kind in REPEATS:
            one.add_argument("--repeats", type=int, default=REPEATS[kind], metavar="N", help="timed steps of a round")
            one.add_argument("--rounds", type=int, metavar="N", help="default: 4 with --compare, 1 without")
            one.add_argument("--warmup", type=int, default=3, metavar="N", help="steps before, besides the first")
        if kind == "sample":
            one.add_argument(
                "--temperatures", type=float, nargs="+", metavar="T", help="draw grids with a row of samples for each"
            )
            one.add_argument("--precision", choices=PRECISIONS, default="fp32", help="how convolutions multiply")
    return parser


def speed(args: argparse.Namespace) -> None:
    """Measures the speed of training, sampling or evaluation."""
    with exit_on_user_error():
        check_at_least_one(args, "batch", "repeats", "rounds")
        if args.warmup < 0:
            raise UserError(f"--warmup must not be negative, not {args.warmup}")
        temperatures = getattr(args, "temperatures", None)
        if not all(0 <= temperature < math.inf for temperature in temperatures or ()):
            raise UserError("--temperatures must be finite and not negative")
        settings, device = read_settings(args)
    args.rounds = args.rounds or (1 if args.compare is None else 4)
    kinds: dict[str, Prepare] = {
        "train": Training,
        "sample": partial(sampling, temperatures=temperatures, precision=getattr(args, "precision", "fp32")),
        "evaluate": evaluation,
    }
    measured = [Apart(setting, kinds[args.kind], device, len(temperatures or [1])) for setting in settings]
    seconds = take_turns([one.run for one in measured], args.warmup, args.repeats, args.rounds)
    speeds = [one.speed(mine) for one, mine in zip(measured, seconds, strict=True)]
    print_summary(args, device, speeds, [speed_table(one) for one in speeds], "images_per_second")


def memory(args: argparse.Namespace) -> None:
    """Measures the memory of a training step."""
    with exit_on_user_error():
        check_at_least_one(args, "batch")
        settings, device = read_settings(args)
    with exit_on_bad_image():
        found = [memory_of_step(setting, device) for setting in settings]
    columns = [{"peak memory": f"{one.peak_mb:,.0f} MB", "  of the step": f"{one.step_mb:,.0f} MB"} for one in found]
    print_summary(args, device, found, columns, "peak_mb")


def read_settings(args: argparse.Namespace) -> tuple[list[Setting], torch.device]:
    """What is measured, and where; raises `ValueError` for what cannot be."""
    trains = args.kind in ("train", "memory")
    settings = [Setting.of(load_config(args.hps, args.overrides), args.batch, trains)]
    if args.compare is not None:
        others = re.split(r",(?=\w+\.)", args.compare)  # a list of blocks has commas too
        settings.append(Setting.of(load_config(args.hps, args.overrides + others), args.batch, trains))
        if settings[0] == settings[1]:
            raise UserError(f"--compare: {args.compare} changes nothing that {args.kind} measures")
    device = pick_device(args.device)
    prepare_result(args.json)
    return settings, device


def print_summary(
    args: argparse.Namespace,
    device: torch.device,
    figures: Sequence[Speed | StepMemory],
    columns: Sequence[dict[str, str]],
    key: str,
) -> None:
    """Prints a column for each setting and how the first compares by the figure `key`, and writes all figures."""
    names = ["the library", f"the library with {args.compare}"][: len(figures)]
    print(f"{args.kind} {' '.join([args.hps, *args.overrides])}, on {describe(device)}")
    for letter, name, one in zip("AB", names, figures, strict=False):
        print(f"{letter}: {name}, batch {one.batch}")
    for label in columns[0]:
        print(f"{label:26}" + "".join(f"{column.get(label, '-'):>22}" for column in columns))
    told = asdict(figures[0])
    if len(figures) > 1:
        compared = asdict(figures[1])
        ratio = told[key] / compared[key]
        told |= {"compared": compared, "ratio": ratio}
        print(f"A has {ratio:.3g} times the {LABELS[key]} of B, {names[1]}")
    if args.json:
        about = {k: v for k, v in vars(args).items() if k not in ("json", "device", "compare")}
        about |= {"setting": " against ".join(names), "threads": torch.get_num_threads()}
        if device.type == "cuda":
            about |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
            about["capability"] = "{}.{}".format(*torch.cuda.get_device_capability(device))
        write_result(args.json, device, about, told)


def speed_table(one: Speed) -> dict[str, str]:
    """Labels and numbers with their units."""
    lower, upper = one.milliseconds_quartiles
    table = {
        "images per second": f"{one.images_per_second:,.2f}",
        "milliseconds per step": f"{one.milliseconds_per_step:,.1f}",
        "  quartiles": f"{lower:,.1f} to {upper:,.1f}",
        "time to first step": f"{one.first_step_seconds:,.2f} s",
    }
    if one.peak_memory_mb is not None:
        table["peak memory"] = f"{one.peak_memory_mb:,.0f} MB"
    if one.flops:
        table["FLOPs per step"] = f"{one.flops.gflop_per_step:,.1f} GFLOP"
        table["matrix products"] = f"{one.flops.matmul_tflops:,.3f} TFLOP/s"
        table["FLOP utilisation"] = f"{one.flops.utilisation * 100:.1f} %"
    if one.phases:
        table |= {f"  {name}": f"{ms:,.1f} ms" for name, ms in asdict(one.phases).items()}
    return table


def data(args: argparse.Namespace) -> None:
    """The loader, and the training that it feeds."""
    with exit_on_user_error():
        if args.seconds < 1 or (args.made_up is not None and args.made_up < 1000):
            raise UserError("--seconds must be at least 1, and --made_up at least 1000")
        prepare_result(args.json)
        config = load_config(args.hps, args.overrides)
        device = pick_device(args.device)
        if args.made_up is None:
            load_splits(config.data, config.model)
    with tempfile.TemporaryDirectory(dir=".", prefix=".benchmark-") as folder:
        if args.made_up is not None:
            config = replace(config, data=make_up(config, args.made_up, Path(folder)))
        with get_context("forkserver").Pool(1) as pool:
            loader = pool.apply(measure_loader, (config, args.seconds))
    training = Measured(Setting.of(config), Training, device)
    model = training.images_per_step / statistics.median(training.run(3))

    size = config.model.image_size
    print(f"{args.hps}: {loader.training_images:,} images of {size} x {size}, {loader.set_size_mb:,.0f} MB")
    print(f"loader alone, one core   {loader.images_per_second:12,.0f} images/s")
    if loader.extra_memory_mb is not None:
        print(f"  extra memory, peak     {loader.extra_memory_mb:12,.0f} MB")
    print(f"training, {device.type:5}          {model:12,.1f} images/s")
    print(f"loader / training        {loader.images_per_second / model:12,.0f}")
    if args.json:
        about = {
            "hps": args.hps,
            "overrides": args.overrides,
            "made_up": args.made_up,
            "batch": config.train.batch_size,
            "numpy": np.__version__,
        }
        figures = {**loader._asdict(), "training_images_per_second": model}
        write_result(args.json, device, about, figures)


if __name__ == "__main__":
    main()
