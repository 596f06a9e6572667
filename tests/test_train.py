"""Whole runs, as people start them: resuming, several processes, and what is refused before anything is written."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from tests.conftest import ROOT, TINY, Command, assert_refused, says
from vdvae.config import load_config
from vdvae.counting.memory import memory_of_step
from vdvae.data.manifest import File, Manifest
from vdvae.data.splits import Rule
from vdvae.run import checkpoint
from vdvae.run.auto import USABLE
from vdvae.run.log import START

TIMINGS = {"images_per_second"}


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def log_of(run: Path) -> list[dict[str, Any]]:
    """What was made, without how often it was started and how fast it was."""
    made = [line for line in lines_of(run) if line["kind"] != START]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in made]


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


@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.long)])
def test_a_run_and_its_resumption(processes: int, call: Command, command: Command, tmp_path: Path) -> None:
    """From start to test NLL; then from a checkpoint that lies between two reports: the same to the last bit."""
    arguments = ["train.py", "--hps", TINY, "--run_dir", "run", "train.valid_every=4", "train.images_every=4"]
    arguments += ["train.keep_last=3"]
    start = partial(command, processes=processes) if processes else call
    first = start(*arguments)
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
    says(first.stdout, f"test bits/dim: {log[-1]['bits_per_dim']:.4f} PNG 1,000 5.19 4.07 WebP 3.85")
    assert log[-1]["num_images"] == 1000
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        f"{kind}-{step:08d}.png" for kind in ("reconstructions", "samples") for step in (4, 6)
    ]
    assert iio.imread(run / "samples/samples-00000006.png").shape == (4 * 58 + 2, 8 * 58 + 2)

    undisturbed = checkpoint.read(run / "checkpoints/step-00000006.pt")
    for step in (4, 6):  # 4 is there because a validation begins with a checkpoint
        (run / f"checkpoints/step-{step:08d}.pt").unlink()
    again = start(*arguments)
    assert again.returncode == 0, again.stderr
    assert "resuming after step 3" in again.stdout
    assert_same_tensors(checkpoint.read(run / "checkpoints/step-00000006.pt").state, undisturbed.state)
    assert log_of(run) == log

    finished = start(*arguments)
    assert "resuming after step 6" in finished.stdout
    assert finished.stdout.splitlines()[-4:] == first.stdout.splitlines()[-4:]


def test_changed_settings_are_told_and_logged(call: Command, tmp_path: Path) -> None:
    """When they change, and when they change back; infinities too, and what was never trained with."""
    train = ["train.py", "--hps", TINY, "--run_dir", "run"]
    steps = [(2, ["train.lr=1e-3", "train.skip_threshold=inf"]), (3, ["train.lr=0.002", "train.compile=true"])]
    first, second = (call(*train, "train.fast=false", *more, "--max_steps", step) for step, more in steps)
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert "changed: " not in first.stdout
    changed = ["train.lr 0.001 -> 0.002", "train.skip_threshold inf -> 1000.0", "train.compile false -> true"]
    assert told_changes(second.stdout) == sorted(changed)
    back = call(*train, "train.fast=false", "--max_steps", 4)
    assert told_changes(back.stdout) == ["train.compile true -> false", "train.lr 0.002 -> 0.001"]
    same = call(*train, "train.fast=false", "--max_steps", 5)
    assert told_changes(same.stdout) == []
    starts = [line for line in lines_of(tmp_path / "run") if line["kind"] == START]
    assert [line["settings"]["train.lr"] for line in starts] == [1e-3, 2e-3, 1e-3, 1e-3]
    assert starts[1]["changed"]["train.skip_threshold"] == ["inf", 1000]
    assert [(line["kind"], line["step"]) for line in lines_of(tmp_path / "run")] == [
        *(("start", 0), ("train", 2), ("start", 2), ("start", 3), ("train", 4), ("start", 4)),
    ]


AUTO = ["train.py", "--hps", TINY, "--run_dir", "run", "train.micro_batch=auto"]


def test_what_the_hardware_decided_is_told_and_logged(
    call: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.yaml keeps the word, so that a run can go on with other hardware; where that changes its loss curve, it
    says so.
    """
    first = call(*AUTO, "--max_steps", 2)
    assert first.returncode == 0, first.stderr
    says(first.stdout.splitlines()[0], "1 x cpu, fp32, micro-batches of 8, from the start")
    written = load_config(str(tmp_path / "run/config.yaml")).train
    assert (written.micro_batch, written.precision) == ("auto", "auto")
    trained = checkpoint.read(tmp_path / "run/checkpoints/step-00000002.pt").config.train
    assert (trained.micro_batch, trained.precision) == (8, "fp32")
    same = call(*AUTO, "--max_steps", 3)
    assert told_changes(same.stdout) == []

    peak = memory_of_step(replace(load_config(str(TINY)), train=trained), 4).peak
    monkeypatch.setattr("vdvae.run.auto.free_memory", lambda _device: int(peak / USABLE) + 1000)
    monkeypatch.setattr("vdvae.run.auto.best_precision", lambda _device: "tf32")
    monkeypatch.setattr("vdvae.run.auto.WORSE_FIRST", ("fp32", "tf32"))
    elsewhere = call(*AUTO, "--max_steps", 4)
    assert told_changes(elsewhere.stdout) == ["train.micro_batch 8 -> 4", "train.precision fp32 -> tf32"]
    starts = [line["settings"] for line in lines_of(tmp_path / "run") if line["kind"] == START]
    assert [start["train.micro_batch"] for start in starts] == [8, 8, 4]
    assert [start["train.precision"] for start in starts] == ["fp32", "fp32", "tf32"]


