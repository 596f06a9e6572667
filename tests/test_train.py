"""Whole runs, as people start them: resuming, several processes, and what is refused before anything is written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import train
from tests.conftest import TINY, Command
from vdvae.data.datasets import Rule
from vdvae.data.manifest import File, Manifest
from vdvae.run import checkpoint

TIMINGS = {"images_per_second"}


def log_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def assert_same_tensors(a: object, b: object) -> None:
    """Bit for bit, through nested dictionaries and lists."""
    if isinstance(a, dict):
        assert isinstance(b, dict)
        assert a.keys() == b.keys()
        for key in a:
            assert_same_tensors(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize("processes", [0, 2])
def test_a_run_and_its_resumption(processes: int, command: Command, tmp_path: Path) -> None:
    """From start to test NLL; then from a checkpoint that lies between two reports: the same to the last bit."""
    arguments = ["train.py", "--hps", TINY, "--run_dir", "run", "train.valid_every=4", "train.images_every=4"]
    arguments += ["train.keep_last=3"]
    first = command(*arguments, processes=processes)
    assert first.returncode == 0, first.stderr
    assert "Warning" not in first.stderr
    run = tmp_path / "run"
    said = first.stdout.splitlines()
    assert sum(line.startswith("step 2/6: ") for line in said) == 1
    assert sum("bits/dim on the validation images" in line for line in said) == 1
    log = log_of(run)
    assert [(line["kind"], line["step"]) for line in log] == [
        ("train", 2),
        ("train", 4),
        ("valid", 4),
        ("train", 6),
        ("test", 6),
    ]
    assert f"test bits/dim: {log[-1]['bits_per_dim']:.4f}   (PNG on the same 1,000 images: 5.19)" in said
    assert log[-1]["num_images"] == 1000
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        f"{kind}-{step:08d}.png" for kind in ("reconstructions", "samples") for step in (4, 6)
    ]
    assert iio.imread(run / "samples/samples-00000006.png").shape == (4 * 58 + 2, 8 * 58 + 2)

    undisturbed = checkpoint.read(run / "checkpoints/step-00000006.pt")
    for step in (4, 6):  # 4 is there because a validation begins with a checkpoint
        (run / f"checkpoints/step-{step:08d}.pt").unlink()
    again = command(*arguments, processes=processes)
    assert again.returncode == 0, again.stderr
    assert "resuming after step 3" in again.stdout
    assert_same_tensors(checkpoint.read(run / "checkpoints/step-00000006.pt").state, undisturbed.state)
    assert log_of(run) == log

    finished = command(*arguments, processes=processes)
    assert "resuming after step 6" in finished.stdout
    assert finished.stdout.splitlines()[-4:] == first.stdout.splitlines()[-4:]


def test_faults_on_one_rank_are_skipped_by_both(command: Command) -> None:
    """NaN, infinity and 1e15 in gradients, NaN in a loss, garbage for images: nothing stored is touched, and training
    comes to its usual loss.
    """
    result = command("tests/training/faults_on_one_rank.py", processes=2)
    assert result.returncode == 0, result.stderr


def test_a_streak_of_skipped_updates_ends_the_run(command: Command) -> None:
    """With the usual norm and the threshold named, as users of the original asked (openai/vdvae #25)."""
    settings = ["train.skip_threshold=1e-9", "train.max_skip_streak=3"]
    result = command("train.py", "--hps", TINY, "--run_dir", "run", *settings)
    assert result.returncode == 1
    assert re.search(
        r"error: the last 4 updates were all skipped: train.skip_threshold is 1e-09, and the last gradient norms were "
        r"0\.\d+(, [01]\.\d+){3}\. .* or to auto; .* lower train.lr, ",
        result.stderr,
    )
    assert result.stderr.count("\n") == 1


def test_an_image_that_cannot_be_read_ends_the_run_in_one_line(command: Command, tmp_path: Path) -> None:
    """In a set that is kept as image files, whichever process decodes it."""
    names = [f"{i}.png" for i in range(8)]
    for name in names:
        iio.imwrite(tmp_path / name, np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8))
    rule = Rule("all.txt", None, 0, 8)
    splits = dict.fromkeys(("train", "valid", "test"), rule)
    (tmp_path / "data/mine").mkdir(parents=True)
    (tmp_path / "data/mine/all.txt").write_text("\n".join(names))
    manifest = Manifest("mine", 28, 1, 8, None, False, "", {"all.txt": File(8, "")}, splits, str(tmp_path))
    manifest.write(tmp_path / "data/mine")
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:500])
    for workers in (1, 2):
        settings = ["data.dataset=mine", f"data.workers={workers}", "train.max_steps=3"]
        result = command("train.py", "--hps", TINY, "--run_dir", f"run{workers}", *settings)
        assert result.returncode == 2
        assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/5.png is damaged")
        assert "Traceback" not in result.stderr


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """Runs train.py in this process; checks status 2 and a single line, and returns it."""
    monkeypatch.setattr("sys.argv", ["train.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        train.main()
    assert exit_info.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: --hps; train.py --help lists the arguments"),
        (["--hps", TINY, "--rundir", "x"], "unrecognized arguments: --rundir"),
        (["--hps", "fashoin"], "there is no preset 'fashoin' (did you mean 'fashion'?)"),
        (["--hps", TINY, "train.lrr=1"], "unknown key train.lrr (did you mean 'lr'?)"),
        (["--hps", TINY, "train.lr=high"], "train.lr must be a number, not 'high'"),
        (["--hps", TINY, "model.enc_blocks=28d3"], "'28d3' cannot pool resolution 28 by 3"),
        (["--hps", TINY, "model.dec_blocks=1x1,4m1,28m4"], "needs the encoder at resolution 4"),
        (["--hps", TINY, "model.dec_blocks=1x1,28m7"], "'28m7' mixes in resolution 7, where no earlier block works"),
        (["--hps", "cifar10"], "data set cifar10 is not at data/cifar10: run ./setup_data.sh cifar10"),
        (["--hps", "cifar10", "data.dataset=fashion_mnist_9k_1k"], "but the model has model.image_channels 3"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments: list[object],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, monkeypatch, *arguments)
    assert not any(tmp_path.iterdir())


def test_a_batch_that_cannot_be_divided_is_said_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the first of three processes; the others end silently."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "train.batch_size 8 cannot be divided among 3 processes" in refused(capsys, monkeypatch, "--hps", TINY)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        train.main()
    assert capsys.readouterr().err == ""


def test_a_folder_that_is_no_run_is_left_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    said = refused(capsys, monkeypatch, "--hps", TINY, "--run_dir", tmp_path)
    assert "exists and is not a run directory; choose another --run_dir" in said
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_cannot_go_on_as_another(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(TINY, run / "config.yaml")
    said = refused(capsys, monkeypatch, "--hps", TINY, "--run_dir", run, "model.zdim=3", "train.batch_size=4")
    assert "holds a run with other values of model.zdim, train.batch_size" in said
    assert (run / "config.yaml").read_text() == TINY.read_text()


def test_fewer_steps_than_a_run_has_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    before = sorted(run.rglob("*"))
    said = refused(capsys, monkeypatch, "--hps", TINY, "--run_dir", run, "train.max_steps=5")
    assert "has made 6 updates already; train.max_steps 5 must be at least that" in said
    assert sorted(run.rglob("*")) == before


def test_status_2_without_a_traceback(command: Command) -> None:
    result = command("train.py", "--hps", "nothing")
    assert result.returncode == 2
    assert result.stderr.startswith("error: there is no preset 'nothing'")
    assert result.stdout == ""
