"""What the parts make of their figures: thresholds, traces, counts, reports of tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checking import counted, curves
from checking.counted import card_of, compare, count, faults
from checking.curves import difference
from checking.losses import faults as faults_of_losses
from checking.modes import overrides
from checking.setting import CheckFailedError, NotMeasuredError, Setting
from checking.steps import differences, in_the_widest_gap
from checking.steps import faults as faults_of_steps
from checking.suite import run_tests
from checking.trace import count as count_trace
from checking.trace import trace_of
from checking.trajectory import Trajectory

from tests.conftest import TINY
from vdvae.config import load_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def setting(path: Path = Path("check.json")) -> Setting:
    return Setting(str(TINY), "cpu", str(path))


def test_a_threshold_that_rounding_does_not_cross() -> None:
    assert in_the_widest_gap([1.0, 8.0, 2.0, 9.0]) == pytest.approx(4.0)


def test_trajectories_that_part() -> None:
    """Their distance is measured by the way; other decisions, and numbers that are none, are faults."""
    a = Trajectory([2.0, 1.0], [1.0, 5.0], [0, 1], torch.tensor([3.0, 4.0]))
    assert differences(a, a) == {"losses": 0, "weights": 0, "skipped": [0, 1]}
    b = Trajectory([2.0, 1.1], [1.0, 5.0], [0, 0], torch.tensor([3.0, 3.0]))
    found = differences(a, b)
    assert (found["losses"], found["weights"]) == (pytest.approx(0.1), pytest.approx(0.2))
    assert not faults_of_steps(a, a, differences(a, a))
    assert [fault.split()[0] for fault in faults_of_steps(a, b, found)] == ["other", "losses", "weights"]
    assert len(faults_of_steps(a, b, found, most=0.3)) == 2
    lost = a._replace(bits_per_dim=[2.0, float("nan")], moved=torch.tensor([float("nan"), 1.0]))
    assert len(faults_of_steps(a, lost, differences(a, lost))) == 2


def test_losses_beyond_their_tolerance() -> None:
    right = {"loss": 1e-6, "layer_rate": 1e-5, "gradient_norm": 1e-6}
    figures = {"plain": right, "prepared": right, "precisions": {"bf16": 1e-4}}
    assert not faults_of_losses(figures)
    figures = {"plain": {**right, "loss": 1e-2}, "prepared": right, "precisions": {"fp16": float("nan")}}
    found = [fault.split(" differs")[0] for fault in faults_of_losses(figures)]
    assert found == ["loss of the plain model", "loss in fp16"]


def test_the_kernels_of_a_trace() -> None:
    """Copies and fills are no kernels; whatever else is in a trace does not count."""
    events: list[dict[str, Any]] = [
        {"cat": "kernel", "name": "gemm", "dur": 30.0},
        {"cat": "kernel", "name": "gelu", "dur": 20.0},
        {"cat": "kernel", "name": "gelu", "dur": 25.0},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD", "dur": 5.0},
        {"cat": "gpu_memset", "name": "Memset", "dur": 1.0},
        {"cat": "cpu_op", "name": "aten::mm", "dur": 500.0},
        {"cat": "gpu_user_annotation", "name": "step", "dur": 900.0},
        {"ph": "M", "name": "process_name"},
    ]
    trace = count_trace(events)
    assert (trace.kernels, trace.copies, trace.busy_milliseconds) == (3, 2, 0.081)
    assert trace.largest == [("gelu", 2, 0.045), ("gemm", 1, 0.03)]


def test_a_cpu_launches_nothing() -> None:
    assert trace_of(lambda: torch.ones(3) + 1, CPU).kernels == 0


MEASURED = {"trace": {"kernels": 900, "copies": 100}, "peak_memory_mb": 1100.0, "images_per_second": 50.0}


def test_the_count_against_what_was_measured() -> None:
    counts = {"launches": 1000, "peak_bytes": 1000 << 20, "images_per_second_bound": 100.0}
    compared = compare(counts, MEASURED)
    assert {name: one["ratio"] for name, one in compared.items()} == pytest.approx(
        {"launches": 1.0, "peak_mb": 1.1, "images_per_second": 0.5}
    )
    assert not faults(compared)
    wrong = compare({"launches": 500, "peak_bytes": 5000 << 20, "images_per_second_bound": 49.0}, MEASURED)
    assert len(faults(wrong)) == 3
    assert list(compare(counts, MEASURED, has_bound=False)) == ["launches", "peak_mb"]
    assert compare({}, MEASURED) == compare(counts, {}) == {}


@pytest.mark.parametrize(
    ("name", "processors", "memory", "card"),
    [
        ("NVIDIA H100 80GB HBM3", 132, 79.1, "h100"),
        ("NVIDIA A100-SXM4-80GB", 108, 79.2, "a100"),
        ("Tesla V100-SXM2-32GB", 80, 31.7, "v100"),
        ("NVIDIA GeForce RTX 4090", 128, 23.5, "rtx4090"),
        ("NVIDIA H100 NVL", 132, 93.1, None),  # more bandwidth
        ("NVIDIA H100 PCIe", 114, 79.2, None),
        ("NVIDIA A100-SXM4-40GB", 108, 39.4, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 76, 15.7, None),
        ("NVIDIA H200", 132, 139.8, None),
    ],
)
def test_cards(name: str, processors: int, memory: float, card: str | None) -> None:
    """Only what is all of the card on a data sheet is held to its bound."""
    assert card_of(name, processors, int(memory * 2**30)) == card


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        ("raise SystemExit(\"error: argument kind: invalid choice: 'count'\")", NotMeasuredError, "no `count`"),
        ("raise SystemExit('out of luck')", CheckFailedError, "out of luck"),
    ],
)
def test_a_count_that_is_not_there(
    code: str, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "benchmark.py").write_text(code)
    monkeypatch.setattr(counted, "BENCHMARK", tmp_path / "benchmark.py")
    with pytest.raises(error, match=words):
        count(setting(), "h100")


def test_the_count_of_both_kinds_of_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Read from what the command writes, and compared with what earlier parts of the file say."""
    counts = {"eager": {"launches": 1000, "images_per_second_bound": 100.0}, "compiled": {"launches": 10_000}}
    code = f"import sys; open(sys.argv[sys.argv.index('--json') + 1], 'w').write({json.dumps(counts)!r})"
    (tmp_path / "benchmark.py").write_text(code)
    monkeypatch.setattr(counted, "BENCHMARK", tmp_path / "benchmark.py")
    monkeypatch.setattr(counted, "facts_of", lambda _: ("NVIDIA A100-SXM4-80GB", 108, 80 * 2**30))
    parts = {f"speed 32 {mode}": {"hps": str(TINY), "figures": MEASURED} for mode in ("eager", "compiled")}
    earlier = {"parts": parts}
    (tmp_path / "check.json").write_text(json.dumps(earlier))
    figures: dict[str, Any] = {}
    with pytest.raises(CheckFailedError, match="compiled: launches are 1,000, and 10,000 were counted"):
        for more in counted.check(setting(tmp_path / "check.json")):
            figures |= more
    assert figures["eager"]["images_per_second"]["ratio"] == 0.5
    assert figures["compiled"]["launches"]["ratio"] == 0.1


