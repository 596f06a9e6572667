"""Training runs side by side: one per GPU, or one per CPU core, each resumed where it was interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

import torch
from tqdm import tqdm

from paper.outcome import has_ended
from paper.spec import Run
from vdvae.errors import UserError
from vdvae.runtime.device import available_cores


def train_all(train: Path, runs: Sequence[Run], jobs: int | None) -> None:
    """Makes those of some runs that have not ended yet.

    Args:
        train: train.py.
        runs: in this order.
        jobs: how many at once; None: one for each GPU, or else for each CPU core.

    Raises:
        UserError: a run failed, naming its output; the others under way are finished first.
    """
    missing = {run.directory: run for run in runs if not has_ended(run.directory)}
    cores, gpus = available_cores(), _gpus()
    at_once = jobs or len(gpus) or cores
    free: SimpleQueue[dict[str, str]] = SimpleQueue()  # the environment of each run that may begin
    shared = {"OMP_NUM_THREADS": str(max(1, cores // at_once))} if at_once > 1 else {}  # one finds its best itself
    for slot in range(at_once):
        own = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
        free.put({**os.environ, **shared, **own})
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(_train, train, run, free) for run in missing.values()]
        try:
            for future in tqdm(as_completed(futures), "runs", len(futures), unit="run", disable=None):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return names[:count]


def _train(train: Path, run: Run, free: SimpleQueue[dict[str, str]]) -> None:
    """Makes or resumes a run; raises `UserError` where that fails. To diverge is an outcome, not a failure."""
    output = run.directory.with_name(f"{run.directory.name}.log")
    output.parent.mkdir(parents=True, exist_ok=True)
    environment = free.get()
    command = [sys.executable, str(train), *run.arguments]
    try:
        with output.open("a") as file:
            status = subprocess.call(command, stdout=file, stderr=file, env=environment)
    finally:
        free.put(environment)
    if not has_ended(run.directory):
        last = (output.read_text().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{run.directory} ended with status {status}: {last} (all of it is in {output})")
