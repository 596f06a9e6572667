"""scripts/benchmark.py, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import TINY, Command, assert_refused, says
from vdvae.config import load_config
from vdvae.counting.memory import memory_of_step

SPEED = {"images_per_second", "milliseconds_per_step", "milliseconds_quartiles", "first_step_seconds"}
ABOUT = {"hps", "overrides", "setting", "batch", "hardware", "torch", "threads"}
PLAIN = "the library against the library with train.fast=false"
SHORT = ["--repeats", 2, "--warmup", 0]


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        (["train", "--batch", 2, "--compare", "train.fast=false", "--rounds", 2, *SHORT], PLAIN),
        pytest.param(["train", "--batch", 2, *SHORT], "the library", marks=pytest.mark.long),
        pytest.param(
            ["sample", "--compare", "model.width=16,model.dec_blocks=1x1,7m1,28m7,28x1", "--rounds", 1, *SHORT],
            "the library against the library with model.width=16,model.dec_blocks=1x1,7m1,28m7,28x1",
            marks=pytest.mark.long,
        ),
        (["sample", "--compare", "train.fast=false", *SHORT, "--temperatures", 1, 0.5], PLAIN),
        (["evaluate", "--compare", "train.fast=false", *SHORT], PLAIN),
    ],
)
def test_speed(arguments: list[object], setting: str, call: Command, tmp_path: Path) -> None:
    """A table, and JSON that has the same figures of both settings."""
    result = call("scripts/benchmark.py", *arguments, "--hps", TINY, "--json", "new/speed.json", "train.lr=1e-4")
    assert result.returncode == 0, result.stderr
    told = json.loads((tmp_path / "new/speed.json").read_text())
    assert told.keys() >= SPEED | ABOUT
    assert (told["kind"], told["setting"], told["overrides"]) == (arguments[0], setting, ["train.lr=1e-4"])
    assert told["batch"] == (2 if "--batch" in arguments else 8)
    assert (told["flops"] is not None) == (arguments[0] == "train")
    assert "images per second" in result.stdout
    assert ", threads: 1\n" in result.stdout
    if " against " in setting:
        compared = told["compared"]
        assert compared.keys() >= SPEED
        assert told["ratio"] == told["images_per_second"] / compared["images_per_second"]
        says(result.stdout, f"{told['ratio']:.3g} times")
    else:
        assert "compared" not in told


def test_memory(call: Command, tmp_path: Path) -> None:
    arguments = ["memory", "--hps", TINY, "--compare", "train.micro_batch=2", "--json", "memory.json"]
    result = call("scripts/benchmark.py", *arguments)
    assert result.returncode == 0, result.stderr
    told = json.loads((tmp_path / "memory.json").read_text())
    assert told.keys() >= ABOUT
    assert (told["batch"], told["compared"]["batch"]) == (8, 2)
    assert 0 < told["step_mb"] <= told["peak_mb"]
    assert told["ratio"] == told["peak_mb"] / told["compared"]["peak_mb"]
    assert "peak memory" in result.stdout


def test_counted_memory(call: Command, tmp_path: Path) -> None:
    """In MB, whatever this machine has."""
    arguments = ["memory", "--hps", TINY, "--counted", "--batch", 1_000_000, "--json", "memory.json"]
    result = call("scripts/benchmark.py", *arguments)
    assert result.returncode == 0, result.stderr
    told = json.loads((tmp_path / "memory.json").read_text())
    config = load_config(str(TINY), ["train.precision=fp32"])
    counted = memory_of_step(config, 1_000_000)
    assert (told["peak_mb"], told["saved_mb"]) == (counted.peak / 2**20, counted.saved / 2**20)
    assert told["peak_mb"] > 500_000 > 1 > told["state_mb"]
    says(result.stdout, f"{told['peak_mb']:,.0f} MB")


def test_data(call: Command, tmp_path: Path) -> None:
    """On a made-up set, which is not left behind."""
    arguments = ["data", "--hps", TINY, "--made_up", 10_000, "--seconds", 1, "--json", "data.json"]
    result = call("scripts/benchmark.py", *arguments)
    assert result.returncode == 0, result.stderr
    told = json.loads((tmp_path / "data.json").read_text())
    assert told["training_images"] == 9_000  # by the rules of CIFAR-10, a tenth is for validation
    assert told["images_per_second"] > 0
    assert told["training_images_per_second"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]


def test_count(call: Command, tmp_path: Path) -> None:
    """A column for each way, and JSON that has the better way's figures on top; plain blocks are not compiled."""
    arguments = ["count", "--hps", TINY, "--batch", 3, "--card", "a100", "--json", "new/count.json", "train.fast=false"]
    result = call("scripts/benchmark.py", *arguments)
    assert result.returncode == 0, result.stderr
    told = json.loads((tmp_path / "new/count.json").read_text())
    counts = {"launches", "bytes_per_image", "saved_bytes_per_image", "peak_bytes", "images_per_second_bound"}
    assert told.keys() >= (ABOUT - {"setting", "threads"}) | counts
    assert (told["batch"], told["card"], told["of"], told["way"]) == (3, "a100", "train", "eager")
    assert (told["precision"], told["compile"], told["recompute_from"]) == ("bf16", False, None)
    assert told["launches"] == told["eager"]["launches"]
    assert "compiled" not in told
    says(result.stdout, f"counted A100 {told['launches']:,} backward:")


