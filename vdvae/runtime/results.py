"""Measurements as JSON, with what they were made on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vdvae.errors import UserError
from vdvae.files import atomic_write
from vdvae.runtime.device import describe


def prepare_result(path: Path | None) -> None:
    """Makes the folder for a result file, if there is to be one, before a measurement that may take hours.

    Raises:
        UserError: it is a folder itself.
        OSError: the folder cannot be made.
    """
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise UserError(f"--json must be a file, and {path} is a folder")


def write_result(path: Path, device: torch.device, about: dict[str, Any], figures: dict[str, Any]) -> None:
    """Writes what was measured, the hardware and the version of PyTorch, and the figures; see `prepare_result`."""
    with atomic_write(path) as file:
        file.write((json.dumps({**about, **made_on(device), **figures}, indent=1) + "\n").encode())


def made_on(device: torch.device) -> dict[str, Any]:
    """The hardware and the version of PyTorch, on which figures depend besides the code."""
    return {"hardware": describe(device), "torch": torch.__version__}
