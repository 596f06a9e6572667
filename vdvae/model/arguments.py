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

LARGEST_COUNT = 2**31
LARGEST_TEMPERATURE = torch.finfo(torch.float32).max

Shape = tuple[int, int, int]


def check_images(images: Tensor, config: ModelConfig) -> None:
    """Refuses what is not uint8 `[B, C, H, W]` with at least one image, and says how to get there."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a uint8 tensor, not {type(images).__name__}{_as_tensor(images)}")
    c, size = config.image_channels, config.image_size
    if images.dtype == torch.uint8 and images.shape[1:] == (c, size, size) and len(images):
        return
    found = f"not {_dtype(images)} {list(images.shape)}{_reshaped(images, c, size)}{_as_uint8(images)}"
    raise ValueError(f"images must be uint8 [B, {c}, {size}, {size}] and at least one, {found}")


def check_pixels(images: Tensor, shape: Sequence[int]) -> None:
    """Refuses images that are not uint8 of the `[B, C, H, W]` that a distribution is of; either may be one for all."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a uint8 tensor, not {type(images).__name__}{_as_tensor(images)}")
    fits = images.dim() == 4 and images.shape[1:] == tuple(shape[1:])
    if images.dtype != torch.uint8 or not fits or (len(images) != shape[0] and 1 not in (len(images), shape[0])):
        found = f"{_dtype(images)} {list(images.shape)}{_as_uint8(images)}"
        raise ValueError(f"images must be uint8 {list(shape)}, not {found}")


def check_count(name: str, number: Any, most: int | None = None) -> int:
    """A whole number from 1 to `most`, of any type that is one."""
    limits = "at least 1" if most is None else f"from 1 to {most}"
    try:
        whole = int(number.__index__())
    except (AttributeError, TypeError):
        whole = 0
    if _is_bool(number) or not 1 <= whole <= (LARGEST_COUNT if most is None else most):
        raise ValueError(f"{name} must be a whole number {limits}, not {number!r}")
    return whole


def check_layers(layers: int | None, num_layers: int) -> int:
    """A number of layers from the top; None is all of them."""
    return num_layers if layers is None else check_count("layers", layers, num_layers)


def check_generator(generator: torch.Generator | None) -> None:
    """Refuses what is no source of noise, such as a seed."""
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise ValueError(
            f"generator must be a torch.Generator or None, not {type(generator).__name__}; "
            "torch.Generator().manual_seed(0) makes one"
        )


