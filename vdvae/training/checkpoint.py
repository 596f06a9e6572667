"""Checkpoints: one file each, never half-written, read without executing anything from them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vdvae.config import Config, from_dict, to_dict
from vdvae.errors import UserError
from vdvae.safe_load import read_torch_file

FORMAT = 1


class Checkpoint(NamedTuple):
    """What a file holds."""

    path: Path
    step: int
    """Updates done."""
    config: Config
    state: dict[str, Any]
    """`Update.state_dict`: model, ema, optimizer and the rest, on the CPU."""


def save(directory: Path, step: int, config: Config, state: dict[str, Any]) -> Path:
    """Writes `directory/step-NNNNNNNN.pt` under a temporary name, flushes it to the disk, and renames it; then
    deletes all but the last `train.keep_last` and those of every `train.keep_every` steps.
    """
    directory.mkdir(exist_ok=True)
    path = directory / f"step-{step:08d}.pt"
    temporary = path.with_suffix(".pt.tmp")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, "step": step, "config": to_dict(config), **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    every = config.train.keep_every
    for old in _newest_first(directory)[config.train.keep_last :]:
        if not (every and _step_of(old) % every == 0):
            old.unlink()
    return path


def read(path: Path) -> Checkpoint:
    """Reads one file.

    Raises:
        UserError: it is missing, damaged, not a checkpoint, or of another format.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    return interpret(path, read_torch_file(path))


def is_checkpoint(content: Any) -> bool:
    """Whether a file of torch.save that holds this is one of ours."""
    return isinstance(content, dict) and "format" in content


def interpret(path: Path, content: Any) -> Checkpoint:
    """The checkpoint that a file held; errors as for `read`."""
    if not is_checkpoint(content):
        raise UserError(f"{path} is not a checkpoint of this project")
    version = content.pop("format")
    if version != FORMAT:
        raise UserError(f"{path} has checkpoint format {version}; this version reads format {FORMAT}")
    try:
        step, config = content.pop("step"), from_dict(content.pop("config"), str(path))
    except Exception as error:  # damaged bytes can make any values of these
        raise UserError(f"{path} is damaged: {type(error).__name__}, {error}") from error
    return Checkpoint(path, step, config, content)


def read_run(directory: Path) -> Checkpoint:
    """The newest checkpoint of a run directory.

    Raises:
        UserError: it has none, or none that can be read.
    """
    found = read_newest(directory / "checkpoints")
    if found is None:
        raise UserError(f"{directory} has no checkpoints/step-*.pt; give a run directory or a checkpoint")
    return found


def read_newest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint of a folder that can be read, or None; says on stderr which it had to pass over.

    Raises:
        UserError: there are checkpoints, and none can be read.
    """
    paths = _newest_first(directory)
    for path in paths:
        try:
            return read(path)
        except UserError as error:
            print(f"warning: {error}; trying the one before it", file=sys.stderr)
    if paths:
        raise UserError(f"none of the {len(paths)} checkpoints in {directory} can be read")
    return None


def _newest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*.pt"), key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
