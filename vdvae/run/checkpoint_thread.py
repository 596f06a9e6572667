"""Checkpoints written while training goes on."""

from __future__ import annotations

import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from vdvae.config import Config
from vdvae.run import checkpoint
from vdvae.run.checkpoint import Best, Checksums
from vdvae.run.directory import RunDirectory
from vdvae.run.host_copy import HostCopy


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time, while training goes on.

    Training waits while the state is copied to host memory, and for the write before if that is not done. A write that
    fails, as on a full disk, leaves the files as they were; stderr says so, and training goes on to the next. As a
    context manager, it waits for the last write, whatever happens.
    """

    def __init__(self, directory: RunDirectory, config: Config, checksums: Checksums) -> None:
        self.directory = directory
        self.config = config
        self.checksums = checksums
        self._host_copy = HostCopy()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[str | None] | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def save(self, step: int, state: dict[str, Any], best: Best | None) -> None:
        """Copies `Update.state_dict` after `step` updates and lets it be written, with the best validation before; the
        checkpoint of that is kept.
        """
        self.failure()
        self._writing = self._thread.submit(self._write, step, self._host_copy(state), best)

    @property
    def is_writing(self) -> bool:
        """Whether the last checkpoint is not there yet."""
        return self._writing is not None and not self._writing.done()

    def failure(self) -> str | None:
        """Why the last checkpoint could not be written, None where it was; waits until that is known."""
        return self._writing.result() if self._writing else None

    def _write(self, step: int, state: dict[str, Any], best: Best | None) -> str | None:
        try:
            with self.directory.metrics_file.open("rb") as log:  # which a run that resumes from here goes on with
                os.fsync(log.fileno())
            checkpoint.save(self.directory.checkpoints, step, self.config, state, self.checksums, best)
        except OSError as error:
            reason = f"the checkpoint after step {step:,} could not be written: {error}"
            tqdm.write(f"warning: {reason}; those before it are untouched, and training goes on", file=sys.stderr)
            return reason
        return None
