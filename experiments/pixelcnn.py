"""An autoregressive peer for a finished run: a gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328).

python experiments/pixelcnn.py runs/fashion --json results/pixelcnn-fashion.json
python experiments/pixelcnn.py runs/fashion --minutes 10 --run_dir runs/pixelcnn-short

It is trained on the run's images in the run's order, batches and number of updates, and has the run's likelihood. Then
both are measured side by side: test NLL, parameters, network evaluations and seconds per sample. An image from a VAE
takes one evaluation of its network, one from an autoregressive model as many as it has parts that wait for each other
(paper Table 2). With a 256-way softmax per sub-pixel, as van den Oord et al. have it, that is D = C*H*W. The mixture of
logistics is autoregressive over the channels of a pixel by itself, so here it is one per pixel, H*W. Sampling is the
plain one, which runs the whole network for every pixel: keeping activations from pixel to pixel would reduce the
arithmetic, and not the number of evaluations that wait for each other.

Ctrl-C ends the training early, and what there is gets measured. The same command again only measures.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from vdvae import fast
from vdvae.command_line import ModelCommandLine, check_at_least_one, find_model, open_model
from vdvae.data.loader import BatchOrder, training_batches
from vdvae.data.prepared import Split
from vdvae.errors import UserError, exit_on_bad_image, exit_on_interrupt, exit_on_user_error
from vdvae.evaluation.batches import measured
from vdvae.evaluation.grids import grid, save_png
from vdvae.evaluation.nll import evaluate
from vdvae.files import atomic_write, read_torch_file
from vdvae.model.config import ModelConfig
from vdvae.model.likelihood import Binning, Mixture
from vdvae.model.vdvae import VDVAE
from vdvae.run.interruption import Interruption
from vdvae.run.progress import duration
from vdvae.runtime.device import now, pick_device
from vdvae.runtime.noise import Purpose, generator
from vdvae.runtime.processes import World
from vdvae.runtime.results import prepare_result, write_result

LEARNING_RATE = 3e-3
"""Adam's, after WARMUP updates; it falls to 0 as a cosine."""
WARMUP = 50
GRAD_CLIP = 20.0
"""Few gradients are larger."""
BATCHES = (1, 16)
"""Images drawn at once when sampling is timed."""
LIKE_THE_RUN = ("num_mixtures", "binning", "input_shift", "input_scale")
"""Settings that are taken from the run's model, besides the shape of the images."""
COLUMNS = 8
"""Columns of the picture with samples."""


class GatedLayer(nn.Module):
    """A layer of both stacks (van den Oord et al. 2016, Figure 2), kernel 3, of which the past is 2 rows or columns.

    The vertical stack at (y, x) gets to see rows up to its own of its input, the horizontal one columns up to its own.
    Their inputs are shifted by a row and a column, see `PixelCNN`, so all layers are alike and none has a mask.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vertical = nn.Conv2d(width, 2 * width, (2, 3), padding=(0, 1))
        self.horizontal = nn.Conv2d(width, 2 * width, (1, 2))
        self.across = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Both states, `[B, width, H, W]`, to those of the next layer; the horizontal one has a residual connection."""
        above = self.vertical(F.pad(v, (0, 0, 1, 0)))  # [B, 2 width, H, W]
        left = self.horizontal(F.pad(h, (1, 0)))
        return _gated(above), h + self.out(_gated(left + self.across(above)))


