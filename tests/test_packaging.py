"""What an installed package is made of: vdvae, the presets, and nothing else."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, refuses
from vdvae import __version__
from vdvae.config import load_config
from vdvae.errors import UserError

TOP = {"vdvae", f"vdvae-{__version__}.dist-info"}


def test_the_packages_are_the_folders() -> None:
    """Those of vdvae/ with an __init__.py, and the presets."""
    section = (ROOT / "pyproject.toml").read_text().partition("[tool.setuptools]\n")[2]
    listed = ast.literal_eval(section.partition("packages = ")[2].partition("]")[0] + "]")  # tomllib is of Python 3.11
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "vdvae").rglob("__init__.py")]
    assert sorted(listed) == sorted([*(".".join(folder.parts) for folder in folders), "vdvae.configs"])


def test_a_checkout_has_its_presets_in_one_place() -> None:
    """No link in the package, which a file system or an archive may not have."""
    assert not (ROOT / "vdvae/configs").is_symlink()
    assert (ROOT / "configs").is_dir()


def test_presets_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdvae.config.reading.PRESETS", tmp_path / "configs")
    with refuses(f"'cifar10' {tmp_path / 'configs'} none .yaml", UserError):
        load_config("cifar10")


def run(folder: Path, *arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, env={}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.long
def test_an_installed_package_knows_the_presets(tmp_path: Path) -> None:
    """Built from a copy of the checkout, whose folder stays clean, without a network."""
    source, site = tmp_path / "source", tmp_path / "site"
    ignored = shutil.ignore_patterns(".*", "data", "runs", "build", "*.egg-info", "__pycache__")
    source.mkdir()
    for name in ("vdvae", "configs", "experiments", "scripts"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored if name != "vdvae" else None)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--target", site]
    run(tmp_path, "-m", "pip", "install", *options, source)
    installed = {path.name for path in site.iterdir()}
    assert installed == TOP
    assert not [path for path in site.rglob("*") if path.name in ("experiments", "scripts", "measuring", "paper")]
    presets = {path.name for path in (ROOT / "configs").glob("*.yaml")}
    assert {path.name for path in (site / "vdvae/configs").glob("*.yaml")} == presets
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import vdvae.config; "
        "print(vdvae.config.__file__, vdvae.config.load_config('imagenet32').train.batch_size)"
    )
    assert run(tmp_path, "-c", code).split() == [str(site / "vdvae/config/__init__.py"), "256"]
