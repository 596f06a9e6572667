"""Imports point down: train.py and scripts -> training, evaluation, data, pretrained, config -> model."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

LEAVES = {
    "distributed",
    "errors",
    "noise",
    "npz",
    "precision",
    "safe_load",
    "tensor_tree",
    "whole_file",
}
MAY_IMPORT = {
    "model": {"model"},
    "data": {"data", "model", *LEAVES},
    "fast": {"fast", "model"},
    "benchmark": {"benchmark", "fast", "evaluation", "training", "config", "data", "model", *LEAVES},
    "command_line": {"pretrained", "data", "model", *LEAVES},
    "config": {"data", "training", "model", *LEAVES},
    "training": {"training", "released", "fast", "config", "model", *LEAVES},
    "evaluation": {"evaluation", "fast", "data", "model", *LEAVES},
    "experiment": {"experiment", "evaluation", "training", "pretrained", "config", "data", "model", *LEAVES},
    "fragment": {"config", "data", "model", *LEAVES},
    "pretrained": {"released", "training", "config", "model", *LEAVES},
    "released": {"config", "model", *LEAVES},
    "safe_load": {"errors"},
    "tensor_tree": set(),
    "whole_file": set(),
    "distributed": {"tensor_tree"},
    "errors": {"distributed"},
    "noise": set(),
    "npz": {"errors", "whole_file"},
    "results": {"distributed", "errors", "whole_file"},
    "precision": set(),
    "__init__": {"model", "pretrained"},
}
FILES = sorted((ROOT / "vdvae").rglob("*.py"))


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    place = path.relative_to(ROOT / "vdvae").parts[0].removesuffix(".py")
    for module in imported_modules(path):
        if module.startswith("vdvae."):
            target = module.split(".")[1]
            assert target in MAY_IMPORT[place], f"{path} imports {module}"
        assert not module.startswith(("scripts", "train"))


@pytest.mark.parametrize("path", sorted((ROOT / "vdvae/model").glob("*.py")), ids=lambda path: path.name)
def test_the_model_imports_torch_and_itself_only(path: Path) -> None:
    standard = {"collections", "contextlib", "dataclasses", "functools", "itertools", "math", "re", "typing"}
    assert {module.split(".")[0] for module in imported_modules(path)} <= {"__future__", "torch", "vdvae"} | standard
