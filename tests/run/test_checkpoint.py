"""Checkpoints: whole or not there, rotated, and never executed."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import refuses, says
from vdvae.config import Config
from vdvae.errors import UserError
from vdvae.run import checkpoint
from vdvae.run.checkpoint_thread import CheckpointWriter
from vdvae.run.directory import RunDirectory


def save(folder: Path, step: int, config: Config) -> Path:
    return checkpoint.save(folder, step, config, {"model": {"w": torch.full((3,), float(step))}})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tiny: Config, tmp_path: Path) -> None:
    found = checkpoint.read(save(tmp_path, 7, tiny))
    assert (found.step, found.config) == (7, tiny)
    assert torch.equal(found.state["model"]["w"], torch.full((3,), 7.0))


def test_keeps_the_last_and_every_mth(tiny: Config, tmp_path: Path) -> None:
    config = replace(tiny, train=replace(tiny.train, keep_last=2, keep_every=20))
    for step in range(5, 55, 5):
        save(tmp_path, step, config)
    assert names(tmp_path) == [f"step-{step:08d}.pt" for step in (20, 40, 45, 50)]


def test_keeps_the_best(tiny: Config, tmp_path: Path) -> None:
    """Until there is a better one."""
    config = replace(tiny, train=replace(tiny.train, keep_last=1))
    for step, best in ((1, None), (2, 1), (3, 1), (4, 1), (5, 4), (6, 4)):
        lowest = checkpoint.Best(best, 3.25 - best) if best else None
        found = checkpoint.read(checkpoint.save(tmp_path, step, config, {}, best=lowest))
        assert found.best == lowest
        assert names(tmp_path) == sorted({f"step-{kept:08d}.pt" for kept in (step, best) if kept})


def test_a_checkpoint_from_before_it_knew_the_best(tiny: Config, tmp_path: Path) -> None:
    path = save(tmp_path, 7, tiny)
    content = torch.load(path, weights_only=True)
    del content["best"]
    torch.save(content, path)
    assert checkpoint.read(path).best is None


def test_damaged_files_of_later_steps_do_not_push_out_good_ones(tiny: Config, tmp_path: Path) -> None:
    config = replace(tiny, train=replace(tiny.train, keep_last=1))
    save(tmp_path, 2, config)
    (tmp_path / "step-00000003.pt").write_bytes(b"")
    (tmp_path / "step-mine.pt").write_bytes(b"")
    checkpoint.save(tmp_path, 1, config, {})
    assert names(tmp_path) == [f"step-{step}.pt" for step in ("00000001", "00000002", "00000003", "mine")]


def test_the_writer_copies_before_training_goes_on(tiny: Config, tmp_path: Path) -> None:
    weights = torch.zeros(1000, 1000)
    (tmp_path / "metrics.jsonl").touch()
    writer = CheckpointWriter(RunDirectory(tmp_path), tiny, {"images": "abc"})
    with writer:
        writer.save(1, {"model": {"w": weights}}, None)
        weights += 1
    found = checkpoint.read(tmp_path / "checkpoints/step-00000001.pt")
    assert writer.failure() is None
    assert found.checksums == {"images": "abc"}
    assert not found.state["model"]["w"].any()


def test_a_failed_write_is_told_and_the_next_one_made(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").touch()
    with CheckpointWriter(RunDirectory(tmp_path), tiny, {}) as writer:
        writer.save(1, {}, None)
        assert writer.failure() is None
        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", full)
            writer.save(2, {}, None)
            failure = writer.failure()
        says(failure, f"step 2 No space left {tmp_path}/checkpoints/step-00000002.pt")
        assert names(tmp_path / "checkpoints") == ["step-00000001.pt"]
        writer.save(3, {}, None)
    assert names(tmp_path / "checkpoints") == ["step-00000001.pt", "step-00000003.pt"]
    says(capsys.readouterr().err, f"warning: {failure}")


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_the_checkpoints_alone(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, tiny)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, tiny)
    assert names(tmp_path) == ["step-00000001.pt"]


@pytest.mark.parametrize("damage", ["truncated", "emptied", "garbage"])
def test_a_damaged_newest_is_named_and_the_one_before_used(
    damage: str, tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1, tiny)
    path = save(tmp_path, 2, tiny)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "emptied": b"", "garbage": b"x" * 1000}[damage])
    found = checkpoint.read_newest(tmp_path)
    assert found is not None
    assert found.step == 1
    said = capsys.readouterr().err
    says(said, "step-00000002.pt damaged torch.save")
    assert said.count("\n") == 1


def test_a_flipped_bit_is_refused_or_changes_nothing(tiny: Config, tmp_path: Path) -> None:
    """In every byte of the file: those that can change without a word are padding and dates."""
    good = checkpoint.read(save(tmp_path, 1, tiny))
    content = good.path.read_bytes()
    unnoticed = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        good.path.write_bytes(damaged)
        try:
            found = checkpoint.read(good.path)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        assert found._replace(state={}) == good._replace(state={})
        assert torch.equal(found.state["model"]["w"], good.state["model"]["w"])
        unnoticed += 1
    assert unnoticed < len(content) / 2


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert checkpoint.read_newest(tmp_path) is None
    with refuses("step-1.pt", UserError):
        checkpoint.read(tmp_path / "step-1.pt")


def test_a_checkpoint_of_another_preset_is_passed_over(
    tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1, tiny)
    save(tmp_path, 2, replace(tiny, model=replace(tiny.model, width=16), train=replace(tiny.train, lr=1.0)))
    found = checkpoint.read_newest(tmp_path, tiny)
    assert found is not None
    assert found.step == 1
    said = capsys.readouterr().err
    says(said, "step-00000002.pt model.width")
    assert "train.lr" not in said


def test_none_that_can_be_read(tiny: Config, tmp_path: Path) -> None:
    save(tmp_path, 1, tiny).write_bytes(b"")
    with refuses("none 1", UserError):
        checkpoint.read_newest(tmp_path)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "step-00000001.pt", tmp_path / "was-run"
    torch.save({"format": 1, "step": Evil(trace)}, path)
    with refuses("posix.mkdir executed", UserError):
        checkpoint.read(path)
    path.write_bytes(pickle.dumps(Evil(trace), protocol=2))
    with refuses("posix.mkdir executed", UserError):
        checkpoint.read(path)
    path.write_bytes(pickle.dumps(Evil(trace)))
    with refuses("pickle executed", UserError):
        checkpoint.read(path)
    assert not trace.exists()


def test_another_format_is_refused_politely(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / "a.pt")
    torch.save([1], tmp_path / "b.pt")
    with refuses("format 99 2", UserError):
        checkpoint.read(tmp_path / "a.pt")
    with refuses("checkpoint project", UserError):
        checkpoint.read(tmp_path / "b.pt")
