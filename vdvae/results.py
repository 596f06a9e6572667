"""Measurements as JSON, with what they were made on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vdvae import distributed


def write_result(path: Path, device: torch.device, about: dict[str, Any], figures: dict[str, Any]) -> None:
    """Writes what was measured, the hardware and the version of PyTorch, and the figures, making folders if need be."""
    made_on = {"hardware": distributed.describe(device), "torch": torch.__version__}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, **made_on, **figures}, indent=1) + "\n")
