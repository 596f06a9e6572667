"""What a run writes down: metrics.jsonl for programs, TensorBoard for people."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vdvae.errors import UserError
from vdvae.files import atomic_write
from vdvae.model.vdvae import VDVAE
from vdvae.run.directory import METRICS, RunDirectory
from vdvae.training.metrics import Report


class RunLog:
    """Writes to a run directory; a resumed run drops what was logged after its checkpoint.

    On a full disk, training goes on: lines of metrics.jsonl are kept for the next attempt, and TensorBoard's log ends.

    Args:
        directory: a run directory that exists.
        model: the model whose layers are reported.
        step: updates done before this process.
        writes: whether this is the process that writes; calls on the others do nothing.
    """

    def __init__(self, directory: RunDirectory, model: VDVAE, step: int, writes: bool) -> None:
        self.model = model
        self.metrics: FileIO | None = None
        self.board: SummaryWriter | None = None
        self._unwritten = b""
        if writes:
            _keep_until(directory.metrics_file, step)
            self.metrics = directory.metrics_file.open("ab", buffering=0)
            threading.excepthook = partial(_unless_tensorboard, threading.excepthook)
            with warn_where_unwritten("the TensorBoard log"):
                self.board = SummaryWriter(str(directory.path), purge_step=step + 1)

    def train(self, step: int, report: Report, images_per_second: float) -> None:
        """Logs the means since the last report."""
        per_resolution = self.model.per_resolution(report.layer_rate)
        layers = enumerate(zip(self.model.resolutions, report.layer_rate, strict=True))
        digits = len(str(max(per_resolution)))
        # TensorBoard sorts groups by name; these names put what people look for first, and 78 layers last.
        self._scalars(
            step,
            "bits_per_dim",
            {"train": report.bits_per_dim, "train_distortion": report.distortion, "train_rate": report.rate},
        )
        self._scalars(step, "kl_per_resolution", {f"{r:0{digits}}x{r:0{digits}}": v for r, v in per_resolution.items()})
        self._scalars(
            step,
            "optimisation",
            {
                "largest_gradient_norm": report.grad_norm_max,
                "skipped_updates": report.skipped,
                "skip_threshold": report.skip_threshold,
                "learning_rate": report.learning_rate,
                "images_per_second": images_per_second,
            },
        )
        self._scalars(step, "per_layer_kl", {f"{i:03}_at_{r}x{r}": rate for i, (r, rate) in layers})
        self._line(
            "train",
            step,
            {
                **report._asdict(),
                "images_per_second": images_per_second,
                "rate_per_resolution": per_resolution,
            },
        )

    def evaluation(self, step: int, split: str, result: dict[str, Any]) -> None:
        """Logs a measured NLL."""
        self._scalars(step, "bits_per_dim", {split: result["bits_per_dim"]})
        self._line(split, step, result)

    def picture(self, step: int, name: str, grid: NDArray[np.uint8]) -> None:
        """Shows a grid, uint8 [H, W, C], in TensorBoard."""
        self._show(lambda board: board.add_image(f"images/{name}", grid, step, dataformats="HWC"))

    def close(self) -> None:
        """Writes out what is still in memory."""
        if self.metrics:
            self._write()
            self.metrics.close()
        self._show(lambda board: board.close())

    def _scalars(self, step: int, group: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):
                self._show(
                    partial(SummaryWriter.add_scalar, tag=f"{group}/{name}", scalar_value=value, global_step=step)
                )

    def _show(self, write: Callable[[SummaryWriter], None]) -> None:
        if self.board:
            board, self.board = self.board, None
            with warn_where_unwritten("the TensorBoard log, and what comes after,"):
                write(board)
                self.board = board

    def _line(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if self.metrics:
            # Through JSON and back, because NaN and infinities have no place there.
            finite = json.loads(json.dumps(values), parse_constant=lambda _name: None)
            self._unwritten += (json.dumps({"kind": kind, "step": step, **finite}) + "\n").encode()
            self._write()

    def _write(self) -> None:
        assert self.metrics
        with warn_where_unwritten(METRICS):
            while self._unwritten:
                self._unwritten = self._unwritten[self.metrics.write(self._unwritten) :]


@contextmanager
def warn_where_unwritten(what: str) -> Iterator[None]:
    """A full or lost disk, or a name that is no text for TensorBoard, is no reason to end days of training: says on
    stderr what could not be written.
    """
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        tqdm.write(f"warning: {what} could not be written: {reason}; training goes on", file=sys.stderr)


def _unless_tensorboard(hook: Callable[[threading.ExceptHookArgs], object], args: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread hands an error on to the next who writes, where it is told without a traceback."""
    if not (isinstance(args.exc_value, OSError) and "tensorboard" in type(args.thread).__module__):
        hook(args)


def read_log(directory: RunDirectory) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in the order of steps, also of a run that is still training.

    Raises:
        UserError: there are none.
    """
    path = directory.metrics_file
    if not path.is_file():
        raise UserError(f"{directory.path} is no run: there is no {path}; give the --run_dir of train.py")
    entries = {(entry["kind"], entry["step"]): entry for _, entry in _undamaged(path)}
    if not entries:
        raise UserError(f"{path} has no lines yet; the first comes after train.print_every updates")
    return sorted(entries.values(), key=lambda entry: entry["step"])


def _keep_until(path: Path, step: int) -> None:
    """Drops the lines after a checkpoint's step, the validation that followed it and the test: all of it is about to be
    done again.
    """
    if path.exists():
        lines = [(line, entry["kind"], entry["step"]) for line, entry in _undamaged(path)]
        kept = [line for line, kind, at in lines if at < step + (kind == "train") and kind != "test"]
        with atomic_write(path) as file:
            file.writelines(line + b"\n" for line in kept)


def _undamaged(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines and what they say. Those that are no JSON, such as one that was cut off, are dropped, and counted on
    stderr.
    """
    lines, damaged = [], 0
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            is_good = isinstance(entry["step"], int) and isinstance(entry["kind"], str)
        except (ValueError, TypeError, KeyError, RecursionError):
            is_good = False
        if is_good:
            lines.append((line, entry))
        else:
            damaged += 1
    if damaged:
        said = "1 damaged line is" if damaged == 1 else f"{damaged} damaged lines are"
        print(f"warning: {path}: {said} dropped", file=sys.stderr)
    return lines
