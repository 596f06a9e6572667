"""From a run directory or a checkpoint to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from vdvae.errors import UserError
from vdvae.model.vdvae import VDVAE
from vdvae.training import checkpoint
from vdvae.training.checkpoint import Checkpoint


def find_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint, or the newest one of a run directory.

    Raises:
        UserError: there is none at `path`, or it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is nothing at {path}; give a run directory or a checkpoint")
    if path.is_file():
        return checkpoint.read(path)
    found = checkpoint.read_newest(path / "checkpoints")
    if found is None:
        raise UserError(f"{path} has no checkpoints/step-*.pt; give a run directory or a checkpoint")
    return found


def model_from(found: Checkpoint, device: torch.device, weights: Literal["ema", "model"] = "ema") -> VDVAE:
    """The model of a checkpoint, ready for evaluation: its averaged weights, or those that were training."""
    model = VDVAE(found.config.model)
    model.load_state_dict(found.state[weights])
    return model.eval().to(device)


def load_pretrained(
    path: str | Path, device: str | torch.device = "cpu", weights: Literal["ema", "model"] = "ema"
) -> VDVAE:
    """Loads the model of a run directory or a checkpoint.

    Args:
        path: a run directory, whose newest checkpoint is taken, or a checkpoint.
        device: where the model goes.
        weights: the exponential moving average, or the weights that were training.

    Raises:
        UserError: nothing there, or nothing that can be read.
    """
    return model_from(find_checkpoint(path), torch.device(device), weights)
