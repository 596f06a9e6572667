"""The library contract: encode, decode, sample, and what is refused; initial weights as in the paper."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vdvae import VDVAE
from vdvae.config import Config


@pytest.fixture
def model(tiny: Config) -> VDVAE:
    """With random weights everywhere, so that no layer is at its zero initialisation."""
    torch.manual_seed(0)
    model = VDVAE(tiny.model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_terms_add_up(model: VDVAE, images: Tensor) -> None:
    terms = model(images, seeded())
    assert terms.layer_rate.shape == (3, model.num_layers)
    torch.testing.assert_close(terms.rate, terms.layer_rate.sum(1))
    torch.testing.assert_close(terms.nats_per_dim, terms.distortion + terms.rate)


def test_encode_agrees_with_forward(model: VDVAE, images: Tensor) -> None:
    """Same noise, same latents: KL per layer is the forward pass's, and decoding them gives its distortion."""
    terms = model(images, seeded())
    latents = model.encode(images, generator=seeded())
    dims = model.config.dims
    torch.testing.assert_close(torch.stack([z.kl.sum((1, 2, 3)) for z in latents], 1) / dims, terms.layer_rate)
    mixture = model.mixture([latent.z for latent in latents])
    torch.testing.assert_close(-mixture.log_prob(images) / dims, terms.distortion)


def test_encode_first_layers(model: VDVAE, images: Tensor) -> None:
    first = model.encode(images, layers=2, generator=seeded())
    assert [tuple(latent.z.shape) for latent in first] == [(3, *shape) for shape in model.decoder.latent_shapes[:2]]
    for latent, other in zip(first, model.encode(images, generator=seeded()), strict=False):
        assert torch.equal(latent.z, other.z)


def test_encode_means(model: VDVAE, images: Tensor) -> None:
    for latent in model.encode(images, mode="mean"):
        assert latent.posterior is not None
        assert torch.equal(latent.z, latent.posterior.mean)


def test_images_do_not_depend_on_the_rest_of_their_batch(model: VDVAE, images: Tensor) -> None:
    """One by one and together, with means for latents."""
    together = model.encode(images, mode="mean")
    alone = model.encode(images[1:2], mode="mean")
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.z[1:2], b.z, rtol=1e-4, atol=1e-5)


def test_none_takes_a_layer_from_the_prior(model: VDVAE, images: Tensor) -> None:
    z = [latent.z for latent in model.encode(images, generator=seeded())]
    by_none = model.decode([z[0], None, z[2]], temperature=0.0, output="mean")
    prior_mean = model.encode(images, generator=seeded())  # layer 1's prior given z[0]
    torch.testing.assert_close(by_none, model.decode([z[0], prior_mean[1].prior.mean, z[2]], output="mean"))


def test_sample_is_seeded_and_uint8(model: VDVAE) -> None:
    a, b = model.sample(4, temperature=[1.0, 0.5, 0.0], generator=seeded(1)), model.sample(4, generator=seeded(1))
    assert a.dtype == torch.uint8
    assert a.shape == (4, 1, 28, 28)
    assert not torch.equal(a, b)
    assert torch.equal(b, model.sample(4, generator=seeded(1)))


def test_temperature_zero_takes_no_noise(model: VDVAE) -> None:
    a = model.decode(num_images=2, temperature=0.0, output="mean", generator=seeded(1))
    assert torch.equal(a, model.decode(num_images=2, temperature=0.0, output="mean", generator=seeded(2)))


def test_gradients_reach_the_latents(model: VDVAE, images: Tensor) -> None:
    z = [latent.z.detach().requires_grad_() for latent in model.encode(images)]
    model.decode(z, output="mean").sum().backward()
    assert all(layer.grad is not None and layer.grad.abs().sum() > 0 for layer in z)


def test_every_parameter_learns(tiny: Config, images: Tensor) -> None:
    """At the initial weights some gradients are zero (the priors' last convolution), but none is missing."""
    model = VDVAE(tiny.model)
    model(images).nats_per_dim.mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_initial_weights(tiny: Config) -> None:
    """Zero prior, zero biases, and 1/sqrt(N) on the last convolutions and latent projections (paper Section 4)."""
    model = VDVAE(replace(tiny.model, enc_blocks="28x8,28d4,7x8,7d7,1x1", dec_blocks="1x2,7m1,7x8,28m7,28x8"))
    for name, parameter in model.named_parameters():
        if name.endswith(("prior.c4.weight", "bias")) or "bias_xs" in name:
            assert torch.count_nonzero(parameter) == 0, name
    assert_uniform_within(model, r"enc_blocks\.\d+\.c4.weight", fan_in=4, n=19)
    assert_uniform_within(model, r"resnet\.c4.weight", fan_in=4, n=20)
    assert_uniform_within(model, r"z_proj\.weight", fan_in=2, n=20)
    assert_uniform_within(model, r"dec_blocks\.\d+\.enc\.c4.weight", fan_in=4, n=1)


def assert_uniform_within(model: VDVAE, pattern: str, fan_in: int, n: int) -> None:
    """PyTorch's default is uniform within 1/sqrt(fan_in); the paper scales it by 1/sqrt(n)."""
    weights = torch.cat([p.flatten() for name, p in model.named_parameters() if re.search(pattern, name)])
    bound = 1 / math.sqrt(fan_in * n)
    assert weights.abs().max().item() <= bound
    assert weights.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)


def test_no_bias_above(tiny: Config) -> None:
    model = VDVAE(replace(tiny.model, no_bias_above=7))
    assert [tuple(bias.shape) for bias in model.decoder.bias_xs] == [(1, 8, 1, 1), (1, 8, 7, 7)]


def test_widths_by_resolution(tiny: Config, images: Tensor) -> None:
    """Wider and narrower states on the way up: cropped or padded with zeros."""
    model = VDVAE(replace(tiny.model, custom_width_str="1:6,7:12"))
    assert model(images).nats_per_dim.shape == (3,)
    assert model.sample(2).shape == (2, 1, 28, 28)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(2, 1, 28, 28), r"images must be uint8 \[B, 1, 28, 28\], not float32 \[2, 1, 28, 28\]"),
        (torch.zeros(2, 3, 28, 28, dtype=torch.uint8), r"not uint8 \[2, 3, 28, 28\]"),
        (torch.zeros(2, 28, 28, 1, dtype=torch.uint8), r"not uint8 \[2, 28, 28, 1\]"),
    ],
)
def test_refuses_images(model: VDVAE, images: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model(images)


def test_refuses_what_cannot_be_decoded(model: VDVAE, images: Tensor) -> None:
    z = [latent.z for latent in model.encode(images)]
    with pytest.raises(ValueError, match="latents for 4 layers; the model has 3"):
        model.decode([*z, z[0]])
    with pytest.raises(ValueError, match=r"latent 1 must be \[3, 2, 7, 7\], not \[3, 2, 1, 1\]"):
        model.decode([z[0], z[0]])
    with pytest.raises(ValueError, match="pass num_images"):
        model.decode()
    with pytest.raises(ValueError, match="got 2 temperatures for 3 layers"):
        model.sample(1, temperature=[1.0, 1.0])
    with pytest.raises(ValueError, match="finite and not negative"):
        model.sample(1, temperature=-0.1)
    with pytest.raises(ValueError, match="'sample' or 'mean', not 'mode'"):
        model.sample(1, output="mode")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers must be from 1 to 3, not 4"):
        model.encode(images, layers=4)
