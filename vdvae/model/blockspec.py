"""Block strings such as `32x11,32d2,16x6` and what they mean.

| item | in the encoder | in the decoder |
|---|---|---|
| `R` or `RxN` | one or N blocks at resolution R | the same |
| `RdK` | a block at R, then average pooling by K | |
| `RmS` | | a block at R that first adds the unpooled state of resolution S |
"""

from __future__ import annotations

import re
from typing import NamedTuple

MOST_BLOCKS = 1_000
"""The most blocks of one string; the paper's deepest decoder has 78."""
NUMBER = "([1-9][0-9]{0,8})"


class EncoderSpec(NamedTuple):
    """One bottom-up block."""

    resolution: int
    pool: int
    """Factor of the average pooling after the block; 1 for none."""

    @property
    def output_resolution(self) -> int:
        """Resolution of the state that the block hands on."""
        return self.resolution // self.pool


class DecoderSpec(NamedTuple):
    """One top-down block: one latent layer."""

    resolution: int
    mixin: int | None
    """Resolution of the state that is unpooled and added first."""


def parse_encoder_blocks(text: str, image_size: int) -> list[EncoderSpec]:
    """Reads `model.enc_blocks`.

    Raises:
        ValueError: an item that cannot be read, or a resolution that the blocks before it do not lead to.
    """
    specs: list[EncoderSpec] = []
    resolution = image_size
    for item, size, letter, number in _items("model.enc_blocks", text, letters="xd"):
        if size != resolution:
            came_from = "the image size is" if not specs else "the blocks before it end at"
            raise ValueError(f"model.enc_blocks: {item!r} works at resolution {size}, but {came_from} {resolution}")
        if letter == "x":
            specs += [EncoderSpec(size, 1)] * number
        else:
            if number < 2 or size % number:
                raise ValueError(f"model.enc_blocks: {item!r} cannot pool resolution {size} by {number}")
            specs.append(EncoderSpec(size, number))
            resolution = size // number
    return specs


def parse_decoder_blocks(text: str, encoder: list[EncoderSpec], image_size: int) -> list[DecoderSpec]:
    """Reads `model.dec_blocks` and holds it against the encoder that its posteriors read.

    Raises:
        ValueError: an item that cannot be read, a resolution that the encoder does not reach, a mix-in of a state
            that does not exist by then, or a state that never reaches the image.
    """
    reached = {image_size} | {spec.output_resolution for spec in encoder}
    specs: list[DecoderSpec] = []
    for item, size, letter, number in _items("model.dec_blocks", text, letters="xm"):
        if size not in reached:
            raise ValueError(
                f"model.dec_blocks: {item!r} needs the encoder at resolution {size}, but model.enc_blocks only "
                f"reaches {_listed(reached)}"
            )
        if letter == "x":
            specs += [DecoderSpec(size, None)] * number
            continue
        available = {spec.resolution for spec in specs}
        if number not in available:
            raise ValueError(
                f"model.dec_blocks: {item!r} mixes in resolution {number}, where no earlier block works; "
                f"so far there is {_listed(available) or 'none'}"
            )
        if number >= size or size % number:
            raise ValueError(f"model.dec_blocks: {item!r} cannot unpool resolution {number} to {size}")
        specs.append(DecoderSpec(size, number))
    _check_that_all_reach_the_image(specs, encoder, image_size)
    return specs


def parse_widths(text: str) -> dict[int, int]:
    """Reads `model.custom_width_str`, `512:32,256:64`, into {resolution: channels}.

    Raises:
        ValueError: an entry that is not `resolution:channels`, or a resolution that is there twice.
    """
    widths: dict[int, int] = {}
    for item in filter(None, text.split(",")):
        match = re.fullmatch(rf"\s*{NUMBER}:{NUMBER}\s*", item)
        if not match:
            raise ValueError(f"model.custom_width_str: {item!r} is not of the form resolution:channels, as in 256:64")
        if int(match[1]) in widths:
            raise ValueError(f"model.custom_width_str: resolution {match[1]} is there twice; remove one entry")
        widths[int(match[1])] = int(match[2])
    return widths


def pyramid(image_size: int) -> tuple[str, str]:
    """Encoder and decoder blocks for images of a size that no preset has.

    Resolutions halve while they are even and above 4, and the last is pooled to 1 x 1; like the paper's models
    (Table 1, right), most latent layers are at the high ones.
    """
    resolutions = [image_size]
    while resolutions[-1] % 2 == 0 and resolutions[-1] > 4:
        resolutions.append(resolutions[-1] // 2)
    enc, dec = [], ["1x1"]
    for resolution, below in zip(resolutions, [*resolutions[1:], 1], strict=True):
        enc += [f"{resolution}x6", f"{resolution}d{resolution // below}"]
    for i, (resolution, below) in enumerate(zip(reversed(resolutions), [1, *reversed(resolutions[1:])], strict=True)):
        dec += [f"{resolution}m{below}", f"{resolution}x{min(3 * 2**i, 20)}"]
    return ",".join([*enc, "1x3"]), ",".join(dec)


def _items(key: str, text: str, letters: str) -> list[tuple[str, int, str, int]]:
    """Splits a block string into (item, resolution, letter, number); a bare resolution reads as `Rx1`."""
    items = []
    blocks = 0
    for item in text.split(","):
        match = re.fullmatch(rf"\s*{NUMBER}(?:([{letters}]){NUMBER})?\s*", item)
        if not match:
            forms = " or ".join(f"32{letter}2" for letter in letters)
            raise ValueError(f"{key}: cannot read {item!r}; items look like {forms}")
        size, letter, number = int(match[1]), match[2] or "x", int(match[3] or 1)
        blocks += number if letter == "x" else 1
        if blocks > MOST_BLOCKS:
            raise ValueError(f"{key}: {item.strip()!r} makes {blocks:,} blocks; {MOST_BLOCKS:,} are the most")
        items.append((item.strip(), size, letter, number))
    return items


def _check_that_all_reach_the_image(specs: list[DecoderSpec], encoder: list[EncoderSpec], image_size: int) -> None:
    """A block whose output nothing reads would have parameters that never learn."""
    needed = {image_size}
    for spec in reversed(specs):
        if spec.resolution not in needed:
            raise ValueError(
                f"model.dec_blocks: nothing reads the last state at resolution {spec.resolution}; mix it in with "
                f"an item such as {image_size}m{spec.resolution}, or end at the image size {image_size}"
            )
        if spec.mixin is not None:
            needed.add(spec.mixin)
    lowest = min(spec.resolution for spec in specs)
    if encoder and encoder[-1].output_resolution < lowest:
        raise ValueError(
            f"model.enc_blocks: goes down to resolution {encoder[-1].output_resolution}, which no decoder block "
            f"reads; the lowest of model.dec_blocks is {lowest}"
        )


def _listed(resolutions: set[int]) -> str:
    return ", ".join(str(resolution) for resolution in sorted(resolutions, reverse=True))
