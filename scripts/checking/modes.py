"""The ways in which a training step can run, as overrides of a preset."""

from __future__ import annotations

import torch

MODES = ("eager", "recorded", "compiled", "both")
"""`both` is compiled and recorded."""
COMPILED_MODES = ("compiled", "both")
AUTOTUNED = "autotuned"
"""As `both`, with the kernels of products chosen by trial: minutes until the first step."""


def overrides(mode: str, device: torch.device) -> list[str]:
    """Settings of a mode; what is recorded is a CUDA graph on a GPU, and a list of operations on a CPU."""
    records, on_gpu = mode in ("recorded", "both", AUTOTUNED), device.type == "cuda"
    switches = {
        "fast": True,
        "compile": "autotune" if mode == AUTOTUNED else mode in COMPILED_MODES,
        "cuda_graph": records and on_gpu,
        "replay": records and not on_gpu,
    }
    return [f"train.{name}={str(value).lower()}" for name, value in switches.items()]
