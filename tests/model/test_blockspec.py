"""Block strings: what they mean, and what is refused."""

from __future__ import annotations

import pytest

from vdvae.model.blockspec import (
    DecoderSpec,
    EncoderSpec,
    parse_decoder_blocks,
    parse_encoder_blocks,
    parse_widths,
    pyramid,
)

ENCODER = "28x1,28d2,14x1,14d2,7x1,7d7,1x1"


def test_encoder() -> None:
    assert parse_encoder_blocks("8x2,8d2,4", 8) == [
        EncoderSpec(8, 1),
        EncoderSpec(8, 1),
        EncoderSpec(8, 2),
        EncoderSpec(4, 1),
    ]


def test_decoder() -> None:
    encoder = parse_encoder_blocks("8d8,1x1", 8)
    assert parse_decoder_blocks("1x2,8m1", encoder, 8) == [
        DecoderSpec(1, None),
        DecoderSpec(1, None),
        DecoderSpec(8, 1),
    ]


def test_pyramid_halves_down_to_an_odd_resolution_and_then_to_1() -> None:
    assert pyramid(48) == (
        "48x6,48d2,24x6,24d2,12x6,12d2,6x6,6d2,3x6,3d3,1x3",
        "1x1,3m1,3x3,6m3,6x6,12m6,12x12,24m12,24x20,48m24,48x20",
    )


@pytest.mark.parametrize("size", [*range(4, 33), 48, 50, 97, 128, 512])
def test_every_pyramid_is_a_model(size: int) -> None:
    enc_blocks, dec_blocks = pyramid(size)
    encoder = parse_encoder_blocks(enc_blocks, size)
    assert encoder[-1].output_resolution == 1
    assert max(spec.resolution for spec in parse_decoder_blocks(dec_blocks, encoder, size)) == size


def test_widths() -> None:
    assert parse_widths("512:32,256:64") == {512: 32, 256: 64}
    assert parse_widths("") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("28x1,14x1", "works at resolution 14, but the blocks before it end at 28"),
        ("32x1", "works at resolution 32, but the image size is 28"),
        ("28d3", "cannot pool resolution 28 by 3"),
        ("28d1", "cannot pool resolution 28 by 1"),
        ("28y1", "cannot read '28y1'; items look like 32x2 or 32d2"),
        ("28m14", "cannot read '28m14'"),
        ("28x0", "cannot read '28x0'"),
        ("", "cannot read ''"),
        ("28x1,,28d2", "cannot read ''"),
        ("28x\uff12", "cannot read '28x\uff12'"),
        ("28x1000000000", "cannot read '28x1000000000'"),
        ("28x999,28d2,14x1", "'14x1' makes 1,001 blocks; 1,000 are the most"),
        ("28x900000000", "'28x900000000' makes 900,000,000 blocks"),
    ],
)
def test_encoder_refuses(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"model\.enc_blocks") as error:
        parse_encoder_blocks(text, 28)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1x1,4m1,28m4", "'4m1' needs the encoder at resolution 4, but model.enc_blocks only reaches 28, 14, 7, 1"),
        ("1x1,14m7,28m14", "'14m7' mixes in resolution 7, where no earlier block works; so far there is 1"),
        ("7m1,28m7", "mixes in resolution 1, where no earlier block works; so far there is none"),
        ("1x1,7m1,1m7", "cannot unpool resolution 7 to 1"),
        ("1x1,7m7,28m7", "mixes in resolution 7, where no earlier block works"),
        ("1x1,7m1", "nothing reads the last state at resolution 7"),
        ("1x1,28x1", "nothing reads the last state at resolution 1"),
        ("1x1,7m1,28m7,7x1", "nothing reads the last state at resolution 7"),
        ("7x1,28m7", "goes down to resolution 1, which no decoder block reads; the lowest of model.dec_blocks is 7"),
        ("1d2", "cannot read '1d2'; items look like 32x2 or 32m2"),
    ],
)
def test_decoder_refuses(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"model\.(dec|enc)_blocks") as error:
        parse_decoder_blocks(text, parse_encoder_blocks(ENCODER, 28), 28)
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["512", "512:0", "a:b", "512:32;256:64", "512:3200000000"])
def test_widths_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="resolution:channels"):
        parse_widths(text)


def test_a_resolution_has_one_width() -> None:
    with pytest.raises(ValueError, match="resolution 4 is there twice; remove one entry"):
        parse_widths("4:8,2:8,4:16")
