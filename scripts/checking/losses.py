"""The same loss on the device as on the CPU, from one CPU generator, which gives both the same noise."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from measuring.work import random_images, setting_of
from torch import Tensor

from checking.setting import DEMO, CheckFailedError, Figures, Setting
from vdvae import VDVAE, fast
from vdvae.config import Config, load_config
from vdvae.data.loader import first_images
from vdvae.data.prepared import load_splits
from vdvae.model.vdvae import Terms
from vdvae.runtime.precision import PRECISIONS, autocast, set_matmul_precision

CPU = torch.device("cpu")
LOSS = 1e-4
"""Tolerance of the loss and of the gradient's norm in fp32, relative: another order of summation."""
LAYER = 1e-3
"""Tolerance of the rate of a layer, relative to the largest rate of a layer."""
HALF = 5e-3
"""Tolerance of the loss in other precisions, relative."""


def check(setting: Setting) -> Iterator[Figures]:
    """The plain model on the CPU against the plain and the prepared model on the device: the demo, then the preset."""
    failed, told = [], []
    for name, hps, count in (("demo", DEMO, 8 if setting.on_gpu else 2), ("preset", setting.hps, 2)):
        config = load_config(hps, [])
        figures = compare(config, images_of(config, name, count), setting.device)
        yield {name: {"hps": hps, "images": count, **figures}}
        failed += [f"{name}: {fault}" for fault in faults(figures)]
        told.append(f"{name} {max(figures['plain']['loss'], figures['prepared']['loss']):.1e}")
    yield {"told": f"loss differs from the CPU's by {', '.join(told)} (relative, fp32)"}
    if failed:
        raise CheckFailedError("; ".join(failed))


def images_of(config: Config, name: str, count: int) -> Tensor:
    """Images of the demo, or random ones for a preset whose set is not here; uint8 [B, C, H, W] on the CPU."""
    if name == "demo":
        return first_images(load_splits(config.data, config.model).test, count, CPU)
    return random_images(setting_of(config, CPU, count), CPU)


def compare(config: Config, images: Tensor, device: torch.device) -> Figures:
    """Differences from the CPU: loss, rates of the layers, norm of the gradient; of the loss in other precisions."""
    plain = live_model(config)
    expected, expected_norm = gradient_of(plain, images)
    loss = expected.nats_per_dim.mean().item()
    models = {"plain": copy.deepcopy(plain).to(device)}
    models["prepared"] = fast.prepare(copy.deepcopy(models["plain"]))
    figures: Figures = {"bits_per_dim": loss / math.log(2), "gradient_norm": expected_norm}
    for name, model in models.items():
        terms, norm = gradient_of(model, images)
        rates = (terms.layer_rate.mean(0) - expected.layer_rate.mean(0)).abs() / expected.layer_rate.mean(0).max()
        figures[name] = {
            "loss": abs(terms.nats_per_dim.mean().item() / loss - 1),
            "layer_rate": rates.max().item(),
            "gradient_norm": abs(norm / expected_norm - 1),
        }
    with torch.no_grad():
        figures["precisions"] = _precisions(models["prepared"], images, loss)
    set_matmul_precision("fp32")
    return figures


def _precisions(model: VDVAE, images: Tensor, loss: float) -> dict[str, float]:
    """The relative difference of the loss in each precision."""
    return {
        precision: abs(terms_of(model, images, precision).nats_per_dim.mean().item() / loss - 1)
        for precision in PRECISIONS
    }


def faults(figures: Figures) -> list[str]:
    """What is beyond its tolerance, or not a number."""
    found = []
    for model in ("plain", "prepared"):
        for name, most in (("loss", LOSS), ("layer_rate", LAYER), ("gradient_norm", LOSS)):
            if not figures[model][name] <= most:
                found.append(f"{name} of the {model} model differs by {figures[model][name]:.1e}, more than {most:g}")
    for precision, difference in figures["precisions"].items():
        if not difference <= HALF:
            found.append(f"loss in {precision} differs by {difference:.1e}, more than {HALF:g}")
    return found


def live_model(config: Config) -> VDVAE:
    """The initial weights of a run, with no weight at 0, as those of the priors' last convolutions are at first."""
    torch.manual_seed(config.train.seed)
    model = VDVAE(config.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return model


def terms_of(model: VDVAE, images: Tensor, precision: str) -> Terms:
    """The likelihood terms in a precision."""
    set_matmul_precision(precision)
    with autocast(model.device, precision):
        return model(images.to(model.device), torch.Generator().manual_seed(0))


def gradient_of(model: VDVAE, images: Tensor) -> tuple[Terms, float]:
    """The likelihood terms in fp32, on the CPU, and the norm of the gradient of the mean loss."""
    model.zero_grad()
    terms = terms_of(model, images, "fp32")
    terms.nats_per_dim.mean().backward()
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    return Terms(*(term.detach().cpu() for term in terms)), torch.stack(norms).norm().item()
