"""Ctrl-C ends any command in one line."""

from __future__ import annotations

from typing import NoReturn

import pytest

from tests.conftest import ROOT, Command
from vdvae.errors import CommandLine

FILES = [ROOT / "train.py", *ROOT.glob("scripts/*.py"), *ROOT.glob("experiments/*.py")]
COMMANDS = sorted(str(path.relative_to(ROOT)) for path in FILES if "CommandLine(" in path.read_text())


def interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize("script", COMMANDS)
def test_ctrl_c(script: str, call: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommandLine, "parse_known_args", interrupted)
    result = call(script)
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr.startswith("\nstopped")
    assert result.stderr.count("\n") == 2
