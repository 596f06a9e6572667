"""Paths that begin with ~ lead home wherever people give one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, TINY, Command, assert_refused, refuses
from vdvae import load_pretrained
from vdvae.config import load_config
from vdvae.data.prepared import load_splits
from vdvae.errors import CommandLine, user_path
from vdvae.evaluation.grids import save_png

COMMANDS = sorted(path for folder in ("", "scripts", "experiments") for path in (ROOT / folder).glob("*.py"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home beside the current folder of `call`; nothing may be made here under the name ~."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_home_is_expanded(home: Path) -> None:
    assert user_path("~/x") == home / "x"
    assert user_path(Path("~")) == home
    assert user_path("~root/x").is_absolute()
    for name in ("x~", "./~x", "a/~/b", "~/../~x"):
        assert user_path(name) == (home / "../~x" if name.startswith("~") else Path(name))
    with refuses("~nobody-here/x home ./~nobody-here/x"):
        user_path("~nobody-here/x")


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_every_command_has_this_command_line(path: Path) -> None:
    assert "ArgumentParser(" not in path.read_text()
    assert "CommandLine(" in path.read_text()


def test_a_command_line(home: Path) -> None:
    parser = CommandLine()
    parser.add_argument("source", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default="~/default")
    assert vars(parser.parse_args(["~/a", "b"])) == {"source": [home / "a", Path("b")], "out": home / "default"}
    assert parser.parse_args(["a", "--out=~/x"]).out == home / "x"
    with refuses("--out ~nobody-here/x home"):
        parser.parse_args(["a", "--out=~nobody-here/x"])


def test_a_run_at_home(call: Command, home: Path, tmp_path: Path) -> None:
    """Its presets, its directory, and then as the model of scripts, with images and results there."""
    shutil.copy(TINY, home / "mine.yaml")
    (home / "other.yaml").write_text("base: ~/mine\n")
    result = call("train.py", "--hps=~/mine.yaml,~/other.yaml", "--run_dir=~/runs/x", "--max_steps=1")
    assert result.returncode == 0, result.stderr
    checkpoint = next((home / "runs/x/checkpoints").iterdir())
    save_png(np.zeros((28, 28, 1), np.uint8), home / "a.png")
    for line in (
        "scripts/sample.py ~/runs/x --out=~/samples.png --columns=1",
        "scripts/encode.py ~/runs/x ~/a.png --out=~/latents.npz",
        "scripts/decode.py ~/runs/x ~/latents.npz --out=~/decoded.png",
        "scripts/evaluate.py ~/runs/x --json=~/new/results.json --batch_size=500",
    ):
        result = call(*line.split())
        assert result.returncode == 0, result.stderr
    made = {path.name for path in home.iterdir()}
    assert made >= {"samples.png", "latents.npz", "decoded.png", "new"}
    assert load_pretrained("~/runs/x").num_layers == 3
    assert load_pretrained(Path("~/runs/x/checkpoints") / checkpoint.name).num_layers == 3
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_data_set_at_home(call: Command, home: Path, tmp_path: Path) -> None:
    (home / "photos").mkdir()
    for i in range(30):
        save_png(np.full((8, 8, 3), i, np.uint8), home / f"photos/{i}.png")
    line = "folder ~/photos --name mine --to=~/data --config=~/mine.yaml"
    assert call("scripts/prepare_data.py", *line.split()).returncode == 0
    assert call("scripts/prepare_data.py", "verify", "~/data/mine").returncode == 0
    config = load_config("cifar10,~/mine.yaml", ["data.root=~/data"])
    assert len(load_splits(config.data, config.model).train) == 26
    (home / "root.yaml").write_text("data: {root: ~/data}\n")
    config = load_config("cifar10,~/mine.yaml,~/root.yaml")
    assert len(load_splits(config.data, config.model).train) == 26
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(
    "line",
    [
        f"train.py --hps {TINY} --run_dir=~nobody-here/x",
        "train.py --hps ~nobody-here/x.yaml",
        "train.py --hps cifar10 data.root=~nobody-here/data",
        "scripts/sample.py ~nobody-here/x.th",
        "scripts/prepare_data.py verify ~nobody-here/x",
        "scripts/prepare_data.py cifar10 --from ~nobody-here/x",
        "scripts/convert_openai.py import ~nobody-here/x run",
        "scripts/benchmark.py data --hps cifar10 --json ~nobody-here/x",
    ],
)
@pytest.mark.usefixtures("home")
def test_an_unknown_home_is_refused(line: str, call: Command, tmp_path: Path) -> None:
    assert_refused(call(*line.split()), "~nobody-here home")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_the_door_of_the_library(home: Path) -> None:
    with refuses(f"{home}/x.th"):
        load_pretrained("~/x.th")
    with refuses("~nobody-here/x.th home"):
        load_pretrained("~nobody-here/x.th")
    with refuses("preset '~/none.yaml'"):
        load_config("~/none.yaml")