class PixelCNN(nn.Module):
    """p(x) as a product over pixels in raster order, each a discretised mixture of logistics given those before it.

    Args:
        config: size and channels of the images, their scaling and the likelihood are those of this VDVAE.
        width: channels of each stack.
        depth: layers. A pixel depends on the depth + 1 rows above it, as far as `depth` columns to both sides, and on
            the depth + 1 pixels to its left.
    """

    def __init__(self, config: ModelConfig, width: int, depth: int) -> None:
        super().__init__()
        self.config = config
        self.binning = Binning.of(config.bits, config.binning)
        self.in_vertical = nn.Conv2d(config.image_channels, width, 1)
        self.in_horizontal = nn.Conv2d(config.image_channels, width, 1)
        self.layers = nn.ModuleList(GatedLayer(width) for _ in range(depth))
        parameters = Mixture.num_parameters(config.image_channels, config.num_mixtures)
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, parameters, 1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a sixth faster on CPUs

    def forward(self, x: Tensor) -> Tensor:
        """Scaled images `[B, C, H, W]` to the parameters of each pixel's mixture, `[B, P, H, W]`."""
        # The shifts are what mask A is elsewhere: no pixel reaches its own place, whatever causal layers follow.
        v = self.in_vertical(F.pad(x, (0, 0, 1, -1)))  # from the row above on
        h = self.in_horizontal(F.pad(x, (1, -1)))  # from the pixel to the left on
        for layer in self.layers:
            v, h = layer(v, h)
        return self.head(h)

    def scaled(self, images: Tensor) -> Tensor:
        """What the network sees of uint8 images: with less than 8 bits, only the levels whose probability it gives."""
        pixels = self.binning.pixel(self.binning.level(images))
        return (pixels + self.config.input_shift) * self.config.input_scale

    def log_prob(self, images: Tensor) -> Tensor:
        """log p(x) of uint8 images `[B, C, H, W]`, exact, in nats, `[B]`."""
        return self._mixture(self(self.scaled(images))).log_prob(images)

    @torch.no_grad()
    def sample(self, num_images: int, generator: torch.Generator) -> Tensor:
        """New images, uint8 `[B, C, H, W]`, by one evaluation of the network per pixel."""
        size, device = self.config.image_size, self.in_vertical.weight.device
        images = torch.zeros(num_images, self.config.image_channels, size, size, dtype=torch.uint8, device=device)
        for y, x in itertools.product(range(size), range(size)):
            here = self(self.scaled(images))[:, :, y : y + 1, x : x + 1]  # [B, P, 1, 1]
            images[:, :, y : y + 1, x : x + 1] = self._mixture(here).sample(generator)
        return images

    def _mixture(self, parameters: Tensor) -> Mixture:
        return Mixture.from_parameters(parameters, self.config.image_channels, self.binning)


Model = VDVAE | PixelCNN


def _gated(x: Tensor) -> Tensor:
    """`[B, 2 width, H, W]` to `[B, width, H, W]`."""
    signal, openness = x.chunk(2, 1)
    return torch.tanh(signal) * torch.sigmoid(openness)


class Figures(NamedTuple):
    """What is measured of a model."""

    bits_per_dim: float
    """NLL of all test images: a bound for the VDVAE, exact for the PixelCNN."""
    standard_error: float
    """Standard error of bits_per_dim, over images."""
    parameters: int
    network_evaluations_per_sample: int
    seconds_per_sample: dict[int, float]
    """By the images drawn at once: the median time that these take, divided by their number."""


