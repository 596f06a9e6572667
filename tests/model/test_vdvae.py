"""The library contract: encode, decode, sample, and what is refused; initial weights as in the paper."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.conftest import random_model, refuses, says
from vdvae import VDVAE, ModelConfig, fast
from vdvae.config import Config


@pytest.fixture
def model(tiny: Config) -> VDVAE:
    """With random weights everywhere, so that no layer is at its zero initialisation."""
    return random_model(tiny.model, std=0.2)


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
    assert [tuple(latent.z.shape) for latent in first] == [(3, *shape) for shape in model.latent_shapes[:2]]
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


def test_images_may_lie_in_memory_as_they_like(model: VDVAE, images: Tensor) -> None:
    """The same bits for all layouts, those of arrays `[N, H, W, C]` among them."""
    expected = model(images, seeded()).nats_per_dim
    as_array = images.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)
    for given in (
        as_array,
        images.expand(3, 1, 28, 28),
        torch.stack([images, images], -1)[..., 0],
        images.mT.clone().mT,
    ):
        assert torch.equal(given, images)
        assert torch.equal(model(given, seeded()).nats_per_dim, expected)


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


def grey(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.zeros(shape or (2, 1, 28, 28), dtype=dtype)


PICTURE = Image.new("L", (28, 28))
UP_TO_255 = torch.linspace(0, 255, 2 * 28 * 28).view(2, 1, 28, 28)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (grey(dtype=torch.float32), "uint8 [B, 1, 28, 28] float32 [2, 1, 28, 28] 255"),
        (grey(2, 3, 28, 28), "[2, 3, 28, 28]"),
        (grey(2, 28, 28, 1), "[2, 28, 28, 1] images.permute(0, 3, 1, 2)"),
        (grey(28, 28, 1), "images.permute(2, 0, 1)[None]"),
        (grey(1, 28, 28), "[1, 28, 28] images[None]"),
        (grey(28, 28), "[28, 28] images[None, None]"),
        (grey(5, 28, 28), "[5, 28, 28] images[:, None]"),
        (grey(0, 1, 28, 28), "at least one [0, 1, 28, 28]"),
        (UP_TO_255 / 255, "float32 0..1 (images * 255).round().to(torch.uint8)"),
        (UP_TO_255.half() / 255, "float16 0..1 (images * 255).round().to(torch.uint8)"),
        (UP_TO_255, "float32 images.round().to(torch.uint8)"),
        (UP_TO_255 / 127.5 - 1, "float32 -1..1 ((images + 1) * 127.5).round().to(torch.uint8)"),
        (UP_TO_255 * 257, "0 to 255 0 to 65535"),
        (UP_TO_255 - 128, "0 to 255 -128 to 127"),
        (UP_TO_255 / 0, "NaN infinity"),
        (UP_TO_255.long(), "int64 ; images.to(torch.uint8) makes"),
        (UP_TO_255.int(), "int32 ; images.to(torch.uint8) makes"),
        (UP_TO_255.long() // 255, "int64 ; images.to(torch.uint8) makes"),
        (UP_TO_255.long() * 2, "int64 0 to 510"),
        (UP_TO_255.short() - 1, "int16 -1 to 254"),
        (UP_TO_255 > 99, "bool images.to(torch.uint8) * 255"),
        ((UP_TO_255 / 255).permute(0, 2, 3, 1), "images.permute(0, 3, 1, 2) (images * 255).round()"),
        (grey(2, 1, 32, 32), "[2, 1, 32, 32]"),
        (grey().numpy(), "uint8 tensor ndarray torch.from_numpy(images)"),
        (PICTURE, "tensor Image torch.from_numpy(np.array(images))"),
        ([PICTURE, PICTURE], "tensor list torch.from_numpy(np.stack(images))"),
        ([grey(1, 28, 28).numpy()] * 2, "tensor list torch.from_numpy(np.stack(images))"),
        ([grey(1, 28, 28)] * 2, "tensor list torch.stack(images)"),
        (None, "tensor NoneType"),
    ],
)
def test_refuses_images(model: VDVAE, images: Any, words: str) -> None:
    """By every method that takes them; advice fits the values, and none makes them wrap."""
    with pytest.raises(ValueError, match="images must be") as caught:
        model(images)
    says(caught.value, words)
    assert "\n" not in str(caught.value)
    assert ("255" in words) or ("255)" not in str(caught.value) and "* 255" not in str(caught.value))
    for method in (model.encode, lambda images: model.log_weights(images, 1)):
        with refuses(words):
            method(images)


def test_a_likelihood_refuses_floats(model: VDVAE) -> None:
    with refuses("uint8 float32 images.round()"):
        model.mixture(num_images=2).log_prob(UP_TO_255)


def test_a_likelihood_refuses_other_shapes(model: VDVAE, images: Tensor) -> None:
    """With fewer channels it would count some only."""
    mixture = model.mixture(num_images=3)
    assert mixture.log_prob(images[:1]).shape == (3,)
    for wrong in (images[:, :, :14], images[:2], images[0], images.expand(-1, 3, -1, -1), images.permute(0, 2, 3, 1)):
        with refuses(f"uint8 [3, 1, 28, 28] {list(wrong.shape)}"):
            mixture.log_prob(wrong)
    for other in (images.numpy(), None, [images[0]]):
        with refuses(f"uint8 tensor {type(other).__name__}"):
            mixture.log_prob(other)  # type: ignore[arg-type]


NO_COUNTS = [0, -1, 2.0, "2", True, None, torch.tensor(0.5), torch.tensor(True), np.float64(1), np.True_, 10**30]


@pytest.mark.parametrize("number", NO_COUNTS)
def test_refuses_numbers_that_count_nothing(model: VDVAE, images: Tensor, number: Any) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "num_images": lambda: model.sample(number),
        "samples": lambda: model.log_weights(images, number),
        "layers": lambda: model.encode(images, number),
    }
    for name, call in calls.items():
        if number is None and name != "samples":
            continue
        with refuses(f"{name} whole number 1"):
            call()
    for resolution in ("7", 14.5, None):
        with refuses(f"resolution {resolution!r} 1, 7, 28"):
            model.layers_up_to(resolution)  # type: ignore[arg-type]


def test_whole_numbers_of_numpy_count(model: VDVAE, images: Tensor) -> None:
    assert model.sample(np.int64(2)).shape == (2, 1, 28, 28)
    assert len(model.encode(images, np.int32(2))) == 2
    assert model.log_weights(images, np.uint8(1)).shape == (1, 3)


@pytest.mark.parametrize("generator", [0, "0", np.random.default_rng(0), torch.tensor(0)])
def test_refuses_what_is_no_generator(model: VDVAE, images: Tensor, generator: Any) -> None:
    """At every call that takes one, whether or not noise is needed."""
    z = [latent.z for latent in model.encode(images)]
    calls: list[Callable[[], Any]] = [
        lambda: model(images, generator),
        lambda: model.encode(images, generator=generator),
        lambda: model.top_down(images, ["posterior"] * 3, generator=generator),
        lambda: model.decode(z, output="mean", generator=generator),
        lambda: model.sample(1, generator=generator),
        lambda: model.log_weights(images, 1, generator),
        lambda: model.mixture(num_images=1).sample(generator),
    ]
    for call in calls:
        with refuses(f"generator torch.Generator {type(generator).__name__} torch.Generator().manual_seed(0)"):
            call()
    with refuses(f"torch.Generator {type(generator).__name__}"):
        fast.recorded(lambda images, noise: model(images, noise).nats_per_dim, model)(images, generator)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_refuses_weights_of_half_precision(model: VDVAE, images: Tensor, dtype: torch.dtype) -> None:
    z = [latent.z for latent in model.encode(images)]
    half = copy.deepcopy(model).to(dtype)
    for call in (lambda: half(images), lambda: half.encode(images), lambda: half.decode(z), lambda: half.sample(1)):
        with refuses(f"float32 {str(dtype).removeprefix('torch.')} model.float() torch.autocast"):
            call()


@pytest.mark.parametrize("prepared", [False, True])
def test_in_double_precision_the_same_numbers(model: VDVAE, images: Tensor, prepared: bool) -> None:
    """From the same noise, which is drawn in fp32, whatever one calls."""
    double = copy.deepcopy(model).double()
    double = fast.prepare(double) if prepared else double
    for call in (
        lambda m: m(images, seeded()).nats_per_dim,
        lambda m: m.encode(images, generator=seeded())[2].z,
        lambda m: m.decode(m.encode(images, mode="mean"), output="mean"),
        lambda m: m.sample(2, 0.7, output="mean", generator=seeded()),
        lambda m: m.flatten(m.encode(images, generator=seeded())),
        lambda m: m.log_weights(images, 2, seeded()) / m.config.dims,
    ):
        result = call(double)
        assert result.dtype == torch.float64
        torch.testing.assert_close(result.float(), call(model), rtol=1e-3, atol=1e-3)
    assert double.sample(2).dtype == torch.uint8


def test_refuses_what_cannot_be_decoded(model: VDVAE, images: Tensor) -> None:
    z = [latent.z.detach() for latent in model.encode(images)]
    with refuses("4 3"):
        model.decode([*z, z[0]])
    with refuses("1 [3, 2, 7, 7] [3, 2, 1, 1]"):
        model.decode([z[0], z[0]])
    with refuses("num_images"):
        model.decode()
    with refuses("2 temperatures 3"):
        model.sample(1, temperature=[1.0, 1.0])
    with refuses("negative"):
        model.sample(1, temperature=-0.1)
    with refuses("'sample' 'mean' 'mode'"):
        model.sample(1, output="mode")  # type: ignore[arg-type]
    with refuses("layers 1 3 4"):
        model.encode(images, layers=4)
    with refuses("layers 1 3 0"):
        model(images, layers=0)
    with refuses("latents finite"):
        model.decode([z[0], z[1] * torch.nan])
    with refuses("latents finite"):
        model.flatten([z[0] / 0])
    with refuses("0 floats int64"):
        model.decode([z[0].long()])
    with refuses("list model.unflatten"):
        model.decode(model.flatten(z))  # type: ignore[arg-type]
    with refuses("latent 0 must be [1, 2, 1, 1], not [0, 2, 1, 1]"):
        model.decode([z[0][:0]])
    with refuses("latent 0 must be [1, 2, 1, 1], not []"):
        model.decode([torch.tensor(1.0)])
    for latents, words in (
        (model.encode(images)[0], "list Latent [latent]"),
        (model.encode(images)[0].prior, "list DiagonalGaussian"),
        (z[0].numpy(), "list ndarray"),
        ({0: z[0]}, "list dict"),
        ("prior", "list str"),
        (5, "list int"),
        (iter(z), "list list_iterator"),
    ):
        for method in (model.decode, model.flatten, lambda latents: model.top_down(None, latents)):
            with refuses(words):
                method(latents)  # type: ignore[arg-type]
    with refuses("layer 0 tensor ndarray torch.from_numpy"):
        model.decode([z[0].numpy()])  # type: ignore[list-item]
    with refuses("layer 1 tensor list"):
        model.decode([z[0], z[1].tolist()])  # type: ignore[list-item]
    with refuses("num_images 1 0"):
        model.sample(0)
    with refuses("posterior images"):
        model.top_down(None, ["posterior"])
    with refuses("0 'posterior' 'prior' 'q'"):
        model.top_down(images, ["q"])  # type: ignore[list-item]
    with refuses("num_images 2 3"):
        model.top_down(images, num_images=2)
    with refuses("samples 1 0"):
        model.log_weights(images, 0)


@pytest.mark.parametrize(
    ("temperature", "words"),
    [
        ([0.5, math.nan, 0.5], "finite negative"),
        (math.inf, "finite negative"),
        ({1: 1.0, 14: 0.5}, "resolution 14 1, 7, 28"),
        ({7: 1.0}, "lowest 1"),
        (None, "number layer resolution NoneType"),
        ("0.8", "number '0.8'"),
        ("hot", "number 'hot'"),
        (b"1", "number b'1'"),
        (True, "number True"),
        (["0.8", 0.8, 0.8], "number '0.8'"),
        ([0.8, None, 0.8], "number NoneType"),
        ({1: "0.8"}, "number '0.8'"),
        (torch.zeros(3, 2), "number Tensor"),
        (1j, "number complex"),
        (np.complex64(0.5), "number complex64"),
        (np.array("0.8"), "number ndarray"),
        (np.True_, "number bool"),
        (torch.tensor(True), "number Tensor"),
        ({0.5, 0.6, 0.7}, "number set"),
        (10**400, "finite negative"),
        (1e39, "finite negative"),
    ],
)
def test_refuses_temperatures(model: VDVAE, temperature: Any, words: str) -> None:
    with refuses(words):
        model.sample(1, temperature)


def test_temperatures_by_resolution_and_per_layer(model: VDVAE) -> None:
    """Each from its resolution on; the layers are at 1, 7 and 28."""
    expected = model.sample(2, [0.9, 0.9, 0.3], generator=seeded())
    assert torch.equal(model.sample(2, {1: 0.9, 28: 0.3}, generator=seeded()), expected)
    assert torch.equal(model.sample(2, torch.tensor([0.9, 0.9, 0.3]).tolist(), generator=seeded()), expected)
    same = model.sample(2, 0.9, generator=seeded())
    scalar: Any = torch.tensor(0.9, dtype=torch.float64)
    assert torch.equal(model.sample(2, scalar, generator=seeded()), same)


def test_posterior_temperatures_of_the_layers_that_are_encoded(model: VDVAE, images: Tensor) -> None:
    z = model.encode(images, layers=2, temperature=[0.0, 1.0], generator=seeded())
    assert z[0].posterior is not None
    assert z[1].posterior is not None
    assert torch.equal(z[0].z, z[0].posterior.mean)
    assert not torch.equal(z[1].z, z[1].posterior.mean)
    with refuses("3 temperatures 2"):
        model.encode(images, layers=2, temperature=[1.0, 1.0, 1.0])


def test_each_layer_from_where_one_says(model: VDVAE, images: Tensor) -> None:
    """Given, then prior, then posterior: as the layers say of themselves."""
    given = torch.randn(3, *model.latent_shapes[0], generator=seeded(3))
    result = model.top_down(images, [given, "prior", "posterior"], temperature=0.0)
    first, second, third = result.latents
    assert torch.equal(first.z, given)
    assert torch.equal(second.z, second.prior.mean)
    assert second.posterior is None
    assert first.posterior is not None
    assert third.posterior is not None
    assert torch.equal(third.z, third.posterior.mean)
    torch.testing.assert_close(result.mixture.mean(), model.decode([given, None, third], 0.0, output="mean"))
    with refuses("posterior prior"):
        _ = second.kl


def test_fewer_layers_from_the_posterior_have_the_rate_of_those(model: VDVAE, images: Tensor) -> None:
    """L^{>1}: the upper two layers as in the ELBO, the lowest from the prior, at no rate."""
    whole, upper = model(images, seeded()), model(images, seeded(), layers=2)
    assert torch.equal(upper.layer_rate[:, :2], whole.layer_rate[:, :2])
    assert torch.equal(upper.layer_rate[:, 2], torch.zeros(3))
    latents = model.encode(images, generator=seeded())[:2]
    noise = seeded()
    for shape in model.latent_shapes[:2]:
        torch.randn(3, *shape, generator=noise)
    distortion = -model.mixture(latents, generator=noise).log_prob(images) / model.config.dims
    torch.testing.assert_close(upper.distortion, distortion)


def test_log_densities(model: VDVAE, images: Tensor) -> None:
    for latent in model.encode(images):
        assert latent.posterior is not None
        for distribution, log_density in ((latent.prior, latent.log_prior), (latent.posterior, latent.log_posterior)):
            expected = torch.distributions.Normal(distribution.mean, distribution.log_std.exp()).log_prob(latent.z)
            torch.testing.assert_close(log_density, expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_all_that_a_density_depends_on(model: VDVAE, images: Tensor) -> None:
    """log p(z_3 | z_1, z_2) moves z_1; the KL of a layer moves the encoder's first weights."""
    z = [latent.z.detach().requires_grad_() for latent in model.encode(images)]
    model.top_down(None, z).latents[2].log_prior.sum().backward()
    assert all(layer.grad is not None and layer.grad.abs().sum() > 0 for layer in z)
    model.encode(images)[2].kl.sum().backward()
    weight = model.encoder.in_conv.weight
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("mode", ["sample", "mean"])
def test_flattening_and_back_changes_nothing(
    model: VDVAE, images: Tensor, layers: int, mode: Literal["sample", "mean"]
) -> None:
    """The decoded image is the same to the last bit."""
    latents = model.encode(images, layers, mode, generator=seeded())
    flat = model.flatten(latents)
    assert flat.shape == (3, sum(math.prod(shape) for shape in model.latent_shapes[:layers]))
    back = model.unflatten(flat)
    assert all(torch.equal(a.z, b) for a, b in zip(latents, back, strict=True))
    for output in ("sample", "mean"):
        images_of = [
            model.decode(given, 0.7, output, generator=seeded(1))
            for given in (latents, [latent.z for latent in latents], back, [z.double() for z in back])
        ]
        assert all(torch.equal(images_of[0], other) for other in images_of[1:])


