"""What a run writes down: metrics.jsonl for programs, TensorBoard for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from vdvae.model.vdvae import VDVAE
from vdvae.training.metrics import Report
from vdvae.training.run_directory import RunDirectory


class RunLog:
    """Writes to a run directory; a resumed run drops what was logged after its checkpoint.

    Args:
        directory: exists.
        model: whose layers are reported.
        step: updates done before this process.
        writes: whether this is the process that writes; calls on the others do nothing.
    """

    def __init__(self, directory: RunDirectory, model: VDVAE, step: int, writes: bool) -> None:
        self.model = model
        self.metrics: TextIO | None = None
        self.board: SummaryWriter | None = None
        if writes:
            _drop_after(directory.metrics_file, step)
            self.metrics = directory.metrics_file.open("a")
            self.board = SummaryWriter(str(directory.path), purge_step=step + 1)

    def train(self, step: int, report: Report, learning_rate: float, images_per_second: float) -> None:
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
                "learning_rate": learning_rate,
                "images_per_second": images_per_second,
            },
        )
        self._scalars(step, "per_layer_kl", {f"{i:03}_at_{r}x{r}": rate for i, (r, rate) in layers})
        self._line(
            "train",
            step,
            {
                **report._asdict(),
                "learning_rate": learning_rate,
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
        if self.board:
            self.board.add_image(f"images/{name}", grid, step, dataformats="HWC")

    def close(self) -> None:
        """Writes out what is still in memory."""
        if self.metrics and self.board:
            self.metrics.close()
            self.board.close()

    def _scalars(self, step: int, group: str, values: dict[str, float]) -> None:
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(f"{group}/{name}", value, step)

    def _line(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if self.metrics:
            self.metrics.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self.metrics.flush()


def _drop_after(path: Path, step: int) -> None:
    """Keeps the lines up to a step: what came after it, and the test, is about to be done again."""
    if not path.exists():
        return
    lines = [(line, json.loads(line)) for line in path.read_text().splitlines(keepends=True)]
    kept = [line for line, entry in lines if entry["step"] <= step and entry["kind"] != "test"]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