@exit_on_interrupt()
def main() -> None:
    """Trains unless that is done, measures, prints a table, and writes a picture and, where asked to, JSON."""
    fast.keep_freed_memory()
    with exit_on_user_error():
        args = parse_arguments()
        found = find_model(args)
        config, splits = found.config(), found.splits()
        world = World(0, 1, pick_device(args.device))
        updates = None if args.minutes else args.updates or found.step or config.train.max_steps
        asked = {"updates": updates, "minutes": args.minutes, "width": args.width, "depth": args.depth}
        asked |= {"seed": args.seed, "batch_size": config.train.batch_size, **splits.manifest.facts()}
        asked |= {key: getattr(found.model_config, key) for key in LIKE_THE_RUN}
        weights = args.run_dir / "weights.pt"
        saved = read_weights(weights, asked) if weights.exists() else None
        prepare_result(args.json)
        args.run_dir.mkdir(parents=True, exist_ok=True)
        vdvae = fast.prepare(open_model(args, found))

    torch.manual_seed(args.seed)
    pixelcnn = PixelCNN(vdvae.config, args.width, args.depth).to(world.device)
    with exit_on_bad_image():
        if saved is None:
            order = BatchOrder(len(splits.train), config.train.batch_size, config.train.seed)
            batches = training_batches(splits.train, order, 0, world, config.data)
            saved = {"asked": asked, **train(pixelcnn, batches, updates, args.minutes, config.train.ema_decay, world)}
            with atomic_write(weights) as file:
                torch.save(saved, file)
        pixelcnn.load_state_dict(saved["model"])
        bound = evaluate(vdvae, splits.test, config.train.eval_batch, world, args.seed, show_progress=True)
        exact = exact_nll(pixelcnn, splits.test, config.train.eval_batch, world)

    models: list[Model] = [vdvae, pixelcnn]
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    counts = [count_evaluations(vdvae, vdvae.decoder.out_net, world), count_evaluations(pixelcnn, pixelcnn.head, world)]
    seconds, samples = time_sampling(models, args.repeats, args.seed, world.device)
    nlls = [(bound.bits_per_dim, bound.standard_error), exact]
    each = zip(nlls, sizes, counts, seconds, strict=True)
    figures = [Figures(nll, error, size, count, of_one) for (nll, error), size, count, of_one in each]
    picture = args.run_dir / "samples.png"
    save_png(grid([row for images in samples for row in images.split(COLUMNS)]), picture)

    print(f"{found.path} and {weights}, {splits.manifest}, test images")
    print_summary(*figures)
    print(f"the PixelCNN took {saved['updates']:,} updates in {duration(saved['seconds'])} of training")
    print(f"{picture}: samples of the VDVAE, and below of the PixelCNN")
    if args.json:
        about = {"checkpoint": str(found.path), "step": found.step, **asked}
        about |= {"threads": torch.get_num_threads(), "repeats": args.repeats}
        about |= {"updates_done": saved["updates"], "training_seconds": saved["seconds"]}
        told = {"vdvae": figures[0]._asdict(), "pixelcnn": figures[1]._asdict()}
        write_result(args.json, world.device, about, told)


def parse_arguments() -> argparse.Namespace:
    """What is asked for; raises `UserError` where it cannot be."""
    parser = ModelCommandLine(description="A gated PixelCNN beside a finished run, on the same images.")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--updates", type=int, metavar="N", help="updates to train for; default: as many as the run had"
    )
    length.add_argument("--minutes", type=float, metavar="M", help="train for so long instead")
    parser.add_argument("--width", type=int, default=48, help="channels of each stack")
    parser.add_argument("--depth", type=int, default=12, help="layers")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each timing")
    parser.add_argument("--run_dir", type=Path, default=Path("runs/pixelcnn"), help="for weights.pt and samples.png")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    check_at_least_one(args, "updates", "width", "depth", "repeats")
    if args.minutes is not None and not 0 < args.minutes < math.inf:
        raise UserError(f"--minutes must be above 0, not {args.minutes}")
    if args.run_dir.is_file():
        raise UserError(f"--run_dir must be a folder, and {args.run_dir} is a file")
    return args


