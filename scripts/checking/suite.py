"""The test suite's CUDA part: the tests with the mark `cuda`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from checking.setting import CheckFailedError, Figures, NotMeasuredError, Setting
from vdvae.errors import one_line

ROOT = Path(__file__).resolve().parents[2]


def check(setting: Setting) -> Iterator[Figures]:
    """How many passed, and what those that did not say."""
    if importlib.util.find_spec("pytest") is None:
        raise NotMeasuredError("needs pytest; python -m pip install pytest")
    yield (figures := run_tests(ROOT / "tests", "cuda and not long"))
    if figures["failures"] or not figures["passed"]:
        names = ", ".join(figures["failures"]) or figures["output"]
        raise CheckFailedError(f"{len(figures['failures'])} of {figures['tests']} tests failed: {names}"[:300])


def run_tests(folder: Path, marks: str) -> Figures:
    """Runs the tests of a folder that have these marks. What libraries warn of is no error here, since the versions of
    a GPU's machine are its own.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.xml")
        options = ["-m", marks, "-W", "default", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(done.stdout)  # the last lines are kept where a test fails
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    failures, skipped = {}, 0
    for case in cases:
        skipped += case.find("skipped") is not None
        for fault in (*case.findall("failure"), *case.findall("error")):
            failures[str(case.get("name"))] = one_line(str(fault.get("message")))[:300]
    passed = len(cases) - len(failures) - skipped
    last = one_line(done.stdout[-300:])
    return {
        "tests": len(cases),
        "passed": passed,
        "skipped": skipped,
        "failures": failures,
        "output": last,
        "told": f"{passed} of {len(cases)} passed",
    }
