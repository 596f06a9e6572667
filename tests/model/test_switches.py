"""The architecture switches of Table 1, Table 3 and Figure 5."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from tests.conftest import ROOT, random_model, refuses
from vdvae import VDVAE, ModelConfig
from vdvae.config import load_config
from vdvae.model.gaussian import DiagonalGaussian, Latent
from vdvae.model.vdvae import TopDownBlock

SMALL = ModelConfig(
    image_size=8,
    image_channels=1,
    enc_blocks="8d2,4x1,4d4,1x1",
    dec_blocks="1x1,4m1,4x2,8m4,8x1",  # 6 layers
    width=8,
    custom_width_str="4:12",
    bottleneck_multiple=0.5,
    zdim=2,
    num_mixtures=2,
)
FORTY_EIGHT = str(ROOT / "experiments/configs/48-layers.yaml")


def random_images(count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def parameters_of(latent: Latent) -> Tensor:
    """Those of a layer's prior and posterior, flat."""
    assert isinstance(latent.posterior, DiagonalGaussian)
    return torch.cat([tensor.flatten() for tensor in (*latent.prior, *latent.posterior)])


# --- Grouping (Table 1, left)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_layers_of_a_group_do_not_depend_on_each_others_latents_and_those_of_later_groups_do(k: int) -> None:
    """The Jacobian of each layer's prior and posterior parameters with respect to each z: exactly zero, or not."""
    model, images = random_model(replace(SMALL, stochastic_group=k)), random_images(1)
    z = [torch.randn(1, *shape, generator=seeded()) for shape in model.latent_shapes]

    def distributions(*given: Tensor) -> tuple[Tensor, ...]:
        _, latents = model.decoder(1, model.encoder_features(images), list(given), [1.0] * 6, None)
        return tuple(parameters_of(latent) for latent in latents)

    for layer, by_z in enumerate(jacobian(distributions, tuple(z))):
        for other, slope in enumerate(by_z):
            if other // k < layer // k:
                assert slope.abs().max() > 1e-6, (layer, other)
            else:
                assert torch.count_nonzero(slope) == 0, (layer, other)


