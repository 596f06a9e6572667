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
from pathlib import Path
from subprocess import Popen
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from vdvae import VDVAE
from vdvae.command_line import add_json, check_at_least_one
from vdvae.config import load_config
from vdvae.errors import CommandLine, UserError, exit_on_interrupt, exit_on_user_error
from vdvae.run import checkpoint
from vdvae.run.checkpoint_thread import CheckpointWriter
from vdvae.run.directory import RunDirectory
from vdvae.run.log import START
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
CONNECT = """
ip netns add left
ip netns add right
ip link add wire netns left type veth peer name wire netns right
for host in left right; do ip -n $host link set lo up; ip -n $host link set wire up; done
ip -n left addr add 10.77.0.1/24 dev wire
ip -n right addr add 10.77.0.2/24 dev wire
"""
"""Makes two network namespaces, joined by a pair of links."""
DISCONNECT = "for host in left right; do ip netns del $host || true; done"

Figures = dict[str, Any]


class SmallRun:
    """A run of the small model in `folder/name`; its processes say what they say in `folder/name.log`.

    Args:
        folder: folder of all runs, with small.yaml.
        name: name of the run directory.
        steps: `train.max_steps`.
        settings: other settings, section.key=value.
    """

    def __init__(self, folder: Path, name: str, steps: int, *settings: str) -> None:
        self.directory = folder / name
        self.output = folder / f"{name}.log"
        self.command = [str(TRAIN), "--hps", "small.yaml", "--run_dir", name, f"train.max_steps={steps}", *settings]

    def start(self, *torchrun: str, host: str = "") -> Popen[bytes]:
        """Starts the run, in a process group of its own, with one thread per process: under torchrun if there are
        arguments for it, and in the network namespace of a host if one is named.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TRAIN.parent)}
        if host:
            environment |= {"GLOO_SOCKET_IFNAME": "wire", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        launch = [*(["ip", "netns", "exec", host] if host else []), sys.executable]
        launch += ["-m", "torch.distributed.run", *torchrun] if torchrun else []
        with self.output.open("ab") as output:
            return Popen(
                [*launch, *self.command],
                cwd=self.directory.parent,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def failure(self, what: str) -> UserError:
        """What went wrong, and what the processes said last."""
        return UserError(f"{self.directory.name}: {what}: {self.output.read_text()[-3000:]}")

    def finish(self, process: Popen[bytes]) -> None:
        """Raises `UserError` unless a process ends well."""
        if process.wait():
            raise self.failure(f"status {process.returncode}")

    def is_writing(self) -> bool:
        """Whether a checkpoint is half-written."""
        return any(self.directory.glob("checkpoints/*.tmp"))

    def newest(self) -> int:
        """Updates that are in safety."""
        return max((int(path.stem[5:]) for path in self.directory.glob("checkpoints/step-*.pt")), default=0)

    def progress(self, more: int, process: Popen[bytes]) -> int:
        """Waits until some more updates are in safety; returns how many there are in all."""
        goal = self.newest() + more
        if not wait_for(lambda: self.newest() >= goal, process):
            raise self.failure(f"no progress to step {goal}")
        return self.newest()

    def log(self) -> list[Figures]:
        """metrics.jsonl, without how often it was started and how fast it was."""
        lines = map(json.loads, (self.directory / "metrics.jsonl").read_text().splitlines())
        made = [line for line in lines if line["kind"] != START]
        return [{key: value for key, value in line.items() if key != "images_per_second"} for line in made]


def kill(folder: Path, kills: int, chance: random.Random) -> Figures:
    """kill -9 at random moments, half of them as soon as a checkpoint is being written."""
    steps = 300 + 60 * kills
    undisturbed, killed = (SmallRun(folder, name, steps) for name in ("undisturbed", "killed"))
    undisturbed.finish(undisturbed.start())
    hit: Counter[str] = Counter()
    for number in tqdm(range(kills), "kill", leave=False):
        process = killed.start()
        time.sleep(chance.uniform(0, 7))
        if number % 2:
            wait_for(killed.is_writing, process)
        process.kill()
        if process.wait() != -signal.SIGKILL:
            raise killed.failure(f"ended by itself with status {process.returncode}")
        hit["while a checkpoint was written" if killed.is_writing() else "otherwise"] += 1
    reached = killed.newest()
    killed.finish(killed.start())
    return {"kills": hit, "step_at_last_kill": reached, "steps": steps, **comparison(undisturbed, killed)}


def kill_one_of_two(folder: Path, kills: int, chance: random.Random) -> Figures:
    """kill -9 of one of two processes at random moments; torchrun restarts both."""
    steps = 300 + 60 * kills
    undisturbed, killed = (SmallRun(folder, name, steps) for name in ("undisturbed2", "killed2"))
    launch = ("--standalone", "--nproc_per_node=2", f"--max_restarts={kills}")
    undisturbed.finish(undisturbed.start(*launch))
    process = killed.start(*launch)
    workers: set[int] = set()
    done = reached = 0
    for _ in tqdm(range(kills), "kill_one_of_two", leave=False):
        if not wait_for(lambda: len(children(process) - workers) == 2, process):
            break
        workers.update(children(process))
        time.sleep(chance.uniform(0, 9))
        if alive := sorted(children(process) & workers):  # none are between two starts
            with suppress(ProcessLookupError):
                os.kill(chance.choice(alive), signal.SIGKILL)
                done, reached = done + 1, killed.newest()
    killed.finish(process)
    return {"kills": done, "step_at_last_kill": reached, "steps": steps, **comparison(undisturbed, killed)}


def hosts(folder: Path, kills: int, chance: random.Random) -> Figures:
    """Two hosts with a process each: the link is cut, one goes on alone, the other comes back."""
    settings = ("train.micro_batch=2", "train.print_every=1")
    alone = SmallRun(folder, "alone", 900, *settings)
    two = SmallRun(folder, "two_hosts", 900, "train.timeout_minutes=0.15", *settings)

    def start(host: str) -> Popen[bytes]:
        return two.start(
            *("--nnodes=1:2", "--nproc_per_node=1", "--max_restarts=5", "--rdzv_backend=c10d", "--rdzv_id=soak"),
            *(f"--rdzv_endpoint={ADDRESSES['left']}:29477", f"--local_addr={ADDRESSES[host]}"),
            f"--rdzv_conf=is_host={int(host == 'left')},last_call_timeout=10",
            host=host,
        )

    shell(DISCONNECT)
    try:
        if refusal := shell(CONNECT):
            return {"skipped": f"network namespaces are not permitted here: {refusal}"}
        alone.finish(alone.start())
        left, right = start("left"), start("right")
        history = {"both, until the cut": two.progress(150, left)}
        shell("ip -n left link set wire down")
        history["one, until the other is back"] = two.progress(150, left)
        os.killpg(right.pid, signal.SIGKILL)
        right.wait()
        shell("ip -n left link set wire up")
        right = start("right")
        two.finish(left)
        two.finish(right)
    finally:
        shell(DISCONNECT)
    history["both, to the end"] = two.newest()
    starts = [line for line in two.output.read_text().splitlines() if "training images of" in line]
    sizes = [line.split(", ")[-2] for line in starts]
    logs = {run.directory.name: run.log() for run in (alone, two)}
    losses = [[line["bits_per_dim"] for line in log if line["kind"] == "train"] for log in logs.values()]
    apart = [abs(x - y) / abs(x) for x, y in zip(*losses, strict=True)]
    return {
        "passed": sizes[0] == sizes[-1] == "2 x cpu" and "1 x cpu" in sizes and len(apart) == 900,
        "newest_checkpoint": history,
        "starts": starts,
        "test_bits_per_dim": {name: log[-1]["bits_per_dim"] for name, log in logs.items()},
        "largest_relative_difference_to_1_process": {f"{n} updates": max(apart[:n]) for n in (1, 10, len(apart))},
    }


def stall(folder: Path, kills: int, chance: random.Random) -> Figures:
    """How long training waits for a checkpoint of the cifar10 preset, and how long writing it takes: alone, and at
    worst, beside Python code that never gives way.
    """
    config = load_config("cifar10", ["train.micro_batch=1"])
    update = Update(VDVAE(config.model), config.train.resolved(), World(0, 1, torch.device("cpu")))
    update(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), 0)  # now Adam has moments
    names = ("copy", "write", "write beside a thread that never waits", "longest pause of that thread")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    directory = RunDirectory(folder / "stall")
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
    megabytes = sum(tensor.nbytes for tensor in tensors_of(state)) // 10**6
    return {"passed": writer.failure() is None, "megabytes": megabytes, "seconds": seconds}


TRIALS = {trial.__name__: trial for trial in (kill, kill_one_of_two, hosts, stall)}
"""From a folder, the number of kills and a source of chance to figures; `passed` is among them."""


@exit_on_interrupt()
def main() -> None:
    """Runs the trials one after the other, and prints and writes their figures."""
    parser = CommandLine(description="Kills, cuts off and restarts small runs, and compares.")
    names = ", ".join(TRIALS)
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=f"trials to run, of {names}; default: all")
    parser.add_argument("--kills", type=int, default=50, help="kills in each of the trials that kill")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    add_json(parser)
    with exit_on_user_error():
        args = parser.parse_args()
        if unknown := [trial for trial in args.trials if trial not in TRIALS]:
            raise UserError(f"there is no trial {unknown[0]!r}; there are {names}")
        check_at_least_one(args, "kills")
        prepare_result(args.json)
    results, chance = {}, random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "small.yaml").write_text(SMALL)
        for trial in args.trials or TRIALS:
            began = time.monotonic()
            with exit_on_user_error():
                results[trial] = TRIALS[trial](Path(folder), args.kills, chance)
            results[trial]["minutes"] = round((time.monotonic() - began) / 60, 1)
            print(f"{trial}: {json.dumps(results[trial])}", flush=True)
    if args.json:
        write_result(args.json, torch.device("cpu"), {"kills": args.kills, "seed": args.seed}, results)
    sys.exit(not all(result.get("passed", True) for result in results.values()))


def comparison(one: SmallRun, other: SmallRun) -> Figures:
    """Whether the last checkpoints (weights, EMA, moments, all else) and the logs are the same to the last bit."""
    ours, theirs = (tensors_of(checkpoint.read_run(run.directory).state) for run in (one, other))
    same_state, same_log = all(map(is_same, ours, theirs)) and len(ours) == len(theirs), one.log() == other.log()
    return {
        "passed": same_state and same_log,
        "state_identical": same_state,
        "tensors_compared": len(ours),
        "log_identical": same_log,
        "lines_compared": len(one.log()),
    }


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


def shell(script: str) -> str:
    """Runs a script up to its first failure; what that says, on one line, or nothing."""
    result = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False)
    return " ".join(result.stderr.split()) if result.returncode else ""


def children(process: Popen[bytes]) -> set[int]:
    """The processes that torchrun has started and that live."""
    try:
        return {int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()}
    except FileNotFoundError:
        return set()


if __name__ == "__main__":
    main()
