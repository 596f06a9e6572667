"""Kills, cuts off and restarts small runs, and compares what comes out with undisturbed ones.

python scripts/soak.py --json results/soak.json      everything, about half an hour on 2 cores
python scripts/soak.py kill hosts --kills 5          two of the trials, the first with fewer kills
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from vdvae import VDVAE
from vdvae.config import load_config
from vdvae.errors import CommandLine, UserError, exit_on_user_error
from vdvae.run import checkpoint
from vdvae.run.checkpoint_writer import CheckpointWriter
from vdvae.run.directory import RunDirectory
from vdvae.runtime.processes import World
from vdvae.runtime.results import prepare_result, write_result
from vdvae.training.update import Update

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
SMALL = """
base: fashion
model: {width: 8, custom_width_str: "", zdim: 2, num_mixtures: 2}
train: {batch_size: 8, ema_decay: 0.9, cooldown_steps: 0, eval_batch: 250, skip_threshold: auto,
        print_every: 20, checkpoint_every: 5, valid_every: 500, images_every: 500, timeout_minutes: 1}
"""
PROGRESS_SECONDS = 120
"""Without any for so long, a trial has failed."""
ADDRESSES = {"left": "10.77.0.1", "right": "10.77.0.2"}


@dataclass
class Soak:
    """Where and how the trials run. Each is a method, and returns its figures; `passed` is among them."""

    folder: Path
    kills: int
    random: random.Random

    def kill(self) -> dict[str, Any]:
        """kill -9 at random moments, half of them as soon as a checkpoint is being written."""
        steps = 300 + 60 * self.kills
        self.finish(self.command("undisturbed", steps))
        hit: Counter[str] = Counter()
        for number in tqdm(range(self.kills), "kill", leave=False):
            process = self.start(self.command("killed", steps))
            time.sleep(self.random.uniform(0, 7))
            if number % 2:
                wait_for(lambda: self.is_writing("killed"), process)
            process.kill()
            if process.wait() != -signal.SIGKILL:
                raise UserError(f"kill: a run ended by itself with status {process.returncode}: {self.said(process)}")
            hit["while a checkpoint was written" if self.is_writing("killed") else "otherwise"] += 1
        reached = self.newest("killed")
        self.finish(self.command("killed", steps))
        return {"kills": hit, "step_at_last_kill": reached, "steps": steps, **self.comparison("undisturbed", "killed")}

    def kill_one_of_two(self) -> dict[str, Any]:
        """kill -9 of one of two processes at random moments; torchrun restarts both."""
        steps = 300 + 60 * self.kills
        launch = ("--standalone", "--nproc_per_node=2", f"--max_restarts={self.kills}")
        self.finish(self.command("undisturbed2", steps, torchrun=launch))
        process = self.start(self.command("killed2", steps, torchrun=launch))
        workers: set[int] = set()
        kills = reached = 0
        for _ in tqdm(range(self.kills), "kill_one_of_two", leave=False):
            if not wait_for(partial(has_restarted, process, workers), process):
                break
            workers |= children(process)
            time.sleep(self.random.uniform(0, 9))
            if not (alive := sorted(children(process) & workers)):
                continue  # they were between two starts
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(alive), signal.SIGKILL)
                kills, reached = kills + 1, self.newest("killed2")
        self.await_success(process)
        same = self.comparison("undisturbed2", "killed2")
        return {"kills": kills, "step_at_last_kill": reached, "steps": steps, **same}

    def processes(self) -> dict[str, Any]:
        """The same run by 1, 2 and 4 processes: how far the losses of an update are apart."""
        steps, losses = 100, {}
        for count in (1, 2, 4):
            launch = ("--standalone", f"--nproc_per_node={count}")
            every = ("train.micro_batch=2", "train.print_every=1")
            self.finish(self.command(f"by{count}", steps, *every, torchrun=launch))
            losses[count] = self.losses(f"by{count}")
        apart = {f"{count} processes": differences(losses[1], losses[count]) for count in (2, 4)}
        passed = all(figures["10 updates"] < 1e-5 for figures in apart.values())
        return {"passed": passed, "largest_relative_difference_to_1_process": apart}

    def hosts(self) -> dict[str, Any]:
        """Two hosts with a process each: the link is cut, one goes on alone, the other comes back."""
        steps, settings = 900, ("train.micro_batch=2", "train.print_every=1")
        if refusal := connect():
            return {"skipped": f"network namespaces are not permitted here: {refusal}"}
        try:
            self.finish(self.command("alone", steps, *settings))
            both = {host: self.start_host(host, steps, *settings) for host in ADDRESSES}
            left = both["left"]
            history = {"both, until the cut": self.progress(150, left)}
            ip("-n left link set wire down")
            history["one, until the other is back"] = self.progress(150, left)
            os.killpg(both["right"].pid, signal.SIGKILL)
            both["right"].wait()
            ip("-n left link set wire up")
            both["right"] = self.start_host("right", steps, *settings)
            for process in both.values():
                self.await_success(process)
        finally:
            disconnect()
        starts = [line for line in self.said(left).splitlines() if "training images of" in line]
        history["both, to the end"] = self.newest("two_hosts")
        sizes = [line.split(", ")[-2] for line in starts]
        alone, two = self.losses("alone"), self.losses("two_hosts")
        nlls = {run: self.log(run)[-1]["bits_per_dim"] for run in ("alone", "two_hosts")}
        return {
            "passed": sizes[0] == sizes[-1] == "2 x cpu" and "1 x cpu" in sizes and len(alone) == len(two) == steps,
            "newest_checkpoint": history,
            "starts": starts,
            "test_bits_per_dim": nlls,
            "largest_relative_difference_to_1_process": differences(alone, two),
        }

    def stall(self) -> dict[str, Any]:
        """How long training waits for a checkpoint of the cifar10 preset, and how long writing it takes: alone, and at
        worst, beside Python code that never gives way.
        """
        config = load_config("cifar10", ["train.micro_batch=1"])
        world = World(0, 1, torch.device("cpu"))
        update = Update(VDVAE(config.model), config.train, world)
        update(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), 0)  # now Adam has moments
        names = ("copy", "write", "write beside a thread that never waits", "longest pause of that thread")
        seconds: dict[str, list[float]] = {name: [] for name in names}
        directory = RunDirectory(self.folder / "stall")
        directory.create(config)
        directory.metrics_file.touch()
        with CheckpointWriter(directory, config, {}) as writer:
            for step in range(3):
                state = update.state_dict()
                began = time.monotonic()
                writer.save(2 * step, state, None)
                copied = time.monotonic()
                writer.failure()
                written = time.monotonic()
                writer.save(2 * step + 1, state, None)
                again = last = time.monotonic()
                pause = 0.0
                while writer.is_writing:
                    now = time.monotonic()
                    pause, last = max(pause, now - last), now
                for name, value in zip(names, (copied - began, written - copied, last - again, pause), strict=True):
                    seconds[name].append(round(value, 4))
        return {
            "passed": writer.failure() is None,
            "megabytes": sum(t.nbytes for t in tensors_of(state)) // 10**6,
            "seconds": seconds,
        }

    def command(self, run: str, steps: int, *settings: str, torchrun: tuple[str, ...] = ()) -> list[str]:
        """Trains the small model in `folder/run`."""
        launch = [sys.executable, *(("-m", "torch.distributed.run", *torchrun) if torchrun else ())]
        return [*launch, str(TRAIN), "--hps", "small.yaml", "--run_dir", run, f"train.max_steps={steps}", *settings]

    def start(self, command: list[str]) -> Popen[bytes]:
        """In a process group of its own, with one thread per process; `said` has what it says."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TRAIN.parent)}
        environment |= (
            {"GLOO_SOCKET_IFNAME": "wire", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if "netns" in command else {}
        )
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as output:
            process = Popen(
                command, cwd=self.folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        Path(output.name).rename(self.folder / f"{process.pid}.log")
        return process

    def start_host(self, host: str, steps: int, *settings: str) -> Popen[bytes]:
        """torchrun in a namespace, for a run of one or two hosts."""
        launch = (
            *("--nnodes=1:2", "--nproc_per_node=1", "--max_restarts=5", "--rdzv_backend=c10d", "--rdzv_id=soak"),
            *(f"--rdzv_endpoint={ADDRESSES['left']}:29477", f"--local_addr={ADDRESSES[host]}"),
            f"--rdzv_conf=is_host={int(host == 'left')},last_call_timeout=10",
        )
        command = self.command("two_hosts", steps, "train.timeout_minutes=0.15", *settings, torchrun=launch)
        return self.start(["ip", "netns", "exec", host, *command])

    def finish(self, command: list[str]) -> None:
        """Runs to the end, which must be a good one."""
        self.await_success(self.start(command))

    def await_success(self, process: Popen[bytes]) -> None:
        """Raises `UserError` unless a process ends well."""
        if process.wait():
            raise UserError(f"status {process.returncode} of {process.args!r}: {self.said(process)[-3000:]}")

    def said(self, process: Popen[bytes]) -> str:
        """Output and errors of a process."""
        return (self.folder / f"{process.pid}.log").read_text()

    def is_writing(self, run: str) -> bool:
        """Whether a checkpoint of a run is half-written."""
        with suppress(FileNotFoundError):
            return any(name.endswith(".tmp") for name in os.listdir(self.folder / run / "checkpoints"))  # noqa: PTH208
        return False

    def newest(self, run: str) -> int:
        """Updates that a run has brought to safety."""
        return max((int(path.stem[5:]) for path in (self.folder / run / "checkpoints").glob("step-*.pt")), default=0)

    def progress(self, more: int, process: Popen[bytes]) -> int:
        """Waits until the run of two hosts has made some more steps; returns how many it has in all."""
        goal = self.newest("two_hosts") + more
        if not wait_for(lambda: self.newest("two_hosts") >= goal, process):
            raise UserError(f"hosts: no progress to step {goal}: {self.said(process)[-3000:]}")
        return self.newest("two_hosts")

    def log(self, run: str) -> list[dict[str, Any]]:
        """metrics.jsonl, without how fast it was."""
        lines = map(json.loads, (self.folder / run / "metrics.jsonl").read_text().splitlines())
        return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]

    def losses(self, run: str) -> list[float]:
        """The loss of each report."""
        return [line["bits_per_dim"] for line in self.log(run) if line["kind"] == "train"]

    def comparison(self, one: str, other: str) -> dict[str, Any]:
        """Whether the last checkpoints (weights, EMA, moments, all else) and the logs are the same to the last bit."""
        states = [checkpoint.read_run(self.folder / run).state for run in (one, other)]
        tensors = [tensors_of(state) for state in states]
        figures = {
            "state_identical": all(is_same(a, b) for a, b in zip(*tensors, strict=True)),
            "tensors_compared": len(tensors[0]),
            "log_identical": self.log(one) == self.log(other),
            "lines_compared": len(self.log(one)),
        }
        return {"passed": figures["state_identical"] and figures["log_identical"], **figures}


TRIALS = ("kill", "kill_one_of_two", "processes", "hosts", "stall")


def main() -> None:
    """Runs the trials one after the other, and prints and writes their figures."""
    parser = CommandLine(description="Kills, cuts off and restarts small runs, and compares.")
    parser.add_argument("trials", nargs="*", metavar="trial", help=f"any of {', '.join(TRIALS)}; default: all")
    parser.add_argument("--kills", type=int, default=50, help="kills in each of the trials that kill; default: 50")
    parser.add_argument("--seed", type=int, default=0, help="what the moments are drawn with")
    parser.add_argument("--json", type=Path, metavar="FILE")
    with exit_on_user_error():
        args = parser.parse_args()
        if unknown := [trial for trial in args.trials if trial not in TRIALS]:
            raise UserError(f"there is no trial {unknown[0]!r}; there are {', '.join(TRIALS)}")
        if args.kills < 1:
            raise UserError(f"--kills must be at least 1, not {args.kills}")
        prepare_result(args.json)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "small.yaml").write_text(SMALL)
        soak = Soak(Path(folder), args.kills, random.Random(args.seed))
        for trial in args.trials or TRIALS:
            began = time.monotonic()
            with exit_on_user_error():
                results[trial] = getattr(soak, trial)()
            results[trial]["minutes"] = round((time.monotonic() - began) / 60, 1)
            print(f"{trial}: {json.dumps(results[trial])}", flush=True)
    if args.json:
        write_result(args.json, torch.device("cpu"), {"kills": args.kills, "seed": args.seed}, results)
    sys.exit(not all(result.get("passed", True) for result in results.values()))


