"""Trains a Very Deep VAE: the story of a run, top to bottom.

    python train.py --hps fashion                                 one process, on a GPU where there is one
    torchrun --nproc_per_node 8 train.py --hps imagenet32         eight
    python train.py --hps cifar10 --run_dir runs/mine train.lr=1e-4 train.precision=fp32

The same command again resumes the run, whatever ended it.
"""

from __future__ import annotations

import argparse
import math
import sys
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path

import torch

from vdvae import VDVAE, fast
from vdvae.config import Config, load_config, with_absolute_root
from vdvae.data.loader import BatchOrder, training_batches
from vdvae.data.prepared import Splits, load_splits
from vdvae.errors import CommandLine, UserError, exit_on_bad_image, exit_on_interrupt, exit_on_user_error
from vdvae.evaluation.nll import evaluate
from vdvae.launch import read_launch
from vdvae.run.auto import in_words, resolve
from vdvae.run.checkpoint import Best, Checkpoint
from vdvae.run.checkpoint_thread import CheckpointWriter
from vdvae.run.directory import RunDirectory
from vdvae.run.interruption import TIME_IS_UP, Interruption
from vdvae.run.log import Changes, RunLog, begin, told
from vdvae.run.progress import Progress
from vdvae.run.summary import draw_pictures, print_summary
from vdvae.runtime import processes
from vdvae.runtime.device import pick_device
from vdvae.runtime.kernels import choose_kernels
from vdvae.training.update import Update


@processes.exit_at_once("resumes")
@exit_on_interrupt("the same command goes on from the newest checkpoint")
def main() -> None:
    """Reads the command line, checks everything before anything is written, and runs."""
    with ExitStack() as held:
        with exit_on_user_error():
            args = command_line()
            config = with_absolute_root(load_config(args.hps, args.overrides))
            if config.train.fast:
                fast.keep_freed_memory()
            choose_kernels(config.train.deterministic)
            splits = load_splits(config.data, config.model)
            launch = read_launch()
            config.train.local_batch_size(launch.size)  # refuses what cannot be divided
            config.train.check_device(device := pick_device())
            name = "-".join(Path(preset).stem for preset in args.hps.split(","))
            directory, resumed = RunDirectory(args.run_dir or Path("runs", name)), None
            if launch.rank == 0:
                held.enter_context(directory.lock(patience=60 * config.train.timeout_minutes))
                resumed = directory.open(config, splits.manifest.checksums())
        with exit_on_bad_image():
            world = processes.start(device, config.train.timeout_minutes)
            with exit_on_user_error():
                resolved = resolve(config, world)
                changed = begin(directory, config, resolved) if world.is_main else {}
            status = run(resolved, splits, directory, resumed, changed, world, args)
            processes.stop()
    sys.exit(status)


def command_line() -> argparse.Namespace:
    """What was asked for; raises `UserError` where it cannot be."""
    parser = CommandLine(description="Trains a Very Deep VAE; the same command again resumes.")
    parser.add_argument("--hps", required=True, help="presets of configs/, or paths, comma-separated; later ones win")
    parser.add_argument("--run_dir", type=Path, help="run directory; default: runs/ and the names of the presets")
    parser.add_argument("--max_steps", type=int, metavar="N", help="save and end after N updates of a longer run")
    parser.add_argument("--max_hours", type=float, metavar="H", help="save and end after training for H hours")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="e.g. train.lr=1e-4")
    args = parser.parse_intermixed_args()
    if args.max_steps is not None and args.max_steps < 1:
        raise UserError(f"--max_steps must be at least 1, not {args.max_steps}")
    if args.max_hours is not None and not 0 < args.max_hours < math.inf:
        raise UserError(f"--max_hours must be above 0, not {args.max_hours}")
    return args