def read_weights(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What `train` returned and was asked for; raises `UserError` where that is not what is asked for now."""
    saved = read_torch_file(path)
    if not isinstance(saved, dict) or set(saved.get("asked", ())) != set(asked):
        raise UserError(f"{path} holds no PixelCNN; give another --run_dir")
    for key, value in asked.items():
        if saved["asked"][key] != value:
            raise UserError(f"{path} was trained with {key} {saved['asked'][key]}, not {value}; give another --run_dir")
    return saved


def train(
    model: PixelCNN,
    batches: Iterator[Tensor],
    updates: int | None,
    minutes: float | None,
    ema_decay: float,
    world: World,
) -> dict[str, Any]:
    """Trains for a number of updates or of minutes, or until Ctrl-C.

    Returns:
        `model`, the exponential moving average of the weights by their names; the `updates` done; the `seconds` taken.
    """
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    began, done = time.monotonic(), 0
    with tqdm(total=updates, desc="training", unit="step", disable=None) as bar, Interruption(world, None) as stop:
        while not stop.agreed():
            past = max(done / (updates or math.inf), (time.monotonic() - began) / 60 / (minutes or math.inf))
            if past >= 1:
                break
            warmup, cosine = min(1.0, (done + 1) / WARMUP), (1 + math.cos(math.pi * past)) / 2
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * warmup * cosine
            loss = -model.log_prob(next(batches)).mean() / (model.config.dims * math.log(2))  # bits/dim
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
            optimizer.step()
            with torch.no_grad():
                decay = min(ema_decay, done / (done + 10))  # the first weights are forgotten soon
                torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
            done += 1
            bar.update()
            if done % 20 == 0:  # on a GPU, reading the loss waits for it
                bar.set_postfix_str(f"{loss.item():.3f} bits/dim")
    return {"model": ema.state_dict(), "updates": done, "seconds": time.monotonic() - began}


@torch.no_grad()
def exact_nll(model: PixelCNN, split: Split, batch_size: int, world: World) -> tuple[float, float]:
    """-log p(x) in bits/dim, of every image of a split once, and its standard error over images."""
    batches = measured(split, batch_size, world, 0, lambda _rows, images, _noise: model.log_prob(images), "evaluating")
    log_prob = torch.cat([result.cpu().double() for _, result in batches])  # [N]
    bits_per_dim = -log_prob / (model.config.dims * math.log(2))
    return bits_per_dim.mean().item(), bits_per_dim.std().item() / math.sqrt(len(split))


@torch.no_grad()
def count_evaluations(model: Model, head: nn.Module, world: World) -> int:
    """How often a network's last module, its head, runs while one image is drawn."""
    runs: list[nn.Module] = []
    with head.register_forward_hook(lambda module, *_: runs.append(module)):
        model.sample(1, generator=generator(world.device, 0, Purpose.PICTURES))
    return len(runs)


@torch.no_grad()
def time_sampling(
    models: Sequence[Model], repeats: int, seed: int, device: torch.device
) -> tuple[list[dict[int, float]], list[Tensor]]:
    """The median seconds per image of each model, by the images drawn at once, and the images drawn last.

    They take turns, A B A B, so that a machine that slows down does so for all of them.
    """

    def draw(model: Model, batch: int, i: int) -> tuple[float, Tensor]:
        began = now(device)
        images = model.sample(batch, generator=generator(device, seed, Purpose.PICTURES, i))
        return (now(device) - began) / batch, images

    medians: list[dict[int, float]] = [{} for _ in models]
    for batch in BATCHES:
        bar = tqdm(range(repeats), f"sampling, batch {batch}", leave=False, disable=None)
        turns = [[draw(model, batch, i) for model in models] for i in bar]
        for median, own in zip(medians, zip(*turns, strict=True), strict=True):
            median[batch] = statistics.median(seconds for seconds, _ in own)
    return medians, [images for _, images in turns[-1]]


def print_summary(vdvae: Figures, pixelcnn: Figures) -> None:
    """A column for each model."""
    print(f"{'':32}{'VDVAE':>16}{'PixelCNN':>16}")
    print(f"{'bits/dim':32}{f'<= {vdvae.bits_per_dim:.4f}':>16}{pixelcnn.bits_per_dim:>16.4f}")
    rows = {"  standard error": ".4f", "parameters": ",d", "network evaluations per sample": ",d"}
    for (name, form), a, b in zip(rows.items(), vdvae[1:4], pixelcnn[1:4], strict=True):
        print(f"{name:32}{a:>16{form}}{b:>16{form}}")
    for batch in BATCHES:
        a, b = vdvae.seconds_per_sample[batch], pixelcnn.seconds_per_sample[batch]
        print(f"{f'seconds per sample, batch {batch}':32}{a:>16.4f}{b:>16.4f}   ({b / a:,.0f} times)")


if __name__ == "__main__":
    main()