def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(
    call: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdvae.run.auto.free_memory", lambda _device: 100_000)
    assert_refused(call(*AUTO), "one image GB memory train.micro_batch=1")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert call(*AUTO[:-1], "train.micro_batch=1", "--max_steps", 1).returncode == 0


@pytest.mark.long
def test_two_processes_choose_alike_and_one_goes_on(command: Command) -> None:
    first = command(*AUTO, "--max_steps", 3, processes=2)
    assert first.returncode == 0, first.stderr
    says(first.stdout, "2 x cpu, fp32, micro-batches of 4, from the start")
    again = command(*AUTO)
    assert again.returncode == 0, again.stderr
    assert told_changes(again.stdout) == ["train.micro_batch 4 -> 8"]


def told_changes(out: str) -> list[str]:
    return sorted(line.removeprefix("changed: ") for line in out.splitlines() if line.startswith("changed: "))


def test_every_start_says_what_it_is_made_on(call: Command, run: Path) -> None:
    """As evaluate.py --json does."""
    assert call("train.py", "--hps", TINY, "--run_dir", "run").returncode == 0
    assert call("scripts/evaluate.py", "run", "--json", "nll.json").returncode == 0
    first, again = (line for line in lines_of(run) if line["kind"] == START)
    measured = json.loads((run.parent / "nll.json").read_text())
    facts = {"time", "command", "git", "vdvae", "torch", "python", "hardware", "processes"}
    assert facts <= first.keys() & again.keys() & measured.keys()
    assert again["command"] == f"{ROOT}/train.py --hps {TINY} --run_dir run"
    assert (again["step"], again["processes"], again["torch"]) == (6, 1, torch.__version__)
    assert [line["kind"] for line in lines_of(run)][-2:] == [START, "test"]


def test_a_run_knows_where_its_images_are(call: Command, tmp_path: Path) -> None:
    assert call("train.py", "--hps", TINY, "--run_dir", "run", "data.root=sets", "--max_steps", 1).returncode == 0
    assert load_config(str(tmp_path / "run/config.yaml")).data.root == str(tmp_path / "sets")
    assert checkpoint.read_run(tmp_path / "run").config.data.root == str(tmp_path / "sets")


@pytest.mark.long
def test_deterministic_training_is_what_a_cpu_does_anyway(command: Command, finished_run: Path, tmp_path: Path) -> None:
    """Every operation of training, validation and pictures has an algorithm that PyTorch takes for deterministic."""
    settings = ["train.deterministic=true", "train.images_every=2", "train.valid_every=4"]
    result = command("train.py", "--hps", TINY, "--run_dir", "run", *settings)
    assert result.returncode == 0, result.stderr
    ours, usual = (checkpoint.read_run(run) for run in (tmp_path / "run", finished_run))
    assert ours.config.train.deterministic
    assert_same_tensors(ours.state, usual.state)


@pytest.mark.long
def test_faults_on_one_rank_are_skipped_by_both(command: Command) -> None:
    """NaN, infinity and 1e15 in gradients, NaN in a loss, garbage for images: nothing stored is touched, and training
    comes to its usual loss.
    """
    result = command("tests/training/faults_on_one_rank.py", processes=2)
    assert result.returncode == 0, result.stderr


def test_a_streak_of_skipped_updates_ends_the_run(call: Command) -> None:
    """With the usual norm and the threshold named, as users of the original asked (openai/vdvae #25)."""
    settings = ["train.skip_threshold=1e-9", "train.max_skip_streak=3"]
    result = call("train.py", "--hps", TINY, "--run_dir", "run", *settings)
    assert result.returncode == 1
    says(result.stderr, "error: train.skip_threshold 1e-09 auto train.lr")
    assert re.search(r"0\.\d+(, [01]\.\d+){3}", result.stderr)
    assert result.stderr.count("\n") == 1


def test_an_image_that_cannot_be_read_ends_the_run_in_one_line(
    call: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a set that is kept as image files, whichever thread decodes it, and however long the name of the temporary
    folder, where a socket could not be.
    """
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("long" * 30)))
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
        result = call("train.py", "--hps", TINY, "--run_dir", f"run{workers}", *settings)
        assert result.returncode == 2
        says(result.stderr.splitlines()[-1], f"error: {tmp_path}/5.png")
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--hps --help"),
        (["--hps", TINY, "--rundir", "x"], "--rundir"),
        (["--hps", "fashoin"], "'fashoin' 'fashion'"),
        (["--hps", TINY, "train.lrr=1"], "train.lrr 'lr'"),
        (["--hps", TINY, "train.lr=high"], "train.lr number 'high'"),
        (["--hps", TINY, "model.enc_blocks=28d3"], "'28d3' 28 3"),
        (["--hps", TINY, "model.dec_blocks=1x1,4m1,28m4"], "encoder 4"),
        (["--hps", TINY, "model.dec_blocks=1x1,28m7"], "'28m7' 7"),
        (["--hps", "cifar10"], "data/cifar10 ./setup_data.sh"),
        (["--hps", "cifar10", "data.dataset=fashion_mnist_9k_1k"], "fashion_mnist_9k_1k model.image_channels 3"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments: list[object], words: str, call: Command, tmp_path: Path
) -> None:
    assert_refused(call("train.py", *arguments), words)
    assert not any(tmp_path.iterdir())


def test_a_batch_that_cannot_be_divided_is_said_once(call: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the first of three processes; the others end silently."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert_refused(call("train.py", "--hps", TINY), "train.batch_size 8 3")
    monkeypatch.setenv("RANK", "1")
    result = call("train.py", "--hps", TINY)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "")


def test_a_folder_that_is_no_run_is_left_alone(call: Command, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert_refused(call("train.py", "--hps", TINY, "--run_dir", tmp_path), f"{tmp_path} --run_dir")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_cannot_go_on_as_another(call: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(TINY, run / "config.yaml")
    result = call("train.py", "--hps", TINY, "--run_dir", run, "model.zdim=3", "train.batch_size=4")
    assert_refused(result, "model.zdim train.batch_size")
    assert (run / "config.yaml").read_text() == TINY.read_text()


def test_fewer_steps_than_a_run_has_made(call: Command, run: Path) -> None:
    before = sorted(run.rglob("*"))
    assert_refused(call("train.py", "--hps", TINY, "--run_dir", run, "train.max_steps=5"), "6 train.max_steps 5")
    assert sorted(run.rglob("*")) == before


def test_status_2_without_a_traceback(command: Command) -> None:
    assert_refused(command("train.py", "--hps", "nothing"), "'nothing'")