def run(
    config: Config,
    splits: Splits,
    directory: RunDirectory,
    resumed: Checkpoint | None,
    changed: Changes,
    world: processes.World,
    limits: argparse.Namespace,
) -> int:
    """Trains from the start or from a checkpoint, then measures the test NLL; returns the exit status."""
    settings = config.train
    interruption = Interruption(world, limits.max_hours)
    torch.manual_seed(settings.seed)  # the same initial weights in every process
    update = Update(VDVAE(config.model).to(world.device), settings, world)
    ema = update.ema.model
    first_step, state = world.broadcast((resumed.step, resumed.state) if resumed else (0, {}))
    if state:
        update.load_state_dict(state)
        state.clear()  # as large as the model, its EMA and its moments
        fast.give_back_freed_memory()
    best = resumed.best if resumed else None
    last_step = min(settings.max_steps, limits.max_steps or settings.max_steps)
    progress = Progress(first_step, settings, shown=world.is_main)
    progress.say(
        f"{directory.path}: {sum(p.numel() for p in ema.parameters()):,} parameters, {ema.num_layers} layers, "
        f"{len(splits.train):,} training images of {splits.manifest}, {in_words(settings, world)}, "
        f"{f'resuming after step {first_step:,}' if first_step else 'from the start'}{told(changed)}"
    )
    order = BatchOrder(len(splits.train), settings.batch_size, settings.seed)
    images = training_batches(splits.train, order, first_step, world, config.data)
    threads = fast.Threads(world.device) if settings.fast else nullcontext()
    writer = CheckpointWriter(directory, config, splits.manifest.checksums())
    with closing(RunLog(directory, ema, first_step, writes=world.is_main)) as log, writer, interruption:
        log.start(first_step, config, changed, world.device)

        def validate(done: int) -> None:
            nonlocal best
            valid = evaluate(ema, splits.valid, settings.eval_batch, world, count_units=True)
            progress.say(f"step {done:,}: {valid.bits_per_dim:.4f} bits/dim on the validation images")
            log.evaluation(done, "valid", {**splits.manifest.facts(), **valid._asdict()})
            if math.isfinite(valid.bits_per_dim) and (best is None or valid.bits_per_dim < best.bits_per_dim):
                best = Best(done, valid.bits_per_dim)

        done, reason = first_step, 0
        if done and done % settings.valid_every == 0:
            with interruption.at_once():
                validate(done)  # which comes after the checkpoint, so that this one knows nothing of it
        for step in range(first_step, last_step):
            with threads:
                update(next(images), step)
            progress.step()
            done = step + 1
            is_end = done == settings.max_steps
            reason = interruption.agreed()
            if done % settings.print_every == 0 or is_end:
                report = update.report()
                log.train(done, report, progress.report(done, report))
                if report.skip_streak >= settings.max_skip_streak:
                    progress.fail(report.streak_message(update.metrics.recent_norms.tolist()))
                    return 1
            with progress.off_the_clock():
                validates = done % settings.valid_every == 0
                if done % settings.images_every == 0 and not is_end:
                    draw_pictures(ema, splits, settings.grid_columns, directory, done, log, world.is_main)
                if done % settings.checkpoint_every == 0 or validates or done == last_step or reason:
                    state = update.state_dict()
                    if world.is_main:
                        writer.save(done, state, best)
                if reason:
                    break
                if validates:
                    with interruption.at_once():  # the state is safe
                        validate(done)

        progress.close()
        if failure := world.broadcast(writer.failure()):
            progress.fail(f"error: {failure}")
            return 1
        if reason or done < settings.max_steps:
            without = "" if reason else " without --max_steps"
            progress.say(f"ended after step {done:,} of {settings.max_steps:,}; the same command{without} goes on")
            return 128 + reason if reason > TIME_IS_UP else 0
        with interruption.at_once():
            test = evaluate(ema, splits.test, settings.eval_batch, world, show_progress=True)
            log.evaluation(done, "test", {**splits.manifest.facts(), **test._asdict()})
            processes.stop()  # what is left, one does alone: the others must not wait for it until they give up
            if world.is_main:
                draw_pictures(ema, splits, settings.grid_columns, directory, done, log)
                print_summary(test, splits, directory, done)
    return 0


if __name__ == "__main__":
    main()
