"""Where a run lives on disk, and whether a command may use it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vdvae.config import Config, differing_keys, load_config, save_config
from vdvae.errors import UserError
from vdvae.training import checkpoint
from vdvae.training.checkpoint import Checkpoint

FIXED_KEYS = ("train.batch_size", "train.seed", "data.dataset", "data.variant")
"""Besides `model`, what a run cannot change half-way: the batches are a function of these."""


class RunDirectory(NamedTuple):
    """config.yaml, metrics.jsonl, TensorBoard events, checkpoints/ and samples/."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """One JSON object per report."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """step-NNNNNNNN.pt"""
        return self.path / "checkpoints"

    def picture(self, name: str, step: int) -> Path:
        """samples/NAME-NNNNNNNN.png"""
        return self.path / "samples" / f"{name}-{step:08d}.png"

    def open(self, config: Config) -> Checkpoint | None:
        """Checks that `config` may run here, and returns the checkpoint to resume from. Writes nothing.

        Raises:
            UserError: something else lives here, or a run whose configuration cannot be continued with this one.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return None
        if not self.config_file.is_file():
            raise UserError(f"{self.path} exists and is not a run directory; choose another --run_dir")
        there = load_config(str(self.config_file), [])
        keys = [key for key in differing_keys(there, config) if key.startswith("model.") or key in FIXED_KEYS]
        if keys:
            raise UserError(
                f"{self.path} holds a run with other values of {', '.join(keys)}; choose another --run_dir to start "
                "anew, or go on with the values in its config.yaml"
            )
        newest = checkpoint.read_newest(self.checkpoints)
        if newest and newest.step > config.train.max_steps:
            raise UserError(
                f"{self.path} has made {newest.step:,} updates already; train.max_steps {config.train.max_steps:,} "
                "must be at least that, or choose another --run_dir"
            )
        return newest

    def create(self, config: Config) -> None:
        """Makes the folder and writes the configuration."""
        self.path.mkdir(parents=True, exist_ok=True)
        save_config(config, self.config_file)
