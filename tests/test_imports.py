"""Imports point down: a folder of vdvae/ knows itself and those that stand below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

FLOORS = (
    {"streams", "launch", "version"},
    {"errors"},
    {"files", "model"},
    {"runtime"},
    {"config"},
    {"data", "fast"},
    {"training", "evaluation"},
    {"counting"},
    {"run"},
    {"released"},
    {"command_line"},
    {"__init__"},
)
"""The folders and files of vdvae/, from the ground up; two on one floor do not know each other."""
FILES = sorted((ROOT / "vdvae").rglob("*.py"))
MODEL_NEEDS = {"__future__", "torch", "vdvae"}
MODEL_NEEDS |= {"collections", "contextlib", "dataclasses", "functools", "itertools", "math", "re", "typing"}


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports, dotted."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "vdvae").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    floor = next(i for i, rooms in enumerate(FLOORS) if room_of(path) in rooms)
    known = {room_of(path)}.union(*FLOORS[:floor]) if room_of(path) != "model" else {"model"}
    for module in imported_modules(path):
        if module.startswith("vdvae."):
            assert module.split(".")[1] in known, f"{path} imports {module}"
        assert module != "vdvae", f"{path} imports the whole package"
        assert module.split(".")[0] not in ("scripts", "experiments", "train", "measuring", "paper")
        assert room_of(path) != "model" or module.split(".")[0] in MODEL_NEEDS
