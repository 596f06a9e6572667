"""A part of a check that goes wrong in the way that it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from checking.setting import CheckFailedError, Figures, NotMeasuredError, Setting


def check(setting: Setting, how: str) -> Iterator[Figures]:
    yield {"before": 1, "told": "one figure"}
    if how == "raises":
        raise KeyError("a\nkey")
    if how == "is wrong":
        raise CheckFailedError("2 is not 3")
    if how == "lacks":
        raise NotMeasuredError("needs a moon")
    if how == "out of memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if how == "crashes":
        print("the last words", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "leaves":
        print("good bye", flush=True)
        os._exit(3)
    if how == "hangs":  # as does its child
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        yield {"child": child.pid}
        time.sleep(1000)
    yield {"after": 2}
