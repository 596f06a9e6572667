"""From a run of ours to the four files that the released code loads."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdvae.config import Config
from vdvae.errors import UserError
from vdvae.released.four_files import (
    AS_THEY_ARE,
    KINDS,
    NATS,
    Adam,
    ReleasedSet,
    json_lines,
    read_group,
    whole_number,
)
from vdvae.released.matching import PARALLEL_PREFIX, check_fits, expected_tensors, named_tensors
from vdvae.released.releases import check_there
from vdvae.run import checkpoint
from vdvae.run.checkpoint import Checkpoint
from vdvae.run.directory import RunDirectory

ADAM_EPS = 1e-8


def export_run(run: Path, prefix: str, training_images: Callable[[Config], int]) -> Checkpoint:
    """Turns a run directory (its newest checkpoint) or a checkpoint into the four files that the released code loads.

    They appear when all four are complete, and none after an error.

    Args:
        run: a run directory or a checkpoint.
        prefix: what the paths of the four files begin with; none of them is overwritten.
        training_images: how many images an epoch of a configuration has.

    Returns:
        the checkpoint.

    Raises:
        UserError: no such run, a model that the released code cannot build, no update made yet, or files there.
    """
    files = ReleasedSet.at(prefix)
    files.check_free()
    check_there(run)
    found = checkpoint.read_run(run) if run.is_dir() else checkpoint.read(run)
    config = found.config
    _check_exportable(found)
    expected = expected_tensors(config.model)
    weights = {key: named_tensors(found.state.get(key), found.path) for key in ("model", "ema")}
    for tensors in weights.values():
        check_fits(tensors, config.model, found.path, "its own configuration")
    adam = _read_adamw(found.state.get("optimizer"), expected, found.path)
    metrics = RunDirectory(found.path.parent.parent).metrics_file
    has_metrics = found.path.parent.name == "checkpoints" and metrics.is_file()
    entries = [entry for _, entry in json_lines(metrics)] if has_metrics else []
    images = training_images(config)
    lines = _released_lines(entries, found.step, lambda step: step * config.train.batch_size // images)

    contents = {
        files.model: OrderedDict((PARALLEL_PREFIX + name, _plain(weights["model"][name])) for name in expected),
        files.ema: OrderedDict((name, _plain(weights["ema"][name])) for name in expected),
        files.optimizer: _apex(adam, config),
    }
    files.log.parent.mkdir(parents=True, exist_ok=True)
    temporary = {path: path.with_name(f".{path.name}.exporting") for path in files}
    try:
        for path, content in contents.items():
            torch.save(content, temporary[path])
        temporary[files.log].write_text("".join(json.dumps(line) + "\n" for line in lines))
        for path in files:
            temporary[path].rename(path)
    except BaseException:
        for path in files:
            path.unlink(missing_ok=True)
        raise
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    return found


def _check_exportable(found: Checkpoint) -> None:
    """Raises `UserError` where the released code has no such model."""
    model = found.config.model
    if model.image_channels != 3:
        raise UserError(f"{found.path} has model.image_channels {model.image_channels}; the released code has 3 only")
    switches = {"stochastic_group": 1, "unpool": "nearest", "topdown_residual": True}
    for key, paper in switches.items():
        if getattr(model, key) != paper:
            raise UserError(f"{found.path} has model.{key} {getattr(model, key)}; the released code has {paper} only")
    if model.width_at(model.image_size) != model.width:
        raise UserError(
            f"{found.path} has width {model.width_at(model.image_size)} at resolution {model.image_size}, where the "
            f"released code can only have model.width, {model.width}"
        )


def _read_adamw(content: Any, expected: dict[str, Tensor], path: Path) -> Adam:
    """The state of `torch.optim.AdamW`, which counts the steps of each parameter."""
    if isinstance(content, Mapping) and not content.get("state"):
        raise UserError(f"{path} has no Adam moments, as no update was made yet; train at least to the next checkpoint")
    group, moments = read_group(content, expected, path)
    steps = {whole_number(content["state"][key].get("step")) for key in group["params"]}
    step = steps.pop()
    if steps or step is None:
        raise UserError(f"{path} has no one number of Adam steps, and the released code has one for all parameters")
    return Adam(moments, step, {})


def _apex(adam: Adam, config: Config) -> dict[str, Any]:
    """The state as Apex's FusedAdam writes it."""
    train = config.train
    group = {
        "lr": train.lr,
        "bias_correction": True,
        "betas": (train.beta1, train.beta2),
        "eps": ADAM_EPS,
        "weight_decay": train.weight_decay,
        "step": adam.step,
        "initial_lr": train.lr,
        "params": list(range(len(adam.moments))),
    }
    state = {i: {name: _plain(moment) for name, moment in pair.items()} for i, pair in enumerate(adam.moments)}
    return {"state": state, "param_groups": [group]}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous().clone()  # in a checkpoint, many share their memory


def _released_lines(entries: list[dict[str, Any]], last: int, epoch_of: Callable[[int], int]) -> list[dict[str, Any]]:
    """The lines of a released log that say what those of metrics.jsonl say up to step `last`, which is in them."""
    lines: list[dict[str, Any]] = []
    epoch = 0  # the last of those so far
    for entry in entries:
        kind, step = entry.get("kind"), whole_number(entry.get("step"))
        if kind not in KINDS or step is None or step > last:
            continue
        if kind == "valid" and not isinstance(entry.get("bits_per_dim"), (int, float)):
            continue  # the released code takes the least `elbo` of all lines of this type
        own = whole_number(entry.get("epoch"))
        now = max(epoch, epoch_of(step)) if own is None else own
        epoch = max(epoch, now)
        line = {"type": KINDS[kind], "epoch": now, "step": step}
        for key, released in {**NATS, **AS_THEY_ARE}.items():
            if isinstance(value := entry.get(key), (int, float)):
                line[released] = value * math.log(2) if key in NATS else value
        lines.append(line)
    trained = [line["step"] for line in lines if line["type"] == KINDS["train"]]
    if last not in trained:
        lines.append({"type": KINDS["train"], "epoch": max(epoch, epoch_of(last)), "step": last})
    return lines