def test_flat_latents_go_layer_by_layer_then_channels_rows_columns(model: VDVAE) -> None:
    z = [torch.arange(2 * math.prod(shape)).view(2, *shape).float() + 10_000 * i for i, shape in enumerate(SHAPES)]
    expected = torch.cat([layer.reshape(2, -1) for layer in z], 1)
    assert torch.equal(model.flatten([layer.contiguous(memory_format=torch.channels_last) for layer in z]), expected)


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        (torch.zeros(2, 101), "101 100 1,668"),
        (torch.zeros(100), "[B, N] [100]"),
        ([1.0], "[B, N] list"),
    ],
)
def test_refuses_flat_latents(model: VDVAE, flat: Any, words: str) -> None:
    with refuses(words):
        model.unflatten(flat)


def test_flatten_wants_the_first_layers_without_gaps(model: VDVAE, images: Tensor) -> None:
    z = [latent.z for latent in model.encode(images)]
    for latents in ([], [z[0], None]):
        with refuses("first layers"):
            model.flatten(latents)  # type: ignore[arg-type]


def test_layers_up_to_a_resolution(model: VDVAE) -> None:
    assert [model.layers_up_to(r) for r in (1, 7, 28)] == [1, 2, 3]
    with refuses("14 1, 7, 28"):
        model.layers_up_to(14)


