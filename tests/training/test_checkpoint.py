"""Checkpoints: whole or not there, rotated, and never executed."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vdvae.config import Config
from vdvae.errors import UserError
from vdvae.training import checkpoint


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


def test_a_failed_write_leaves_the_checkpoints_alone(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, tiny)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, tiny)
    found = checkpoint.read_newest(tmp_path)
    assert found is not None
    assert found.step == 1


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
    assert "step-00000002.pt is cut off, damaged, or no file of torch.save" in said
    assert said.count("\n") == 1


def test_a_flipped_bit_is_read_or_refused_but_never_a_traceback(tiny: Config, tmp_path: Path) -> None:
    """Anywhere in the pickled part, which unpickles into any error there is."""
    content = save(tmp_path, 1, tiny).read_bytes()
    first = content.index(b"format")
    refused = 0
    for position in range(first - 20, first + 1500, 3):
        damaged = bytearray(content)
        damaged[position] ^= 0x41
        (tmp_path / "damaged.pt").write_bytes(damaged)
        try:
            checkpoint.read(tmp_path / "damaged.pt")
        except UserError:
            refused += 1
    assert refused > 100


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert checkpoint.read_newest(tmp_path) is None
    with pytest.raises(UserError, match="there is no checkpoint"):
        checkpoint.read(tmp_path / "step-1.pt")


def test_none_that_can_be_read(tiny: Config, tmp_path: Path) -> None:
    save(tmp_path, 1, tiny).write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 checkpoints"):
        checkpoint.read_newest(tmp_path)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "step-00000001.pt", tmp_path / "was-run"
    torch.save({"format": 1, "step": Evil(trace)}, path)
    with pytest.raises(UserError, match=r"would call posix.mkdir.*Nothing of it was executed"):
        checkpoint.read(path)
    path.write_bytes(pickle.dumps(Evil(trace), protocol=2))
    with pytest.raises(UserError, match=r"would call posix.mkdir.*Nothing of it was executed"):
        checkpoint.read(path)
    path.write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(UserError, match="a pickle of something else, not executed"):
        checkpoint.read(path)
    assert not trace.exists()


def test_another_format_is_refused_politely(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / "a.pt")
    torch.save([1], tmp_path / "b.pt")
    with pytest.raises(UserError, match="has checkpoint format 99; this version reads format 1"):
        checkpoint.read(tmp_path / "a.pt")
    with pytest.raises(UserError, match="not a checkpoint of this project"):
        checkpoint.read(tmp_path / "b.pt")
