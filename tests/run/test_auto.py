"""What "auto" comes to: by the count, the free memory and the device, the same in all processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import PRESET_NAMES, ROOT, TINY, Command, assert_refused, refuses
from vdvae.config import Config, load_config
from vdvae.counting.memory import StepBytes, memory_of_step
from vdvae.errors import UserError
from vdvae.run import auto
from vdvae.run.auto import CHECKPOINTED_FROM, USABLE, forward_flops, in_words, resolve
from vdvae.runtime.processes import World

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ALONE = World(0, 1, CPU)


class Machine:
    """A GPU that is not there, and its free memory."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch

    def has(self, free: float, bf16: bool = True) -> None:
        self.patch.setattr("vdvae.run.auto.free_memory", lambda _device: int(free))
        self.patch.setattr("vdvae.runtime.precision.has_bf16", lambda _device: bf16)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def left_open(config: Config, **values: Any) -> Config:
    """The micro-batch by the hardware."""
    return replace(config, train=replace(config.train, **{"micro_batch": "auto", "batch_size": 12, **values}))


@pytest.mark.long
def test_the_largest_that_fits_and_divides(tiny: Config, machine: Machine) -> None:
    """With 12 images: 1, 2, 3, 4, 6 or 12, as soon as the count says that they fit."""
    config = left_open(tiny)
    least, most = (memory_of_step(tiny, size).peak for size in (1, 12))
    for size, smaller in ((1, None), (2, 1), (3, 2), (4, 3), (6, 4), (12, 6)):
        needed = least + (most - least) / 11 * (size - 1)
        for bytes_more, chosen in ((2, size), (-2, smaller)):
            machine.has((needed + bytes_more) / USABLE)
            if chosen:
                assert resolve(config, World(0, 1, CUDA)).train.micro_batch == chosen
    machine.has(1e12)
    assert resolve(config, World(0, 1, CUDA)).train.micro_batch == 12


@pytest.mark.long
def test_what_it_chose_fits(tiny: Config, machine: Machine) -> None:
    for free in range(2_000_000, 20_000_000, 3_000_000):
        machine.has(free)
        resolved = resolve(left_open(tiny), World(0, 1, CUDA))
        assert isinstance(resolved.train.micro_batch, int)
        assert memory_of_step(resolved, resolved.train.micro_batch).peak <= USABLE * free


