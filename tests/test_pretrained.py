"""From a run directory or a checkpoint to a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vdvae
from vdvae.errors import UserError
from vdvae.training import checkpoint


def test_the_average_by_default_and_the_trained_weights_on_demand(run: Path) -> None:
    path = run / "checkpoints/step-00000006.pt"
    state = checkpoint.read(path).state
    for weights in ("ema", "model"):
        for source in (run, path, str(run)):
            model = vdvae.load_pretrained(source, weights=weights)
            loaded = model.state_dict()
            assert all(torch.equal(loaded[name], tensor) for name, tensor in state[weights].items())
    assert not torch.equal(state["ema"]["decoder.gain"], state["model"]["decoder.gain"])
    assert not vdvae.load_pretrained(run).training


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is nothing at"):
        vdvae.load_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match="give a run directory or a checkpoint"):
        vdvae.load_pretrained(tmp_path)
