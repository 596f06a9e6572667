"""Trains a Very Deep VAE: the story of a run, top to bottom.

    python train.py --hps fashion                                 one process, on a GPU where there is one
    torchrun --nproc_per_node 8 train.py --hps imagenet32         eight
    python train.py --hps cifar10 --run_dir runs/mine train.lr=1e-4 train.micro_batch=16

The same command again resumes the run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from vdvae import VDVAE, distributed
from vdvae.config import Config, load_config
from vdvae.data.loader import BatchOrder, to_device, training_batches
from vdvae.data.splits import Splits, load_splits
from vdvae.distributed import World
from vdvae.errors import CommandLine, exit_on_bad_image, exit_on_user_error
from vdvae.evaluation.images import reconstruction_grid, sample_grid, save_png
from vdvae.evaluation.nll import NLL, evaluate
from vdvae.evaluation.png import png_bits_per_dim
from vdvae.training import checkpoint
from vdvae.training.checkpoint import Checkpoint
from vdvae.training.optimizer import learning_rate
from vdvae.training.progress import Progress
from vdvae.training.run_directory import RunDirectory
from vdvae.training.run_log import RunLog
from vdvae.training.update import Update

TEMPERATURES = (1.0, 0.9, 0.8, 0.7)


def main() -> None:
    """Reads the command line, checks everything before anything is written, and runs."""
    parser = CommandLine(description="Trains a Very Deep VAE; the same command again resumes.")
    parser.add_argument(
        "--hps", required=True, help="presets of configs/, or paths, separated by commas; later ones win"
    )
    parser.add_argument("--run_dir", type=Path, help="default: runs/ and the names of the presets")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="e.g. train.lr=1e-4")
    with exit_on_user_error():
        args = parser.parse_intermixed_args()
        config = load_config(args.hps, args.overrides)
        splits = load_splits(config.data, config.model)
        config.train.batch_per_process(distributed.env_size())
        name = "-".join(Path(preset).stem for preset in args.hps.split(","))
        directory = RunDirectory(args.run_dir or Path("runs", name))
        resumed = directory.open(config)
        device = distributed.pick_device()
    world = distributed.start(device)
    try:
        with exit_on_bad_image():
            run(config, splits, directory, resumed, world)
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from the newest checkpoint", file=sys.stderr)
        sys.exit(130)
    distributed.stop()


def run(config: Config, splits: Splits, directory: RunDirectory, resumed: Checkpoint | None, world: World) -> None:
    """Trains from the start or from a checkpoint, then measures the test NLL."""
    settings = config.train
    torch.manual_seed(settings.seed)  # the same initial weights in every process
    model = VDVAE(config.model).to(world.device)
    update = Update(model, settings, world)
    ema = update.ema.model
    first_step = 0
    if resumed is not None:
        update.load_state_dict(resumed.state)
        first_step = resumed.step

    if world.is_main:
        with exit_on_user_error():
            directory.create(config)
    log = RunLog(directory, model, first_step, writes=world.is_main)
    progress = Progress(first_step, settings, shown=world.is_main)
    progress.say(
        f"{directory.path}: {sum(p.numel() for p in model.parameters()):,} parameters, {model.num_layers} layers, "
        f"{len(splits.train):,} training images of {splits.manifest}, {world.size} x {world.device.type}, "
        f"{f'resuming after step {first_step:,}' if resumed else 'from the start'}"
    )

    order = BatchOrder(len(splits.train), settings.batch_size, settings.seed)
    images = training_batches(splits.train, order, first_step, world, config.data)
    for step in range(first_step, settings.max_steps):
        update(next(images), step)
        progress.step()
        done = step + 1
        is_last = done == settings.max_steps

        if done % settings.print_every == 0 or is_last:
            report = update.metrics.report(world)
            images_per_second = progress.report(done, report)
            log.train(done, report, learning_rate(settings, step), images_per_second)
            if report.skip_streak >= settings.max_skip_streak:
                streak = (
                    f"error: the last {report.skip_streak} updates were all skipped: gradient norms are about "
                    f"{report.grad_norm_mean:.4g} ({report.nonfinite} not finite) and train.skip_threshold is "
                    f"{settings.skip_threshold:g}; raise it above the usual norm, or lower train.lr"
                )
                sys.exit(streak if world.is_main else 1)
        with progress.off_the_clock():
            if done % settings.valid_every == 0:
                valid = evaluate(ema, splits.valid, settings.eval_batch, world)
                progress.say(f"step {done:,}: {valid.bits_per_dim:.4f} bits/dim on the validation images")
                log.evaluation(done, "valid", {**splits.manifest.facts(), **valid._asdict()})
            if world.is_main and (done % settings.images_every == 0 or is_last):
                draw(ema, splits, settings.grid_columns, directory, done, log)
            if done % settings.checkpoint_every == 0 or is_last:
                state = update.state_dict()
                if world.is_main:
                    checkpoint.save(directory.checkpoints, done, config, state)
                world.barrier()

    progress.close()
    test = evaluate(ema, splits.test, settings.eval_batch, world, show_progress=True)
    log.evaluation(settings.max_steps, "test", {**splits.manifest.facts(), **test._asdict()})
    log.close()
    if world.is_main:
        tell(test, splits, directory, settings.max_steps)


def draw(ema: VDVAE, splits: Splits, columns: int, directory: RunDirectory, step: int, log: RunLog) -> None:
    """Samples and reconstructions, as PNG files and in TensorBoard."""
    originals = to_device(splits.valid.read(np.arange(min(columns, len(splits.valid)))), ema.device)
    pictures = {
        "samples": sample_grid(ema, TEMPERATURES, columns),
        "reconstructions": reconstruction_grid(ema, originals),
    }
    for name, picture in pictures.items():
        save_png(picture, directory.picture(name, step))
        log.picture(step, name, picture)


def tell(test: NLL, splits: Splits, directory: RunDirectory, step: int) -> None:
    """The test NLL beside what PNG needs, and where to look."""
    png, taken = png_bits_per_dim(splits.test)
    images = f"the same {taken:,}" if taken == test.num_images else f"{taken:,} of the {test.num_images:,}"
    print(f"\ntest bits/dim: {test.bits_per_dim:.4f}   (PNG on {images} images: {png:.2f})")
    print(f"data set:        {splits.manifest}")
    print(f"samples:         {directory.picture('samples', step)}")
    print(f"reconstructions: {directory.picture('reconstructions', step)}")
    tensorboard = Path(sys.executable).with_name("tensorboard")
    if tensorboard.is_relative_to(Path.cwd()):
        tensorboard = tensorboard.relative_to(Path.cwd())
    print(f"TensorBoard:     {tensorboard} --logdir {directory.path}")


if __name__ == "__main__":
    main()