def test_tests_that_fail_are_named(tmp_path: Path) -> None:
    code = """
        import pytest

        @pytest.mark.cuda
        def test_right(): pass

        @pytest.mark.cuda
        def test_wrong(): assert 2 == 3

        @pytest.mark.cuda
        @pytest.mark.skip(reason="no")
        def test_left_out(): pass

        def test_of_something_else(): raise KeyError
    """
    (tmp_path / "test_some.py").write_text("\n".join(line[8:] for line in code.splitlines()))
    figures = run_tests(tmp_path, "cuda")
    assert (figures["tests"], figures["passed"], figures["skipped"]) == (3, 1, 1)
    assert list(figures["failures"]) == ["test_wrong"]
    assert "2 == 3" in figures["failures"]["test_wrong"]
    assert run_tests(tmp_path, "cuda and long")["tests"] == 0


def test_curves_that_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that cannot be made is told, and the others are drawn; one that ends elsewhere is wrong."""
    assert difference([3.0, 1.0], [3.5, 1.0]) == {"largest": 0.5, "final": -0.25}
    losses = {"fp32": [3.0, 2.0], "bf16": [3.0, 2.4]}

    def travel(config: Any, *_: Any) -> Trajectory:
        if config.train.replay:
            raise RuntimeError("no record")
        return Trajectory(losses[config.train.precision], [], [], torch.zeros(1))

    monkeypatch.setattr(curves, "travel", travel)
    figures: dict[str, Any] = {}
    with pytest.raises(CheckFailedError, match=r"bf16: .* by \+0.200 .*; bf16, recorded: RuntimeError: no record"):
        for more in curves.check(setting(tmp_path / "check.json")):
            figures |= more
    assert figures["curves"] == {**losses, "bf16, states too": losses["bf16"]}
    assert (tmp_path / "check-curves.png").exists()


def test_modes_are_settings_of_their_device(tmp_path: Path) -> None:
    """On a GPU a record is a CUDA graph, on a CPU it is not."""
    for mode, (compiles, records) in {
        "eager": (False, False),
        "recorded": (False, True),
        "compiled": (True, False),
        "both": (True, True),
        "autotuned": ("autotune", True),
    }.items():
        on_gpu, on_cpu = (load_config(str(TINY), overrides(mode, device)).train for device in (CUDA, CPU))
        assert (on_gpu.fast, on_gpu.compile, on_gpu.cuda_graph, on_gpu.replay) == (True, compiles, records, False)
        assert (on_cpu.fast, on_cpu.compile, on_cpu.cuda_graph, on_cpu.replay) == (True, compiles, False, records)
