"""What a configuration leaves to the hardware by "auto", chosen once, before a run begins: precision, micro-batch,
activation checkpointing.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from vdvae.config import Config, TrainConfig
from vdvae.counting.cards import Card
from vdvae.counting.memory import memory_of_step
from vdvae.errors import UserError
from vdvae.model.config import ModelConfig
from vdvae.model.vdvae import VDVAE
from vdvae.runtime.free_memory import free_memory
from vdvae.runtime.precision import Precision, best_precision
from vdvae.runtime.processes import World

USABLE = 0.8
"""The part of the free memory that a step may take by the count, which knows of tensors alone. The rest is for cuDNN's
workspaces, NCCL's buffers, gaps in the allocator, and what a CUDA graph keeps from the optimiser: not measured on GPUs;
on a CPU, processes took 9 to 21 % more than was counted (measured, tests/counting/test_memory.py)."""
CONTEXT_BYTES = 10**9
"""What CUDA itself takes of a card's memory, up to."""
CPU_FLOPS = 1.3e12
"""The most floating-point operations of a micro-batch's forward pass on a CPU, unless it is of one image. With the
backward pass it is 4e12: a second at the 4 TFLOP/s that a server of 64 cores may reach, beside which the 0.2 s that
20,000 operations of 10 us take to be called are little, so that more images at once would take memory for next to
nothing. (Computed. It comes to 16 images of `cifar10`, 8 of `imagenet32`, 4 of `imagenet64`, 1 of FFHQ.)"""
CHECKPOINTED_FROM = 32
"""The resolution from which blocks are checkpointed where they must be: nearly all activations are there."""
WORSE_FIRST: tuple[Precision, ...] = ("fp32", "fp16", "bf16")


def resolve(config: Config, world: World) -> Config:
    """The configuration with values in the place of "auto", the same ones in all processes, see `TrainConfig`.

    - `precision`: the best that every process's device has.
    - `micro_batch`: the largest that divides the process's share of the batch, so that all are of one size, and that by
      the count fits the free memory of the device that has the least. On a CPU also at most `CPU_FLOPS`.
    - `recompute_from`: None where that fits, with `micro_batch: auto` at least for one image; otherwise
      `CHECKPOINTED_FROM`.

    Every process must call this. The count takes seconds, and only where memory matters.

    Raises:
        UserError: in every process, where it does not fit even so.
    """
    is_gpu = world.device.type == "cuda"
    if config.train.precision == "auto":
        best = WORSE_FIRST[world.smallest(WORSE_FIRST.index(best_precision(world.device)))]
        config = replace(config, train=replace(config.train, precision=best))
    if not config.train.left_to_hardware():
        return config
    usable = int(USABLE * world.smallest(free_memory(world.device)))
    share = config.train.local_batch_size(world.size)
    found = world.broadcast(_fitting(config, share, usable, is_gpu) if world.is_main else None)
    if isinstance(found, str):
        raise UserError(found)
    return replace(config, train=config.train.resolved(micro_batch=found[0], recompute_from=found[1]))


def resolve_for_card(config: Config, card: Card) -> Config:
    """The same for one process on a GPU that need not be here, of which CUDA itself takes `CONTEXT_BYTES`."""
    best: Precision = "bf16" if "bf16" in card.flops else "fp16"
    if config.train.precision == "auto":
        config = replace(config, train=replace(config.train, precision=best))
    if not config.train.left_to_hardware():
        return config
    usable = int(USABLE * (card.memory_bytes - CONTEXT_BYTES))
    found = _fitting(config, config.train.batch_size, usable, is_gpu=True)
    if isinstance(found, str):
        raise UserError(found)
    return replace(config, train=config.train.resolved(micro_batch=found[0], recompute_from=found[1]))


def in_words(train: TrainConfig, world: World) -> str:
    """What a run is made on, and what was chosen or set for it, to tell at its start."""
    images = train.images_at_once(train.local_batch_size(world.size))
    told = f"{world.size} x {world.device.type}, {train.precision}, micro-batches of {images}"
    checkpoints = train.fast and train.recompute_from
    return f"{told}, activation checkpointing from {train.recompute_from}" if checkpoints else told


def _fitting(config: Config, share: int, usable: int, is_gpu: bool) -> tuple[int, int | None] | str:
    """The images at once and the resolution of checkpointing that `resolve` chooses, or why there are none.

    Args:
        config: with its precision resolved.
        share: images of a process in an update.
        usable: bytes that a step may take.
        is_gpu: whether the device is one.
    """
    train = config.train
    if train.micro_batch == "auto":
        most = share if is_gpu else max(1, int(CPU_FLOPS // forward_flops(config.model)))
        sizes = [n for n in range(1, min(share, most) + 1) if share % n == 0]
    else:
        sizes = [train.images_at_once(share)]
    checkpoints = [train.recompute_from]
    if train.recompute_from == "auto":
        checkpoints = [None, CHECKPOINTED_FROM] if train.fast else [None]  # without vdvae.fast, nothing is checkpointed
    for recompute_from in checkpoints:
        assert recompute_from != "auto"
        tried = replace(config, train=train.resolved(recompute_from=recompute_from))
        most_bytes = memory_of_step(tried, sizes[-1]).peak
        if most_bytes <= usable:
            return sizes[-1], recompute_from
        least_bytes = memory_of_step(tried, sizes[0]).peak if len(sizes) > 1 else most_bytes
        # The peak is the largest of several linear functions of the batch: between two counts it lies below their line,
        # but for a few bytes, as one image alone saves some copies.
        slope = (most_bytes - least_bytes) / max(1, sizes[-1] - sizes[0])
        fits = [n for n in sizes if least_bytes + slope * (n - sizes[0]) <= usable]
        if fits:
            return fits[-1], recompute_from
    images = "one image" if sizes[0] == 1 else f"{sizes[0]} images"
    return (
        f"a training step of {images} takes {least_bytes / 1e9:.1f} GB by the count, and {usable / 1e9:.1f} GB of "
        f"{'GPU memory' if is_gpu else 'memory'} can be used ({USABLE:.0%} of what is free); free some, take a smaller "
        f"model, or set train.micro_batch={sizes[0]} and train.recompute_from={recompute_from or 'none'} to try it "
        "nonetheless"
    )


def forward_flops(model: ModelConfig) -> int:
    """Floating-point operations of an image's forward pass, about: a multiply-add for each weight and pixel."""
    with torch.device("meta"):
        made = VDVAE(model)
    parts = [*made.encoder.enc_blocks, *made.decoder.dec_blocks, made.encoder.in_conv, made.decoder.out_net]
    sides = [*(spec.resolution for spec in model.encoder_specs), *made.resolutions, *[model.image_size] * 2]
    return sum(2 * r**2 * sum(p.numel() for p in part.parameters()) for part, r in zip(parts, sides, strict=True))
