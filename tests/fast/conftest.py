"""Models of several shapes."""

from __future__ import annotations

import pytest

from tests.conftest import TINY
from vdvae.config import Config, load_config


@pytest.fixture(params=["grey", "colour", "widths", "groups", "switches"])
def config(request: pytest.FixtureRequest) -> Config:
    colour = ["model.image_channels=3", "data.dataset=cifar10", "model.image_size=32", "model.num_mixtures=10"]
    blocks = ["model.enc_blocks=32d4,8x2,8d8,1x1", "model.dec_blocks=1x1,8m1,8x2,32m8,32x1"]
    widths = [*colour, *blocks, "model.custom_width_str=8:12"]
    overrides = {
        "grey": [],
        "colour": [*colour, *blocks],
        "widths": widths,
        "groups": [*widths, "model.stochastic_group=3"],
        "switches": [*widths, "model.residual_scaling=false", "model.unpool=conv", "model.topdown_residual=false"],
    }
    return load_config(str(TINY), overrides[request.param])