def test_count_samples(call: Command) -> None:
    """As many as one likes: what a training step takes does not matter."""
    many = ["--batch", 10**6, "train.recompute_from=auto"]
    for batch, arguments in {"8": [], "1000000": many}.items():
        result = call("scripts/benchmark.py", "count", "--hps", TINY, "--of", "sample", *arguments)
        assert result.returncode == 0, result.stderr
        says(result.stdout, f"samples of {batch} images in bf16 counted")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["count", "--hps", TINY, "--batch", 0], "--batch 1 0"),
        (["count", "--hps", TINY, "--card", "k80"], "--card 'k80' h100"),
        (["count", "--hps", TINY, "--card", "v100", "train.precision=bf16"], "V100 bf16 train.precision fp16"),
        (["count", "--hps", TINY, "--of", "evaluate"], "--of 'evaluate' sample"),
        (["train", "--hps", "cifra10"], "'cifra10' 'cifar10'"),
        (["train", "--hps", TINY, "--repeats", 0], "--repeats 1 0"),
        (["evaluate", "--hps", TINY, "--rounds", 0], "--rounds 1 0"),
        (["sample", "--hps", TINY, "--warmup", "-1"], "--warmup -1"),
        (["memory", "--hps", TINY, "--batch", 0], "--batch 1 0"),
        (["memory", "--hps", TINY, "--batch", 10**7], "train.batch_size most"),
        (["sample", "--hps", TINY, "--temperatures", 1, "nan"], "--temperatures finite"),
        (["train", "--hps", TINY, "train.rate=1"], "train.rate"),
        (["train", "--hps", TINY, "--compare", "train.precision=bf61"], "train.precision bf61"),
        (["train", "--hps", TINY, "--compare", "baseline"], "'baseline' section.key=value"),
        (["evaluate", "--hps", TINY, "--compare", "train.precision=bf16"], "train.precision=bf16 evaluate"),
        (["sample", "--hps", TINY, "--compare", "train.fast=true"], "train.fast=true sample"),
        (["train", "--hps", TINY, "--device", "tpu"], "device 'tpu'"),
        (["train", "--hps", TINY, "train.compile=autotune"], "train.compile=autotune cpu false"),
        (["memory", "--hps", TINY, "--compare", "train.cuda_graph=true"], "train.cuda_graph=true cpu false"),
        (["speed", "--hps", TINY], "'speed'"),
        (["train"], "--hps"),
    ],
)
def test_wrong_input(arguments: list[object], words: str, tmp_path: Path, call: Command) -> None:
    """One line, and nothing is written."""
    assert_refused(call("scripts/benchmark.py", *arguments, "--json", "new/a.json"), words)
    assert not list(tmp_path.iterdir())
