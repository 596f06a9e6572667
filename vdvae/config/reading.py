"""Typed configuration: dataclass defaults < YAML presets < command line, and nothing unknown."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vdvae.config.sections import Config
from vdvae.errors import UserError, did_you_mean, user_path
from vdvae.files import atomic_write, check_is_itself
from vdvae.model.config import ModelConfig

INSTALLED = Path(__file__).resolve().parents[1] / "configs"
PRESETS = INSTALLED if INSTALLED.is_dir() else INSTALLED.parents[1] / "configs"
"""The folder of presets: configs/ of an installed package, or of the checkout that this is."""


SECTIONS: dict[str, Any] = typing.get_type_hints(Config)

Values = dict[str, dict[str, Any]]
"""Section -> key -> value, already of the field's type."""

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text (in quotes)"}
"""The plain types of fields, in messages."""
LARGEST = 2**63
"""PyTorch takes no larger whole numbers."""


def load_config(hps: str, overrides: Sequence[str] = ()) -> Config:
    """Reads presets and command-line settings.

    Args:
        hps: names of files in configs/, or paths, separated by commas; later ones win.
        overrides: `section.key=value`, winning over the presets.

    Raises:
        UserError: one line naming the key, where it was read and, for a misspelling, the nearest valid name.
        ValueError: the values do not describe a model, data set or run.
    """
    values = _read_presets(hps)
    for override in overrides:
        _merge(values, _override(override))
    return Config(**{section: _build(section, values, hps) for section in SECTIONS})


def load_model_config(hps: str) -> ModelConfig:
    """Reads the model of presets, whose other sections may be incomplete; otherwise as `load_config`."""
    config: ModelConfig = _build("model", _read_presets(hps), hps)
    return config


