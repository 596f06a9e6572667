"""Block strings: what they mean, and what is refused."""

from __future__ import annotations

import pytest

from tests.conftest import refuses
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
    ("text", "words"),
    [
        ("28x1,14x1", "14 28"),
        ("32x1", "32 28"),
        ("28d3", "'28d3' pool 28 3"),
        ("28d1", "'28d1' pool 28 1"),
        ("28y1", "'28y1' 32x2 32d2"),
        ("28m14", "'28m14' 32x2 32d2"),
        ("28x0", "'28x0'"),
        ("", "''"),
        ("28x1,,28d2", "''"),
        ("28x\uff12", "'28x\uff12'"),
        ("28x1000000000", "'28x1000000000'"),
        ("28x999,28d2,14x1", "'14x1' 1,001 1,000"),
        ("28x900000000", "'28x900000000' 900,000,000"),
    ],
)
def test_encoder_refuses(text: str, words: str) -> None:
    with refuses(f"model.enc_blocks {words}"):
        parse_encoder_blocks(text, 28)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1x1,4m1,28m4", "'4m1' 4 model.enc_blocks 28, 14, 7, 1"),
        ("1x1,14m7,28m14", "dec_blocks '14m7' 7 1"),
        ("7m1,28m7", "dec_blocks '7m1' 1 none"),
        ("1x1,7m1,1m7", "dec_blocks unpool 7 1"),
        ("1x1,7m7,28m7", "dec_blocks '7m7' 7"),
        ("1x1,7m1", "dec_blocks last 7"),
        ("1x1,28x1", "dec_blocks last 1"),
        ("1x1,7m1,28m7,7x1", "dec_blocks last 7"),
        ("7x1,28m7", "model.enc_blocks 1 model.dec_blocks 7"),
        ("1d2", "dec_blocks '1d2' 32x2 32m2"),
    ],
)
def test_decoder_refuses(text: str, words: str) -> None:
    with refuses(f"model. {words}"):
        parse_decoder_blocks(text, parse_encoder_blocks(ENCODER, 28), 28)


@pytest.mark.parametrize("text", ["512", "512:0", "a:b", "512:32;256:64", "512:3200000000"])
def test_widths_refuses(text: str) -> None:
    with refuses("resolution:channels"):
        parse_widths(text)


def test_a_resolution_has_one_width() -> None:
    with refuses("4 twice"):
        parse_widths("4:8,2:8,4:16")