def check_weights(dtype: torch.dtype) -> None:
    """Refuses weights of half precision, in which a likelihood in nats would mean nothing."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"the weights must be float32 or float64, not {_name(dtype)}; model.float() gives float32, and "
            "torch.autocast(device, torch.bfloat16) around the call has its convolutions in half precision"
        )


def per_layer(temperature: Temperature, resolutions: Sequence[int]) -> list[float]:
    """The temperature of each of the layers that have these resolutions."""
    if isinstance(temperature, Mapping):
        temperatures = _by_resolution(temperature, resolutions)
    elif isinstance(temperature, (int, float)) or getattr(temperature, "ndim", None) == 0:
        temperatures = [_temperature(temperature)] * len(resolutions)
    elif isinstance(temperature, (str, bytes, set, frozenset)) or not hasattr(temperature, "__iter__"):
        raise ValueError(f"temperature must be a number, one per layer, or by resolution, not {_told(temperature)}")
    else:
        temperatures = [_temperature(t) for t in temperature]
    if len(temperatures) != len(resolutions):
        raise ValueError(f"got {len(temperatures)} temperatures for {len(resolutions)} layers; give one, or one each")
    if not all(0 <= t <= LARGEST_TEMPERATURE for t in temperatures):
        raise ValueError(f"temperatures must be finite and not negative: {min(temperatures)} to {max(temperatures)}")
    return temperatures


def per_layer_sources(
    sources: Sequence[Source | Latent | None], shapes: Sequence[Shape], device: torch.device, dtype: torch.dtype
) -> list[Source]:
    """A source for each layer, tensors as the model has them; absent and None ones are the prior."""
    if not _is_list(sources):
        kind, hint = type(sources).__name__, ""
        if isinstance(sources, Tensor):
            hint = "; model.unflatten(flat) makes one"
        elif isinstance(sources, Latent):
            hint = "; [latent] is one"
        raise ValueError(f"latents must be a list with a tensor per layer, not {kind}{hint}")
    if len(sources) > len(shapes):
        raise ValueError(f"got latents for {len(sources)} layers; the model has {len(shapes)}")
    checked = [_source(i, source, device, dtype) for i, source in enumerate(sources)]
    return [*checked, *["prior"] * (len(shapes) - len(checked))]  # type: ignore[list-item]


def batch_size(sources: Sequence[Source], shapes: Sequence[Shape], num_images: int | None) -> int:
    """The number of images that the given latents and `num_images` agree on."""
    if num_images is not None:
        num_images = check_count("num_images", num_images)
    finite = []
    for i, (z, shape) in enumerate(zip(sources, shapes, strict=False)):
        if isinstance(z, Tensor):
            if num_images is None:
                num_images = max(1, len(z)) if z.dim() else 1  # of no image, there is nothing to make
            if z.shape != (num_images, *shape):
                raise ValueError(
                    f"latent {i} must be [{num_images}, {', '.join(map(str, shape))}], not {list(z.shape)}"
                )
            finite.append(z.isfinite().all())
    if num_images is None:
        raise ValueError("no latent says how many images to make; pass num_images")
    if finite and _can_look_at(finite[0]) and not torch.stack(finite).all():
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
    return [z.view(len(z), *shape) for z, shape in zip(pieces, shapes, strict=False)]


def check_resolution(resolution: int, resolutions: Sequence[int]) -> None:
    """Refuses a resolution at which no layer works."""
    if resolution not in resolutions:
        there = ", ".join(map(str, sorted(set(resolutions))))
        raise ValueError(f"no layer has resolution {resolution!r}; there are {there}")


def _by_resolution(temperature: Mapping[int, float], resolutions: Sequence[int]) -> list[float]:
    for resolution in temperature:
        check_resolution(resolution, resolutions)
    if (lowest := min(resolutions)) not in temperature:
        raise ValueError(f"temperatures by resolution must begin with that of the lowest one, {lowest}")
    return [_temperature(temperature[max(first for first in temperature if first <= r)]) for r in resolutions]


def _temperature(given: Any) -> float:
    """A number as Python's, or as a tensor or an array of one."""
    try:
        is_text = isinstance(given, (str, bytes)) or getattr(getattr(given, "dtype", None), "kind", "f") not in "iuf"
        if not (is_text or _is_bool(given)):
            return math.inf if isinstance(given, int) and abs(given) > LARGEST_TEMPERATURE else float(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise ValueError(f"a temperature must be a number, not {_told(given)}")


def _is_list(things: Any) -> bool:
    """Whether it is a list, a tuple or the like, and nothing that has a meaning as a whole."""
    is_whole = (
        isinstance(things, (str, bytes, Mapping, Tensor)) or hasattr(things, "_fields") or hasattr(things, "ndim")
    )
    return not is_whole and hasattr(things, "__len__") and hasattr(things, "__iter__")


def _source(layer: int, source: Any, device: torch.device, dtype: torch.dtype) -> Source:
    if isinstance(source, Latent):
        source = source.z
    if isinstance(source, Tensor):
        if not source.is_floating_point():
            raise ValueError(f"latent {layer} must hold floats, not {_dtype(source)}")
        return source.to(device, dtype)
    if source is None:
        return "prior"
    if isinstance(source, str) and source in ("posterior", "prior"):
        return source  # type: ignore[return-value]
    hint = "; torch.from_numpy makes one" if hasattr(source, "ndim") else ""
    raise ValueError(f"the source of layer {layer} must be 'posterior', 'prior' or a tensor, not {_told(source)}{hint}")


def _as_tensor(images: Any) -> str:
    """A hint, where images are of another kind: the call that makes a tensor of them."""
    call = ""
    if hasattr(images, "ndim"):
        is_reversed = min(getattr(images, "strides", ()), default=0) < 0
        call = "torch.from_numpy(images.copy())" if is_reversed else "torch.from_numpy(images)"
    elif hasattr(images, "getbands"):  # a picture of PIL's
        call = "torch.from_numpy(np.array(images))"
    elif isinstance(images, (list, tuple)) and images:
        are_tensors = all(isinstance(image, Tensor) for image in images)
        call = "torch.stack(images)" if are_tensors else "torch.from_numpy(np.stack(images))"
    return f"; {call} makes one" if call else ""


def _is_bool(thing: Any) -> bool:
    """Whether it is True or False, Python's or NumPy's, or a tensor of such."""
    return isinstance(thing, bool) or str(getattr(thing, "dtype", "")).endswith("bool")


def _reshaped(images: Tensor, c: int, size: int) -> str:
    """A hint, where images have another order of dimensions, or are a single one."""
    known = {
        (size, size, c): "images.permute(2, 0, 1)[None] makes a batch of one with the channels first",
        (c, size, size): "images[None] makes a batch of one",
        (size, size): "images[None, None] makes a batch of one" if c == 1 else "",
    }
    hint = known.get(tuple(images.shape), "")
    if images.dim() == 4 and images.shape[1:] == (size, size, c) and c != size:
        hint = "images.permute(0, 3, 1, 2) puts the channels first"
    elif images.dim() == 3 and c == 1 and images.shape[1:] == (size, size) and not hint:
        hint = "images[:, None] gives them their one channel"
    return f"; {hint}" if hint else ""


def _as_uint8(images: Tensor) -> str:
    """A hint, where images are not uint8: how their values become it, by what they are."""
    if images.dtype == torch.uint8 or images.is_complex() or not images.numel() or not _can_look_at(images):
        return ""
    if images.dtype == torch.bool:
        return "; images.to(torch.uint8) * 255 makes them black and white"
    least, most = (value.item() for value in images.detach().double().aminmax())
    if not math.isfinite(least + most):
        return "; there is NaN or infinity among their values"
    if least < (-1 if images.is_floating_point() and most <= 1 else 0) or most > 255:
        return f"; values go from 0 to 255, and theirs from {least:g} to {most:g}"
    if not images.is_floating_point():
        return "; images.to(torch.uint8) makes them so"
    if least < 0:
        return "; values go from 0 to 255, so of images on -1..1 take ((images + 1) * 127.5).round().to(torch.uint8)"
    if most <= 1:
        return "; values go from 0 to 255, so of images on 0..1 take (images * 255).round().to(torch.uint8)"
    return "; images.round().to(torch.uint8) makes them so"


def _can_look_at(tensor: Tensor) -> bool:
    """Whether it has numbers to look at: inside torch.func's transforms, torch.compile and recordings it has none."""
    inside = torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling()
    recorded = torch._C._len_torch_dispatch_stack() > 0  # as by fast.recorded
    return not (inside or recorded) and tensor.device.type != "meta"


def _told(thing: Any) -> str:
    return repr(thing) if isinstance(thing, (str, bytes, bool)) else type(thing).__name__


def _dtype(tensor: Tensor) -> str:
    return _name(tensor.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