def override_section(section: Any, name: str, overrides: Sequence[str]) -> Any:
    """One section of a configuration with settings from the command line, `name.key=value`, which may be of no other.

    Raises:
        UserError: as for `load_config`, or a setting of another section.
    """
    for override in overrides:
        values = _override(override)
        if name not in values:
            raise UserError(f"command line: {override!r} cannot be set here; only {name}.key=value can")
        section = dataclasses.replace(section, **values[name])
    return section


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved configuration as YAML that `load_config` reads."""
    with atomic_write(path) as file:
        file.write(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False).encode())


def to_dict(config: Config) -> Values:
    """The resolved configuration as plain values."""
    return dataclasses.asdict(config)


def from_dict(values: Values, source: str) -> Config:
    """The inverse of `to_dict`, checked like a preset; `source` is named in messages."""
    checked: Values = {section: {} for section in SECTIONS}
    _merge(checked, _checked(values, source))
    return Config(**{section: _build(section, checked, source) for section in SECTIONS})


def settings(config: Config) -> dict[str, Any]:
    """Every value by its `section.key`."""
    return {f"{section}.{key}": value for section, keys in to_dict(config).items() for key, value in keys.items()}


def with_absolute_root(config: Config) -> Config:
    """The same, with a data.root that leads to the data set from any directory."""
    root = str(user_path(config.data.root).absolute())
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=root))


def differing_keys(a: Config, b: Config) -> list[str]:
    """`section.key` of every value in which two configurations differ."""
    return [f"{s}.{key}" for s in SECTIONS for key in differing_fields(getattr(a, s), getattr(b, s))]


def differing_fields(a: Any, b: Any) -> list[str]:
    """The names of the fields in which two dataclasses of one type differ."""
    names = [field.name for field in dataclasses.fields(a)]
    return [name for name in names if getattr(a, name) != getattr(b, name)]


def _override(text: str) -> Values:
    key, equals, value = text.partition("=")
    section, dot, name = key.partition(".")
    if not (equals and dot):
        raise UserError(f"command line: {text!r} is not of the form section.key=value")
    return _checked({section: {name: value}}, "command line")


def _read_presets(hps: str) -> Values:
    values: Values = {section: {} for section in SECTIONS}
    for name in hps.split(","):
        _merge(values, _read_preset(name.strip()))
    return values


def _read_preset(name: str, seen: tuple[Path, ...] = ()) -> Values:
    path = user_path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        presets = sorted(file.stem for file in PRESETS.glob("*.yaml"))
        known = f"configs/ has {', '.join(presets)}" if presets else f"{PRESETS} has none at all"
        raise UserError(
            f"there is no preset {name!r}{did_you_mean(name, presets)}; {known}, and a path must end in .yaml"
        )
    if path.resolve() in seen:
        raise UserError(f"{path}: its `base` leads back to itself")
    check_is_itself(path)
    text = path.read_bytes()
    try:
        content = yaml.load(text, _Loader)
    except Exception as error:  # PyYAML meets `!!bool maybe` with a KeyError, `2026-13-01` with a ValueError, and so on
        reason = str(error) if isinstance(error, yaml.YAMLError) else f"{type(error).__name__}, {error}"
        raise UserError(f"{path}: not valid YAML: {reason}") from error
    if content is None:  # nothing, or comments only
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold the sections {', '.join(SECTIONS)}")
    values: Values = {section: {} for section in SECTIONS}
    if "base" in content:
        base = _coerce(content.pop("base"), str, f"{path}: base")
        local = path.parent / user_path(f"{base}.yaml")
        _merge(values, _read_preset(str(local) if local.is_file() else base, (*seen, path.resolve())))
    _merge(values, _checked(content, str(path)))
    return values


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice; PyYAML would take the last and forget what the others hold."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
                seen.add(key.value)
        return node


def _merge(into: Values, new: Values) -> None:
    for section, keys in new.items():
        into[section].update(keys)


def _checked(content: dict[str, Any], source: str) -> Values:
    """Knows every section and key of `content`, and gives each value its field's type."""
    checked: Values = {}
    for section, keys in content.items():
        if section not in SECTIONS:
            hint = did_you_mean(str(section), [*SECTIONS, "base"])
            raise UserError(f"{source}: unknown section {section!r}{hint}; there are {', '.join(SECTIONS)}")
        if not isinstance(keys, dict):
            raise UserError(f"{source}: section {section} must hold keys and values")
        hints = typing.get_type_hints(SECTIONS[section])
        for key in keys:
            if key not in hints:
                raise UserError(f"{source}: unknown key {section}.{key}{did_you_mean(str(key), list(hints))}")
        checked[section] = {k: _coerce(v, hints[k], f"{source}: {section}.{k}") for k, v in keys.items()}
    return checked


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Gives a value from YAML or the command line the field's type, of `A | B` that which it fits.

    YAML reads `3e-4` as a string and `512:32` as a number in base 60; the command line has strings only.
    """
    arms = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for arm in sorted(arms, key=KINDS.__contains__):  # None and choices first: they are words, which text would take
        try:
            converted = _converted(value, arm)
        except (ValueError, OverflowError):
            continue
        if isinstance(converted, int) and abs(converted) >= LARGEST:
            raise UserError(f"{where} must be below 2**63, not {_shown(value)}")
        return converted
    allowed = " or ".join(_described(arm) for arm in arms if arm is not types.NoneType)
    raise UserError(f"{where} must be {allowed}, not {_shown(value)}")


def _converted(value: Any, arm: Any) -> Any:
    """A value in a type that is no union; `ValueError` or `OverflowError` where it does not fit."""
    if arm is types.NoneType and (value is None or value in ("none", "null")):
        return None
    if arm is bool and (isinstance(value, bool) or value in ("true", "false")):
        return value in (True, "true")
    if arm is str and isinstance(value, str):
        return value
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        for choice in typing.get_args(arm):
            if value in (choice, str(choice)):
                return choice
        if arm in (int, float):
            number = float(value)
            if arm is float and number == number:
                return number
            if arm is int and number == int(number):
                return int(value) if not isinstance(value, str) or value.lstrip("+-").isdigit() else int(number)
    raise ValueError


def _described(arm: Any) -> str:
    choices = typing.get_args(arm)
    return KINDS[arm] if not choices else f"{'one of ' * (len(choices) > 1)}{', '.join(map(str, choices))}"


def _shown(value: Any) -> str:
    """A value in a message: no longer than a line, even where anchors make a few lines of YAML a huge list."""
    if isinstance(value, (list, dict, set)):
        return f"a {type(value).__name__}"
    if isinstance(value, int) and abs(value) >= LARGEST:
        return "a number that large"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]} ..."


def _build(section: str, values: Values, source: str) -> Any:
    owner = SECTIONS[section]
    for field in dataclasses.fields(owner):
        if field.default is dataclasses.MISSING and field.name not in values[section]:
            raise UserError(f"{source}: {section}.{field.name} is not set, and it has no default")
    return owner(**values[section])
