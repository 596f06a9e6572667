"""scripts/gpu_check.py on a CPU: all of it at toy size, and parts that go wrong."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from checking import parts
from checking.parts import PARTS, Part
from checking.runner import run_part

from tests.conftest import TINY, Command, assert_refused, says

MODULE = "tests.scripts.checking.faulty"
ON_CPU = ["facts", "losses", "recorded step", "speed 32 eager", "speed 32 recorded", "two processes", "curves"]
"""The parts that need no CUDA."""


def faulty(how: str, seconds: float = 60) -> Part:
    return Part(how, MODULE, seconds, {"how": how})


def check(call: Command, *arguments: object) -> tuple[int, dict[str, dict[str, Any]], str]:
    """The exit status, the parts in the file, and what was printed."""
    result = call("scripts/gpu_check.py", "--hps", TINY, "--device", "cpu", "--json", "new/check.json", *arguments)
    assert result.returncode in (0, 1), result.stderr
    return result.returncode, json.loads((call.args[0] / "new/check.json").read_text())["parts"], result.stdout  # type: ignore[attr-defined]


@pytest.mark.long
def test_all_of_it(call: Command, tmp_path: Path) -> None:
    """What a CPU can do is right, and what it cannot is not measured."""
    status, found, printed = check(call)
    assert status == 0, printed
    verdicts = {name: part["verdict"] for name, part in found.items()}
    assert verdicts == {part.name: "ok" if part.name in ON_CPU else "not measured" for part in PARTS}
    assert all(part["reason"] == "needs CUDA" for part in found.values() if part["verdict"] != "ok")
    for name, part in found.items():
        assert f"{name:20} {part['verdict']}" in printed
    figures = {name: part.get("figures", {}) for name, part in found.items()}
    assert figures["facts"]["matmul_tflops"]["fp32"] > 0
    assert figures["losses"]["demo"]["plain"] == {"loss": 0, "layer_rate": 0, "gradient_norm": 0}
    assert 0 < figures["losses"]["demo"]["precisions"]["bf16"] < 1e-3
    step = figures["recorded step"]
    assert step["recorded"] == {"losses": 0, "weights": 0, "skipped": step["skipped"]}  # a CPU's record, to the bit
    assert step["skipped"] == [0, 1, 0, 0, 1, 0]
    two = figures["two processes"]
    assert max(two[mode]["losses"] for mode in ("eager", "recorded")) < 1e-6
    assert two["eager"]["skipped"] == two["recorded"]["skipped"] == two["skipped"] == [0, 1, 0, 0]
    for mode in ("eager", "recorded"):
        speed = figures[f"speed 32 {mode}"]
        assert speed["images_per_second"] == pytest.approx(1000 * speed["batch"] / speed["milliseconds_per_step"])
        assert speed["first_step_seconds"] > 0
    curves = figures["curves"]["curves"]
    assert list(curves) == list(figures["curves"]["compared"])
    assert {len(curve) for curve in curves.values()} == {3}
    assert curves["bf16"] == curves["bf16, recorded"]
    assert len({tuple(curve) for curve in curves.values()}) == 3  # fp32, bf16, and bf16 with its states
    assert (tmp_path / "new" / figures["curves"]["picture"]).read_bytes().startswith(b"\x89PNG")


WRONG = {
    "raises": "KeyError key",
    "is wrong": "2 is not 3",
    "out of memory": "OutOfMemoryError 2.00 GiB",
    "crashes": "SIGSEGV last words",
    "leaves": "status 3 good bye",
}
"""What is said of parts that fail, whose reasons are one line."""


@pytest.mark.parametrize("ways", [pytest.param(list(WRONG), marks=pytest.mark.long), ["raises", "crashes"]])
def test_a_part_that_goes_wrong_is_told_and_the_others_go_on(
    ways: list[str], call: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever it does; and what it measured before is kept."""
    monkeypatch.setattr(parts, "PARTS", [*map(faulty, ways), faulty("lacks"), faulty("is fine")])
    status, found, printed = check(call)
    assert status == 1
    for name in ways:
        assert found[name]["verdict"] == "FAILED"
        says(found[name]["reason"], WRONG[name])
        assert "\n" not in found[name]["reason"]
        assert found[name]["figures"]["before"] == 1
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{name:20} FAILED")]
        says(line, WRONG[name])
    assert (found["lacks"]["verdict"], found["lacks"]["reason"]) == ("not measured", "needs a moon")
    assert found["is fine"]["verdict"] == "ok"
    assert found["is fine"]["figures"] == {"before": 1, "after": 2, "told": "one figure"}
    assert any("last words" in line for line in found["crashes"]["output"])
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["check.json"]


