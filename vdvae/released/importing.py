"""From the four files of a run of the released code to a run directory that train.py resumes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vdvae.config import Config, load_config
from vdvae.errors import UserError
from vdvae.files import read_torch_file
from vdvae.model.vdvae import VDVAE
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
from vdvae.released.matching import check_fits, expected_tensors, named_tensors, recognise
from vdvae.run import checkpoint
from vdvae.run.directory import RunDirectory
from vdvae.runtime.processes import World
from vdvae.training.update import Update


class Imported(NamedTuple):
    """What became of a released set."""

    hps: str
    """The presets that train.py resumes it with."""
    config: Config
    step: int
    """Updates done."""
    epoch: int
    parameters: int
    """Numbers in the model."""
    settings: dict[str, float]
    """Values of the `train` section, as the released optimiser had them, where `config` has other values."""


def import_released(prefix: str, run_dir: Path, hps: str | None = None, overrides: list[str] | None = None) -> Imported:
    """Turns a released set into a run directory that train.py resumes. Nothing in a file is ever executed.

    The directory appears when it is complete, and not at all after an error.

    Args:
        prefix: what the paths of -model.th, -model-ema.th, -opt.th and -log.jsonl begin with.
        run_dir: does not exist, or is empty.
        hps: presets as for train.py; by default the one that has these tensors.
        overrides: `section.key=value`, as for train.py.

    Raises:
        UserError: files missing, damaged, or not of one model; `run_dir` in use; more updates made than
            train.max_steps.
    """
    files = ReleasedSet.at(prefix)
    files.check_complete()
    if run_dir.exists() and not (run_dir.is_dir() and not any(run_dir.iterdir())):
        raise UserError(f"{run_dir} exists and is not empty; choose another RUN_DIR")
    weights = named_tensors(read_torch_file(files.model), files.model)
    hps = hps or recognise(weights, files.model)
    config = load_config(hps, overrides or [])
    check_fits(weights, config.model, files.model, hps)
    ema_weights = named_tensors(read_torch_file(files.ema), files.ema)
    check_fits(ema_weights, config.model, files.ema, hps)
    adam = _read_apex(read_torch_file(files.optimizer), expected_tensors(config.model), files.optimizer)
    lines, step, epoch = _read_log(files.log)
    if step > config.train.max_steps:
        raise UserError(
            f"{files.log} has made {step:,} updates, more than train.max_steps {config.train.max_steps:,}; add "
            f"train.max_steps={step} or more"
        )
    model = VDVAE(config.model)
    update = Update(model, config.train.resolved(), World(0, 1, torch.device("cpu")))
    model.load_state_dict(weights)
    update.ema.model.load_state_dict(ema_weights)
    _load_adam(update, adam)

    place = run_dir.resolve()
    temporary = RunDirectory(place.with_name(f".{place.name}.importing"))
    shutil.rmtree(temporary.path, ignore_errors=True)
    try:
        temporary.create(config)
        temporary.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        checkpoint.save(temporary.checkpoints, step, config, update.state_dict())
        temporary.path.replace(place)
    finally:
        shutil.rmtree(temporary.path, ignore_errors=True)
    differing = {key: value for key, value in adam.settings.items() if value != getattr(config.train, key)}
    return Imported(hps, config, step, epoch, sum(p.numel() for p in model.parameters()), differing)


def _read_apex(content: Any, expected: dict[str, Tensor], path: Path) -> Adam:
    """The state of Apex's FusedAdam, which counts its steps in the group."""
    group, moments = read_group(content, expected, path)
    step = whole_number(group.get("step"))
    if step is None:
        raise UserError(f"{path} does not say how many updates were made: its param_groups[0] has no whole `step`")
    settings = {"lr": group.get("initial_lr", group.get("lr")), "weight_decay": group.get("weight_decay")}
    betas = group.get("betas")
    if isinstance(betas, (tuple, list)) and len(betas) == 2:
        settings |= {"beta1": betas[0], "beta2": betas[1]}
    numbers = {key: float(value) for key, value in settings.items() if isinstance(value, (int, float))}
    return Adam(moments, step, numbers)


def _load_adam(update: Update, adam: Adam) -> None:
    """Gives an optimiser the moments and the step count; its settings stay."""
    step = torch.tensor(float(adam.step))
    state = {i: {"step": step, **moments} for i, moments in enumerate(adam.moments)}
    update.optimizer.load_state_dict({**update.optimizer.state_dict(), "state": state})


def _read_log(path: Path) -> tuple[list[dict[str, Any]], int, int]:
    """The lines of metrics.jsonl that say what a released log says, in the order of steps; its last step and epoch."""
    lines = []
    for number, entry in json_lines(path):
        for kind, released in KINDS.items():
            if entry.get("type") == released and (kind == "train" or "step" in entry):
                lines.append(_own_line(kind, entry, f"{path}, line {number},"))
    trained = [line for line in lines if line["kind"] == "train"]
    if not trained:
        raise UserError(f"{path} has no line of type train_loss, which tells the step and the epoch; download it again")
    step = max(line["step"] for line in trained)
    kept = sorted((line for line in lines if line["step"] <= step), key=lambda line: line["step"])
    return kept, step, max(line["epoch"] for line in trained)


def _own_line(kind: str, entry: dict[str, Any], where: str) -> dict[str, Any]:
    line: dict[str, Any] = {"kind": kind}
    for key in ("step", "epoch"):
        line[key] = whole_number(entry.get(key))
        if line[key] is None:
            raise UserError(f"{where} has {key} {entry.get(key)!r}, not a whole number; download the file again")
    for key, released in {**NATS, **(AS_THEY_ARE if kind == "train" else {})}.items():
        if released in entry:
            value = entry[released]
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UserError(f"{where} has {released} {value!r}, not a number; download the file again")
            line[key] = value / math.log(2) if key in NATS else value
    return line
