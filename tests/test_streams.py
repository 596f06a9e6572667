"""Where stdout or stderr is lost, the text is lost and the work goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, says
from tests.test_train import log_of

STREAMS = {"PYTHONPATH": str(ROOT / "vdvae")}
"""For the module alone, without the seconds that PyTorch takes to start."""
TRAIN = f"timeout 100 '{sys.executable}' '{ROOT}/train.py' --hps '{TINY}' --run_dir ünï"
SAYS = """
import contextlib, logging, os, sys, warnings
from streams import lose_text_not_work
from tqdm import tqdm

lose_text_not_work()
os.open("precious", os.O_CREAT | os.O_RDWR)
for number in range(3000):
    print("ünï", number)
sys.stdout.flush()
tqdm.write("ünï", file=sys.stderr)
list(tqdm([0], "ünï"))
warnings.warn("ünï")
logging.warning("ünï")
with contextlib.suppress(OSError):
    os.write(1, b"as C does")
print("last")
sys.exit(7)
"""


def shell(folder: Path, line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What people type, in bash, whose status is that of the first command of a pipe that failed."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        cwd=folder,
        env={**os.environ, **own, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


LOST = {
    ">/dev/full": "warning: stdout",
    ">/dev/full 2>&1": "",
    "2>/dev/full": "",
    "| head -1": "",
    "2>&1 | head -1": "",
    "2>&1 | true": "",
    "1>&-": "",
    "2>&-": "",
    "1>&- 2>&-": "",
    "0<&- 1>&- 2>&-": "",
    "0<&- >/dev/full 2>&-": "",
}


@pytest.mark.parametrize("lost", LOST)
def test_whatever_writes_goes_on_to_its_own_status(lost: str, tmp_path: Path) -> None:
    """print, tqdm, warnings, logging, what C writes, and Python's end, whose own status is 120."""
    (tmp_path / "says.py").write_text(SAYS)
    result = shell(tmp_path, f"'{sys.executable}' says.py {lost}", **STREAMS)
    assert result.returncode == 7, result.stderr
    says(result.stderr, LOST[lost])
    for word in ("Traceback", "Error", "Exception", "No space left on device'"):
        assert word not in result.stdout + result.stderr
    assert (tmp_path / "precious").read_bytes() == b""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"PYTHONIOENCODING": "ascii"}, r"\u2192 \xfc \udcff"),
        ({"PYTHONIOENCODING": "ascii:strict"}, r"\u2192 \xfc \udcff"),
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, r"\u2192 \xfc \udcff"),
        ({"LC_ALL": "C", "PYTHONUTF8": "1"}, r"→ ü \udcff"),
        ({"PYTHONIOENCODING": "utf-8"}, r"→ ü \udcff"),
    ],
)
def test_characters_that_a_stream_cannot_have_become_escapes(
    setting: dict[str, str], said: str, unbuffered: str, tmp_path: Path
) -> None:
    (tmp_path / "says.py").write_text(
        "from streams import lose_text_not_work\nlose_text_not_work()\nprint('\\u2192 \\xfc \\udcff')\n"
    )
    result = shell(tmp_path, f"'{sys.executable}' says.py", PYTHONUNBUFFERED=unbuffered, **STREAMS, **setting)
    assert (result.returncode, result.stdout) == (0, f"{said}\n"), result.stderr


@pytest.mark.parametrize(
    "lost",
    [
        ">/dev/full 2>&1",
        pytest.param("| head -1", marks=pytest.mark.long),
        pytest.param("1>&- 2>&-", marks=pytest.mark.long),
    ],
)
def test_training_goes_on(lost: str, tmp_path: Path) -> None:
    """To the test, with status 0; and with a name that ASCII has not."""
    result = shell(tmp_path, f"{TRAIN} {lost}", PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert [line["kind"] for line in log_of(tmp_path / "ünï")] == ["train", "train", "train", "test"]


@pytest.mark.long
def test_a_run_directory_whose_name_is_no_text(tmp_path: Path) -> None:
    """Bytes that are not UTF-8: TensorBoard alone cannot write there."""
    result = shell(tmp_path, f"mkdir here; {TRAIN} --run_dir here/$'\\xff'")
    assert result.returncode == 0, result.stderr
    says(result.stderr, "warning: TensorBoard")
    assert result.stderr.count("\n") == 1
    assert r"here/\udcff: 10,802 parameters" in result.stdout
    (run,) = (tmp_path / "here").iterdir()
    assert log_of(run)[-1]["kind"] == "test"


def test_a_signal_saves_without_stderr(tmp_path: Path) -> None:
    """What it says must not keep it from saving."""
    line = f"{TRAIN} train.max_steps=100000 2>/dev/full >/dev/full & pid=$!; "
    line += "until ls ünï/checkpoints/*.pt >/dev/null 2>&1; do sleep 0.1; done; kill -TERM $pid; wait $pid"
    assert shell(tmp_path, line).returncode == 143
    assert log_of(tmp_path / "ünï")[-1]["step"] >= 3
