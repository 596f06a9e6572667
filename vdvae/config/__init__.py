"""The configuration of a run: its three sections, from presets and the command line."""

from vdvae.config.reading import (
    PRESETS,
    differing_fields,
    differing_keys,
    from_dict,
    load_config,
    load_model_config,
    override_section,
    save_config,
    settings,
    to_dict,
    with_absolute_root,
)
from vdvae.config.sections import Config, DataConfig, TrainConfig, Variant

__all__ = [
    "PRESETS",
    "Config",
    "DataConfig",
    "TrainConfig",
    "Variant",
    "differing_fields",
    "differing_keys",
    "from_dict",
    "load_config",
    "load_model_config",
    "override_section",
    "save_config",
    "settings",
    "to_dict",
    "with_absolute_root",
]
