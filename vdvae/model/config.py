"""What a model is: the `model` section of a configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, SupportsFloat, SupportsIndex

from vdvae.model.blockspec import (
    DecoderSpec,
    EncoderSpec,
    parse_decoder_blocks,
    parse_encoder_blocks,
    parse_widths,
)

MOST_CHANNELS = 2**16
"""The most channels of any one kind; more would be gigabytes for a single convolution."""
TYPES: dict[Any, Any] = {"str": str, "int": SupportsIndex, "float": SupportsFloat, "bool": bool}
"""By what a field says of itself, the type of its values."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture, likelihood and input scaling (paper Table 4 and the released hyperparameters).

    Raises:
        ValueError: one line naming the key, where the values do not describe a model.
    """

    enc_blocks: str
    """Bottom-up blocks, e.g. `32x11,32d2,16x6`: see `blockspec`."""
    dec_blocks: str
    """Top-down blocks, e.g. `1x1,4m1,4x2`: see `blockspec`. One latent layer each."""
    image_size: int
    """Height and width of an image, in pixels."""
    width: int
    """Channels of the state ("hidden size" in Table 4)."""
    image_channels: Literal[1, 3] = 3
    custom_width_str: str = ""
    """Widths that differ from `width`, by resolution, e.g. `512:32,256:64`."""
    zdim: int = 16
    """Latent channels per layer."""
    bottleneck_multiple: float = 0.25
    """Channels inside a residual block, as a fraction of the width."""
    stochastic_group: int = 1
    """Consecutive layers whose priors and posteriors read the state at the first one's start, so that none of them
    depends on another's z: the stochastic depth is the number of layers divided by this (paper Table 1, left)."""
    residual_scaling: bool = True
    """Whether residual blocks start scaled by 1/sqrt(N) (paper Section 4, Table 3)."""
    unpool: Literal["nearest", "conv"] = "nearest"
    """Nearest-neighbour upsampling, or a learned transposed convolution (paper Figure 5)."""
    topdown_residual: bool = True
    """Whether the residual blocks of the top-down path have their residual connection; false is the paper's "FFN"
    (Figure 5)."""
    no_bias_above: int = 64
    """Top-down states start from a learned bias up to this resolution, from zeros above it."""
    num_mixtures: int = 10
    """Logistics in the mixture of each pixel."""
    bits: int = 8
    """Bits per sub-pixel that the likelihood models: 2**bits levels."""
    binning: Literal["exact", "released"] = "exact"
    """The arithmetic of the likelihood; `released` is the released code's with 5 bits, which does not sum to 1: see
    `likelihood.Binning`."""
    input_shift: float = -127.5
    """The network sees (image + input_shift) * input_scale, with images on 0..255."""
    input_scale: float = 1 / 127.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            is_flag = isinstance(value, bool)  # which Python takes for a number too
            if field.type in TYPES and (not isinstance(value, TYPES[field.type]) or is_flag != (field.type == "bool")):
                raise ValueError(f"model.{field.name} must be {field.type}, not {value!r}")
        if self.image_size < 1:
            raise ValueError(f"model.image_size must be at least 1, not {self.image_size}")
        for key in ("width", "zdim", "num_mixtures"):
            if not 1 <= getattr(self, key) <= MOST_CHANNELS:
                raise ValueError(f"model.{key} must be from 1 to {MOST_CHANNELS}, not {getattr(self, key)}")
        if not 0 < self.bottleneck_multiple <= 16:
            raise ValueError(f"model.bottleneck_multiple must be above 0, at most 16, not {self.bottleneck_multiple}")
        if not math.isfinite(self.input_shift):
            raise ValueError(f"model.input_shift must be finite, not {self.input_shift}")
        if not math.isfinite(self.input_scale) or self.input_scale == 0:
            raise ValueError(f"model.input_scale must be finite and not 0, not {self.input_scale}")
        if self.no_bias_above < 0:
            raise ValueError(f"model.no_bias_above must not be negative, not {self.no_bias_above}")
        if self.unpool not in ("nearest", "conv"):
            raise ValueError(f"model.unpool must be nearest or conv, not {self.unpool!r}")
        if self.image_channels not in (1, 3):
            raise ValueError(f"model.image_channels must be 1 or 3, not {self.image_channels}")
        if not 1 <= self.bits <= 8:
            raise ValueError(f"model.bits must be from 1 to 8, not {self.bits}")
        if self.binning not in ("exact", "released"):
            raise ValueError(f"model.binning must be exact or released, not {self.binning!r}")
        if self.binning == "released" and self.bits not in (5, 8):
            raise ValueError(f"model.binning: released exists for 5 and 8 bits, not for {self.bits}; use exact")
        layers = len(self.decoder_specs)
        if self.stochastic_group < 1 or layers % self.stochastic_group:
            divisors = ", ".join(str(k) for k in range(1, layers + 1) if layers % k == 0)
            raise ValueError(
                f"model.stochastic_group: the {layers} layers of model.dec_blocks cannot be divided into groups of "
                f"{self.stochastic_group}; use one of {divisors}"
            )
        widths = parse_widths(self.custom_width_str)
        used = {spec.resolution for spec in self.encoder_specs} | {spec.resolution for spec in self.decoder_specs}
        for resolution in widths.keys() - used:
            raise ValueError(f"model.custom_width_str: no block has resolution {resolution}; remove that entry")
        for resolution in used:
            width = self.width_at(resolution)
            if width > MOST_CHANNELS:
                raise ValueError(f"model.custom_width_str: {width} at {resolution} is above {MOST_CHANNELS}, the most")
            if self.bottleneck_width(resolution) < 1:
                raise ValueError(
                    f"model.bottleneck_multiple: {self.bottleneck_multiple} of width {width} "
                    f"at resolution {resolution} leaves no channel inside a block; raise one of the two"
                )

    def width_at(self, resolution: int) -> int:
        """Channels of the state at a resolution."""
        return parse_widths(self.custom_width_str).get(resolution, self.width)

    def bottleneck_width(self, resolution: int) -> int:
        """Channels inside a residual block at a resolution."""
        return int(self.width_at(resolution) * self.bottleneck_multiple)

    @cached_property
    def encoder_specs(self) -> list[EncoderSpec]:
        """The bottom-up blocks, first to last."""
        return parse_encoder_blocks(self.enc_blocks, self.image_size)

    @cached_property
    def decoder_specs(self) -> list[DecoderSpec]:
        """The top-down blocks, first to last."""
        return parse_decoder_blocks(self.dec_blocks, self.encoder_specs, self.image_size)

    @cached_property
    def latent_resolutions(self) -> list[int]:
        """The resolutions that have latent layers, lowest first."""
        return sorted({spec.resolution for spec in self.decoder_specs})

    @property
    def stochastic_depth(self) -> int:
        """Latent layers that depend on one another: groups (paper Table 1, left)."""
        return len(self.decoder_specs) // self.stochastic_group

    @property
    def dims(self) -> int:
        """Numbers in an image: the D of "nats per dimension"."""
        return self.image_channels * self.image_size**2
