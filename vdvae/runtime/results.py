"""Measurements as JSON, with what they were made on."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from vdvae.errors import UserError
from vdvae.files import atomic_write, temporary_name
from vdvae.launch import read_launch
from vdvae.runtime.device import describe
from vdvae.version import __version__

CHECKOUT = Path(__file__).resolve().parents[2]
"""The folder that vdvae/ is in; a checkout, unless the package is installed."""
GIT_SECONDS = 5.0
"""The longest that git may take to answer."""


def prepare_result(path: Path | None) -> None:
    """Makes the folder for a result file, if there is to be one, before a measurement that may take hours.

    Raises:
        UserError: it is a folder itself, or a device.
        ValueError: a launcher's environment is impossible, which results say, see `read_launch`.
        OSError: the folder cannot be made, or no file in it.
    """
    if path:
        read_launch()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise UserError(f"--json must be a file, and {path} is a {'folder' if path.is_dir() else 'device'}")
        temporary = temporary_name(path)
        temporary.touch()
        temporary.unlink()


def write_result(path: Path, device: torch.device, about: dict[str, Any], figures: dict[str, Any]) -> None:
    """Writes what was measured, what it was made on (see `made_on`), and the figures; see `prepare_result`."""
    with atomic_write(path) as file:
        file.write((json.dumps({**about, **made_on(device), **figures}, indent=1) + "\n").encode())


def made_on(device: torch.device) -> dict[str, Any]:
    """What results depend on besides their settings: the command, the code, the versions, the hardware."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "git": git_revision(CHECKOUT),
        "vdvae": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": describe(device),
        "processes": read_launch().size,
    }


def git_revision(checkout: Path) -> str | None:
    """The commit that a checkout is at, with `-dirty` behind it where tracked files differ from it; None where this is
    no checkout, or git is missing, refuses, or takes too long.
    """
    if not (checkout / ".git").exists():  # or git would answer for a checkout around an installed package
        return None
    ask = ["git", "--no-optional-locks", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    # Within a hook, git is told by these of another checkout.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        answer = subprocess.run(
            [*ask, "--exclude=*"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            env=environment,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
