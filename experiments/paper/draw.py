"""The figure of an experiment: one picture for each data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paper.outcome import COLUMNS, read_lines
from paper.report import Finished, by_dataset, values_by_name
from paper.spec import Experiment
from vdvae.data.loader import first_images
from vdvae.evaluation import figures
from vdvae.evaluation.active_units import latent_variables
from vdvae.evaluation.grids import reconstruction_grid
from vdvae.released.pretrained import find_pretrained
from vdvae.runtime.precision import set_matmul_precision


def draw(experiment: Experiment, finished: Sequence[Finished], device: torch.device) -> dict[str, NDArray[np.uint8]]:
    """Pictures, uint8 [H, W, 3], by data set."""
    if experiment.figure == "none":
        return {}
    set_matmul_precision("fp32")
    groups = by_dataset(finished).items()
    return {dataset: figures.pixels(_figure(experiment, entries, device)) for dataset, entries in groups}


def _figure(experiment: Experiment, finished: Sequence[Finished], device: torch.device) -> Any:
    first, names = finished[0].run, dict.fromkeys(run.name for run, _ in finished)
    if experiment.figure == "gradient_norms":
        return figures.gradient_norms(
            {f"{run.name}, seed {run.seed}": read_lines(run.directory) for run, _ in finished}
        )
    if experiment.figure == "learning_curves":
        return figures.compared_curves(
            {name: [read_lines(run.directory) for run, _ in finished if run.name == name] for name in names}
        )
    if experiment.figure == "cumulative_rate":
        curves = {
            name: np.mean([outcome.layer_rate for run, outcome in finished if run.name == name], 0).tolist()
            for name in names
        }
        return figures.cumulative_rate(curves, [spec.resolution for spec in first.config.model.decoder_specs])
    if experiment.figure == "reconstructions":
        found = find_pretrained(first.directory)
        images = first_images(found.splits().valid, first.config.train.grid_columns, device)
        picture = reconstruction_grid(found.model(device), images)
        return figures.reconstructions(picture, latent_variables(first.config.model))
    metric = next((claim.metric for claim in experiment.claims), "bits_per_dim")
    values = values_by_name(metric, finished, diverged=float("nan"))
    return figures.by_setting(values, COLUMNS[metric]["heading"], experiment.axis)
