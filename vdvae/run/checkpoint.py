"""Checkpoints: one file each, never half-written, checksummed, read without executing anything from them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from vdvae.config import Config, differing_keys, from_dict, to_dict
from vdvae.errors import UserError
from vdvae.files import atomic_write, read_torch_file

FORMAT = 2
FIXED_KEYS = ("train.batch_size", "train.seed", "data.dataset", "data.variant")
"""Settings besides `model` that a run cannot change half-way: its batches are a function of these."""

Checksums = dict[str, str]
"""SHA-256 of the data set's files, by name."""


class Best(NamedTuple):
    """The lowest validation NLL of a run so far."""

    step: int
    """Updates after which it was measured."""
    bits_per_dim: float


class Checkpoint(NamedTuple):
    """The content of a checkpoint file."""

    path: Path
    step: int
    """Updates done."""
    config: Config
    checksums: Checksums | None
    """The files that it was trained on; None where that is not known."""
    best: Best | None
    """The best validation before this step; None where there was none."""
    state: dict[str, Any]
    """`Update.state_dict`: model, ema, optimizer and the rest, on the CPU."""


def save(
    directory: Path,
    step: int,
    config: Config,
    state: dict[str, Any],
    checksums: Checksums | None = None,
    best: Best | None = None,
) -> Path:
    """Writes `directory/step-NNNNNNNN.pt` under a temporary name, flushes it to the disk, and renames it; then
    deletes all but the last `train.keep_last`, those of every `train.keep_every` steps, and the best one.

    Raises:
        OSError: it could not be written; the other files are as they were.
    """
    directory.mkdir(exist_ok=True)
    path = directory / f"step-{step:08d}.pt"
    content = {"format": FORMAT, "step": step, "config": to_dict(config), "images": checksums, **state}
    content["best"] = None if best is None else tuple(best)
    with atomic_write(path) as file:
        _write(content, file)
    # Files of later steps are damaged, or they would have been resumed from: they must not push out good ones.
    written = [old for old in _newest_first(directory) if _step_of(old) <= step]
    every = config.train.keep_every
    for old in written[config.train.keep_last :]:
        if not (every and _step_of(old) % every == 0) and not (best and _step_of(old) == best.step):
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
    """Whether the content of a file of torch.save is that of a checkpoint of ours."""
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
        checksums = content.pop("images")
        best = Best(*found) if (found := content.pop("best", None)) else None  # files of before November 2026 have none
    except Exception as error:  # whoever wrote it, it may hold any values of these
        raise UserError(f"{path} is damaged: {type(error).__name__}, {error}") from error
    return Checkpoint(path, step, config, checksums, best, content)


def read_run(directory: Path) -> Checkpoint:
    """The newest checkpoint of a run directory.

    Raises:
        UserError: it has none, or none that can be read.
    """
    found = read_newest(directory / "checkpoints")
    if found is None:
        raise UserError(f"{directory} has no checkpoints/step-*.pt; give a run directory or a checkpoint")
    return found


def read_newest(directory: Path, config: Config | None = None) -> Checkpoint | None:
    """The newest checkpoint of a folder that can be read, or None; says on stderr which it had to pass over.

    Args:
        directory: the folder of checkpoints.
        config: the configuration of the run; checkpoints of other runs are passed over. None takes any.

    Raises:
        UserError: there are checkpoints, and none can be read.
    """
    paths = _newest_first(directory)
    for path in paths:
        try:
            found = read(path)
            if config is not None and (keys := fixed_keys_that_differ(found.config, config)):
                raise UserError(f"{path} is of a run with other values of {', '.join(keys)}")
            return found
        except (UserError, OSError) as error:
            print(f"warning: {error}; trying the one before it", file=sys.stderr)
    if paths:
        raise UserError(f"none of the {len(paths)} checkpoints in {directory} can be read")
    return None


def fixed_keys_that_differ(a: Config, b: Config) -> list[str]:
    """`section.key` of the values that a run cannot change half-way, and in which these two differ."""
    return [key for key in differing_keys(a, b) if key.startswith("model.") or key in FIXED_KEYS]


def _write(content: Any, file: BinaryIO) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # what the system said, which torch.save buries
            raise error.__context__ from None
        raise


def _newest_first(directory: Path) -> list[Path]:
    named = [path for path in directory.glob("step-*.pt") if re.fullmatch(r"step-\d+", path.stem, re.ASCII)]
    return sorted(named, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
