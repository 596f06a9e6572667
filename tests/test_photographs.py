"""The small colour data set of the experiments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from experiments import photographs
from tests.conftest import ROOT


def test_photographs_are_split_before_they_are_cropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the two packages: each photograph one colour."""
    colours: dict[str, int] = {}
    for names in photographs.PHOTOGRAPHS.values():
        for name in names:
            colours[name] = len(colours) * 20
            picture = np.full((128, 160, 3), colours[name], np.uint8)
            (tmp_path / name).parent.mkdir(exist_ok=True)
            iio.imwrite((tmp_path / name).with_suffix(".png"), picture)
            (tmp_path / name).with_suffix(".png").rename(tmp_path / name)
    monkeypatch.setattr(photographs, "_folder", lambda package: tmp_path / package)
    monkeypatch.setattr(photographs, "version", lambda name: "1.0")
    manifest = photographs.prepare(tmp_path / "data")
    assert photographs.prepare(tmp_path / "data") == manifest
    per_photograph = {"train": 7 * 9 + 3 * 4, "valid": 4 * 5 + 2 * 2, "test": 4 * 5 + 2 * 2}
    for split, names in photographs.PHOTOGRAPHS.items():
        images = np.load(tmp_path / "data/photographs16" / f"{split}.npy")
        assert images.shape == (len(names) * per_photograph[split], 16, 16, 3)
        assert set(np.unique(images)) == {colours[name] for name in names}


def test_photographs_without_the_packages(tmp_path: Path) -> None:
    """One line, and nothing is written."""
    code = (
        "import sys, importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'skimage' else find(name, *a); "
        f"sys.argv = ['photographs.py']; sys.path.insert(0, {str(ROOT / 'experiments')!r}); "
        "import photographs; photographs.main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr == "error: scikit-image is missing: pip install 'vdvae[experiments]'\n"
    assert list(tmp_path.iterdir()) == []
