"""The figure of an experiment: one picture for each data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paper.outcome import read_lines
from paper.report import HEADINGS, Finished
from paper.spec import Experiment
from vdvae.data.loader import first_images
from vdvae.evaluation import figures
from vdvae.evaluation.active_units import latent_variables
from vdvae.evaluation.grids import reconstruction_grid
from vdvae.released.pretrained import find_pretrained
from vdvae.runtime.precision import set_matmul_precision

Pixels = NDArray[np.uint8]


def draw(experiment: Experiment, finished: list[Finished], device: torch.device) -> dict[str, Pixels]:
    """Pictures, uint8 [H, W, 3], by data set."""
    set_matmul_precision("fp32")
    pictures: dict[str, Pixels] = {}
    if experiment.figure == "none":
        return pictures
    for images in dict.fromkeys(entry.run.images for entry in finished):
        figure = _figure(experiment, [entry for entry in finished if entry.run.images == images], device)
        pictures[images] = figures.pixels(figure)
    return pictures


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
        found = find_pretrained(first.directory)
        images = first_images(found.splits().valid, first.config.train.grid_columns, device)
        picture = reconstruction_grid(found.model(device), images)
        return figures.reconstructions(picture, latent_variables(first.config.model))
    metric = experiment.claims[0].metric
    values: dict[str, list[float]] = {name: [] for name in experiment.run_names}
    for entry in finished:
        value = getattr(entry.outcome, metric)
        values[entry.run.name].append(float("nan") if value is None else value)
    return figures.by_setting(values, HEADINGS[metric], experiment.axis)
