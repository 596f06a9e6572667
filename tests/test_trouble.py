"""Whatever happens to a run: the same command goes on, and what comes out is that of an undisturbed run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest

from tests.conftest import ROOT, TINY, Command, assert_refused, call_script, run_command, says
from tests.test_train import assert_same_tensors, log_of
from vdvae import VDVAE
from vdvae.config import Config
from vdvae.data.prepared import load_splits
from vdvae.run import checkpoint
from vdvae.run.directory import RunDirectory
from vdvae.run.log import RunLog
from vdvae.run.summary import draw_pictures

TRAIN = ("train.py", "--hps", str(TINY), "--run_dir", "run")


def start(folder: Path, *settings: str, site: Path | None = None, torchrun: Sequence[str] = ()) -> Popen[str]:
    """train.py on the tiny model in `folder/run`, not waited for; `site` has a sitecustomize.py that disturbs it."""
    path = os.pathsep.join(map(str, [*([site] if site else []), ROOT]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    launch = ["-m", "torch.distributed.run", "--standalone", *torchrun] if torchrun else []
    command = [sys.executable, *launch, str(ROOT / TRAIN[0]), *TRAIN[1:], *settings]
    return Popen(command, cwd=folder, env=environment, stdout=PIPE, stderr=PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    gives_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < gives_up
        time.sleep(0.002)


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("*"))


def assert_same_run(run: Path, undisturbed: Path) -> None:
    """The last checkpoint, bit for bit, and every line of the log."""
    last = max((undisturbed / "checkpoints").glob("*.pt")).name
    a, b = checkpoint.read(run / "checkpoints" / last), checkpoint.read(undisturbed / "checkpoints" / last)
    assert_same_tensors(a.state, b.state)
    assert log_of(run) == log_of(undisturbed)


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of 60 updates, with validations; LONGER are its settings."""
    folder = tmp_path_factory.mktemp("longer")
    result = call_script(folder, *TRAIN, *LONGER)
    assert result.returncode == 0, result.stderr
    return folder / "run"


LONGER = ["train.max_steps=60", "train.valid_every=20", "train.print_every=7", "train.keep_last=3"]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_saves_and_the_same_command_goes_on(number: int, longer: Path, tmp_path: Path) -> None:
    with start(tmp_path, *LONGER) as process:
        wait_for(lambda: bool(checkpoints(tmp_path / "run")))
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == 128 + number
    says(err, f"{signal.Signals(number).name}: once more")
    assert err.count("\n") == 2  # an empty line before, as a bar may be there
    step = checkpoint.read_run(tmp_path / "run").step
    assert f"step {step} of 60" in out
    again = call_script(tmp_path, *TRAIN, *LONGER)
    assert f"after step {step}" in again.stdout
    assert_same_run(tmp_path / "run", longer)


@pytest.mark.long
def test_a_signal_during_validation_ends_at_once_and_loses_nothing(longer: Path, tmp_path: Path) -> None:
    """The checkpoint is written before, and the validation made by the run that goes on."""
    with start(tmp_path, *LONGER) as process:
        wait_for(lambda: "step-00000020.pt" in checkpoints(tmp_path / "run"))
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == 143
    says(err, "SIGTERM:")
    assert checkpoint.read_run(tmp_path / "run").step == 20
    again = call_script(tmp_path, *TRAIN, *LONGER)
    assert "after step 20" in again.stdout
    assert_same_run(tmp_path / "run", longer)


@pytest.mark.long
def test_torchrun_passes_on_a_signal_and_all_processes_end_together(tmp_path: Path) -> None:
    with start(tmp_path, "train.max_steps=100000", torchrun=["--nproc_per_node=2"]) as process:
        wait_for(lambda: bool(checkpoints(tmp_path / "run")))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    step = checkpoint.read_run(tmp_path / "run").step
    assert f"step {step:,} of 100,000" in out
    assert err.count("SIGTERM: ") == 1
    assert "error: " not in err


def test_max_steps_and_max_hours_end_a_run_that_goes_on(call: Command, finished_run: Path, tmp_path: Path) -> None:
    first = call(*TRAIN, "--max_steps", 2)
    assert first.returncode == 0
    assert "step 2 of 6" in first.stdout
    assert "--max_steps" in first.stdout
    assert checkpoints(tmp_path / "run") == ["step-00000002.pt"]
    second = call(*TRAIN, "--max_hours", 1e-9)
    assert second.returncode == 0
    assert "step 3 of 6" in second.stdout
    assert call(*TRAIN, "--max_steps", 99, "--max_hours", 1).returncode == 0
    assert_same_run(tmp_path / "run", finished_run)


