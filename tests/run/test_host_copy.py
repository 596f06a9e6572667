"""The copy of a state that a thread writes: equal, apart from the state, in few pieces, and used again."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from tests.test_train import assert_same_tensors
from vdvae.config import Config
from vdvae.run import checkpoint
from vdvae.run.host_copy import HostCopy


def make_state(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    images = torch.randn(2, 3, 4, 5)
    return {
        "model": {"a": torch.randn(3, 4), "b": images.to(memory_format=torch.channels_last), "none": torch.zeros(0, 2)},
        "optimizer": {"state": {0: {"step": torch.tensor(7.0), "exp_avg": images[:, 1:]}}, "groups": [{"lr": 0.1}]},
        "counts": {"a": torch.arange(3), "b": torch.tensor(True), "c": "text"},
    }


def test_a_copy_is_equal_and_its_own() -> None:
    state = make_state(0)
    copy = HostCopy()(state)
    assert_same_tensors(copy, state)
    assert copy["model"]["b"].stride() == state["model"]["b"].stride()  # Adam's moments lie as weights do
    state["model"]["a"].zero_()
    assert copy["model"]["a"].all()


def test_the_next_copy_takes_the_same_memory() -> None:
    host_copy = HostCopy()
    first = host_copy(make_state(0))
    again = host_copy(make_state(1))
    assert again["model"]["a"].data_ptr() == first["model"]["a"].data_ptr()
    assert_same_tensors(again, make_state(1))
    larger = make_state(2)
    larger["model"]["c"] = torch.ones(5)
    assert_same_tensors(host_copy(larger), larger)


def test_a_file_has_a_record_for_each_part_and_dtype(tiny: Config, tmp_path: Path) -> None:
    """And not for each tensor, at which the thread that writes would wait for Python's lock."""
    copy = HostCopy()(make_state(0))
    path = checkpoint.save(tmp_path, 1, tiny, copy)
    with zipfile.ZipFile(path) as file:
        assert sum("/data/" in name for name in file.namelist()) == 4  # model, optimizer, whole numbers, a truth
    assert_same_tensors(checkpoint.read(path).state, make_state(0))