@pytest.mark.long
@pytest.mark.parametrize("by_whole", [False, True])
def test_a_part_that_takes_too_long_ends_with_all_its_processes(
    by_whole: bool, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own limit it has failed; by that of the whole check it is cut off, and the rest is skipped."""
    limit = 20.0
    monkeypatch.setattr(parts, "PARTS", [faulty("hangs", 1000 if by_whole else limit), faulty("is fine")])
    status, found, _ = check(call, "--minutes", limit / 60 if by_whole else 8)
    assert status == (0 if by_whole else 1)
    assert {name: part["verdict"] for name, part in found.items()} == {
        "hangs": "skipped" if by_whole else "FAILED",
        "is fine": "skipped" if by_whole else "ok",
    }
    says(found["hangs"]["reason"], "cut off 20 s" if by_whole else "not done 20 s")
    assert found["hangs"]["figures"]["before"] == 1
    assert not is_running(found["hangs"]["figures"]["child"])


def is_running(pid: int) -> bool:
    for _ in range(50):  # until who inherits it has buried it
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.1)
    return True


def test_time_that_is_up(call: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has failed then; what is left is skipped, and said to be; other parts of the file stay."""
    monkeypatch.setattr(parts, "PARTS", [faulty("is fine")])
    assert check(call)[0] == 0
    monkeypatch.setattr(parts, "PARTS", [faulty("hangs"), faulty("raises"), faulty("is wrong")])
    status, found, printed = check(call, "--minutes", 1e-6)
    assert status == 0
    verdicts = {name: part["verdict"] for name, part in found.items()}
    assert verdicts == {"is fine": "ok", "hangs": "skipped", "raises": "skipped", "is wrong": "skipped"}
    says(found["raises"]["reason"], "time up --minutes")
    monkeypatch.setattr(parts, "PARTS", [faulty("is fine")])
    _, again, _ = check(call, "--minutes", 1e-6)
    assert again["is fine"] == found["is fine"]  # what was measured is not thrown away
    assert found["is fine"].keys() >= {"hps", "git", "time"}
    assert len([line for line in printed.splitlines() if line[20:29] == " skipped "]) == 3


def test_the_file_is_whole_after_every_part(call: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If the machine is taken away in the second part, the figures of the first are there."""
    monkeypatch.setattr(parts, "PARTS", [faulty("is fine"), faulty("raises")])
    seen: list[list[str]] = []

    def interrupted(part: Part, *rest: Any) -> Any:
        if part.name == "raises":
            seen.append(list(json.loads((tmp_path / "new/check.json").read_text())["parts"]))
            raise KeyboardInterrupt
        return run_part(part, *rest)

    monkeypatch.setattr("checking.runner.run_part", interrupted)
    result = call("scripts/gpu_check.py", "--hps", TINY, "--device", "cpu", "--json", "new/check.json")
    assert (result.returncode, seen) == (130, [["is fine"]])


def test_the_default_file_has_the_cards_name(call: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vdvae.runtime.device.describe", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(parts, "PARTS", [Part("compiled", MODULE, 1, needs_cuda=True)])
    assert call("scripts/gpu_check.py", "--device", "cpu").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-check-nvidia-h100-80gb-hbm3.json"]


def test_parts_are_told_apart_by_their_names() -> None:
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert {part.name for part in PARTS if not part.needs_cuda} == set(ON_CPU)
    eight_minutes = math.fsum(part.seconds for part in PARTS[: len(ON_CPU) - 2])
    assert eight_minutes < 8 * 60


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--minutes", 0], "--minutes 0"),
        (["--minutes", "nan"], "--minutes nan"),
        (["--parts", "facts", "speeds"], "'speeds' facts losses"),
        (["--hps", "cifra10"], "'cifra10' 'cifar10'"),
        (["--device", "tpu"], "device 'tpu'"),
    ],
)
def test_wrong_input(arguments: list[object], words: str, call: Command, tmp_path: Path) -> None:
    assert_refused(call("scripts/gpu_check.py", *arguments), words)
    assert not list(tmp_path.iterdir())
