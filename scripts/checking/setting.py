"""What every part of a check is told, and how a part says that something is wrong or cannot be known here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vdvae.runtime.device import pick_device

Figures = dict[str, Any]
"""What a part measured, as JSON. `told` is one line of it for the table."""
DEMO = "fashion"
"""The preset whose images come with the package."""


@dataclass(frozen=True)
class Setting:
    """What is checked, in types that go through JSON."""

    hps: str
    """The preset whose speed is measured; as for train.py."""
    device_name: str
    json: str
    """The file of all figures; it has those of earlier parts."""

    @property
    def device(self) -> torch.device:
        """The device that is checked, made the current one."""
        device = pick_device(self.device_name)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device

    @property
    def on_gpu(self) -> bool:
        """Whether it has the sizes of a GPU; on a CPU everything is as small as it can be."""
        return torch.device(self.device_name).type == "cuda"

    def picture(self, name: str) -> Path:
        """The file of a picture, beside the figures."""
        path = Path(self.json)
        return path.with_name(f"{path.stem}-{name}.png")


class CheckFailedError(Exception):
    """Something is not as it should be; the message says what, with the numbers."""


class NotMeasuredError(Exception):
    """Something cannot be known here; the message says what is missing."""
