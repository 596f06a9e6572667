"""The machine: noise by its key, precisions, devices, and what one process of several has."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import refuses
from vdvae.runtime.device import describe, pick_device
from vdvae.runtime.noise import Purpose, generator, generator_seed
from vdvae.runtime.precision import PRECISIONS, autocast, set_matmul_precision
from vdvae.runtime.processes import World
from vdvae.runtime.results import prepare_result, write_result

CPU = torch.device("cpu")


def test_noise_is_a_function_of_its_key() -> None:
    """Seeds, purposes and places in the batch are kept apart, also where their numbers are alike."""
    keys = list(itertools.product((0, 1), Purpose, (0, 1), (0, 1)))
    assert len({generator_seed(*key) for key in keys}) == len(keys)
    once, again = (torch.randn(5, generator=generator(CPU, 3, Purpose.TRAINING, 0, 7)) for _ in range(2))
    assert torch.equal(once, again)


def test_seeds_stay_as_they_are() -> None:
    """Or a run of before could not be resumed to the same bits."""
    assert generator_seed(0, Purpose.TRAINING, 0, 0) == 7_896_617_691_693_857_887


@pytest.fixture
def precision_is_put_back() -> Iterator[None]:
    yield
    set_matmul_precision("fp32")


@pytest.mark.usefixtures("precision_is_put_back")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(precision: str) -> None:
    """Products are rounded in bf16 and fp16 alone; tf32 is a setting of the GPU."""
    set_matmul_precision(precision)
    assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
    with autocast(CPU, precision):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def test_devices() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert "cores" in describe(CPU)
    with refuses("'cuda:99' auto cpu"):
        pick_device("cuda:99")


def test_a_process_alone_has_what_it_gives() -> None:
    alone = World(0, 1, CPU)
    state = {"a": torch.ones(3)}
    assert alone.is_main
    assert alone.broadcast(state) is state
    assert torch.equal(alone.sum(torch.ones(3)), torch.ones(3))


def test_results_say_what_they_were_made_on(tmp_path: Path) -> None:
    path = tmp_path / "new/a.json"
    prepare_result(path)
    write_result(path, CPU, {"hps": "tiny"}, {"seconds": 3})
    told = json.loads(path.read_text())
    assert list(told) == ["hps", "hardware", "torch", "seconds"]
    assert told["torch"] == torch.__version__
    with refuses(f"--json {tmp_path} folder"):
        prepare_result(tmp_path)
