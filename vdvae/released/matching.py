"""Which model named tensors belong to: a preset by its tensors, and the tensors that do not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdvae.config import PRESETS, differing_fields, load_model_config
from vdvae.errors import UserError
from vdvae.model.config import ModelConfig
from vdvae.model.vdvae import VDVAE

PARALLEL_PREFIX = "module."
"""Before every name in a -model.th, which was saved from inside DistributedDataParallel; not in a -model-ema.th."""
WRAPPERS = re.compile(r"(?<![^.])(module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
"""What wrappers put into names: DistributedDataParallel, torch.compile, activation checkpointing, FSDP."""
SHOWN = 4
"""Differing tensors that a message names."""


def named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a released -model.th or -model-ema.th by their names in the model, without those of wrappers.

    Raises:
        UserError: `content` is something else, or has two tensors of one name.
    """
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no named tensors; give a run directory, a checkpoint or a released .th file")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UserError(
                f"{path} is neither a checkpoint nor released weights: {name!r} in it is {found}, not floats"
            )
    named: dict[str, Tensor] = {}
    for name, tensor in content.items():
        own = WRAPPERS.sub("", name)
        if own in named:
            raise UserError(f"{path} has two tensors {own!r}, one of them as {name!r}; it should have each once")
        named[own] = tensor
    return named


def recognise(tensors: dict[str, Tensor], path: Path) -> str:
    """The preset of configs/ whose model has exactly these tensors.

    Raises:
        UserError: there is none, or several that are different models; says in what.
    """
    models = complete_presets()
    mismatches = {preset: differences(tensors, config) for preset, config in models.items()}
    fitting = [preset for preset in models if not mismatches[preset]]
    for other in fitting[1:]:
        if keys := differing_fields(models[fitting[0]], models[other]):
            raise UserError(
                f"{path} fits the presets {fitting[0]} and {other} alike, which differ in "
                f"{', '.join(f'model.{key}' for key in keys)}; say which one with hps= (--hps)"
            )
    if fitting:
        return fitting[0]
    if not models:
        raise UserError(f"{path} is not recognised: {PRESETS} has no presets. Name its own .yaml with hps= (--hps)")
    nearest = min(models, key=lambda preset: len(mismatches[preset]))
    raise UserError(
        f"{path} fits none of the presets {', '.join(models)}. In the nearest, {nearest}, "
        f"{_told(mismatches[nearest])}. Name its own preset or .yaml file with hps= (--hps)"
    )


def check_fits(tensors: dict[str, Tensor], config: ModelConfig, path: Path, called: str) -> None:
    """Raises `UserError` where these are not the tensors of a model; says which differ."""
    if found := differences(tensors, config):
        raise UserError(f"{path} does not fit {called}: there, {_told(found)}")


def differences(tensors: dict[str, Tensor], config: ModelConfig) -> list[str]:
    """In words, each tensor that a model should have and that is not there so, and each that it should not have."""
    expected = expected_tensors(config)
    found = []
    for name in [*expected, *(name for name in tensors if name not in expected)]:
        if name not in tensors:
            found.append(f"{name} {list(expected[name].shape)} is missing")
        elif name not in expected:
            found.append(f"{name} is too much")
        elif tensors[name].shape != expected[name].shape:
            found.append(f"{name} should be {list(expected[name].shape)}, not {list(tensors[name].shape)}")
    return found


def expected_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a model, without their values: names, shapes and layouts, in the order of its parameters."""
    with torch.device("meta"):
        return dict(VDVAE(config).state_dict())


def complete_presets() -> dict[str, ModelConfig]:
    """The models of configs/. Fragments, which make sense only behind another preset, are passed over."""
    models = {}
    for path in sorted(PRESETS.glob("*.yaml")):
        try:
            models[path.stem] = load_model_config(path.stem)
        except ValueError:
            continue
    return models


def _told(found: list[str]) -> str:
    more = f", and {len(found) - SHOWN:,} more tensors differ" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more