def test_importance_weights_lead_to_the_exact_likelihood() -> None:
    """One latent variable and one sub-pixel: log p(x) by quadrature, and p(x) over all x sums to 1."""
    torch.manual_seed(1)
    config = ModelConfig("1x1", "1x1", 1, 8, image_channels=1, zdim=1, bottleneck_multiple=0.5, num_mixtures=2)
    model = VDVAE(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    prior = model.top_down(None, num_images=1).latents[0].prior
    z = prior.mean + prior.log_std.exp() * torch.linspace(-8, 8, 4001).view(-1, 1, 1, 1)
    log_prior = prior.log_density(z).flatten()
    step = (z[1] - z[0]).item()
    values = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)
    with torch.no_grad():
        mixture = model.mixture([z])
        log_joint = torch.stack([mixture.log_prob(x.expand(4001, 1, 1, 1)) + log_prior for x in values])  # [256, z]
        exact = log_joint.logsumexp(1) + math.log(step)  # [256]
        assert exact.exp().sum().item() == pytest.approx(1, abs=1e-3)
        images = values[[3, 100, 250]]
        weights = model.log_weights(images, 5_000, seeded())
        assert weights.shape == (5_000, 3)
        estimate = weights.logsumexp(0) - math.log(5_000)
        torch.testing.assert_close(estimate, exact[[3, 100, 250]], rtol=0, atol=0.05)
        elbo = -torch.stack([model(images, seeded(i)).nats_per_dim for i in range(50)]).mean(0)
        assert (elbo < estimate).all()


SHAPES = [(2, 1, 1), (2, 7, 7), (2, 28, 28)]
