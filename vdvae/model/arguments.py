"""What callers of the model pass, checked and brought to one form; every refusal is a `ValueError`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vdvae.model.config import ModelConfig
from vdvae.model.gaussian import Latent, Source

Temperature = float | Sequence[float] | Mapping[int, float]
"""Factor on the standard deviations that latents are drawn with: one for all layers, one per layer, or
{resolution: factor}, each from that resolution on, the lowest included. 0 takes the mean.
"""

Shape = tuple[int, int, int]


def check_images(images: Tensor, config: ModelConfig) -> None:
    """Refuses what is not uint8 `[B, C, H, W]`, and says how to get there."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a uint8 tensor, not {type(images).__name__}; torch.from_numpy makes one")
    c, size = config.image_channels, config.image_size
    if images.dtype == torch.uint8 and images.shape[1:] == (c, size, size):
        return
    hint = ""
    if images.shape[1:] == (size, size, c):
        hint = "; images.permute(0, 3, 1, 2) puts the channels first"
    elif images.shape == (c, size, size):
        hint = "; images[None] makes a batch of one"
    elif images.dtype != torch.uint8:
        hint = "; values go from 0 to 255, so of images on 0..1 take (images * 255).round().to(torch.uint8)"
    raise ValueError(f"images must be uint8 [B, {c}, {size}, {size}], not {_dtype(images)} {list(images.shape)}{hint}")


def check_layers(layers: int | None, num_layers: int) -> int:
    """A number of layers from the top; None is all of them."""
    if layers is None:
        return num_layers
    if not 1 <= layers <= num_layers:
        raise ValueError(f"layers must be from 1 to {num_layers}, not {layers}")
    return layers


def per_layer(temperature: Temperature, resolutions: Sequence[int]) -> list[float]:
    """The temperature of each of the layers that have these resolutions."""
    try:
        if isinstance(temperature, Mapping):
            temperatures = _by_resolution(temperature, resolutions)
        elif isinstance(temperature, (int, float)) or getattr(temperature, "ndim", None) == 0:
            temperatures = [float(temperature)] * len(resolutions)  # type: ignore[arg-type]
        else:
            temperatures = [float(t) for t in temperature]
    except TypeError as error:
        kind = type(temperature).__name__
        raise ValueError(f"temperature must be a number, one per layer, or by resolution, not {kind}") from error
    if len(temperatures) != len(resolutions):
        raise ValueError(f"got {len(temperatures)} temperatures for {len(resolutions)} layers; give one, or one each")
    if not all(0 <= t < math.inf for t in temperatures):
        raise ValueError(f"temperatures must be finite and not negative: {min(temperatures)} to {max(temperatures)}")
    return temperatures


def per_layer_sources(
    sources: Sequence[Source | Latent | None], shapes: Sequence[Shape], device: torch.device, dtype: torch.dtype
) -> list[Source]:
    """A source for each layer, tensors as the model has them; absent and None ones are the prior."""
    if isinstance(sources, Tensor):
        raise ValueError("latents must be a list with a tensor per layer; model.unflatten(flat) makes one")
    if len(sources) > len(shapes):
        raise ValueError(f"got latents for {len(sources)} layers; the model has {len(shapes)}")
    checked = [_source(i, source, device, dtype) for i, source in enumerate(sources)]
    return [*checked, *["prior"] * (len(shapes) - len(checked))]  # type: ignore[list-item]


def batch_size(sources: Sequence[Source], shapes: Sequence[Shape], num_images: int | None) -> int:
    """The number of images that the given latents and `num_images` agree on."""
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images must be at least 1, not {num_images}")
    finite = []
    for i, (z, shape) in enumerate(zip(sources, shapes, strict=False)):
        if isinstance(z, Tensor):
            num_images = len(z) if num_images is None else num_images
            if z.shape != (num_images, *shape):
                raise ValueError(
                    f"latent {i} must be [{num_images}, {', '.join(map(str, shape))}], not {list(z.shape)}"
                )
            finite.append(z.isfinite().all())
    if num_images is None:
        raise ValueError("no latent says how many images to make; pass num_images")
    # Inside torch.func's transforms and torch.compile, numbers cannot be looked at.
    can_look = not (torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling())
    if can_look and finite and finite[0].device.type != "meta" and not torch.stack(finite).all():
        raise ValueError("latents must be finite, and there is NaN or infinity among them")
    return num_images


def split_flat(flat: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Views of `[B, N]` as the z of as many layers as make N numbers, each `[B, zdim, r, r]`."""
    if not isinstance(flat, Tensor) or flat.dim() != 2:
        found = list(flat.shape) if isinstance(flat, Tensor) else type(flat).__name__
        raise ValueError(f"flat latents must be a tensor [B, N], not {found}")
    sizes = [math.prod(shape) for shape in shapes]
    totals = list(itertools.accumulate(sizes))
    if flat.shape[1] not in totals:
        nearest = min(totals, key=lambda total: abs(total - flat.shape[1]))
        raise ValueError(
            f"no number of layers has {flat.shape[1]:,} latent variables; "
            f"the first {totals.index(nearest) + 1} have {nearest:,}, all {len(totals)} have {totals[-1]:,}"
        )
    pieces = flat.split(sizes[: totals.index(flat.shape[1]) + 1], dim=1)
    return [z.view(-1, *shape) for z, shape in zip(pieces, shapes, strict=False)]


def check_resolution(resolution: int, resolutions: Sequence[int]) -> None:
    """Refuses a resolution at which no layer works."""
    if resolution not in resolutions:
        there = ", ".join(map(str, sorted(set(resolutions))))
        raise ValueError(f"no layer has resolution {resolution}; there are {there}")


def _by_resolution(temperature: Mapping[int, float], resolutions: Sequence[int]) -> list[float]:
    for resolution in temperature:
        check_resolution(resolution, resolutions)
    if (lowest := min(resolutions)) not in temperature:
        raise ValueError(f"temperatures by resolution must begin with that of the lowest one, {lowest}")
    return [float(temperature[max(first for first in temperature if first <= r)]) for r in resolutions]


def _source(layer: int, source: Any, device: torch.device, dtype: torch.dtype) -> Source:
    if isinstance(source, Latent):
        source = source.z
    if isinstance(source, Tensor):
        if not source.is_floating_point():
            raise ValueError(f"latent {layer} must hold floats, not {_dtype(source)}")
        return source.to(device, dtype)
    if source is None or source == "prior":
        return "prior"
    if source == "posterior":
        return "posterior"
    found = repr(source) if isinstance(source, str) else type(source).__name__
    raise ValueError(f"the source of layer {layer} must be 'posterior', 'prior' or a tensor, not {found}")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
