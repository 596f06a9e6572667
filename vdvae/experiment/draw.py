"""The figure of an experiment: one picture for each data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vdvae.data.loader import to_device
from vdvae.data.splits import load_splits
from vdvae.evaluation import figures
from vdvae.evaluation.images import reconstruction_grid
from vdvae.evaluation.units import latent_variables
from vdvae.experiment.outcome import read_lines
from vdvae.experiment.report import HEADINGS, Finished
from vdvae.experiment.spec import Experiment
from vdvae.precision import set_matmul_precision
from vdvae.pretrained import find_pretrained

Pixels = NDArray[np.uint8]


def draw(experiment: Experiment, finished: list[Finished], device: torch.device) -> dict[str, Pixels]:
    """Pictures, uint8 [H, W, 3], by data set."""
    pictures: dict[str, Pixels] = {}
    if experiment.figure == "none":
        return pictures
    for images in dict.fromkeys(entry.run.images for entry in finished):
        figure = _figure(experiment, [entry for entry in finished if entry.run.images == images], device)
        pictures[images] = figures.pixels(figure)
    return pictures


def reconstructed(run: Path, device: torch.device) -> Pixels:
    """The first validation images and what the newest checkpoint makes of them (paper Figure 4), uint8 [H, W, C].

    Raises:
        UserError: there is no checkpoint, or no data set.
    """
    set_matmul_precision("fp32")
    found = find_pretrained(str(run))
    config = found.config()
    split = load_splits(config.data, config.model).valid
    images = split.read(np.arange(min(config.train.grid_columns, len(split))))
    return reconstruction_grid(found.model(device), to_device(images, device))


def _figure(experiment: Experiment, finished: list[Finished], device: torch.device) -> Any:
    first = finished[0].run
    if experiment.figure == "gradient_norms":
        lines = {f"{entry.run.name}, seed {entry.run.seed}": read_lines(entry.run.directory) for entry in finished}
        return figures.gradient_norms(lines)
    if experiment.figure == "cumulative_rate":
        curves = {
            name: np.mean([entry.outcome.layer_rate for entry in finished if entry.run.name == name], 0).tolist()
            for name in dict.fromkeys(entry.run.name for entry in finished)
        }
        return figures.cumulative_rate(curves, [spec.resolution for spec in first.config.model.decoder_specs])
    if experiment.figure == "reconstructions":
        return figures.reconstructions(reconstructed(first.directory, device), latent_variables(first.config.model))
    metric = experiment.claims[0].metric
    values: dict[str, list[float]] = {name: [] for name in experiment.run_names}
    for entry in finished:
        value = getattr(entry.outcome, metric)
        values[entry.run.name].append(float("nan") if value is None else value)
    return figures.by_setting(values, HEADINGS[metric], experiment.axis)
