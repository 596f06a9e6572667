"""AdamW and the learning rate of every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vdvae.training.config import TrainConfig
from vdvae.training.flat import Layout


class FlatAdamW:
    """Fused AdamW over all parameters at once, as in the released code: decay on every one of them, epsilon 1e-8.

    To the outside, in `state_dict`, it is a `torch.optim.AdamW` of single parameters.

    Args:
        flat: the parameters, as `flatten_parameters` lays them out.
        layout: of the parameters in it.
        config: the `train` section.
    """

    def __init__(self, flat: Tensor, layout: Layout, config: TrainConfig) -> None:
        self.layout = layout
        self.parameter = nn.Parameter(flat)
        self.gradient = layout.zeros()
        """The gradient that the next step takes."""
        self.gradients = layout.views(self.gradient)
        """The same, of each parameter."""
        self.parameter.grad = self.gradient
        betas = (config.beta1, config.beta2)
        self.adamw = torch.optim.AdamW(
            [self.parameter], lr=config.lr, betas=betas, eps=1e-8, weight_decay=config.weight_decay, fused=True
        )

    def step(self, lr: float, grad_scale: Tensor, found_inf: Tensor) -> None:
        """Applies the gradient divided by `grad_scale`, unless `found_inf` is 1: both on the device."""
        [group] = self.adamw.param_groups
        group["lr"] = lr
        self.adamw.grad_scale = grad_scale  # type: ignore[attr-defined]
        self.adamw.found_inf = found_inf  # type: ignore[attr-defined]
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """What AdamW over the single parameters would give: their moments are views of the flat ones."""
        [group] = self.adamw.state_dict()["param_groups"]
        state: dict[int, dict[str, Tensor]] = {}
        if flat := self.adamw.state.get(self.parameter):
            moments = {name: self.layout.views(flat[name]) for name in ("exp_avg", "exp_avg_sq")}
            for i in range(len(self.layout.places)):
                state[i] = {"step": flat["step"].clone(), **{name: views[i] for name, views in moments.items()}}
        return {"state": state, "param_groups": [{**group, "params": list(range(len(self.layout.places)))}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        [group] = state["param_groups"]
        flat: dict[str, Tensor] = {}
        if state["state"]:
            flat = {"step": state["state"][0]["step"]}
            for name in ("exp_avg", "exp_avg_sq"):
                flat[name] = self.layout.zeros()
                for i, view in enumerate(self.layout.views(flat[name])):
                    view.copy_(state["state"][i][name])
        one = {"state": {0: flat} if flat else {}, "param_groups": [{**group, "params": [0]}]}
        self.adamw.load_state_dict(one)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of update `step` (from 0): linear warm-up, constant, linear cool-down to 0 at the end of the run."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    cooldown = min(1.0, (config.max_steps - step) / max(1, config.cooldown_steps))
    return config.lr * min(warmup, cooldown)
