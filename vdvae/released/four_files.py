"""The four files of a run of the released code: weights, EMA, the state of Adam, and a log."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vdvae.errors import UserError, user_path
from vdvae.released.releases import release_of

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's running means of the gradient and of its square, as both codes call them."""
NATS = {"bits_per_dim": "elbo", "distortion": "distortion", "rate": "rate"}
"""A metric here, in bits/dim -> in the released log, in nats/dim."""
AS_THEY_ARE = {"grad_norm_max": "grad_norm", "skipped": "skipped_updates", "learning_rate": "lr"}
"""A metric here -> what the released log calls the same number."""
KINDS = {"train": "train_loss", "valid": "eval_loss"}
"""The kind of a line of metrics.jsonl -> the type of a line of the released log."""


class ReleasedSet(NamedTuple):
    """Where the four files are that the released code resumes from."""

    model: Path
    ema: Path
    optimizer: Path
    log: Path

    @classmethod
    def at(cls, prefix: str) -> ReleasedSet:
        """The files whose names begin with `prefix`, a path."""
        endings = ("-model.th", "-model-ema.th", "-opt.th", "-log.jsonl")
        for ending in endings:
            if prefix.endswith(ending):
                raise UserError(f"the four files are named by what they begin with: {prefix.removesuffix(ending)}")
        return cls(*(user_path(prefix + ending) for ending in endings))

    def check_complete(self) -> None:
        """Raises `UserError` unless all four files are there; says which are not, and where to get them."""
        missing = [path for path in self if not path.is_file()]
        if not missing:
            return
        names = ", ".join(map(str, missing))
        if self.ema not in missing and len(missing) == len(self) - 1:
            raise UserError(
                f"of the four files there is only {self.ema}: load_pretrained and the scripts take it alone, but "
                f"training cannot go on from it without {names}"
            )
        known = [release[1] for path in missing if (release := release_of(path))]
        where = f"download from {', '.join(known)}" if known else "training goes on from all four files only"
        raise UserError(f"there is no {names}; {where}")

    def check_free(self) -> None:
        """Raises `UserError` where one of the four files is there already."""
        if there := [str(path) for path in self if path.exists()]:
            raise UserError(f"{', '.join(there)} would be overwritten; choose another PREFIX")


class Adam(NamedTuple):
    """The state of Adam, parameter by parameter, in the order of the model's parameters."""

    moments: list[dict[str, Tensor]]
    """`MOMENTS` of each parameter, in its shape."""
    step: int
    """Updates applied: those that were skipped don't count."""
    settings: dict[str, float]
    """Those of the `train` section that the file tells: lr, beta1, beta2, weight_decay."""


def read_group(
    content: Any, expected: dict[str, Tensor], path: Path
) -> tuple[Mapping[str, Any], list[dict[str, Tensor]]]:
    """The one group of an optimiser's state, and the moments of each parameter, in the order of the group.

    Raises:
        UserError: this is no such state, or not that of parameters of these shapes.
    """
    parts = content if isinstance(content, Mapping) else {}
    state, groups = parts.get("state"), parts.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(groups, list):
        raise UserError(f"{path} is no optimiser's state: it has no `state` and `param_groups`")
    if len(groups) != 1 or not isinstance(groups[0], Mapping) or not isinstance(groups[0].get("params"), list):
        raise UserError(f"{path} must have one group of parameters in `param_groups`, as the released code writes it")
    keys = groups[0]["params"]
    if not len(keys) == len(state) == len(expected):
        raise UserError(
            f"{path} has {len(keys):,} parameters and the moments of {len(state):,}, but the model has "
            f"{len(expected):,} parameters; take the file of the same run"
        )
    moments, left = [], dict(state)
    for key, (name, parameter) in zip(keys, expected.items(), strict=True):
        entry = left.pop(key, None) if isinstance(key, int) else None
        if not isinstance(entry, Mapping):
            raise UserError(f"{path} has no moments of {name}, whose key in `params` is {key!r}")
        for moment in MOMENTS:
            tensor = entry.get(moment)
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                raise UserError(f"{path} has no {moment} of {name}")
            if tensor.shape != parameter.shape:
                raise UserError(f"{path}: {moment} of {name} is {list(tensor.shape)}, not {list(parameter.shape)}")
        moments.append({moment: entry[moment] for moment in MOMENTS})
    return groups[0], moments


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers, from 1, and the objects there; other values are passed over.

    Raises:
        UserError: a line is no JSON.
    """
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}, is cut off or no JSON; copy or download it again") from error
        if isinstance(entry, dict):
            yield number, entry


def whole_number(value: Any) -> int | None:
    """A number or a tensor of one as an integer, or None where it is not a whole number from 0 up."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        return None
    return int(value) if value == int(value) else None
