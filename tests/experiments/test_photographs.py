"""The small colour data set of the experiments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import photographs
import pytest

from tests.conftest import ROOT, refuses, says
from vdvae.errors import UserError


def test_photographs_are_split_before_they_are_cropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the two packages: each photograph one colour."""
    colours: dict[str, int] = {}
    for names in photographs.PHOTOGRAPHS.values():
        for name in names:
            colours[name] = len(colours) * 9
            picture = np.full((128, 160, 3), colours[name], np.uint8)
            path = tmp_path / name.replace("opencv/", "opencv/examples/")
            path.parent.mkdir(parents=True, exist_ok=True)
            iio.imwrite(path.with_suffix(".png"), picture)
            path.with_suffix(".png").rename(path)
    installed = SimpleNamespace(version="1.0", locate_file=lambda folder: tmp_path / folder)
    monkeypatch.setattr(photographs, "distribution", lambda name: installed)
    monkeypatch.setattr(photographs, "PACKAGES", {name: (name, name) for name in photographs.PACKAGES})
    manifest = photographs.prepare(tmp_path / "data", tmp_path / "opencv")
    assert photographs.prepare(tmp_path / "data", tmp_path / "opencv") == manifest
    crops = 4 * 5 + 2 * 2  # of 64 x 80 and of 32 x 40 pixels
    for split, names in photographs.PHOTOGRAPHS.items():
        images = np.load(tmp_path / "data/photographs16" / f"{split}.npy")
        assert images.shape == (len(names) * crops, 16, 16, 3)
        assert set(np.unique(images)) == {colours[name] for name in names}


def test_photographs_without_the_packages(tmp_path: Path) -> None:
    """One line, and nothing is written."""
    (tmp_path / "opencv/examples").mkdir(parents=True)
    code = (
        "import sys, importlib.metadata as m; find = m.distribution\n"
        "def missing(name): raise m.PackageNotFoundError(name)\n"
        "m.distribution = lambda name: missing(name) if name == 'scikit-image' else find(name)\n"
        f"sys.argv = ['photographs.py', '--opencv', 'opencv']; sys.path.insert(0, {str(ROOT / 'experiments')!r})\n"
        "import photographs; photographs.main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    says(result.stderr, "error: scikit-image pip install .[experiments]")
    assert [path.name for path in tmp_path.iterdir()] == ["opencv"]
    with refuses("elsewhere/examples opencv-doc", UserError):
        photographs.prepare(tmp_path, Path("elsewhere"))
