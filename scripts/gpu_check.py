"""Checks and measures what only a GPU can show, in the first minutes on one; on a CPU, as far as it goes.

python scripts/gpu_check.py                                  8 minutes; writes gpu-check-CARD.json
python scripts/gpu_check.py --parts losses "recorded step"   only these; a file of the same card keeps its other parts
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from checking import parts
from checking.child import FAILED, NOT_MEASURED
from checking.parts import Part
from checking.runner import SKIPPED, Outcome, as_json, run_part
from checking.setting import Setting

from vdvae.command_line import add_device
from vdvae.config import load_config
from vdvae.errors import CommandLine, UserError, exit_on_interrupt, exit_on_user_error
from vdvae.runtime.device import describe, pick_device
from vdvae.runtime.results import made_on, prepare_result, write_result


@exit_on_interrupt("the file has all parts that were done")
def main() -> None:
    """Runs the parts one after the other, and writes the file anew after each."""
    with exit_on_user_error():
        args = command_line()
        device = pick_device(args.device)
        load_config(args.hps)
        path = (args.json or Path(f"gpu-check-{slug(describe(device))}.json")).absolute()
        prepare_result(path)
    setting = Setting(args.hps, str(device), str(path))
    facts = made_on(device)
    made = {"hps": args.hps, "git": facts["git"], "time": facts["time"]}
    written, outcomes = earlier_parts(path, device), dict[str, Outcome]()
    end = time.monotonic() + 60 * args.minutes
    for part in args.parts:
        print(f"{part.name} ... ", end="", flush=True)
        outcomes[part.name] = outcome = outcome_of(part, setting, end - time.monotonic())
        print(f"{outcome.verdict}, {outcome.seconds:.0f} s", flush=True)
        if outcome.verdict != SKIPPED or part.name not in written:
            written[part.name] = {**made, **as_json(outcome)}
        write_result(path, device, {"minutes": args.minutes}, {"parts": written})
    print_summary(outcomes, path)
    sys.exit(any(outcome.verdict == FAILED for outcome in outcomes.values()))


def command_line() -> argparse.Namespace:
    """What was asked for; raises `UserError` where it cannot be."""
    parser = CommandLine(description="Checks and measures, in a few minutes, everything that only a GPU can show.")
    parser.add_argument("--hps", default="imagenet32", help="preset whose speed is measured, as for train.py")
    add_device(parser)
    parser.add_argument(
        "--minutes", type=float, default=8.0, metavar="M", help="time for all parts; the rest is skipped"
    )
    names = [part.name for part in parts.PARTS]
    parser.add_argument(
        "--parts", nargs="+", metavar="NAME", help=f"parts to run, of: {', '.join(names)}; default: all"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file of all figures; default: gpu-check-CARD.json")
    args = parser.parse_args()
    if not 0 < args.minutes < math.inf:
        raise UserError(f"--minutes must be above 0, not {args.minutes}")
    if unknown := [name for name in args.parts or () if name not in names]:
        raise UserError(f"there is no part {unknown[0]!r}; the parts are {', '.join(names)}")
    args.parts = [part for part in parts.PARTS if args.parts is None or part.name in args.parts]
    return args


def outcome_of(part: Part, setting: Setting, left: float) -> Outcome:
    """What becomes of a part with so many seconds left for the whole check."""
    if part.needs_cuda and not setting.on_gpu:
        return Outcome(NOT_MEASURED, "needs CUDA")
    if left <= 0:
        return Outcome(SKIPPED, "the time of the whole check was up; --minutes gives it more")
    return run_part(part, setting, left)


def earlier_parts(path: Path, device: torch.device) -> dict[str, Any]:
    """The parts in a file that is there, if it is of the same card, each with the preset and the commit it is of."""
    try:
        content = json.loads(path.read_text())
        return dict(content["parts"]) if content["hardware"] == describe(device) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def print_summary(outcomes: dict[str, Outcome], path: Path) -> None:
    """Prints a line for each part, and where the figures are."""
    print()
    for name, outcome in outcomes.items():
        print(f"{name:20} {outcome.verdict:13} {outcome.seconds:6.1f} s  {outcome.told}")
    print(f"figures: {path}")


def slug(name: str) -> str:
    """A name of hardware as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()
