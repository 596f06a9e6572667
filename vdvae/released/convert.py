"""Between the four files of a run of the released code and a run directory, in both directions."""

from __future__ import annotations

import json
import math
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vdvae.config import Config, load_config
from vdvae.errors import UserError
from vdvae.files import read_torch_file
from vdvae.model.vdvae import VDVAE
from vdvae.released.recognition import (
    PARALLEL_PREFIX,
    check_fits,
    check_there,
    expected_tensors,
    named_tensors,
    recognise,
    release_of,
)
from vdvae.run import checkpoint
from vdvae.run.checkpoint import Checkpoint
from vdvae.run.directory import RunDirectory
from vdvae.runtime.processes import World
from vdvae.training.update import Update

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's running means of the gradient and of its square, as both codes call them."""
ADAM_EPS = 1e-8
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
        return cls(*(Path(prefix + ending) for ending in endings))

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
    average = named_tensors(read_torch_file(files.ema), files.ema)
    check_fits(average, config.model, files.ema, hps)
    adam = _read_apex(read_torch_file(files.optimizer), expected_tensors(config.model), files.optimizer)
    lines, step, epoch = _read_log(files.log)
    if step > config.train.max_steps:
        raise UserError(
            f"{files.log} has made {step:,} updates, more than train.max_steps {config.train.max_steps:,}; add "
            f"train.max_steps={step} or more"
        )
    model = VDVAE(config.model)
    update = Update(model, config.train, World(0, 1, torch.device("cpu")))
    model.load_state_dict(weights)
    update.ema.model.load_state_dict(average)
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
    entries = [entry for _, entry in _json_lines(metrics)] if has_metrics else []
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


def _read_apex(content: Any, expected: dict[str, Tensor], path: Path) -> Adam:
    """The state of Apex's FusedAdam, which counts its steps in the group."""
    group, moments = _read_group(content, expected, path)
    step = _whole(group.get("step"))
    if step is None:
        raise UserError(f"{path} does not say how many updates were made: its param_groups[0] has no whole `step`")
    settings = {"lr": group.get("initial_lr", group.get("lr")), "weight_decay": group.get("weight_decay")}
    betas = group.get("betas")
    if isinstance(betas, (tuple, list)) and len(betas) == 2:
        settings |= {"beta1": betas[0], "beta2": betas[1]}
    numbers = {key: float(value) for key, value in settings.items() if isinstance(value, (int, float))}
    return Adam(moments, step, numbers)


def _read_adamw(content: Any, expected: dict[str, Tensor], path: Path) -> Adam:
    """The state of `torch.optim.AdamW`, which counts the steps of each parameter."""
    if isinstance(content, Mapping) and not content.get("state"):
        raise UserError(f"{path} has no Adam moments, as no update was made yet; train at least to the next checkpoint")
    group, moments = _read_group(content, expected, path)
    steps = {_whole(content["state"][key].get("step")) for key in group["params"]}
    step = steps.pop()
    if steps or step is None:
        raise UserError(f"{path} has no one number of Adam steps, and the released code has one for all parameters")
    return Adam(moments, step, {})


def _read_group(
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


def _load_adam(update: Update, adam: Adam) -> None:
    """Gives an optimiser the moments and the step count; its settings stay."""
    step = torch.tensor(float(adam.step))
    state = {i: {"step": step, **moments} for i, moments in enumerate(adam.moments)}
    update.optimizer.load_state_dict({**update.optimizer.state_dict(), "state": state})


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
    return tensor.detach().float().contiguous()


def _read_log(path: Path) -> tuple[list[dict[str, Any]], int, int]:
    """The lines of metrics.jsonl that say what a released log says, in the order of steps; its last step and epoch."""
    lines = []
    for number, entry in _json_lines(path):
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
        line[key] = _whole(entry.get(key))
        if line[key] is None:
            raise UserError(f"{where} has {key} {entry.get(key)!r}, not a whole number; download the file again")
    for key, released in {**NATS, **(AS_THEY_ARE if kind == "train" else {})}.items():
        if released in entry:
            value = entry[released]
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UserError(f"{where} has {released} {value!r}, not a number; download the file again")
            line[key] = value / math.log(2) if key in NATS else value
    return line


def _released_lines(entries: list[dict[str, Any]], last: int, epoch_of: Callable[[int], int]) -> list[dict[str, Any]]:
    """The lines of a released log that say what those of metrics.jsonl say up to step `last`, which is in them."""
    lines: list[dict[str, Any]] = []
    epoch = 0  # the last of those so far
    for entry in entries:
        kind, step = entry.get("kind"), _whole(entry.get("step"))
        if kind not in KINDS or step is None or step > last:
            continue
        if kind == "valid" and not isinstance(entry.get("bits_per_dim"), (int, float)):
            continue  # the released code takes the least `elbo` of all lines of this type
        own = _whole(entry.get("epoch"))
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


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
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


def _whole(value: Any) -> int | None:
    """A number or a tensor of one as an integer, or None where it is not a whole number from 0 up."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        return None
    return int(value) if value == int(value) else None
