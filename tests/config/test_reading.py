"""Configuration: precedence, coercion, and one helpful line for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from tests.conftest import PRESET_NAMES, TINY, refuses, says
from vdvae.config import differing_keys, from_dict, load_config, save_config, to_dict
from vdvae.config.reading import _coerce
from vdvae.errors import UserError


def test_later_presets_and_the_command_line_win(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("train: {lr: 5e-4, seed: 3}\n")
    config = load_config(f"cifar10,{tmp_path / 'more.yaml'}", ["train.seed=4", "model.width=192"])
    assert (config.train.lr, config.train.seed, config.model.width) == (5e-4, 4, 192)
    assert config.train.batch_size == 32


def test_base_is_found_beside_the_file_or_among_the_presets(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: imagenet32\nmodel: {width: 256}\n")
    (tmp_path / "mine2.yaml").write_text("base: mine\ntrain: {seed: 7}\n")
    config = load_config(str(tmp_path / "mine2.yaml"), [])
    assert (config.model.width, config.train.seed, config.train.skip_threshold) == (256, 7, 300)


def test_values_take_the_type_of_their_field() -> None:
    """PyYAML reads 3e-4 as a string and 16:24 as a number in base 60."""
    overrides = ["train.lr=3e-4", "train.max_steps=1e3", "train.micro_batch=none", "train.compile=true"]
    config = load_config("cifar10", [*overrides, "model.custom_width_str=16:256", "train.skip_threshold=inf"])
    assert load_config("imagenet32", ["data.variant=none"]).data.variant is None
    assert (config.train.lr, config.train.max_steps, config.train.micro_batch) == (3e-4, 1000, None)
    assert config.train.compile is True
    assert config.model.custom_width_str == "16:256"
    assert config.train.skip_threshold == float("inf")


@pytest.mark.parametrize(
    ("value", "hint", "converted"),
    [
        ("auto", float | Literal["auto"], "auto"),
        ("300", float | Literal["auto"], 300.0),
        (3, float | Literal["auto"], 3.0),
        ("none", int | Literal["all"] | None, None),
        ("all", int | Literal["all"] | None, "all"),
        ("none", Literal["a", "b"] | None, None),
        ("3", Literal[1, 3], 3),
    ],
)
def test_a_union_takes_what_fits_one_of_its_types(value: Any, hint: Any, converted: Any) -> None:
    assert _coerce(value, hint, "train.key") == converted
    assert type(_coerce(value, hint, "train.key")) is type(converted)


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        ("fast", float | Literal["auto"], "number auto 'fast'"),
        (None, float | Literal["auto"], "number auto None"),
        (True, float | Literal["auto"], "number auto True"),
        ([1], int | Literal["a", "b"] | None, "whole a, b list"),
        ("c", Literal["a", "b"] | None, "a, b 'c'"),
        (True, Literal[1, 3], "1, 3 True"),
        (10**400, Literal[1, 3], "1, 3 large"),
        ("1e30", int, "2**63 '1e30'"),
        ("x" * 1000, int, f"whole '{'x' * 99} ..."),
    ],
)
def test_what_a_union_does_not_take(value: Any, hint: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        _coerce(value, hint, "train.key")
    says(error.value, f"train.key {words}")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_every_preset_survives_being_saved(name: str, tmp_path: Path) -> None:
    config = load_config(name, [])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml"), []) == config
    assert from_dict(to_dict(config), "there") == config


def test_differing_keys() -> None:
    a, b = load_config("cifar10", []), load_config("cifar10", ["model.zdim=8", "train.lr=1"])
    assert differing_keys(a, b) == ["model.zdim", "train.lr"]


@pytest.mark.parametrize(
    ("hps", "override", "words"),
    [
        ("imagnet32", "", "'imagnet32' 'imagenet32' configs/ cifar10"),
        ("nothing.yaml", "", "'nothing.yaml'"),
        ("cifar10", "train.learning_rate=1", "command line train.learning_rate"),
        ("cifar10", "train.batchsize=1", "train.batchsize 'batch_size'"),
        ("cifar10", "trian.lr=1", "'trian' 'train'"),
        ("cifar10", "lr=1", "'lr=1' section.key=value"),
        ("cifar10", "train.lr", "'train.lr' section.key=value"),
        ("cifar10", "train.lr=fast", "command line train.lr number 'fast'"),
        ("cifar10", "train.lr=nan", "train.lr number 'nan'"),
        ("cifar10", "train.lr=0", "train.lr above 0"),
        ("cifar10", "train.batch_size=1.5", "train.batch_size whole '1.5'"),
        ("cifar10", "train.batch_size=inf", "train.batch_size whole 'inf'"),
        ("cifar10", "train.batch_size=0", "train.batch_size least 1"),
        ("cifar10", "train.compile=1", "train.compile true false autotune"),
        ("cifar10", "train.precision=fp8", "train.precision fp32, tf32, bf16, fp16 'fp8'"),
        ("cifar10", "train.ema_decay=1", "train.ema_decay 0 below 1"),
        ("imagenet32", "data.variant=old", "data.variant original newer 'old'"),
        ("cifar10", "data.workers=0", "data.workers least 1"),
        ("cifar10", "data.workers=1e6", "data.workers most 1000 1000000"),
        ("cifar10", "model.image_channels=2", "model.image_channels 1, 3"),
        ("cifar10", "model.bits=9", "model.bits 1 8"),
        ("cifar10", "model.width=3", "0.25 width 3 resolution"),
        ("cifar10", "model.width=1e30", "model.width 2**63 '1e30'"),
        ("cifar10", "model.zdim=1e6", "model.zdim 65536 1000000"),
        ("cifar10", "model.custom_width_str=1:65537", "65537 65536"),
        ("cifar10", "model.bottleneck_multiple=inf", "model.bottleneck_multiple 0 16 inf"),
        ("cifar10", "model.input_scale=0", "model.input_scale finite 0.0"),
        ("cifar10", "model.input_shift=-inf", "model.input_shift finite -inf"),
        ("cifar10", "model.no_bias_above=-1", "model.no_bias_above negative -1"),
        ("cifar10", "model.custom_width_str=12:3", "resolution 12"),
        ("cifar10", "model.enc_blocks=32x11,32d3", "'32d3' 32 3"),
        ("ffhq256", "model.bits=4 model.binning=released", "released 5 8 bits"),
    ],
)
def test_one_line_for_each_mistake(hps: str, override: str, words: str) -> None:
    with pytest.raises(ValueError) as error:
        load_config(hps, override.split())
    says(error.value, words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {custom_width_str: 16:24}", "model.custom_width_str quotes 984"),
        ("model: 3", "section model keys"),
        ("- 1", "loop.yaml model data train"),
        ("model: {", "YAML"),
        ("[]", "loop.yaml model data train"),
        ("train: {lr: !!bool maybe}", "YAML 'maybe'"),
        ("[" * 2000, "YAML RecursionError"),
        ("train: {lr: 1, lr: 1}", "'lr' twice"),
        ("train: {lr: 1}\nmodel: {}\ntrain: {seed: 1}", "'train' twice"),
        ("base: loop", "loop.yaml `base` itself"),
        ("base: ../here/loop", "loop.yaml `base` itself"),
        ("base: [cifar10]", "base quotes list"),
        ("train: {lr: true}", "train.lr number True"),
        ("data: {dataset: cifar10}", "model.enc_blocks not set"),
    ],
)
def test_one_line_for_each_mistake_in_a_file(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "here/loop.yaml"
    path.parent.mkdir()
    path.write_text(text)
    with refuses(words):
        load_config(str(path), [])


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes("data: {root: Köln}".encode("latin-1"))
    with refuses("mine.yaml YAML x00f6", UserError):
        load_config(f"cifar10,{tmp_path / 'mine.yaml'}", [])


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    """They are not there twice."""
    text = "base: cifar10\ntrain: {<<: {lr: 1, seed: 5}, lr: 2}\n"
    (tmp_path / "mine.yaml").write_text(text)
    config = load_config(str(tmp_path / "mine.yaml"), [])
    assert (config.train.lr, config.train.seed) == (2, 5)


def test_tiny_is_a_preset_like_any_other() -> None:
    assert load_config(str(TINY), []).train.batch_size == 8


def test_a_git_lfs_pointer_is_no_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with refuses(f"{path} `git lfs pull`"):
        load_config(str(path))