def tensors_of(state: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors of a checkpoint's state, in order."""
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]


def is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the last bit; NaN, which is what a window of norms holds that is not full yet, equals NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def wait_for(condition: Callable[[], bool], process: Popen[bytes]) -> bool:
    """Whether something came to be; it may not, if the process ends or takes too long."""
    gives_up = time.monotonic() + PROGRESS_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > gives_up:
            return False
        time.sleep(0.0005)
    return True


def children(process: Popen[bytes]) -> set[int]:
    """The processes that torchrun has started and that live."""
    try:
        return {int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()}
    except FileNotFoundError:
        return set()


def has_restarted(process: Popen[bytes], workers: set[int]) -> bool:
    """Whether torchrun has two processes that it had not before."""
    return len(children(process) - workers) == 2


def differences(a: list[float], b: list[float]) -> dict[str, float]:
    """The largest relative difference of two losses, over the first updates and over all."""
    apart = [abs(x - y) / abs(x) for x, y in zip(a, b, strict=True)]
    return {f"{n} updates": max(apart[:n]) for n in (1, 10, len(apart))}


def connect() -> str:
    """Makes two network namespaces, joined by a pair of links; says why not where that is not permitted."""
    disconnect()
    try:
        for host in ADDRESSES:
            ip(f"netns add {host}")
        ip("link add wire netns left type veth peer name wire netns right")
        for host, address in ADDRESSES.items():
            ip(f"-n {host} addr add {address}/24 dev wire")
            ip(f"-n {host} link set lo up")
            ip(f"-n {host} link set wire up")
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        disconnect()
        return " ".join(str(getattr(error, "stderr", error)).split())
    return ""


def disconnect() -> None:
    """Removes the namespaces and what is in them."""
    for host in ADDRESSES:
        with suppress(subprocess.CalledProcessError, FileNotFoundError):
            ip(f"netns del {host}")


def ip(arguments: str) -> None:
    """Runs `ip`."""
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True)


if __name__ == "__main__":
    main()
