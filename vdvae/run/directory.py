"""Where a run lives on disk, and whether a command may use it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TextIO

from vdvae.config import Config, load_config, save_config
from vdvae.errors import UserError
from vdvae.run import checkpoint
from vdvae.run.checkpoint import Checkpoint, Checksums, fixed_keys_that_differ
from vdvae.run.lock import lock

LOCK = ".lock"
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
BEFORE_IT_BEGINS = {LOCK, f"{CONFIG}.tmp"}
"""The files that a process leaves behind that was killed at the very start."""


class RunDirectory(NamedTuple):
    """The folder of a run: config.yaml, metrics.jsonl, TensorBoard events, checkpoints/ and samples/."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / CONFIG

    @property
    def metrics_file(self) -> Path:
        """The log for programs, a JSON object per line."""
        return self.path / METRICS

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, step-NNNNNNNN.pt."""
        return self.path / "checkpoints"

    def picture(self, name: str, step: int) -> Path:
        """The path of a picture, samples/NAME-NNNNNNNN.png."""
        return self.path / "samples" / f"{name}-{step:08d}.png"

    def lock(self, patience: float) -> TextIO:
        """Takes the directory for this process, until the file that is returned is closed; makes it if need be.

        Raises:
            UserError: something else lives here, it cannot be written, or another process uses it: see `lock.lock`.
        """
        if self.path.exists() and not self._is_new() and not self.config_file.is_file():
            raise UserError(f"{self.path} exists and is not a run directory; choose another --run_dir")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return lock(self.path / LOCK, patience)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"run directory {self.path} cannot be written: {reason}; mend that, or choose another --run_dir"
            ) from error

    def open(self, config: Config, checksums: Checksums) -> Checkpoint | None:
        """Checks that `config` may run here on these images, and returns the checkpoint to resume from. Writes nothing.

        Raises:
            UserError: there is a run that cannot be continued with this configuration or data set.
        """
        if self._is_new():
            return None
        there = load_config(str(self.config_file), [])
        if keys := fixed_keys_that_differ(there, config):
            raise UserError(
                f"{self.path} holds a run with other values of {', '.join(keys)}; choose another --run_dir to start "
                "anew, or go on with the values in its config.yaml"
            )
        try:
            newest = checkpoint.read_newest(self.checkpoints, config)
        except UserError as error:
            raise UserError(f"{error}; put a good one there, or choose another --run_dir to begin anew") from error
        if newest and newest.step > config.train.max_steps:
            raise UserError(
                f"{self.path} has made {newest.step:,} updates already; train.max_steps {config.train.max_steps:,} "
                "must be at least that, or choose another --run_dir"
            )
        if newest and newest.checksums is not None and newest.checksums != checksums:
            raise UserError(
                f"{self.path} was trained on other files of data set {config.data.dataset} (checksums differ); prepare "
                "the set as it was, or choose another --run_dir"
            )
        return newest

    def create(self, config: Config) -> None:
        """Makes the folder, writes the configuration, and removes what a process left half-written that was killed."""
        self.path.mkdir(parents=True, exist_ok=True)
        save_config(config, self.config_file)
        for left in self.checkpoints.glob("*.tmp"):
            left.unlink()

    def _is_new(self) -> bool:
        """Whether nothing is here, or a folder where nothing was begun."""
        if not self.path.exists():
            return True
        return self.path.is_dir() and all(entry.name in BEFORE_IT_BEGINS for entry in self.path.iterdir())