DIES = """
import itertools, os
flush, number = os.fsync, itertools.count(1)
os.fsync = lambda file: os.kill(os.getpid(), 9) if next(number) == int(os.environ["DIES"]) else flush(file)
"""


@pytest.mark.parametrize(("flushes", "step"), [([9], 6), pytest.param([1, 4, 7, 10, 9, 3], 12, marks=pytest.mark.long)])
def test_kill_9_while_files_are_written(
    flushes: list[int], step: int, longer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other where config.yaml, the log, and a checkpoint and its name are brought to the disk;
    scripts/soak.py kills at random moments.
    """
    (tmp_path / "sitecustomize.py").write_text(DIES)
    for flush in flushes:
        monkeypatch.setenv("DIES", str(flush))
        with start(tmp_path, *LONGER, site=tmp_path) as process:
            process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert checkpoint.read_run(tmp_path / "run").step == step
    assert call_script(tmp_path, *TRAIN, *LONGER).returncode == 0
    assert_same_run(tmp_path / "run", longer)
    assert not any(name.endswith(".tmp") for name in checkpoints(tmp_path / "run"))


DIES_ONCE = """
import os, threading, time
def die():
    while not os.path.exists("run/checkpoints/step-00000009.pt"):
        time.sleep(0.001)
    os.kill(os.getpid(), 9)
if os.environ.get("RANK") == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    threading.Thread(target=die, daemon=True).start()
"""


@pytest.mark.long
def test_one_of_two_processes_dies_and_torchrun_restarts_both(tmp_path: Path) -> None:
    logs = []
    for site in (None, tmp_path):
        folder = tmp_path / ("disturbed" if site else "undisturbed")
        folder.mkdir()
        (tmp_path / "sitecustomize.py").write_text(DIES_ONCE)
        with start(folder, *LONGER, site=site, torchrun=["--nproc_per_node=2", "--max_restarts=1"]) as process:
            out, err = process.communicate()
        assert process.returncode == 0, err
        logs.append(out + err)
    says(logs[1], "error: lost resumes")
    assert "after step " in logs[1]
    assert_same_run(tmp_path / "disturbed/run", tmp_path / "undisturbed/run")


SLOW_AT_THE_END = """
import imageio.v3, os, time
encode, begins = imageio.v3.imwrite, time.monotonic()
def imwrite(*arguments, **options):
    time.sleep(1.5)
    with open(os.environ["PICTURES"], "a") as file:
        print(os.environ["RANK"], file=file)
    return encode(*arguments, **options)
imageio.v3.imwrite = imwrite
import vdvae.evaluation.png
vdvae.evaluation.png.png_bits_per_dim.__defaults__ = (6, 8)
"""


@pytest.mark.long
def test_one_summarises_for_longer_than_the_others_would_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others have left; the run has ended well, and was tested once."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_AT_THE_END)
    monkeypatch.setenv("PICTURES", str(tmp_path / "pictures"))
    settings = ["train.timeout_minutes=0.15"]
    with start(tmp_path, *settings, site=tmp_path, torchrun=["--nproc_per_node=2", "--max_restarts=1"]) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert "error: " not in err
    assert "PNG on 6 of the 1,000 images" in out
    assert (tmp_path / "pictures").read_text().split() == ["0"] * 12  # 2 pictures, 6 files, 2 strips of either kind
    assert [line["kind"] for line in log_of(tmp_path / "run")].count("test") == 1
    assert len(list((tmp_path / "run/samples").iterdir())) == 2


DRAWS_SLOWLY = """
import os, time
import vdvae.run.summary as summary
draw = summary.sample_grid
def sample_grid(*arguments):
    time.sleep(12)
    with open(os.environ["PICTURES"] + os.environ["RANK"], "w"):
        return draw(*arguments)
summary.sample_grid = sample_grid
"""


@pytest.mark.long
def test_pictures_on_the_way_take_longer_than_processes_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 seconds, where they give up after 9: all draw, and one writes."""
    (tmp_path / "sitecustomize.py").write_text(DRAWS_SLOWLY)
    monkeypatch.setenv("PICTURES", str(tmp_path / "drawn-"))
    settings = ["train.timeout_minutes=0.15", "train.images_every=4", "--max_steps=5"]
    with start(tmp_path, *settings, site=tmp_path, torchrun=["--nproc_per_node=2"]) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert "error: " not in err
    assert "step 5 of 6" in out
    assert sorted(path.name for path in tmp_path.glob("drawn-*")) == ["drawn-0", "drawn-1"]
    pictures = sorted(path.name for path in (tmp_path / "run/samples").iterdir())
    assert pictures == ["reconstructions-00000004.png", "samples-00000004.png"]


FAILS_ONCE = """
import os
import vdvae.run.progress as progress
count = progress.Progress.step
def step(self):
    if os.environ.get("RANK") == "1":
        raise KeyError("a bug of one process")
    count(self)
progress.Progress.step = step
"""


@pytest.mark.long
def test_an_error_in_one_of_two_processes_ends_both(tmp_path: Path) -> None:
    """With its traceback, once; the other says that it lost it, or is ended by torchrun before."""
    (tmp_path / "sitecustomize.py").write_text(FAILS_ONCE)
    with start(tmp_path, site=tmp_path, torchrun=["--nproc_per_node=2"]) as process:
        _, err = process.communicate()
    assert process.returncode == 1
    assert err.count("KeyError: 'a bug of one process'") == 1


def test_a_finished_run_has_not_failed_where_its_summary_does(
    call: Command, monkeypatch: pytest.MonkeyPatch, finished_run: Path, tmp_path: Path
) -> None:
    """torchrun would restart it, to be tested again."""

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vdvae.run.summary.save_png", fails)
    monkeypatch.setattr("vdvae.run.summary.png_bits_per_dim", fails)
    result = call(*TRAIN)
    assert result.returncode == 0
    says(result.stdout, "test bits/dim: PNG No space left TensorBoard:")
    assert result.stderr.count("warning: ") == 2
    assert_same_run(tmp_path / "run", finished_run)


def test_a_row_of_large_pictures_is_short(tiny: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """While one draws them, the others wait."""
    rows: list[int] = []
    monkeypatch.setattr("vdvae.run.summary.sample_grid", lambda _ema, _temperatures, columns: rows.append(columns))
    monkeypatch.setattr("vdvae.run.summary.reconstruction_grid", lambda _ema, originals: rows.append(len(originals)))
    monkeypatch.setattr("vdvae.run.summary.save_png", lambda *_: None)
    splits, directory = load_splits(tiny.data, tiny.model), RunDirectory(tmp_path)
    model = VDVAE(tiny.model)
    with closing(RunLog(directory, model, 0, writes=False)) as log:
        for most in (1 << 20, 3 * 28 * 28, 1):
            monkeypatch.setattr("vdvae.run.summary.MOST_PIXELS", most)
            draw_pictures(model, splits, 8, directory, 6, log)
    assert rows == [8, 8, 3, 3, 1, 1]


def test_a_second_run_in_the_same_directory_is_refused(call: Command, tmp_path: Path) -> None:
    with start(tmp_path, "train.max_steps=100000") as process:
        assert process.stdout is not None
        process.stdout.readline()
        before = sorted(tmp_path.rglob("*.yaml"))
        second = call(*TRAIN)
        process.kill()
        process.communicate()
    assert_refused(second, f"run process {process.pid}")
    assert sorted(tmp_path.rglob("*.yaml")) == before
    assert call(*TRAIN, "train.max_steps=100000", "--max_steps", 1).returncode == 0


@pytest.mark.parametrize(
    ("processes", "precision"),
    [(2, "fp32"), pytest.param(4, "fp32", marks=pytest.mark.long), pytest.param(4, "bf16", marks=pytest.mark.long)],
)
def test_several_processes_have_the_losses_of_one(processes: int, precision: str, tmp_path: Path) -> None:
    """Up to the order of summation: the noise of a micro-batch is a function of its place in the global batch."""
    logs: list[list[dict[str, Any]]] = []
    for start_training in (call_script, partial(run_command, processes=processes)):
        folder = tmp_path / str(len(logs))
        folder.mkdir()
        settings = ["train.micro_batch=2", "train.print_every=1", f"train.precision={precision}"]
        result = start_training(folder, *TRAIN, *settings)
        assert result.returncode == 0, result.stderr
        logs.append([line for line in log_of(folder / "run") if line["kind"] == "train"])
    for one, other in zip(*logs, strict=True):
        assert other["bits_per_dim"] == pytest.approx(one["bits_per_dim"], rel=1e-6)
        assert other["grad_norm_max"] == pytest.approx(one["grad_norm_max"], rel=1e-4)


@pytest.mark.long
def test_another_number_of_processes_goes_on(command: Command, tmp_path: Path) -> None:
    """With the same batches; the losses between two reports are not lost."""
    assert command(*TRAIN, "--max_steps", 3, "train.micro_batch=4", processes=2).returncode == 0
    assert call_script(tmp_path, *TRAIN, "train.micro_batch=4").returncode == 0
    alone = tmp_path / "alone"
    alone.mkdir()
    assert call_script(alone, *TRAIN, "train.micro_batch=4").returncode == 0
    for ours, undisturbed in zip(log_of(tmp_path / "run"), log_of(alone / "run"), strict=True):
        assert ours["bits_per_dim"] == pytest.approx(undisturbed["bits_per_dim"], rel=1e-5)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """`tmp_path/run` as a file system of its own, with room for two checkpoints."""
    run = tmp_path / "run"
    run.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(run)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield run
    subprocess.run(["umount", str(run)], check=True)


def test_a_full_disk(call: Command, small_disk: Path, finished_run: Path) -> None:
    """The last checkpoint cannot be written: one sentence, the one before is untouched, and with room it goes on."""
    assert call(*TRAIN, "--max_steps", 3).returncode == 0
    before = (small_disk / "checkpoints/step-00000003.pt").read_bytes()
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        file.write(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize - 100_000))
    full = call(*TRAIN)
    assert full.returncode == 1
    for kind in ("warning: ", "error: "):
        (line,) = (line for line in full.stderr.splitlines() if line.startswith(kind) and "checkpoint" in line)
        says(line, "step 6 No space left run/checkpoints/step-00000006.pt")
    assert "Traceback" not in full.stderr
    assert checkpoints(small_disk) == ["step-00000003.pt"]
    assert (small_disk / "checkpoints/step-00000003.pt").read_bytes() == before

    with pytest.raises(OSError, match="No space left"), ballast.open("ab") as file:
        file.write(bytes(10**6))
    assert_refused(call(*TRAIN), "No space left run/config.yaml")

    ballast.unlink()
    assert call(*TRAIN).returncode == 0
    assert_same_run(small_disk, finished_run)


def test_a_read_only_directory(call: Command, small_disk: Path) -> None:
    """Permissions would not keep root from writing."""
    assert call(*TRAIN, "--max_steps", 3).returncode == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert_refused(call(*TRAIN), "run Read-only --run_dir")


def test_damage_is_told_and_the_checkpoint_before_is_used(call: Command, finished_run: Path, tmp_path: Path) -> None:
    """A bit flipped in the newest checkpoint, and the log cut off in the middle of a line."""
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    newest = run / "checkpoints/step-00000006.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 16
    newest.write_bytes(content)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    result = call(*TRAIN)
    assert result.returncode == 0
    first, second = result.stderr.splitlines()
    says(first, "warning: run/checkpoints/step-00000006.pt damaged before")
    says(second, "warning: run/metrics.jsonl 1 damaged line")
    assert_same_run(run, finished_run)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(call: Command, run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"")
    result = call(*TRAIN)
    assert (result.returncode, result.stdout) == (2, "")
    says(result.stderr, "error: none 2 run/checkpoints")


def test_other_images_under_the_same_name_are_refused(run: Path, call: Command) -> None:
    """A set that was prepared again, from a part of it, say."""
    found = checkpoint.read_run(run)
    checkpoint.save(run / "checkpoints", 6, found.config, found.state, {"t10k-images-idx3-ubyte.gz": "0" * 64})
    assert_refused(call(*TRAIN), "run fashion_mnist_9k_1k checksums")


@pytest.mark.long
def test_a_clock_that_jumps(finished_run: Path, tmp_path: Path) -> None:
    """By years, back and forth: files are told apart by their steps, and times are taken from a clock that does not."""
    (tmp_path / "sitecustomize.py").write_text(
        "import itertools, time\n"
        "real, jumps = time.time, itertools.cycle([0, -3e8, 3e8, -1e6])\n"
        "time.time = lambda: real() + next(jumps)\n"
    )
    for limit in (["--max_steps", "4", "--max_hours", "1"], []):
        with start(tmp_path, *limit, site=tmp_path) as process:
            out, err = process.communicate()
        assert process.returncode == 0, err
        assert " left, " in out
        assert "-" not in "".join(line for line in out.splitlines() if line.startswith("step "))
    assert_same_run(tmp_path / "run", finished_run)
