"""The model equals the original implementation: outputs of openai/vdvae ea35b49 with random weights, on CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import vdvae
from vdvae import VDVAE

GOLDEN = Path(__file__).parent / "golden"
CASES = ["a_32px_8bit", "b_32px_5bit_widths"]


class Case(NamedTuple):
    arrays: dict[str, np.ndarray]
    model: VDVAE
    images: Tensor

    def expected(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def latents(self, layers: int) -> list[Tensor]:
        return [self.expected(f"z/{i}") for i in range(layers)]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """Loaded from files as the original implementation wrote them, with the model's settings in a YAML file."""
    with np.load(GOLDEN / f"{request.param}.npz") as file:
        arrays = dict(file)
    settings = {
        **json.loads(str(arrays["hparams"])),
        "bits": int(arrays["bits"]),
        "binning": "released",
        "input_shift": float(arrays["shift"]),
        "input_scale": float(arrays["scale"]),
    }
    (tmp_path / "golden.yaml").write_text(yaml.safe_dump({"model": settings}))
    weights = {k.removeprefix("weights/"): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("weights/")}
    torch.save(weights, tmp_path / "golden-iter-1-model-ema.th")
    model = vdvae.load_pretrained(tmp_path / "golden-iter-1-model-ema.th", hps=tmp_path / "golden.yaml")
    return Case(arrays, model, torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2))


def assert_close(actual: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=atol)


def test_forward(case: Case) -> None:
    terms = case.model(case.images, torch.Generator().manual_seed(int(case.arrays["seed"])))
    assert_close(terms.distortion, case.expected("distortion_nats_per_dim"), atol=1e-5)
    assert_close(terms.rate, case.expected("rate_nats_per_dim"), atol=1e-5)
    assert_close(terms.layer_rate.T, case.expected("layer_kl_nats") / case.model.config.dims, atol=1e-5)
    assert terms.nats_per_dim.mean().item() == pytest.approx(float(case.arrays["loss_nats_per_dim"]), abs=1e-5)


def test_encode(case: Case) -> None:
    latents = case.model.encode(case.images, generator=torch.Generator().manual_seed(int(case.arrays["seed"])))
    assert len(latents) == sum(key.startswith("z/") for key in case.arrays)
    for latent, z in zip(latents, case.latents(len(latents)), strict=True):
        assert_close(latent.z, z, atol=1e-4)


def test_parameters_of_the_mixture(case: Case) -> None:
    parameters = mixture_parameters(case.model, case.latents(case.model.num_layers), temperature=1.0)
    assert_close(parameters, case.expected("mixture_params").permute(0, 3, 1, 2), atol=1e-4)


@pytest.mark.parametrize("given", [2, 5])
def test_decode_first_layers_and_prior_means(case: Case, given: int) -> None:
    parameters = mixture_parameters(case.model, case.latents(given), temperature=0.0)
    expected = case.expected(f"decode_first_{given}_rest_prior_mean/mixture_params")
    assert_close(parameters, expected.permute(0, 3, 1, 2), atol=1e-4)


def test_unconditional(case: Case) -> None:
    parameters = mixture_parameters(case.model, [], temperature=0.7, seed=99)
    assert_close(parameters, case.expected("prior_t0.7_seed99/mixture_params").permute(0, 3, 1, 2), atol=1e-4)


def mixture_parameters(model: VDVAE, latents: list[Tensor], temperature: float, seed: int = 0) -> Tensor:
    """The parameters as `decode` computes them, seen on their way into the mixture."""
    seen: list[Tensor] = []
    hook = model.decoder.out_net.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    model.decode(latents, temperature, num_images=3, generator=torch.Generator().manual_seed(seed))
    hook.remove()
    return seen[0]
