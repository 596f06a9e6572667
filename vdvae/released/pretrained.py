"""From a run directory, a checkpoint or a released file to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from vdvae.config import Config, DataConfig, load_config, load_model_config, override_section
from vdvae.data.prepared import Splits, is_there, load_splits
from vdvae.errors import UserError, user_path
from vdvae.files import read_torch_file
from vdvae.model.config import ModelConfig
from vdvae.model.vdvae import VDVAE
from vdvae.released.matching import check_fits, named_tensors, recognise
from vdvae.released.releases import check_there
from vdvae.run import checkpoint
from vdvae.run.checkpoint import Checksums
from vdvae.runtime.device import pick_device

Weights = Literal["ema", "model"]


@dataclass(frozen=True)
class Pretrained:
    """Weights, and what they are the weights of."""

    path: Path
    """The file they are from."""
    tensors: dict[str, Tensor]
    """By their names in the model, on the CPU."""
    model_config: ModelConfig
    weights: Weights | None
    """Which of a checkpoint's two sets these are; a released file has one."""
    step: int | None
    """Updates done, if it is known."""
    run_config: Config | None
    """The whole configuration of a checkpoint's run; None for a released file."""
    hps: str | None
    """The preset of a released file, unless its model was given as such; None for a checkpoint."""
    checksums: Checksums | None = None
    """The files that a checkpoint's run was trained on, where they are known."""

    def model(self, device: torch.device) -> VDVAE:
        """The model, ready for evaluation; takes over the tensors, so that they are in memory once."""
        with torch.device("meta"):
            model = VDVAE(self.model_config)
        for name in model.state_dict():
            self.tensors[name] = _alone(self.tensors[name].float().contiguous())
        model.load_state_dict(self.tensors, assign=True)
        return model.eval().to(device)

    def config(self) -> Config:
        """The whole configuration, data and optimisation included.

        Raises:
            UserError: it is not known, or incomplete.
        """
        if self.run_config is not None:
            return self.run_config
        if self.hps is None:
            raise UserError(f"{self.path}: only its model is known; name a whole preset")
        return load_config(self.hps, [])

    def splits(self, overrides: Sequence[str] = ()) -> Splits:
        """The data set that goes with it, where command-line settings `data.key=value` don't say otherwise: a run's is
        where it was, or, if that has been moved and its files are the same, in data/ here.

        Raises:
            UserError: as for `config`; or no such set, or one that the model does not fit.
        """
        data = override_section(self.config().data, "data", overrides)
        here = replace(data, root=DataConfig.root)
        if self.checksums and not overrides and not is_there(data) and is_there(here):
            splits = load_splits(here, self.model_config)
            if splits.manifest.checksums() == self.checksums:
                return splits
        return load_splits(data, self.model_config)


def find_pretrained(
    path: str | Path, hps: str | Path | ModelConfig | None = None, weights: Weights | None = None
) -> Pretrained:
    """Reads weights and finds out what they belong to; arguments as for `load_pretrained`."""
    if weights not in (None, *get_args(Weights)):
        raise UserError(f"weights must be {' or '.join(map(repr, get_args(Weights)))}, not {weights!r}")
    path = user_path(path)
    check_there(path)
    if path.is_dir():
        found = checkpoint.read_run(path)
    else:
        content = read_torch_file(path)
        if not checkpoint.is_checkpoint(content):
            return _released(path, named_tensors(content, path), hps, weights)
        found = checkpoint.interpret(path, content)
    if hps is not None:
        raise UserError(f"{found.path} has its own configuration; hps (--hps) is for released files")
    chosen = weights or "ema"
    tensors = named_tensors(found.state.get(chosen), found.path)
    check_fits(tensors, found.config.model, found.path, "its own configuration")
    return Pretrained(found.path, tensors, found.config.model, chosen, found.step, found.config, None, found.checksums)


def load_pretrained(
    path: str | Path,
    device: str | torch.device = "cpu",
    hps: str | Path | ModelConfig | None = None,
    weights: Weights | None = None,
) -> VDVAE:
    """Loads a model: released weights, a run, or a checkpoint. Nothing in a file is ever executed.

    Args:
        path: a released `-model-ema.th` or `-model.th`, a run directory, whose newest checkpoint is taken, or a
            checkpoint.
        device: where the model goes; "auto" is CUDA where there is one.
        hps: what a released file is a model of: presets as for train.py, or a `ModelConfig`. By default, the preset
            of configs/ that has its tensors, by name and shape.
        weights: of a run or a checkpoint, "ema", the exponential moving average (the default), or "model", the
            weights that were training.

    Returns:
        the model, in evaluation mode, in fp32. The file's size is about what it takes in memory, at its peak too.

    Raises:
        ValueError: nothing there, a damaged file, code in a file, tensors that fit no preset or several, no such
            device; says which and what to do.
    """
    place = pick_device(str(device))
    return find_pretrained(path, hps, weights).model(place)


def _released(
    path: Path, tensors: dict[str, Tensor], hps: str | Path | ModelConfig | None, weights: Weights | None
) -> Pretrained:
    if weights is not None:
        raise UserError(f"{path} holds one set of weights; weights (--weights) chooses between those of a checkpoint")
    if hps is None:
        hps = recognise(tensors, path)
    else:
        config = hps if isinstance(hps, ModelConfig) else load_model_config(str(hps))
        check_fits(tensors, config, path, "the given ModelConfig" if isinstance(hps, ModelConfig) else str(hps))
    if isinstance(hps, ModelConfig):
        return Pretrained(path, tensors, hps, None, None, None, None)
    return Pretrained(path, tensors, load_model_config(str(hps)), None, None, None, str(hps))


def _alone(tensor: Tensor) -> Tensor:
    """A tensor with memory of its own, as safetensors asks for; the same one where it has that already."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