def test_groups_of_one_are_the_plain_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: every block reads the very state that it adds to, and not a copy."""
    calls = []
    forward = TopDownBlock.forward

    def watched(block: TopDownBlock, x: Tensor, read: Tensor, *arguments: Any) -> Any:
        calls.append(x is read)
        return forward(block, x, read, *arguments)

    monkeypatch.setattr(TopDownBlock, "forward", watched)
    random_model(SMALL)(random_images())
    random_model(replace(SMALL, stochastic_group=2))(random_images())
    assert calls == [True] * 6 + [True, False] * 3


@pytest.mark.parametrize("k", [2, 3, 6])
def test_groups_change_no_parameter(k: int) -> None:
    plain, grouped = random_model(SMALL).state_dict(), random_model(replace(SMALL, stochastic_group=k)).state_dict()
    assert list(plain) == list(grouped)
    assert all(torch.equal(plain[name], grouped[name]) for name in plain)


def test_groups_change_the_bound() -> None:
    plain, grouped = random_model(SMALL), random_model(replace(SMALL, stochastic_group=3))
    rates = [model(random_images(), seeded()).layer_rate for model in (plain, grouped)]
    assert torch.equal(rates[0][:, 0], rates[1][:, 0])
    assert not torch.isclose(rates[0][:, 1:], rates[1][:, 1:]).any()


@pytest.mark.parametrize("k", [2, 3])
def test_a_grouped_model_decodes_what_it_encodes(k: int) -> None:
    model = random_model(replace(SMALL, stochastic_group=k))
    latents = model.encode(random_images(), generator=seeded())
    terms = model(random_images(), seeded())
    distortion = -model.mixture([latent.z for latent in latents]).log_prob(random_images()) / model.config.dims
    torch.testing.assert_close(distortion, terms.distortion)
    first = model.encode(random_images(), layers=4, generator=seeded())
    assert all(torch.equal(a.z, b.z) for a, b in zip(first, latents, strict=False))


def test_depths_of_table_1() -> None:
    config = load_config(FORTY_EIGHT, []).model
    depths = [replace(config, stochastic_group=k).stochastic_depth for k in (1, 2, 4, 8, 16)]
    assert depths == [48, 24, 12, 6, 3]


@pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
def test_parameters_of_table_1(k: int) -> None:
    """41M in the paper; here 41,462,884 at a width of 384, whatever the groups."""
    config = replace(load_config(FORTY_EIGHT, []).model, stochastic_group=k)
    with torch.device("meta"):
        model = VDVAE(config)
    assert config.width == 384
    assert sum(p.numel() for p in model.parameters()) == 41_462_884
    assert {r: len(list(layers)) for r, layers in groupby(model.resolutions)} == {1: 2, 4: 4, 8: 10, 16: 16, 32: 16}


@pytest.mark.parametrize("k", [0, -1, 4, 5, 7, 12])
def test_groups_must_divide_the_layers(k: int) -> None:
    with refuses(f"model.stochastic_group 6 {k} 1, 2, 3, 6"):
        replace(SMALL, stochastic_group=k)


# --- 1/sqrt(N) (Table 3)


def test_scaling_of_initial_weights() -> None:
    """What the blocks add to the state starts 1/sqrt(N) times as large as without: N = 6 top-down, 4 bottom-up."""
    weights = []
    for residual_scaling in (True, False):
        torch.manual_seed(0)
        weights.append(VDVAE(replace(SMALL, residual_scaling=residual_scaling)).state_dict())
    scaled = {"resnet.c4.weight": 6**-0.5, "z_proj.weight": 6**-0.5}
    for name, weight in weights[0].items():
        factor = next((factor for ending, factor in scaled.items() if name.endswith(ending)), 1.0)
        if name.startswith("encoder.enc_blocks") and name.endswith("c4.weight"):
            factor = 4**-0.5
        torch.testing.assert_close(weight, weights[1][name] * factor, msg=name)


# --- Top-down designs (Figure 5)


def test_a_learned_upsampler_is_added_to_the_parameters_of_the_paper() -> None:
    plain, learned = (
        {name: parameter.shape for name, parameter in VDVAE(config).named_parameters()}
        for config in (SMALL, replace(SMALL, unpool="conv"))
    )
    added = {name: shape for name, shape in learned.items() if name not in plain}
    assert plain.items() <= learned.items()
    assert added == {
        "decoder.dec_blocks.1.unpool.weight": (8, 12, 4, 4),
        "decoder.dec_blocks.1.unpool.bias": (12,),
        "decoder.dec_blocks.4.unpool.weight": (12, 8, 2, 2),
        "decoder.dec_blocks.4.unpool.bias": (8,),
    }


def test_without_residual_connections_a_top_down_block_forgets_its_state() -> None:
    model = random_model(replace(SMALL, topdown_residual=False))
    for block in model.decoder.dec_blocks:
        assert isinstance(block, TopDownBlock) and block.resnet.c4.bias is not None
        torch.nn.init.zeros_(block.resnet.c4.weight)
        torch.nn.init.zeros_(block.resnet.c4.bias)
    x, _ = model.decoder(2, None, ["prior"] * 6, [1.0] * 6, seeded())
    assert torch.equal(x, model.decoder.bias.expand_as(x))  # nothing is left but what the decoder adds at its end
    encoder = random_model(SMALL).encoder(torch.randn(2, 1, 8, 8, generator=seeded()))
    same = model.encoder(torch.randn(2, 1, 8, 8, generator=seeded()))
    assert all(torch.equal(encoder[r], same[r]) for r in encoder)  # it is the top-down path alone


def test_an_unknown_upsampler() -> None:
    with refuses("model.unpool nearest conv 'bilinear'"):
        replace(SMALL, unpool="bilinear")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("residual_scaling", "false", "bool"),  # which would be true
        ("topdown_residual", 1, "bool"),
        ("bits", True, "int"),
        ("width", 2.0, "int"),
        ("zdim", "8", "int"),
        ("enc_blocks", None, "str"),
        ("input_scale", "1", "float"),
    ],
)
def test_values_of_other_types_are_refused(key: str, value: Any, kind: str) -> None:
    config = load_config("fashion", []).model
    with refuses(f"model.{key} {kind} {value!r}"):
        replace(config, **{key: value})


@pytest.mark.parametrize("config", ["cifar10", None, {}, load_config("fashion", [])])
def test_a_model_is_made_from_its_configuration(config: Any) -> None:
    with refuses(f"VDVAE ModelConfig {type(config).__name__}"):
        VDVAE(config)
