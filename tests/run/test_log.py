"""metrics.jsonl: what a resumed run keeps of it, whatever it finds."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TINY, refuses, says
from vdvae import VDVAE
from vdvae.config import Config, load_config, with_absolute_root
from vdvae.errors import UserError
from vdvae.run.directory import RunDirectory
from vdvae.run.log import RunLog, changed_settings, read_log
from vdvae.training.metrics import Report


def line(kind: str, step: int, **values: object) -> str:
    return json.dumps({"kind": kind, "step": step, **values}) + "\n"


def reopened(content: bytes, step: int, tiny: Config, folder: Path) -> None:
    """Opens and closes the log of a run that goes on after `step` updates."""
    (folder / "metrics.jsonl").write_bytes(content)
    RunLog(RunDirectory(folder), VDVAE(tiny.model), step, writes=True).close()


def test_later_lines_and_the_test_are_dropped(tiny: Config, tmp_path: Path) -> None:
    """As is the validation that followed the checkpoint, which knows nothing of it."""
    kept = [line("valid", 2, bits_per_dim=3.0), line("train", 2), line("train", 4)]
    dropped = [line("valid", 4, bits_per_dim=3.0), line("train", 6), line("test", 2), line("test", 4)]
    reopened("".join(kept + dropped).encode(), 4, tiny, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(kept)


def test_starts_are_kept_up_to_the_checkpoint(tiny: Config, tmp_path: Path) -> None:
    """Every one of them is read, in the order of steps, and a log with nothing else has no lines yet."""
    kept = [line("start", 0, a=1), line("start", 0, a=2), line("train", 2), line("train", 4), line("start", 4)]
    dropped = [line("train", 6), line("start", 6), line("test", 6)]
    reopened("".join(kept + dropped).encode(), 4, tiny, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(kept)
    assert read_log(RunDirectory(tmp_path)) == [json.loads(text) for text in kept]
    reopened("".join(kept).encode(), 0, tiny, tmp_path)
    with refuses("metrics.jsonl lines", UserError):
        read_log(RunDirectory(tmp_path))


@pytest.mark.parametrize(
    ("in_file", "logged", "now", "changes"),
    [
        ([], None, ["train.lr=1"], {"train.lr": (1e-3, 1.0)}),
        ([], [], [], {}),
        ([], ["train.lr=2"], [], {"train.lr": (2.0, 1e-3)}),  # killed before its line was written, and back again
        (["train.lr=1"], [], ["train.lr=1"], {"train.lr": (1e-3, 1.0)}),  # killed between config.yaml and its line
        (["train.lr=1"], [], [], {"train.lr": (1.0, 1e-3)}),  # edited by hand
        (["data.root=/a"], [], ["data.root=/b"], {"data.root": ("/a", "/b")}),
        (["data.root=here"], None, [f"data.root={Path.cwd()}/here"], {}),  # as it was written before
        ([], ["train.skip_threshold=inf"], ["train.skip_threshold=inf"], {"train.skip_threshold": (1000.0, "inf")}),
    ],
)
def test_what_changed(
    in_file: list[str], logged: list[str] | None, now: list[str], changes: object, tmp_path: Path
) -> None:
    """Beside config.yaml, or else the last start of the log; of a new run nothing."""
    directory, config = RunDirectory(tmp_path), with_absolute_root(load_config(str(TINY), now))
    assert changed_settings(directory, config, resolved(config)) == {}
    directory.create(load_config(str(TINY), in_file))
    if logged is not None:
        log = RunLog(directory, VDVAE(config.model), 0, writes=True)
        log.start(0, config, {}, torch.device("cpu"))
        log.start(0, resolved(with_absolute_root(load_config(str(TINY), logged))), {}, torch.device("cpu"))
        log.close()
    assert changed_settings(directory, config, resolved(config)) == changes


def resolved(config: Config, **values: Any) -> Config:
    return replace(config, train=config.train.resolved(**values))


@pytest.mark.parametrize(
    ("in_file", "logged", "now", "comes_to", "changes"),
    [
        ("auto", 8, "auto", 8, {}),
        ("auto", 8, "auto", 32, {"train.micro_batch": (8, 32)}),  # on other hardware
        ("auto", 8, "8", 8, {}),
        ("auto", 8, "4", 4, {"train.micro_batch": (8, 4)}),
        ("8", 8, "auto", 8, {}),
        ("8", 8, "auto", 32, {"train.micro_batch": (8, 32)}),
        ("auto", None, "auto", 32, {}),  # never trained with
    ],
)
def test_what_auto_came_to_is_compared(
    in_file: str, logged: int | None, now: str, comes_to: int, changes: object, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path)
    configs = [with_absolute_root(load_config(str(TINY), [f"train.micro_batch={n}"])) for n in (in_file, now)]
    directory.create(configs[0])
    if logged is not None:
        log = RunLog(directory, VDVAE(configs[0].model), 0, writes=True)
        log.start(0, resolved(configs[0], micro_batch=logged), {}, torch.device("cpu"))
        log.close()
    assert changed_settings(directory, configs[1], resolved(configs[1], micro_batch=comes_to)) == changes


@pytest.mark.parametrize("settings", [None, [1], {"train.lr": 1e-3, "train.gone": 3}])
def test_a_start_of_another_version(settings: object, tiny: Config, tmp_path: Path) -> None:
    RunDirectory(tmp_path).create(tiny)
    (tmp_path / "metrics.jsonl").write_text(line("start", 0, settings=settings))
    assert changed_settings(RunDirectory(tmp_path), *[with_absolute_root(tiny)] * 2) == {}


@pytest.mark.parametrize(
    "damage",
    [b'{"kind": "train", "st', b"\xff\x00", b"[1]", b'{"kind": "train"}', b'{"step": "a", "kind": 1}', b"[" * 9999],
)
def test_a_damaged_line_is_dropped_and_told(
    damage: bytes, tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line that was cut off, last of all."""
    good = line("train", 2).encode()
    reopened(good + damage, 9, tiny, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == good
    says(capsys.readouterr().err, f"warning: {tmp_path}/metrics.jsonl 1 damaged")


def test_a_line_without_its_end_is_kept(tiny: Config, tmp_path: Path) -> None:
    good = line("train", 2).encode()
    reopened(good.rstrip(), 9, tiny, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == good


def test_numbers_that_are_not_finite_are_null(tiny: Config, tmp_path: Path) -> None:
    """NaN is no JSON."""
    log = RunLog(RunDirectory(tmp_path), VDVAE(tiny.model), 0, writes=True)
    log.train(1, Report(math.nan, 0.0, 0.0, [0.0] * 3, 0.0, 0.0, 1, 1, 1, math.inf, 1e-3), 1.0)
    log.evaluation(1, "valid", {"bits_per_dim": math.nan})
    log.close()
    train, valid = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert train["bits_per_dim"] is train["skip_threshold"] is valid["bits_per_dim"] is None


def test_lines_wait_for_room_on_the_disk(tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/dev/full is always full; a real file takes half a line and then no more."""
    log = RunLog(RunDirectory(tmp_path), VDVAE(tiny.model), 0, writes=True)
    assert log.metrics is not None
    disk, log.metrics = log.metrics, open("/dev/full", "wb", buffering=0)  # noqa: PTH123, SIM115
    with log.metrics:
        log.evaluation(1, "valid", {"bits_per_dim": 3.0})
    says(capsys.readouterr().err, "warning: metrics.jsonl No space left")
    log.metrics = disk
    log.evaluation(2, "valid", {"bits_per_dim": 2.0})
    log.close()
    assert [json.loads(text)["step"] for text in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_a_log_is_read_in_the_order_of_steps_and_each_line_once(tmp_path: Path) -> None:
    """Also one that was put together from two; the file stays as it is."""
    lines = [line("train", 4, a=1), line("train", 2), line("valid", 4), line("train", 4, a=2), '{"kind": "tr']
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    read = read_log(RunDirectory(tmp_path))
    assert [(entry["kind"], entry["step"]) for entry in read] == [("train", 2), ("train", 4), ("valid", 4)]
    assert read[1]["a"] == 2
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines)


def test_no_log(tmp_path: Path) -> None:
    with refuses("metrics.jsonl --run_dir train.py", UserError):
        read_log(RunDirectory(tmp_path))
    (tmp_path / "metrics.jsonl").touch()
    with refuses("metrics.jsonl lines", UserError):
        read_log(RunDirectory(tmp_path))


def test_a_process_that_does_not_write(tiny: Config, tmp_path: Path) -> None:
    log = RunLog(RunDirectory(tmp_path), VDVAE(tiny.model), 0, writes=False)
    log.evaluation(1, "valid", {"bits_per_dim": torch.tensor(3.0).item()})
    log.close()
    assert not list(tmp_path.iterdir())