def test_a_share_is_divided_not_the_batch(tiny: Config, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has(1e12)
    monkeypatch.setattr(World, "smallest", lambda _self, number: number)
    monkeypatch.setattr(World, "broadcast", lambda _self, value: value)
    assert resolve(left_open(tiny), World(0, 4, CUDA)).train.micro_batch == 3


@pytest.mark.long
def test_checkpointing_only_where_one_image_does_not_fit_without(machine: Machine) -> None:
    blocks = ["model.image_size=32", "model.enc_blocks=32x3,32d4,8x1,8d8,1x1", "model.dec_blocks=1x1,8m1,8x2,32m8,32x3"]
    left = ["train.precision=fp32", "train.micro_batch=auto", "train.recompute_from=auto"]
    config = load_config("fashion", [*blocks, "model.custom_width_str=", *left])
    plain = replace(config, train=config.train.resolved())
    checkpointed = replace(config, train=config.train.resolved(recompute_from=CHECKPOINTED_FROM))
    needs, less = (memory_of_step(one, 1).peak for one in (plain, checkpointed))
    assert less < 0.8 * needs

    def chosen(free: float, **values: Any) -> object:
        machine.has(free / USABLE + 1)
        train = resolve(replace(config, train=replace(config.train, **values)), World(0, 1, CUDA)).train
        return train.micro_batch, train.recompute_from

    assert chosen(needs) == (1, None)
    assert chosen(needs - 1)[1] == 32  # type: ignore[index]
    assert chosen(less) == (1, 32)
    with refuses("one image GB GPU train.micro_batch=1 train.recompute_from=32", UserError):
        chosen(less - 1)
    assert chosen(memory_of_step(plain, 4).peak, micro_batch=4) == (4, None)
    assert chosen(memory_of_step(checkpointed, 4).peak, micro_batch=4) == (4, 32)
    with refuses("one image train.micro_batch=1 train.recompute_from=none", UserError):
        chosen(needs - 1, fast=False)  # which does not checkpoint


@pytest.mark.parametrize(
    ("device", "bf16", "precision"), [(CPU, True, "fp32"), (CUDA, True, "bf16"), (CUDA, False, "fp16")]
)
def test_precision(device: torch.device, bf16: bool, precision: str, machine: Machine) -> None:
    machine.has(0, bf16)
    config = load_config(str(TINY), [])
    assert config.train.precision == "auto"
    assert resolve(config, World(0, 1, device)).train.precision == precision
    asked = replace(config, train=replace(config.train, precision="tf32"))
    assert resolve(asked, World(0, 1, device)) is asked


def test_bf16_is_refused_where_it_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdvae.config.sections.has_bf16", lambda _device: False)
    monkeypatch.setattr("vdvae.config.sections.describe", lambda _device: "Tesla V100-SXM2-16GB")
    train = load_config(str(TINY), ["train.precision=bf16"]).train
    with refuses("train.precision=bf16 V100 train.precision=fp16 auto"):
        train.check_device(CUDA)
    train.check_device(CPU)
    replace(train, precision="auto").check_device(CUDA)
    monkeypatch.setattr("vdvae.config.sections.has_bf16", lambda _device: True)
    train.check_device(CUDA)


def test_on_a_cpu_presets_have_the_micro_batches_of_the_paper(machine: Machine) -> None:
    """What one V100 had, as before they were chosen; counted by hand from FACTS' GFLOP an image."""
    gflop = {"cifar10": 44.8, "imagenet32": 140.7, "imagenet64": 298.3, "ffhq256": 1144.1, "ffhq1024": 754.5}
    expected = {"cifar10": 16, "imagenet32": 8, "imagenet64": 4, "ffhq256": 1, "ffhq1024": 1}
    machine.has(1e15)
    machine.patch.setattr(auto, "memory_of_step", lambda _config, _batch: StepBytes(0, 0, 0))
    for name, billions in gflop.items():
        config = load_config(name, [])
        assert forward_flops(config.model) == pytest.approx(billions * 1e9, rel=0.01)
        assert resolve(config, ALONE).train.micro_batch == expected[name]


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_presets_leave_micro_batch_and_precision_open(name: str) -> None:
    train = load_config(name, []).train
    assert train.precision == "auto"
    assert train.micro_batch == (None if name == "fashion" else "auto")
    assert train.recompute_from == ("auto" if "ffhq" in name else None)


def test_the_demo_is_one_micro_batch_that_nobody_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "memory_of_step", lambda *_: pytest.fail("counted"))
    train = resolve(load_config("fashion", []), ALONE).train
    assert (train.images_at_once(16), train.precision, train.left_to_hardware()) == (16, "fp32", [])
    assert replace(train, micro_batch=100).images_at_once(16) == 16  # no more than there are
    assert in_words(train, ALONE) == "1 x cpu, fp32, micro-batches of 16"


@pytest.mark.parametrize("key", ["micro_batch", "precision", "recompute_from"])
def test_a_misspelled_auto_is_refused(key: str, call: Command) -> None:
    assert_refused(call("train.py", "--hps", TINY, f"train.{key}=automatic"), f"train.{key} auto 'automatic'")


AGREE = """\

import sys
import torch
from vdvae.config import load_config
from vdvae.run import auto
from vdvae.runtime import processes
world = processes.start(torch.device("cpu"))
frees = {free}
auto.free_memory = lambda device: frees[world.rank]
auto.best_precision = lambda device: ("bf16", "fp16")[world.rank]
try:
    train = auto.resolve(load_config("{tiny}", ["train.micro_batch=auto"]), world).train
    told = train.precision, train.micro_batch
except ValueError as error:
    told = str(error)
sys.stdout.write(f"{{world.rank}}: {{told}}\\n")
processes.stop()
"""


@pytest.mark.long
@pytest.mark.parametrize("smallest", [0, 1])
def test_two_processes_agree_on_what_the_smaller_has(smallest: int, tmp_path: Path, tiny: Config) -> None:
    """Also on that it does not fit."""
    enough = memory_of_step(replace(tiny, train=replace(tiny.train, precision="fp16")), 2).peak / USABLE + 1000
    for small, told in ((enough, "('fp16', 2)"), (1000, "a training step of one image")):
        frees = [1e12, 1e12]
        frees[smallest] = small
        script = tmp_path / "agree.py"
        script.write_text(AGREE.format(free=[int(free) for free in frees], tiny=TINY))
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(launch, capture_output=True, text=True, env=env, timeout=300, check=True)
        for rank in range(2):
            assert re.search(rf"^{rank}: {re.escape(told)}", result.stdout, re.MULTILINE), result.stdout
