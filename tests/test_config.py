"""Configuration: precedence, coercion, and one helpful line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import TINY
from vdvae.config import PRESETS, differing_keys, from_dict, load_config, save_config, to_dict


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


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_survives_being_saved(path: Path, tmp_path: Path) -> None:
    config = load_config(path.stem, [])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml"), []) == config
    assert from_dict(to_dict(config), "there") == config


def test_differing_keys() -> None:
    a, b = load_config("cifar10", []), load_config("cifar10", ["model.zdim=8", "train.lr=1"])
    assert differing_keys(a, b) == ["model.zdim", "train.lr"]


@pytest.mark.parametrize(
    ("hps", "override", "said"),
    [
        ("imagnet32", "", "there is no preset 'imagnet32' (did you mean 'imagenet32'?); configs/ has cifar10, fash"),
        ("nothing.yaml", "", "there is no preset 'nothing.yaml'"),
        ("cifar10", "train.learning_rate=1", "command line: unknown key train.learning_rate"),
        ("cifar10", "train.batchsize=1", "unknown key train.batchsize (did you mean 'batch_size'?)"),
        ("cifar10", "trian.lr=1", "unknown section 'trian' (did you mean 'train'?)"),
        ("cifar10", "lr=1", "'lr=1' is not of the form section.key=value"),
        ("cifar10", "train.lr", "'train.lr' is not of the form section.key=value"),
        ("cifar10", "train.lr=fast", "command line: train.lr must be a number, not 'fast'"),
        ("cifar10", "train.lr=nan", "train.lr must be a number, not 'nan'"),
        ("cifar10", "train.lr=0", "train.lr must be above 0"),
        ("cifar10", "train.batch_size=1.5", "train.batch_size must be a whole number, not '1.5'"),
        ("cifar10", "train.batch_size=inf", "train.batch_size must be a whole number, not 'inf'"),
        ("cifar10", "train.batch_size=0", "train.batch_size must be at least 1"),
        ("cifar10", "train.compile=1", "train.compile must be true or false"),
        ("cifar10", "train.precision=fp8", "train.precision must be one of fp32, tf32, bf16, fp16, not 'fp8'"),
        ("cifar10", "train.ema_decay=1", "train.ema_decay must be from 0 to below 1"),
        ("imagenet32", "data.variant=old", "data.variant must be one of original, newer, not 'old'"),
        ("cifar10", "data.workers=0", "data.workers must be at least 1"),
        ("cifar10", "model.image_channels=2", "model.image_channels must be one of 1, 3"),
        ("cifar10", "model.bits=9", "model.bits must be from 1 to 8"),
        ("cifar10", "model.width=3", "0.25 of width 3 at resolution"),
        ("cifar10", "model.custom_width_str=12:3", "no block has resolution 12"),
        ("cifar10", "model.enc_blocks=32x11,32d3", "'32d3' cannot pool resolution 32 by 3"),
        ("ffhq256", "model.bits=4 model.binning=released", "released exists for 5 and 8 bits"),
    ],
)
def test_one_line_for_each_mistake(hps: str, override: str, said: str) -> None:
    with pytest.raises(ValueError) as error:
        load_config(hps, override.split())
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {custom_width_str: 16:24}", "model.custom_width_str must be text (in quotes), not 984"),
        ("model: 3", "section model must hold keys and values"),
        ("- 1", "must hold the sections model, data, train"),
        ("model: {", "not valid YAML"),
        ("base: loop", "its `base` leads back to itself"),
        ("train: {lr: true}", "train.lr must be a number, not True"),
        ("data: {dataset: cifar10}", "model.enc_blocks is not set, and it has no default"),
    ],
)
def test_one_line_for_each_mistake_in_a_file(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        load_config(str(path), [])
    assert said in str(error.value)


def test_tiny_is_a_preset_like_any_other() -> None:
    assert load_config(str(TINY), []).train.batch_size == 8
