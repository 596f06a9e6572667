"""The process of one part: goes through its figures, and writes all that it has after each."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from checking.setting import Figures, NotMeasuredError, Setting
from vdvae.errors import one_line
from vdvae.files import atomic_write

OK, FAILED, NOT_MEASURED = "ok", "FAILED", "not measured"


def main() -> None:
    """Runs `check(setting, **arguments)` of a module. Arguments: the module, the file to write, and both as JSON."""
    module, out, setting, arguments = sys.argv[1:]
    figures: Figures = {}
    try:
        for more in importlib.import_module(module).check(Setting(**json.loads(setting)), **json.loads(arguments)):
            figures |= more
            write(Path(out), figures)
        write(Path(out), figures, OK)
    except NotMeasuredError as error:
        write(Path(out), figures, NOT_MEASURED, str(error))
    except Exception as error:
        traceback.print_exc()
        name = "" if type(error).__module__ == "checking.setting" else f"{type(error).__name__}: "
        write(Path(out), figures, FAILED, name + one_line(str(error))[:300])


def write(path: Path, figures: Figures, verdict: str | None = None, reason: str = "") -> None:
    """Puts down what there is; a verdict only at the end."""
    content: dict[str, Any] = {"verdict": verdict, "reason": reason, "figures": figures}
    with atomic_write(path) as file:
        file.write(json.dumps(content).encode())


if __name__ == "__main__":
    main()
