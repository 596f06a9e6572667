"""What a run is made of: the sections `model`, `data` and `train` of a configuration."""

from __future__ import annotations

import math
import os
import shutil
import sys
from dataclasses import dataclass, replace
from typing import Literal

import torch

from vdvae.model.config import ModelConfig
from vdvae.runtime.device import describe
from vdvae.runtime.precision import Precision, best_precision, has_bf16

Variant = Literal["original", "newer"]
"""The two down-samplings of ImageNet."""

MOST_WORKERS = 1_000
"""Decoding threads, more than any machine has cores for."""
MOST = {"batch_size": 1 << 20, "eval_batch": 1 << 20, "grid_columns": 1000, "timeout_minutes": 10_000}
"""Far above what anybody can mean, and below what would end in a lack of memory."""


@dataclass(frozen=True)
class DataConfig:
    """Which images: the `data` section of a configuration."""

    dataset: str
    """A name of `DATASETS`, or of a folder of your own images that scripts/prepare_data.py made."""
    root: str = "data"
    """Folder with one prepared folder per data set."""
    variant: Variant | None = None
    """Which down-sampling of ImageNet; must be what the prepared folder holds, as figures on the two don't compare."""
    resident: bool = False
    """Whether the training images stay in the device's memory, for sets that fit: 150 MB for CIFAR-10, 4 GB for
    ImageNet-32."""
    workers: int | None = None
    """Threads that decode images ahead, in each training process, for sets that are kept as PNG files; None: one for
    each core that it has to itself, but no more than 8."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"data.workers must be at least 1, not {self.workers}")
        if self.workers is not None and self.workers > MOST_WORKERS:
            raise ValueError(f"data.workers must be at most {MOST_WORKERS}, not {self.workers}")


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation (paper Table 4), and how often a run reports.

    Raises:
        ValueError: one line naming the key, where a value cannot be.
    """

    batch_size: int
    """Images per update over all processes, as in Table 4."""
    lr: float
    max_steps: int
    """Updates in the whole run."""
    skip_threshold: float | Literal["auto"]
    """Updates whose gradient norm is this or more are skipped (paper Section 4, Figure 6); "auto" finds a number by
    itself, see `SkipThreshold`."""
    micro_batch: int | Literal["auto"] | None = None
    """The most images one device takes at once; gradients accumulate over the rest. None is the device's whole share of
    the batch; "auto" is as many of it as fit, see `vdvae.run.auto`. Noise belongs to the place of a micro-batch's first
    image in the global batch: with others, the same seed has another, equally good loss curve."""
    weight_decay: float = 0.0
    """Decoupled weight decay, as in AdamW."""
    beta1: float = 0.9
    beta2: float = 0.9
    warmup_steps: int = 100
    """Updates over which the learning rate rises linearly from 0."""
    cooldown_steps: int = 0
    """Updates, the last of the run, over which the learning rate falls linearly to 0; 0 keeps it constant, as in
    the paper."""
    grad_clip: float = 200.0
    """Gradients of a larger norm are scaled down to it."""
    ema_decay: float = 0.999
    max_skip_streak: int = 500
    """The number of skipped updates in a row that ends the run."""
    print_every: int = 100
    valid_every: int = 10_000
    images_every: int = 10_000
    checkpoint_every: int = 5_000
    keep_last: int = 2
    """How many of the newest checkpoints are kept."""
    keep_every: int | None = None
    """Checkpoints whose step is a multiple of this are kept too, as is the one with the best validation NLL."""
    timeout_minutes: float = 10.0
    """Minutes without a word from the others after which a process ends with an error, and torchrun restarts all."""
    eval_batch: int = 32
    """Images per batch when the NLL is measured."""
    grid_columns: int = 8
    """Images in a row of the sample and reconstruction grids; fewer where these have more than a million pixels."""
    precision: Precision | Literal["auto"] = "auto"
    """How convolutions and matrix products multiply while training; evaluation is in fp32. "auto" is bf16 on GPUs that
    have it, fp16 on others, and fp32 on CPUs."""
    bf16_states: bool = False
    """Whether the states that blocks add to are in bf16 too, for less traffic; they are in fp32 otherwise. With
    train.precision=bf16 only."""
    compile: bool | Literal["autotune"] = False
    """Whether each block is compiled by torch.compile, which on a CPU needs a C++ compiler and does not pay.
    "autotune", on GPUs, lets it choose the kernel of each product by trial, with what follows the product in it; the
    first step takes minutes longer."""
    recompute_from: int | Literal["auto"] | None = None
    """Activation checkpointing: blocks of this resolution and above keep only their inputs, and the backward pass runs
    them again. About 40 % more arithmetic for less than half of the memory. "auto" is None where a micro-batch, or with
    `micro_batch: auto` a single image, fits without; see `vdvae.run.auto`."""
    fast: bool = True
    """Whether everything of `vdvae.fast` is used. False is the plain model with a plain step, to read, to debug and to
    compare with: `compile`, `recompute_from`, `replay` and `cuda_graph` have no effect then."""
    replay: bool = True
    """Whether, on a CPU, what the first step does with tensors is recorded and repeated, to the same bits; false has
    Python go through every step, for debuggers."""
    cuda_graph: bool = False
    """Whether, on a GPU, forward and backward pass are recorded as one CUDA graph."""
    compress_gradients: bool = False
    """Whether processes on CUDA devices exchange their gradients as bf16: half of the traffic, 8 bits of precision."""
    deterministic: bool = False
    """Whether GPUs take only those algorithms that give the same bits every time. Slower; by how much was not measured.
    CPUs do so anyway."""
    seed: int = 0

    def __post_init__(self) -> None:
        whole = ["batch_size", "max_steps", "print_every", "valid_every", "images_every", "checkpoint_every"]
        whole += ["keep_last", "eval_batch", "grid_columns", "max_skip_streak"]
        for key in (*whole, "micro_batch", "keep_every", "recompute_from"):
            value = getattr(self, key)
            if value not in (None, "auto") and value < 1:
                raise ValueError(f"train.{key} must be at least 1, not {value}")
        for key in ("lr", "grad_clip", "skip_threshold", "timeout_minutes"):
            value = getattr(self, key)
            if value != "auto" and not value > 0:
                raise ValueError(f"train.{key} must be above 0, not {value}")
        for key in ("lr", "weight_decay"):
            if not math.isfinite(getattr(self, key)):
                raise ValueError(f"train.{key} must be finite, not {getattr(self, key)}")
        for key, most in MOST.items():
            if getattr(self, key) > most:
                raise ValueError(f"train.{key} must be at most {most:,}, not {getattr(self, key):,}")
        for key in ("weight_decay", "warmup_steps", "cooldown_steps", "seed"):
            if getattr(self, key) < 0:
                raise ValueError(f"train.{key} must not be negative, not {getattr(self, key)}")
        for key in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"train.{key} must be from 0 to below 1, not {getattr(self, key)}")

        if self.bf16_states and self.precision not in ("bf16", "auto"):
            raise ValueError(f"train.bf16_states needs train.precision=bf16, not {self.precision}")

    def resolved(
        self, precision: Precision = "fp32", micro_batch: int | None = None, recompute_from: int | None = None
    ) -> TrainConfig:
        """The same, with these values for each "auto" that depends on the hardware, as an `Update` needs it.

        The defaults suit whoever makes one for its state alone.
        """
        given = {"precision": precision, "micro_batch": micro_batch, "recompute_from": recompute_from}
        return replace(self, **{key: given[key] for key in self.left_to_hardware()})  # type: ignore[arg-type]

    def images_at_once(self, share: int) -> int:
        """The most images of a process's share of the batch that its device takes at once."""
        assert self.micro_batch != "auto", "resolved before"
        return min(self.micro_batch or share, share)

    def left_to_hardware(self) -> list[str]:
        """The keys whose "auto" depends on the hardware."""
        return [key for key in ("precision", "micro_batch", "recompute_from") if getattr(self, key) == "auto"]

    def check_device(self, device: torch.device) -> None:
        """Refuses what this device cannot do.

        Raises:
            ValueError: it asks for what only CUDA devices do, or newer ones than this, or for a compiler that is not
                there; or for bf16 states where "auto" is another precision.
        """
        device_type = device.type
        if self.bf16_states and self.precision == "auto":
            replace(self, precision=best_precision(device))  # refuses another than bf16
        if self.precision == "bf16" and device_type == "cuda" and not has_bf16(device):
            raise ValueError(
                f"train.precision=bf16 needs a GPU of compute capability 8.0 or more, unlike {describe(device)}; "
                "set train.precision=fp16, or auto"
            )
        only_cuda = {
            "compress_gradients": self.compress_gradients,
            "cuda_graph": self.cuda_graph,
            "compile": self.fast and self.compile == "autotune",
        }
        for key, asked in only_cuda.items():
            if asked and device_type != "cuda":
                value = str(getattr(self, key)).lower()
                raise ValueError(f"train.{key}={value} needs CUDA devices, not {device_type}; set train.{key}=false")
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as PyTorch chooses it
        if self.fast and self.compile and device_type == "cpu" and not shutil.which(compiler):
            raise ValueError(
                f"train.compile on a CPU needs the C++ compiler {compiler}, which is not here: install it, or let CXX "
                "name another; or set train.compile=false"
            )

    def local_batch_size(self, processes: int) -> int:
        """Images that each process contributes to an update.

        Raises:
            ValueError: the global batch cannot be divided among the processes.
        """
        if self.batch_size % processes:
            below = self.batch_size - self.batch_size % processes
            nearest = f"{below} or {below + processes}" if below else f"{processes}"
            raise ValueError(
                f"train.batch_size {self.batch_size} cannot be divided among {processes} processes; "
                f"use {nearest}, or another --nproc_per_node"
            )
        return self.batch_size // processes


@dataclass(frozen=True)
class Config:
    """Everything a run is made of."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
