"""Measures how fast this machine is at something, and what memory it takes, for one preset; or two ways against
each other, in turn.

python scripts/benchmark.py train --hps cifar10 --compare train.fast=false --json results/train-cifar10.json
python scripts/benchmark.py train --hps cifar10 --compare train.precision=bf16,train.compile=true
python scripts/benchmark.py sample --hps cifar10 --temperatures 1.0 0.9 0.8 0.7 --batch 8 --compare train.fast=false
python scripts/benchmark.py evaluate --hps cifar10 train.fast=false     the plain model alone
python scripts/benchmark.py memory --hps cifar10 --batch 1 --compare train.fast=false
python scripts/benchmark.py memory --hps ffhq256 --batch 4 --counted train.precision=bf16
python scripts/benchmark.py data --hps imagenet32 --made_up 700000     without having the set
python scripts/benchmark.py count --hps imagenet32 --batch 32 --card h100     without having the GPU
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
from measuring.count import ASSUMPTIONS, best_of, count, print_counts
from measuring.loader import make_up, measure_loader
from measuring.memory import CountedMemory, StepMemory, counted_memory, memory_of_step
from measuring.speed import Measured, Speed, take_turns
from measuring.work import evaluation, sampling, setting_of, training

from vdvae.command_line import add_device, add_json, check_at_least_one
from vdvae.config import Config, load_config
from vdvae.counting.cards import CARDS
from vdvae.data.prepared import load_splits
from vdvae.errors import CommandLine, UserError, exit_on_bad_image, exit_on_interrupt, exit_on_user_error
from vdvae.runtime.device import describe, pick_device
from vdvae.runtime.precision import PRECISIONS
from vdvae.runtime.results import prepare_result, write_result

HELP = {
    "train": "speed of whole updates, as train.py makes them",
    "sample": "speed of drawing samples, or grids of them",
    "evaluate": "speed of computing the likelihood terms of images, in fp32",
    "memory": "peak memory of one training step, in a fresh process",
    "data": "speed of the loader alone, against what the model can take",
    "count": "launches, memory traffic and bounds of a GPU's training step, counted without a GPU",
}
ROWS = {
    "images_per_second": ("images per second", "{:,.2f}"),
    "milliseconds_per_step": ("milliseconds per step", "{:,.1f}"),
    "milliseconds_quartiles": ("  quartiles", "{0[0]:,.1f} to {0[1]:,.1f}"),
    "first_step_seconds": ("time to first step", "{:,.2f} s"),
    "peak_memory_mb": ("peak memory", "{:,.0f} MB"),
    "gflop_per_step": ("FLOPs per step", "{:,.1f} GFLOP"),
    "matmul_tflops": ("matrix products", "{:,.3f} TFLOP/s"),
    "utilisation": ("FLOP utilisation", "{:.1%}"),
    "peak_mb": ("peak memory", "{:,.0f} MB"),
    "step_mb": ("  of the step", "{:,.0f} MB"),
    "state_mb": ("  held between steps", "{:,.0f} MB"),
    "saved_mb": ("  saved for backward", "{:,.0f} MB"),
}
"""Labels and formats of the figures that are printed."""
REPEATS = {"train": 20, "sample": 10, "evaluate": 10}


@exit_on_interrupt()
def main() -> None:
    """Reads the command line, measures, prints a table, and writes JSON where asked to."""
    with exit_on_user_error():
        args = command_line().parse_args()
        device = torch.device("cpu") if args.kind == "count" else pick_device(args.device)
        settings = read_settings(args, device)
        prepare_result(args.json)
    if args.kind in ("data", "count"):
        (data if args.kind == "data" else count_step)(args, settings[0], device)
        return
    with exit_on_bad_image():
        if args.kind == "memory":
            measure = counted_memory if args.counted else partial(memory_of_step, device=device)
            print_summary(args, device, settings, [measure(setting) for setting in settings])
        else:
            print_summary(args, device, settings, speeds(args, settings, device))


def command_line() -> CommandLine:
    """A sub-command for each thing that is measured."""
    parser = CommandLine(description="Measures how fast this machine is, and what memory it takes, for one preset.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, told in HELP.items():
        does = "Counts" if kind == "count" else "Measures"
        one = kinds.add_parser(kind, help=told, description=f"{does} the {told}.")
        one.add_argument("--hps", required=True, help="presets, as for train.py")
        if kind != "count":
            add_device(one)
        add_json(one)
        one.add_argument("overrides", nargs="*", metavar="section.key=value", help="setting, as for train.py")
        if kind == "data":
            one.add_argument("--made_up", type=int, metavar="N", help="measure on N random images instead of the set")
            one.add_argument("--seconds", type=int, default=5, help="seconds for which the loader is measured")
            continue
        images = "images of a step; default: the preset's micro-batch, in which a GPU may wait for the host"
        one.add_argument("--batch", type=int, metavar="N", help=images)
        if kind == "count":
            one.add_argument("--card", choices=tuple(CARDS), default="h100", help="the GPU whose bounds count")
            one.add_argument("--of", choices=("train", "sample"), default="train", help="default: train")
            continue
        compared = "overrides to compare with, in turn, separated by commas; train.fast=false is the plain model"
        one.add_argument("--compare", metavar="OVERRIDES", help=compared)
        if kind == "memory":
            counted = "count on fake tensors instead of measuring, for models of any size"
            one.add_argument("--counted", action="store_true", help=counted)
        if kind in REPEATS:
            one.add_argument("--repeats", type=int, default=REPEATS[kind], metavar="N", help="timed steps of a round")
            one.add_argument("--rounds", type=int, metavar="N", help="rounds; default: 4 with --compare, 1 without")
            one.add_argument("--warmup", type=int, default=3, metavar="N", help="untimed steps after the first")
        if kind == "sample":
            rows = "draw grids, with a row of samples at each of these temperatures"
            one.add_argument("--temperatures", type=float, nargs="+", metavar="T", help=rows)
            one.add_argument("--precision", choices=PRECISIONS, default="fp32", help="precision of convolutions")
    return parser


def read_settings(args: argparse.Namespace, device: torch.device) -> list[Config]:
    """The one or two settings that are measured, or the preset of `data`; raises `ValueError` for what cannot be."""
    if args.kind == "data":
        if args.seconds < 1 or (args.made_up is not None and args.made_up < 1000):
            raise UserError("--seconds must be at least 1, and --made_up at least 1000")
        config = load_config(args.hps, args.overrides)
        if args.made_up is None:
            load_splits(config.data, config.model)
        return [config]
    check_at_least_one(args, *sorted({"batch", "repeats", "rounds"} & vars(args).keys()))
    if getattr(args, "warmup", 0) < 0:
        raise UserError(f"--warmup must not be negative, not {args.warmup}")
    if not all(0 <= temperature < math.inf for temperature in getattr(args, "temperatures", None) or ()):
        raise UserError("--temperatures must be finite and not negative")
    overrides = [args.overrides]
    if getattr(args, "compare", None) is not None:
        overrides.append(args.overrides + re.split(r",(?=\w+\.)", args.compare))  # a list of blocks has commas too
    trains = args.kind in ("train", "memory") or (args.kind == "count" and args.of == "train")
    card = CARDS[args.card] if args.kind == "count" else None
    settings = [setting_of(load_config(args.hps, one), device, args.batch, trains, card) for one in overrides]
    if card and (precision := settings[0].train.precision) not in card.flops:
        takes = ", ".join(card.flops)
        raise UserError(f"{card.title} does not compute in {precision}; set train.precision to one of {takes}")
    if args.kind == "train" or (args.kind == "memory" and not args.counted):
        for setting in settings:
            setting.train.check_device(device)
    if len(settings) > 1 and settings[0] == settings[1]:
        raise UserError(f"--compare: {args.compare} changes nothing that {args.kind} measures")
    return settings


def speeds(args: argparse.Namespace, settings: Sequence[Config], device: torch.device) -> list[Speed]:
    """Measures the speed of training, sampling or evaluation."""
    rows, prepare = 1, evaluation if args.kind == "evaluate" else training
    if args.kind == "sample":
        rows = len(args.temperatures or [1])
        prepare = partial(sampling, temperatures=args.temperatures, precision=args.precision)
    args.rounds = args.rounds or (1 if args.compare is None else 4)
    measured = [Measured(setting, prepare, device) for setting in settings]
    seconds = take_turns([one.run for one in measured], args.warmup, args.repeats, args.rounds)
    trains = args.kind == "train"
    return [one.speed(mine, rows, trains) for one, mine in zip(measured, seconds, strict=True)]


def print_summary(
    args: argparse.Namespace,
    device: torch.device,
    settings: Sequence[Config],
    figures: Sequence[Speed | StepMemory | CountedMemory],
) -> None:
    """Prints a column for each setting and how the first compares, and writes all figures."""
    names = ["the library", f"the library with {args.compare}"][: len(figures)]
    threads = torch.get_num_threads()
    print(f"{args.kind} {' '.join([args.hps, *args.overrides])}, on {describe(device)}, threads: {threads}")
    for letter, name, setting, one in zip("AB", names, settings, figures, strict=False):
        train = setting.train
        checkpoints = f", activation checkpointing from {train.recompute_from}" if train.recompute_from else ""
        precision = args.precision if args.kind == "sample" else train.precision
        print(f"{letter}: {name}, batch {one.batch}, {precision}{checkpoints}")
    if device.type == "cuda" and args.batch is None and args.kind == "train":
        print("the batch is the preset's micro-batch, so small that the host may be what was measured: see --batch")
    told = [asdict(one) for one in figures]
    columns = [{**one, **(one.get("flops") or {})} for one in told]
    for key, (label, form) in ROWS.items():
        if columns[0].get(key) is not None:
            print(f"{label:26}" + "".join(f"{form.format(column[key]):>22}" for column in columns))
    if len(told) > 1:
        key = "peak_mb" if args.kind == "memory" else "images_per_second"
        ratio = told[0][key] / told[1][key]
        told[0] |= {"compared": told[1], "ratio": ratio}
        print(f"A has {ratio:.3g} times the {ROWS[key][0]} of B, {names[1]}")
    if args.json:
        about = {k: v for k, v in vars(args).items() if k not in ("json", "device", "compare")}
        about |= {"setting": " against ".join(names), "threads": threads}
        if device.type == "cuda":
            about |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
            about["capability"] = "{}.{}".format(*torch.cuda.get_device_capability(device))
        write_result(args.json, device, about, told[0])


def count_step(args: argparse.Namespace, setting: Config, device: torch.device) -> None:
    """What an update, or a batch of samples, costs a GPU that is not there."""
    card, batch = CARDS[args.card], setting.train.batch_size
    ways = count(setting, card, args.of)
    what = f"{'an update with one micro-batch' if args.of == 'train' else 'samples'} of {batch} images"
    print(f"{args.hps}: {what} in {setting.train.precision} on one {card.title}; counted, not measured")
    print_counts(ways, card)
    if args.json:
        about = {"kind": args.kind, "of": args.of, "hps": args.hps, "overrides": args.overrides, "card": args.card}
        about |= {key: getattr(setting.train, key) for key in ("precision", "compile", "recompute_from")}
        about |= {"card_facts": asdict(card), "assumptions": ASSUMPTIONS}
        counted, best = {way: asdict(one) for way, one in ways.items()}, best_of(ways)
        write_result(args.json, device, about, {**counted[best], "way": best, **counted})


def data(args: argparse.Namespace, config: Config, device: torch.device) -> None:
    """Measures the loader, and the training that it feeds; prints both and writes all figures."""
    with tempfile.TemporaryDirectory(dir=".", prefix=".benchmark-") as folder:
        if args.made_up is not None:
            config = replace(config, data=make_up(config, args.made_up, Path(folder)))
        with get_context("forkserver").Pool(1) as pool:
            loader = pool.apply(measure_loader, (config, args.seconds))
    measured = Measured(setting_of(config, device), training, device)
    model = measured.setting.train.batch_size / statistics.median(measured.run(3))
    measured.process.shutdown()

    size = config.model.image_size
    print(f"{args.hps}: {loader.training_images:,} images of {size} x {size}, {loader.set_size_mb:,.0f} MB")
    print(f"loader alone, one core   {loader.images_per_second:12,.0f} images/s")
    if loader.extra_memory_mb is not None:
        print(f"  extra memory, peak     {loader.extra_memory_mb:12,.0f} MB")
    print(f"training, {device.type:5}          {model:12,.1f} images/s, threads: {torch.get_num_threads()}")
    print(f"loader / training        {loader.images_per_second / model:12,.0f}")
    if args.json:
        about = {"hps": args.hps, "overrides": args.overrides, "made_up": args.made_up}
        about |= {"batch": config.train.batch_size, "numpy": np.__version__}
        write_result(args.json, device, about, {**loader._asdict(), "training_images_per_second": model})


if __name__ == "__main__":
    main()
