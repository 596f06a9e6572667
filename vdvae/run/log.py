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
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vdvae.config import Config, load_config, settings, with_absolute_root
from vdvae.errors import UserError
from vdvae.files import atomic_write
from vdvae.model.vdvae import VDVAE
from vdvae.run.directory import METRICS, RunDirectory
from vdvae.runtime.results import made_on
from vdvae.training.metrics import Report

START = "start"
"""The kind of line that a process writes when it begins: where from, with what, on what."""
AUTO = "auto"
"""The word in config.yaml for what the log has the value of."""
Changes = dict[str, tuple[Any, Any]]
"""`section.key` -> the value that a run had, and the one that it goes on with."""


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

    def start(self, step: int, config: Config, changed: Changes, device: torch.device) -> None:
        """Logs that training begins after `step` updates: on what, see `results.made_on`, with which settings, in the
        place of "auto" what it came to, and which of them changed, see `changed_settings`.
        """
        if self.metrics:
            self._line(START, step, {**made_on(device), "changed": changed, "settings": _as_json(config)})

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
                "threads": torch.get_num_threads(),
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
    entries: dict[Any, dict[str, Any]] = {}
    for i, (_, entry) in enumerate(_undamaged(path)):
        entries[entry["kind"], entry["step"], i if entry["kind"] == START else None] = entry  # starts are all kept
    if all(kind == START for kind, *_ in entries):
        raise UserError(f"{path} has no lines yet; the first comes after train.print_every updates")
    return sorted(entries.values(), key=lambda entry: entry["step"])


def begin(directory: RunDirectory, config: Config, resolved: Config) -> Changes:
    """Writes the configuration of a run that begins or goes on; returns what has changed, see `changed_settings`."""
    changed = changed_settings(directory, config, resolved)
    directory.create(config)
    return changed


def changed_settings(directory: RunDirectory, config: Config, resolved: Config) -> Changes:
    """The settings that differ from those in a run's config.yaml, or else from those that its last start logged: a
    process may be killed between writing the one and the other, and "auto" may have come to something else. None for a
    run that is new.

    Args:
        directory: of the run.
        config: what it goes on with, see `with_absolute_root`; a relative data.root in config.yaml, as it was written
            until November 2026, is taken to begin in this directory.
        resolved: the same without "auto", see `vdvae.run.auto`.
    """
    if not directory.config_file.is_file():
        return {}
    asked, now = _as_json(config), _as_json(resolved)
    before = _as_json(with_absolute_root(load_config(str(directory.config_file), [])))
    logged: dict[str, Any] = {}
    if directory.metrics_file.is_file():
        starts = [entry for _, entry in _undamaged(directory.metrics_file, tells=False) if entry["kind"] == START]
        found = starts[-1].get("settings") if starts else None
        logged = found if isinstance(found, dict) else {}
    changed = {}
    for key, value in now.items():
        old = logged.get(key, value) if before[key] in (asked[key], value, AUTO) else before[key]
        if old != value:
            changed[key] = (old, value)
    return changed


def told(changed: Changes) -> str:
    """A line for each setting that changed, with its values as on the command line, to put behind another line."""

    def typed(value: Any) -> str:
        return str(value).lower() if value is None or isinstance(value, bool) else str(value)

    return "".join(f"\nchanged: {key} {typed(old)} -> {typed(new)}" for key, (old, new) in changed.items())


def _as_json(config: Config) -> dict[str, Any]:
    """Every setting, infinities as words."""
    values = settings(config).items()
    return {key: str(value) if isinstance(value, float) and math.isinf(value) else value for key, value in values}


def _keep_until(path: Path, step: int) -> None:
    """Drops the lines after a checkpoint's step, the validation that followed it and the test: all of it is about to be
    done again.
    """
    if path.exists():
        lines = [(line, entry["kind"], entry["step"]) for line, entry in _undamaged(path)]
        kept = [line for line, kind, at in lines if at < step + (kind in ("train", START)) and kind != "test"]
        with atomic_write(path) as file:
            file.writelines(line + b"\n" for line in kept)


def _undamaged(path: Path, tells: bool = True) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines and what they say. Those that are no JSON, such as one that was cut off, are dropped, and counted on
    stderr if `tells`.
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
    if damaged and tells:
        said = "1 damaged line is" if damaged == 1 else f"{damaged} damaged lines are"
        print(f"warning: {path}: {said} dropped", file=sys.stderr)
    return lines
