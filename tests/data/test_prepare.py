"""Every official layout through setup_data.sh, offline, and one training step on each; and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

import train
from tests.conftest import ROOT
from tests.data import archives
from vdvae.config import load_config
from vdvae.data.manifest import read_manifest
from vdvae.data.splits import load_splits
from vdvae.data.storage import Images

TINY_MODEL = ["model.width=4", "model.bottleneck_multiple=0.5", "model.zdim=2", "model.num_mixtures=2"]
TINY_MODEL += ["model.custom_width_str="]
TINY_RUN = [
    "train.batch_size=2",
    "train.micro_batch=2",
    "train.max_steps=1",
    "train.eval_batch=2",
    "train.grid_columns=1",
]
Layout = tuple[str, Callable[[Path], dict[str, Images]], str | None]
LAYOUTS: dict[str, Layout] = {
    "CIFAR-10, Python": ("cifar10", archives.cifar10_python, None),
    "CIFAR-10, binary": ("cifar10", archives.cifar10_binary, None),
    "ImageNet-32, PNG tars": ("imagenet32", archives.imagenet_pngs, "original"),
    "ImageNet-32, PNG folders": ("imagenet32", archives.unpacked_imagenet_pngs, "original"),
    "ImageNet-32, npz": ("imagenet32", archives.imagenet_npz, "newer"),
    "ImageNet-64, PNG tars": ("imagenet64", lambda folder: archives.imagenet_pngs(folder, 64), "original"),
    "ImageNet-64, npz": ("imagenet64", lambda folder: archives.imagenet_npz(folder, 64), "newer"),
    "FFHQ-256": ("ffhq256", archives.ffhq256, None),
    "FFHQ-1024": ("ffhq1024", archives.ffhq1024, None),
    "Fashion-MNIST": ("fashion_mnist", archives.fashion_mnist, None),
}


def set_up(folder: Path, *arguments: object) -> CompletedProcess[str]:
    """Runs setup_data.sh in a folder, with this Python where the repository has no .venv."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [ROOT / "setup_data.sh", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_the_archive_to_a_training_step(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prepared files hold the images, dataset.json says what they are, and a run names the variant."""
    name, build, variant = LAYOUTS[layout]
    images = build(tmp_path)
    result = set_up(tmp_path, name, "--from", tmp_path, "--partial")
    assert (result.returncode, result.stderr) == (0, "")
    assert [path.name for path in (tmp_path / "data").iterdir()] == [name]
    manifest = read_manifest(tmp_path / "data" / name)
    assert (manifest.name, manifest.variant, manifest.partial) == (name, variant, True)
    assert {file: about.count for file, about in manifest.files.items()} == {k: len(v) for k, v in images.items()}

    size, channels = manifest.image_size, manifest.image_channels
    settings = [f"model.image_size={size}", f"model.image_channels={channels}", f"data.variant={variant or 'none'}"]
    settings += [
        f"model.enc_blocks={size}d4,{size // 4}d{size // 4},1x1",
        f"model.dec_blocks=1x1,{size // 4}m1,{size}m{size // 4}",
    ]
    settings += [f"data.dataset={name}", f"data.root={tmp_path / 'data'}", *TINY_MODEL, *TINY_RUN]
    preset = name if name != "fashion_mnist" else "fashion"
    config = load_config(preset, settings)
    splits = load_splits(config.data, config.model)
    for file, split in ((manifest.splits["train"].file, splits.train), (manifest.splits["test"].file, splits.test)):
        assert np.array_equal(split.read(np.arange(len(split))), images[file][split.rows])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py", "--hps", preset, "--run_dir", "run", *settings])
    train.main()
    assert "test bits/dim: " in capsys.readouterr().out
    logged = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert {key: logged[key] for key in ("dataset", "variant", "partial", "bits")} == manifest.facts()
    assert logged["num_images"] == len(splits.test)
