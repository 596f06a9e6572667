"""One run at a time in a run directory."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import TextIO

from vdvae.errors import UserError

POLL_SECONDS = 0.2


def lock(path: Path, patience: float) -> TextIO:
    """Takes a lock that the system gives back when this process ends, however it ends.

    Args:
        path: the file to lock; it is made if need be, and says who has it.
        patience: seconds to wait where an earlier start of the same torchrun job has it, which may be ending, or be
            on a machine that is cut off.

    Returns:
        the file, for as long as the lock is needed.

    Raises:
        UserError: another process has it.
        OSError: the file cannot be written.
    """
    file = path.open("a+")
    try:
        _take(file, path, patience)
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(json.dumps({"process": os.getpid(), "host": platform.node(), "since": since, "job": _job()}))
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


def _take(file: TextIO, path: Path, patience: float) -> None:
    gives_up = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(file)
            if _job() is None or holder.get("job") != _job() or time.monotonic() > gives_up:
                process, host, since = (holder.get(key, "?") for key in ("process", "host", "since"))
                raise UserError(
                    f"{path.parent} is in use by process {process} on {host} since {since}; wait for it, stop it, or "
                    "choose another --run_dir"
                ) from None
            time.sleep(POLL_SECONDS)
        except OSError as error:  # some network file systems have no locks
            print(f"warning: {path} cannot be locked ({error.strerror}): start no second run here", file=sys.stderr)
            return


def _holder(file: TextIO) -> dict[str, str]:
    file.seek(0)
    try:
        return dict(json.loads(file.read()))
    except ValueError:  # it is being written
        return {}


def _job() -> str | None:
    """What torchrun calls the job, on all machines and after every restart; None where it has no name of its own."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if job == "none" else job
